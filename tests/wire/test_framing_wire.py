"""Methods and hosts over both protocols, and message framing of HTTP/1.1: what is read is what the RFC says is there,
and nothing is answered that only another reader would see (RFC 9112 section 11.2).

Here over whatever path this machine gives; test_ktls_framing_wire.py has it over kTLS.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from tests.http2_client import Stream, http2
from tests.protocols import HTTP_2, BrokenError, ask, conversation
from tests.serving import Running, connect, exchange, exchange_plain, get, parse, parse_all, read_to_end, serving

FIRST, SMUGGLED, LAST = b"first\n", b"smuggled\n", b"last\n"
ALLOW = "GET, HEAD, OPTIONS"
GET_SMUGGLED = b"GET /smuggled.txt HTTP/1.1\r\nHost: a\r\n\r\n"
GET_LAST = b"GET /last.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
GET_FIRST = b"GET /first.txt HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
DRAINED = 60_000
TOO_LARGE = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("root")
    for name, body in (("first", FIRST), ("smuggled", SMUGGLED), ("last", LAST)):
        (root / f"{name}.txt").write_bytes(body)
    with serving(root, state=tmp_path_factory.mktemp("state"), http_listen=("127.0.0.1:0",)) as running:
        yield running


def bodies(data: bytes) -> list[bytes]:
    """What was answered, by the bodies of the files and the statuses of anything else."""
    answers = parse_all(data)
    return [answer.body if answer.status == 200 else str(answer.status).encode() for answer in answers]


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/first.txt", "/", "/nothing", "*", "https://localhost/first.txt"])
def test_options_says_what_is_allowed(server: Running, protocol: str, target: str) -> None:
    answer = ask(server.port, target, method="OPTIONS", protocol=protocol)
    assert (answer.status, answer.fields["allow"]) == (204, ALLOW)
    assert "content-length" not in answer.fields


def test_options_keeps_the_connection(server: Running, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        assert client.get("*", method="OPTIONS").status == 204
        assert client.get("/last.txt").body == LAST


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
def test_known_methods_that_are_not_served_get_405_and_keep_the_connection(
    server: Running, protocol: str, method: str
) -> None:
    with conversation(server.port, protocol) as client:
        answer = client.get("/first.txt", method=method)
        assert (answer.status, answer.fields["allow"]) == (405, ALLOW)
        assert client.get("/last.txt").body == LAST


def test_connect_gets_405_and_keeps_the_connection(server: Running) -> None:
    data = exchange(server.port, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + GET_LAST)
    first, rest = parse(data)
    assert (first.status, first.fields["allow"]) == (405, ALLOW)
    assert bodies(rest) == [LAST]


@pytest.mark.parametrize("method", ["BREW", "get", "GETT", "PROPFIND"])
def test_unknown_methods_get_501(server: Running, protocol: str, method: str) -> None:
    answer = ask(server.port, "/first.txt", method=method, protocol=protocol)
    assert answer.status == 501
    assert "allow" not in answer.fields


@pytest.mark.parametrize(
    ("target", "status"),
    [("a:443", 400), ("first.txt", 400), ("//a/first.txt", 404), ("ftp://a/first.txt", 400), ("/first.txt#x", 400)],
)
def test_targets_of_other_forms_name_no_file(server: Running, target: str, status: int) -> None:
    assert get(server.port, target).status == status


# --- bodies ----------------------------------------------------------------------------------------------------------


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"Content-Length: %d\r\n" % DRAINED, b"x" * DRAINED),
        (b"Content-Length: 0\r\n", b""),
        (b"Content-Length: %d\r\n" % len(GET_SMUGGLED), GET_SMUGGLED),
        (CHUNKED, b"0\r\n\r\n"),
        (CHUNKED, chunks(GET_SMUGGLED, b"x" * 20_000) + b"0\r\n\r\n"),
        (CHUNKED, b'5;name=value;quoted="a;b"\r\nabcde\r\n0;last\r\n\r\n'),
        (CHUNKED, b"000A\r\n0123456789\r\n000\r\nX-Trailer: a\r\nContent-Length: 100\r\n\r\n"),
        (CHUNKED, b"3\r\nabc\r\n0\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n"),
        # Nothing is read out of trailers, so that a folded line is none the worse.
        (CHUNKED, b"0\r\nX: y\r\n z\r\n\r\n"),
        (b"Transfer-Encoding: Chunked\r\n", b"1\r\na\r\n0\r\n\r\n"),
        (b"TRANSFER-ENCODING:\tchunked \r\n", b"1\r\na\r\n0\r\n\r\n"),
        # A list of equal lengths is one length (RFC 9110 section 8.6).
        (b"Content-Length: 5, 5\r\n", b"abcde"),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", b"abcde"),
        (b"Content-Length: 0005\r\n", b"abcde"),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_body_is_skipped_to_its_end_and_no_further(
    server: Running, method: bytes, fields: bytes, body: bytes
) -> None:
    head = method + b" /first.txt HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n"
    data = exchange(server.port, head + body + GET_LAST)
    assert bodies(data) == [FIRST if method == b"GET" else b"405", LAST]


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"Content-Length: %d\r\n" % TOO_LARGE, b"x" * TOO_LARGE),
        (CHUNKED, chunks(b"x" * TOO_LARGE) + b"0\r\n\r\n"),
        # Chunks of one byte, and a trailer section: what counts is what arrives.
        (CHUNKED, chunks(b"x") * (TOO_LARGE // 6) + b"0\r\n\r\n"),
        (CHUNKED, b"1;" + b"x" * TOO_LARGE + b"\r\na\r\n0\r\n\r\n"),
        (CHUNKED, b"0\r\n" + b"X: y\r\n" * (TOO_LARGE // 6) + b"\r\n"),
        # A count that wraps round to nothing in 64 bits.
        (CHUNKED, b"10000000000000000\r\n" + GET_SMUGGLED + b"x" * TOO_LARGE),
    ],
    ids=["length", "chunk", "chunks", "extension", "trailers", "beyond 64 bits"],
)
def test_a_body_beyond_the_bound_ends_the_connection(server: Running, fields: bytes, body: bytes) -> None:
    data = exchange(server.port, b"POST /first.txt HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body + GET_SMUGGLED)
    answer, rest = parse(data)
    assert rest == b""
    if fields == CHUNKED:
        # The answer may come before the body does, and nothing in the head says how long that is.
        assert answer.status in (405, 431)
    else:
        assert (answer.status, answer.fields["connection"]) == (405, "close")


@pytest.mark.parametrize("body", [b"", b"abcde"])
@pytest.mark.parametrize(("method", "status"), [(b"POST", 405), (b"GET", 200)])
def test_a_final_answer_comes_instead_of_100_continue(server: Running, method: bytes, status: int, body: bytes) -> None:
    head = method + b" /first.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n"
    answer, rest = parse(exchange(server.port, head + body))
    assert (answer.status, answer.fields["connection"], rest) == (status, "close", b"")


def test_http_1_0_expects_nothing(server: Running) -> None:
    request = b"GET /first.txt HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nabcde"
    assert bodies(exchange(server.port, request)) == [FIRST]


@pytest.mark.parametrize("expectation", ["", ",", "100-continue,", ", 100-continue", "100-continue, 100-continue"])
def test_empty_and_repeated_expectations_are_understood(server: Running, protocol: str, expectation: str) -> None:
    with conversation(server.port, protocol) as client:
        # Twice: what is remembered of one must not answer the other.
        for fields in ((f"Expect: {expectation}",), (), (f"Expect: {expectation}",), ()):
            assert client.get("/first.txt", *fields, host="a").body == FIRST
        assert client.get("/first.txt", "Expect: other", host="a").status == 417


@pytest.mark.parametrize("expectation", ["200-ok", "100-continue, other", "101-continue"])
def test_another_expectation_gets_417_over_http_2(server: Running, expectation: str) -> None:
    with conversation(server.port, HTTP_2) as client:
        assert client.get("/first.txt", f"Expect: {expectation}").status == 417
        assert client.get("/last.txt").body == LAST


@pytest.mark.parametrize("expectation", ["200-ok", "100-continue, other", "101-continue"])
def test_another_expectation_gets_417(server: Running, expectation: str) -> None:
    head = f"GET /first.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: {expectation}\r\n\r\n"
    answer, rest = parse(exchange(server.port, head.encode() + b"abcde" + GET_SMUGGLED))
    assert (answer.status, answer.fields["connection"], rest) == (417, "close", b"")


# --- versions, hosts and targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [b"", b"Connection: keep-alive\r\n", b"Connection: close\r\n"])
def test_http_1_0_is_answered_once(server: Running, connection: bytes) -> None:
    data = exchange(server.port, b"GET /first.txt HTTP/1.0\r\n" + connection + b"\r\n" + GET_SMUGGLED)
    answer, rest = parse(data)
    assert data.startswith(b"HTTP/1.1 200 ")
    assert (answer.body, answer.fields["connection"], rest) == (FIRST, "close", b"")


def test_http_1_1_is_kept_unless_it_says_close(server: Running) -> None:
    request = GET_FIRST + b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n"
    assert bodies(exchange(server.port, request * 2 + GET_LAST)) == [FIRST, FIRST, LAST]
    closing = GET_FIRST + b"Connection: foo, ClOsE\r\n\r\n"
    assert bodies(exchange(server.port, closing + GET_SMUGGLED)) == [FIRST]


@pytest.mark.parametrize(
    "host",
    [
        "a",
        "A.EXAMPLE:443",
        "[::1]",
        "[v1.a:b]:8443",
        "caf%C3%A9",
        "[2001:db8::1]:8443",
        "127.0.0.1:1",
        "xn--bcher-kva.example",
        "a_b",
        "a.",
        "",
    ],
)
def test_hosts_that_are_hosts_are_served(server: Running, protocol: str, host: str) -> None:
    if protocol == HTTP_2 and not host:
        # HTTP/2 has no empty :authority for https (RFC 9113 section 8.3.1).
        with pytest.raises(BrokenError):
            ask(server.port, "/first.txt", protocol=protocol, host=host)
    else:
        assert ask(server.port, "/first.txt", protocol=protocol, host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("a b", "a, b", "a/b", "user@a", "a:80:80", "a:port", "::1", "[::1", "\xfc", "[1]", "[:::]", "[1::2::3]"),
        *("[1:2:3:4:5:6:7:8:9]", "[12345::]", "[1.2.3.4]", "[v]", "[.]:80", "a%:80", "a%zz", "[::1]a", ":80"),
    ],
)
def test_authorities_that_are_none_are_malformed(server: Running, host: str) -> None:
    """The same over HTTP/2, as :authority and as Host."""
    with http2(server.port) as client:
        pseudo = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/first.txt")]
        for field in ((b":authority", host.encode("latin-1")), (b"host", host.encode("latin-1"))):
            stream_id = client.http.get_next_available_stream_id()
            client.streams[stream_id] = Stream()
            client.http.send_headers(stream_id, [*pseudo, field], end_stream=True)
            client.flush()
            client.wait_for(stream_id)
            assert client.streams[stream_id].reset == 1
        assert client.get("/last.txt").body == LAST


@pytest.mark.parametrize(
    "head",
    [
        b"GET /first.txt HTTP/1.1\r\n",
        GET_FIRST + b"Host: a\r\n",
        GET_FIRST + b"Host: b\r\n",
        GET_FIRST + b"hOST:\r\n",
        b"GET /first.txt HTTP/1.2\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: a b\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: a, b\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: a/b\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: user@a\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: a:80:80\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: a:port\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: ::1\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: [::1\r\n",
        b"GET /first.txt HTTP/1.1\r\nHost: \xfc\r\n",
        *(
            b"GET /first.txt HTTP/1.1\r\nHost: %b\r\n" % host
            for host in (b"[1]", b"[:::]", b"[1::2::3]", b"[1:2:3:4:5:6:7:8:9]", b"[12345::]", b"[1.2.3.4]", b"[v]")
        ),
        *(b"GET /first.txt HTTP/1.1\r\nHost: %b:80\r\n" % host for host in (b"[.]", b"a%", b"a%zz", b"[::1]a")),
        b"GET https://a/first.txt HTTP/1.1\r\n",
        b"GET https://a/first.txt HTTP/1.1\r\nHost: a b\r\n",
    ],
)
def test_hosts_that_are_none_get_400(server: Running, head: bytes) -> None:
    answer, rest = parse(exchange(server.port, head + b"\r\n" + GET_SMUGGLED))
    assert (answer.status, answer.fields["connection"], rest) == (400, "close", b"")


@pytest.mark.parametrize(
    "host", [b"[1]", b"[:::]", b"[1::2::3]", b"[1.2.3.4]", b"[v]", b"[.]", b"a%", b"a%zz", b"[v1.a]"]
)
@pytest.mark.parametrize("request_line", [b"GET /first.txt", b"GET http://%b/first.txt", b"HEAD http://%b/first.txt"])
def test_a_redirect_names_no_host_that_is_none(server: Running, request_line: bytes, host: bytes) -> None:
    absolute = b"%b" in request_line
    head = b"%b HTTP/1.1\r\nHost: %b\r\n" % (
        request_line % host if absolute else request_line,
        b"b" if absolute else host,
    )
    data = exchange_plain(server.http_ports[0], head + b"Connection: close\r\n\r\n")
    answer, _ = parse(data, head_only=request_line.startswith(b"HEAD"))
    if host == b"[v1.a]":
        location = f"https://[v1.a]:{server.port}/first.txt"
        assert (answer.status, answer.fields["location"]) == (301, location)
    else:
        assert (answer.status, "location" in answer.fields) == (400, False)


@pytest.mark.parametrize(
    "target",
    ["https://a/first.txt", "HTTPS://A:443/first.txt?q", "http://a/first.txt", "https://[::1]:8443/x/../first.txt"],
)
def test_absolute_form_is_understood(server: Running, target: str) -> None:
    assert get(server.port, target).body == FIRST


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("https:///first.txt", 400),
        ("https://user@a/first.txt", 400),
        ("https://a:x/first.txt", 400),
        ("https:/first.txt", 400),
        *((f"https://{host}/first.txt", 400) for host in ("[1]", "[:::]", "[1.2.3.4]", "[v]", "[.]", "a%", "a%zz")),
        ("https://[v1.a]/first.txt", 200),
        ("https://a", 403),
    ],
)
def test_absolute_form_without_a_plain_authority_is_refused(server: Running, target: str, status: int) -> None:
    assert get(server.port, target).status == status


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (b"HTTP/2.0", 505),
        (b"HTTP/0.9", 505),
        (b"HTTP/1.2", 200),
        (b"HTTP/1.10", 400),
        (b"http/1.1", 400),
        (b"HTTP/1", 400),
        (b"", 400),
    ],
)
def test_versions(server: Running, version: bytes, status: int) -> None:
    request = b"GET /first.txt " + version + b"\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer, rest = parse(exchange(server.port, request))
    assert (answer.status, answer.fields["connection"], rest) == (status, "close", b"")


# --- requests that two readers could read in two ways ----------------------------------------------------------------

HIDING_LENGTH = b"Content-Length: %d\r\n" % (len(GET_SMUGGLED) + 5)

SMUGGLING = {
    # Two lengths.
    "CL then TE": (b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n"),
    "TE then CL": (CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n"),
    "TE then CL that hides": (CHUNKED + HIDING_LENGTH, b"0\r\n\r\n"),
    "TE then CL of 0": (CHUNKED + b"Content-Length: 0\r\n", b"0\r\n\r\n"),
    "two CL": (b"Content-Length: 0\r\n" + HIDING_LENGTH, b""),
    "two CL, equal as numbers alone": (b"Content-Length: 5\r\nContent-Length: 05\r\n", b"abcde"),
    "CL list": (b"Content-Length: 0, 5\r\n", b""),
    "CL list with an empty member": (b"Content-Length: 0,\r\n", b""),
    # Lengths that are none.
    "negative CL": (b"Content-Length: -1\r\n", b""),
    "plus CL": (b"Content-Length: +5\r\n", b"abcde"),
    "hexadecimal CL": (b"Content-Length: 0x5\r\n", b"abcde"),
    "letters in CL": (b"Content-Length: 5a\r\n", b"abcde"),
    "blank in CL": (b"Content-Length: 1 0\r\n", b"abcde"),
    "underscore in CL": (b"Content-Length: 1_0\r\n", b"abcdefghij"),
    "point in CL": (b"Content-Length: 5.0\r\n", b"abcde"),
    "empty CL": (b"Content-Length:\r\n", b""),
    "digits of another script in CL": ("Content-Length: \u0665\r\n".encode(), b"abcde"),
    "CL beyond any number": (b"Content-Length: " + b"9" * 40 + b"\r\n", b"abcde"),
    # Transfer codings.
    "TE chunked, identity": (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "TE identity": (b"Transfer-Encoding: identity\r\n", b""),
    "TE gzip, chunked": (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "TE chunked twice in a list": (b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "TE xchunked": (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "TE quoted": (b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"),
    "TE with a parameter": (b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"),
    "TE with a vertical tab": (b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "TE with a form feed": (b"Transfer-Encoding: chunked\x0c\r\n", b"0\r\n\r\n"),
    "TE with a no-break space": (b"Transfer-Encoding: \xa0chunked\r\n", b"0\r\n\r\n"),
    "empty TE": (b"Transfer-Encoding:\r\n", b""),
    "two TE": (CHUNKED * 2, b"0\r\n\r\n"),
    "two TE, one identity": (CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"),
    "TE, blank before the colon": (b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "TE, tab before the colon": (b"Transfer-Encoding\t: chunked\r\n", b"0\r\n\r\n"),
    "TE after a bare CR": (b"X: y\rTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE after a bare LF": (b"X: y\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE after a NUL": (b"X: y\0\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE after a blank": (b" Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE after a tab": (b"\tTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE on a folded line": (b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "TE on a line folded with a tab": (b"Transfer-Encoding:\r\n\tchunked\r\n", b"0\r\n\r\n"),
    # Lines.
    "folded line": (b"X: y\r\n Content-Length: 5\r\n", b""),
    "bare LF at the end of a line": (b"X: y\nContent-Length: 5\r\n", b""),
    "bare LF before the blank line": (b"X: y\n", b""),
    "bare CR in a value": (b"X: a\rb\r\n", b""),
    "CR before CRLF": (b"X: a\r\r\n", b""),
    "NUL in a value": (b"X: a\0b\r\n", b""),
    "NUL in a name": (b"X\0: a\r\n", b""),
    "DEL in a name": (b"X\x7f: a\r\n", b""),
    "blank in a name": (b"X Y: a\r\n", b""),
    "letter beyond ASCII in a name": (b"X\xe9: a\r\n", b""),
    "empty name": (b": a\r\n", b""),
    "line without a colon": (b"Content-Length\r\n", b""),
    "request line in the fields": (b"GET /smuggled.txt HTTP/1.1\r\n", b""),
    # Chunks.
    "chunk size beyond 80 bits": (CHUNKED, b"1" * 21 + b"\r\nabc\r\n0\r\n\r\n"),
    "chunk size that overflows to 5": (CHUNKED, b"100000000000000000000000000000005\r\nabcde\r\n0\r\n\r\n"),
    "negative chunk size": (CHUNKED, b"-1\r\na\r\n0\r\n\r\n"),
    "plus chunk size": (CHUNKED, b"+1\r\na\r\n0\r\n\r\n"),
    "0x chunk size": (CHUNKED, b"0x1\r\na\r\n0\r\n\r\n"),
    "underscore in a chunk size": (CHUNKED, b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    "blank before a chunk size": (CHUNKED, b" 1\r\na\r\n0\r\n\r\n"),
    "tab before a chunk size": (CHUNKED, b"\t1\r\na\r\n0\r\n\r\n"),
    "blank in a chunk size": (CHUNKED, b"1 0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    "empty chunk size": (CHUNKED, b"\r\na\r\n0\r\n\r\n"),
    "chunk size without digits": (CHUNKED, b";x\r\na\r\n0\r\n\r\n"),
    "no hexadecimal chunk size": (CHUNKED, b"g\r\na\r\n0\r\n\r\n"),
    "chunk size with a bare LF": (CHUNKED, b"1\na\r\n0\r\n\r\n"),
    "chunk extension with a bare LF": (CHUNKED, b"1;x\na\r\n0\r\n\r\n"),
    "chunk longer than it says": (CHUNKED, b"1\r\nabc\r\n0\r\n\r\n"),
    "chunk shorter than it says": (CHUNKED, b"5\r\nabc\r\n0\r\n\r\n"),
    "chunk ended by two other bytes": (CHUNKED, b"1\r\naXX0\r\n\r\n"),
    "chunk ended by a bare LF": (CHUNKED, b"1\r\na\n0\r\n\r\n"),
    "chunk ended by nothing": (CHUNKED, b"1\r\na0\r\n\r\n"),
    "trailer with a bare LF": (CHUNKED, b"0\r\nX: y\n\r\n"),
    "trailers ended by bare LFs": (CHUNKED, b"0\r\nX: y\n\n"),
    "body ended by a bare LF": (CHUNKED, b"0\r\n\n"),
    "trailer without a colon": (CHUNKED, b"0\r\nGET /smuggled.txt HTTP/1.1\r\n\r\n"),
}


@pytest.mark.parametrize("name", SMUGGLING)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_after_it_answered(
    server: Running, method: bytes, name: str
) -> None:
    fields, body = SMUGGLING[name]
    head = method + b" /first.txt HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n"
    data = exchange(server.port, head + body + GET_SMUGGLED + GET_LAST)
    answer, rest = parse(data)
    assert answer.status in (400, 501)
    assert (answer.fields["connection"], rest) == ("close", b"")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /first.txt HTTP/1.1\nHost: a\n\n",
        b"GET /first.txt HTTP/1.1\r\nHost: a\r\n\n",
        b"GET /first.txt HTTP/1.1\nHost: a\r\n\r\n",
        b"GET /first.txt HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET /first.txt HTTP/1.1\r\nX: y\r\n Host: a\r\n\r\n",
        b"GET  /first.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET\t/first.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /first.txt  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /first.txt HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /first.txt\x0bHTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /first.txt HTTP/1.1\rHost: a\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET /first.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\nGET /first.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\0GET /first.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /first.txt\r\n\r\n",
    ],
)
def test_request_lines_and_heads_that_are_none_are_refused(server: Running, request_bytes: bytes) -> None:
    answer, rest = parse(exchange(server.port, request_bytes + GET_SMUGGLED))
    assert (answer.status, answer.fields["connection"], rest) == (400, "close", b"")


@pytest.mark.parametrize("lines", [1, 2, 20_000])
@pytest.mark.parametrize(
    "first",
    [
        GET_FIRST + b"\r\n",
        GET_FIRST + b"Content-Length: 5\r\n\r\nabcde",
        GET_FIRST + CHUNKED + b"\r\n5\r\nabcde\r\n0\r\n\r\n",
        GET_FIRST + b"Expect: 100-continue\r\n\r\n",
    ],
    ids=["no body", "length", "chunks", "Expect"],
)
def test_empty_lines_before_a_request_never_change_what_is_answered(server: Running, first: bytes, lines: int) -> None:
    """RFC 9112 section 2.2; from memory, too."""
    empty = b"\r\n" * lines
    assert bodies(exchange(server.port, empty + first + empty + first + empty + GET_LAST)) == [FIRST, FIRST, LAST]


@pytest.mark.parametrize(
    "between",
    [b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\r\n\n", b"\r\n\r", b" \r\n", b"\r\n ", b"\t\r\n", b"\0\r\n", b"\x0b"],
)
def test_other_lines_between_requests_are_refused(server: Running, between: bytes) -> None:
    known = GET_FIRST + b"\r\n"
    for first in (b"", known, known + known, GET_FIRST + b"Content-Length: 1\r\n\r\nx"):
        *answers, refusal = parse_all(exchange(server.port, first + between + GET_SMUGGLED))
        assert [answer.body for answer in answers] == [FIRST] * first.count(b"GET")
        assert (refusal.status, refusal.fields["connection"]) == (400, "close")


def test_an_empty_line_in_two_parts_is_one(server: Running) -> None:
    with connect(server.port) as connection:
        for part in (b"\r", b"\n", b"\r\n\r", b"\n" + GET_FIRST + b"\r\n", b"\r", b"\n\r", b"\n" + GET_LAST):
            connection.sendall(part)
            time.sleep(0.05)
        assert bodies(read_to_end(connection)) == [FIRST, LAST]
    with connect(server.port) as connection:
        connection.sendall(b"\r\n\r")
        time.sleep(0.05)
        connection.sendall(GET_LAST)
        assert bodies(read_to_end(connection)) == [b"400"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /first.txt HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n5\r\nab",
        b"POST /first.txt HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n5\r\nabcde\r\n0\r\n",
        b"POST /first.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcd",
        b"GET /first.txt HTTP/1.1\r\nHost: a\r\n",
    ],
)
def test_what_the_client_cuts_off_is_not_answered_as_if_it_were_whole(server: Running, request_bytes: bytes) -> None:
    with connect(server.port) as connection:
        connection.sendall(request_bytes)
        # Without close_notify, as an attacker on the way could do it.
        socket.socket.shutdown(connection, socket.SHUT_WR)
        data = b""
        try:
            while chunk := connection.recv(65536):
                data += chunk
        except (ssl.SSLError, ConnectionResetError):
            pass
    # A request whose head is whole may have had its answer before the rest of its body was missed.
    answered = rb"405 " if request_bytes.startswith(b"POST") else rb"400 "
    assert re.match(rb"(HTTP/1\.1 (400 |%b)|\Z)" % answered, data)
    assert data.count(b"HTTP/1.1") <= 1


def test_a_request_in_single_bytes_is_read_as_a_whole_one(server: Running) -> None:
    request = GET_FIRST + CHUNKED + b"\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n" + GET_LAST
    with connect(server.port) as connection:
        data = b""
        for position in range(len(request)):
            connection.sendall(request[position : position + 1])
        while chunk := connection.recv(65536):
            data += chunk
    assert bodies(data) == [FIRST, LAST]
