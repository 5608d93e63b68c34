"""HTTP over TLS as clients see it, over both protocols; what is syntax of HTTP/1.1, as bytes on the wire.

Here over whatever path this machine gives (user space, without a kTLS kernel); test_ktls_wire.py has it over kTLS.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocols import HTTP_2, BrokenError, ask, conversation
from tests.serving import Running, connect, exchange, parse, read_to_end, serving

LARGE = 3_000_001


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each kind of thing that a request can meet."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("outside")
    root = tmp_path_factory.mktemp("site")
    (root / "index.html").write_text("<h1>hello</h1>\n")
    (root / "empty.txt").write_bytes(b"")
    (root / "large.bin").write_bytes(os.urandom(LARGE))
    (root / "exact.bin").write_bytes(os.urandom(16384))
    (root / ".hidden").write_text("hidden")
    (root / "folder").mkdir()
    (root / "folder/index.html").write_text("in a folder")
    (root / "bare").mkdir()
    (root / "bare/.git").mkdir()
    (root / "bare/.git/config").write_text("hidden")
    (root / ".well-known").mkdir()
    (root / ".well-known/security.txt").write_text("well known")
    (root / "name with ü & %41.txt").write_text("odd name")
    (root / os.fsdecode(b"latin-\xe9.txt")).write_text("not UTF-8")
    (root / "inside-link.txt").symlink_to("folder/index.html")
    (root / "outside-link.txt").symlink_to(f"../{outside.name}/secret.txt")
    (root / "absolute-link.txt").symlink_to(root.parent)
    (root / "magic-link").symlink_to("/proc/self/root")
    (root / "loop").symlink_to("loop")
    (root / "locked.txt").write_text("locked")
    (root / "locked.txt").chmod(0)
    os.mkfifo(root / "fifo")
    with contextlib.suppress(PermissionError):
        os.mknod(root / "device", 0o644 | 0o020000, os.makedev(1, 5))
    return root


@pytest.fixture(scope="module")
def server(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # Root may read anything; without these capabilities a file's mode means what it says.
    wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    with serving(site, state=tmp_path_factory.mktemp("state"), wrapper=wrapper) as running:
        yield running


def test_get_sends_the_file_with_its_metadata(server: Running, protocol: str, site: Path) -> None:
    before = int(time.time())
    answer = ask(server.port, "/large.bin", protocol=protocol)
    facts = (site / "large.bin").stat()
    assert answer.status == 200
    assert answer.body == (site / "large.bin").read_bytes()
    assert answer.fields["content-length"] == str(LARGE)
    assert answer.fields["content-type"] == "application/octet-stream"
    assert answer.fields["accept-ranges"] == "bytes"
    assert answer.fields["server"] == "ktlsd"
    assert answer.fields["last-modified"] == email.utils.formatdate(int(facts.st_mtime), usegmt=True)
    assert answer.fields["etag"] == (
        f'"{facts.st_mtime_ns:x}-{facts.st_size:x}-{facts.st_ino:x}-{facts.st_ctime_ns:x}"'
    )
    date = email.utils.parsedate_to_datetime(answer.fields["date"]).timestamp()
    assert before <= date <= time.time()


@pytest.mark.parametrize("name", ["empty.txt", "exact.bin", "index.html"])
def test_files_of_every_size_arrive_whole(server: Running, protocol: str, site: Path, name: str) -> None:
    assert ask(server.port, f"/{name}", protocol=protocol).body == (site / name).read_bytes()


@pytest.mark.parametrize("target", ["/large.bin", "/empty.txt", "/", "/nothing", "/folder"])
def test_head_has_the_fields_of_get(server: Running, protocol: str, target: str) -> None:
    whole, head = (
        ask(server.port, target, protocol=protocol),
        ask(server.port, target, method="HEAD", protocol=protocol),
    )
    assert head.status == whole.status
    del whole.fields["date"], head.fields["date"]
    assert head.fields == whole.fields
    assert head.body == b""


def test_index_file_answers_for_a_folder(server: Running, protocol: str) -> None:
    answer = ask(server.port, "/folder/", protocol=protocol)
    assert (answer.status, answer.body) == (200, b"in a folder")
    assert answer.fields["content-type"] == "text/html; charset=utf-8"


def test_folder_without_slash_is_redirected(server: Running, protocol: str) -> None:
    answer = ask(server.port, "/folder?a=b", protocol=protocol)
    assert (answer.status, answer.fields["location"]) == (301, "/folder/?a=b")
    assert ask(server.port, "//folder", protocol=protocol).fields["location"] == "/folder/"


@pytest.mark.parametrize(
    ("field", "content_range", "part"),
    [
        ("bytes=0-0", f"bytes 0-0/{LARGE}", slice(0, 1)),
        ("bytes=16000-40000", f"bytes 16000-40000/{LARGE}", slice(16000, 40001)),
        ("bytes=2999999-", f"bytes 2999999-3000000/{LARGE}", slice(2999999, None)),
        ("bytes=-600000", f"bytes 2400001-3000000/{LARGE}", slice(-600000, None)),
        ("bytes=1-99999999", f"bytes 1-3000000/{LARGE}", slice(1, None)),
    ],
)
def test_a_range_is_that_part_of_the_file(
    server: Running, protocol: str, site: Path, field: str, content_range: str, part: slice
) -> None:
    answer = ask(server.port, "/large.bin", f"Range: {field}", protocol=protocol)
    assert (answer.status, answer.fields["content-range"]) == (206, content_range)
    assert answer.body == (site / "large.bin").read_bytes()[part]


def test_a_range_past_the_end_is_416(server: Running, protocol: str) -> None:
    answer = ask(server.port, "/large.bin", f"Range: bytes={LARGE}-", protocol=protocol)
    assert (answer.status, answer.fields["content-range"]) == (416, f"bytes */{LARGE}")


def test_a_range_of_another_version_gives_the_whole(server: Running, protocol: str) -> None:
    answer = ask(server.port, "/large.bin", "Range: bytes=5-9", 'If-Range: "another"', protocol=protocol)
    assert (answer.status, len(answer.body)) == (200, LARGE)


def test_validators_bring_304(server: Running, protocol: str) -> None:
    first = ask(server.port, "/large.bin", protocol=protocol)
    for field in (f"If-None-Match: {first.fields['etag']}", f"If-Modified-Since: {first.fields['last-modified']}"):
        answer = ask(server.port, "/large.bin", field, protocol=protocol)
        assert (answer.status, answer.fields["etag"], answer.body) == (304, first.fields["etag"], b"")
    assert ask(server.port, "/large.bin", 'If-None-Match: "another"', protocol=protocol).status == 200


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [
        ("/nothing", 404, "no such file"),
        ("/absent.html/", 404, "no such file"),
        ("/index.html/x", 404, "no such file"),
        ("/" + "n" * 300, 404, "no such file"),
        ("/loop", 404, "a link that leads nowhere"),
        ("/bare/", 403, "a folder without an index file"),
        ("/fifo", 403, "not a regular file"),
        ("/locked.txt", 403, "not readable by the server"),
        ("/.hidden", 404, "a name that begins with a dot"),
        ("/%2ehidden", 404, "a name that begins with a dot"),
        ("/bare/.git/config", 404, "a name that begins with a dot"),
        ("/outside-link.txt", 404, "a link out of the root"),
        ("/absolute-link.txt", 404, "a link out of the root"),
        ("/magic-link/etc/passwd", 404, "a link out of the root"),
        ("/../etc/passwd", 400, "the path climbs above the root"),
        ("/folder/%2e%2e/../etc/passwd", 400, "the path climbs above the root"),
        ("/folder%2findex.html", 400, "an encoded slash"),
        ("/index.html%00.png", 400, "an encoded NUL"),
        ("/%zz", 400, "a percent sign without two hexadecimal digits"),
        ("/%2525", 404, "no such file"),
        ("/" + "a/" * 4100, 414, "a target of 8201 bytes, more than target_bytes = 8192"),
    ],
)
def test_what_cannot_be_served_gets_a_short_answer_and_a_logged_reason(
    server: Running, protocol: str, target: str, status: int, reason: str
) -> None:
    lines = len(server.log)
    answer = ask(server.port, target, protocol=protocol)
    assert answer.status == status
    assert answer.body.startswith(f"{status} ".encode())
    assert len(answer.body) < 100
    assert answer.fields["content-type"] == "text/plain; charset=utf-8"
    assert server.wait_for_line(f"127.0.0.1:\\d+ {status} ", since=lines).endswith(f": {reason}")


def test_a_target_that_is_no_path_is_refused(server: Running) -> None:
    lines = len(server.log)
    answer, _ = parse(exchange(server.port, b"GET * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
    assert answer.status == 400
    server.wait_for_line(": the target is neither a path nor an http URL$", since=lines)


def test_devices_are_refused(server: Running, protocol: str, site: Path) -> None:
    if not (site / "device").exists():
        pytest.skip("this user may not make device nodes")
    assert ask(server.port, "/device", protocol=protocol).status == 403


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/name%20with%20%C3%BC%20&%20%2541.txt", b"odd name"),
        ("/latin-%E9.txt", b"not UTF-8"),
        ("/inside-link.txt", b"in a folder"),
        ("/.well-known/security.txt", b"well known"),
        ("/bare/../folder/./index.html", b"in a folder"),
        ("//folder///index.html?query", b"in a folder"),
        ("https://localhost/folder/index.html", b"in a folder"),
    ],
)
def test_every_way_to_name_a_file_finds_it(server: Running, protocol: str, target: str, body: bytes) -> None:
    answer = ask(server.port, target, protocol=protocol)
    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("DELETE", 405), ("BREW", 501)])
def test_methods_that_change_or_mean_nothing_are_refused(
    server: Running, protocol: str, method: str, status: int
) -> None:
    answer = ask(server.port, "/", method=method, protocol=protocol)
    assert answer.status == status
    assert answer.fields.get("allow") == ("GET, HEAD, OPTIONS" if status == 405 else None)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b/<>@\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40000, 431),
        (b"GET /" + b"x" * 40000, 414),
    ],
)
def test_malformed_requests_are_refused_and_the_connection_closed(
    server: Running, request_bytes: bytes, status: int
) -> None:
    answer, rest = parse(exchange(server.port, request_bytes))
    assert (answer.status, answer.fields["connection"], rest) == (status, "close", b"")


def test_a_malformed_body_of_a_head_request_is_refused_without_a_body(server: Running) -> None:
    data = exchange(server.port, b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    answer, rest = parse(data, head_only=True)
    assert (answer.status, answer.fields["connection"], rest) == (400, "close", b"")


def test_keep_alive_and_pipelining_answer_in_order(server: Running, site: Path) -> None:
    targets = ["/index.html", "/large.bin", "/nothing", "/empty.txt", "/folder/", "/exact.bin"] * 5
    requests = [f"GET {target} HTTP/1.1\r\nHost: a\r\n" for target in targets]
    requests[-1] += "Connection: close\r\n"
    data = exchange(server.port, "\r\n".join([*requests, ""]).encode())
    for target in targets:
        answer, data = parse(data)
        if target == "/nothing":
            assert answer.status == 404
        else:
            path = site / target[1:]
            assert answer.body == (path / "index.html" if path.is_dir() else path).read_bytes()
    assert data == b""


def test_http_1_0_is_answered_and_closed(server: Running) -> None:
    answer, rest = parse(exchange(server.port, b"GET /folder/ HTTP/1.0\r\n\r\n"))
    assert (answer.status, answer.body, rest) == (200, b"in a folder", b"")


def test_a_small_request_body_is_skipped(server: Running, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        for body in (b"abcde", bytes(60_000)):
            assert client.get("/", body=body).status == 200
            assert client.get("/", method="POST", body=body).status == 405
        assert client.get("/empty.txt").status == 200


def test_a_chunked_request_body_is_skipped(server: Running) -> None:
    first = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde"
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    last = b"GET /empty.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    data = exchange(server.port, first + chunked + last)
    statuses = []
    while data:
        answer, data = parse(data)
        statuses.append(answer.status)
    assert statuses == [200, 405, 200]


@pytest.mark.parametrize("extra", [b"", b"Expect: 100-continue\r\n"])
def test_a_large_request_body_ends_the_connection_after_the_answer(server: Running, extra: bytes) -> None:
    body = b"" if extra else b"x" * 200_000
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n" + extra + b"\r\n"
    answer, rest = parse(exchange(server.port, head + body))
    assert (answer.status, answer.fields["connection"], rest) == (405, "close", b"")


def test_plain_http_is_told_so(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b"".join(iter(lambda: plain.recv(65536), b""))
    answer, _ = parse(data)
    assert answer.status == 400
    assert b"HTTPS" in answer.body


def test_a_connection_ends_with_close_notify(server: Running) -> None:
    with connect(server.port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        # Without close_notify this raises ssl.SSLEOFError.
        assert parse(read_to_end(connection))[0].status == 200


def test_sessions_resume(site: Path, tmp_path: Path) -> None:
    with serving(site, "--log-level", "debug", state=tmp_path) as server:
        resume_sessions(server)


def resume_sessions(server: Running) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, version
        request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        with connect(server.port, context) as first:
            first.sendall(request)
            read_to_end(first)
            session = first.session
        lines = len(server.log)
        with connect(server.port, context, session) as second:
            second.sendall(request)
            assert parse(read_to_end(second))[0].status == 200
            assert second.session_reused
        server.wait_for_line(" resumed ", since=lines)


def test_old_tls_is_refused(server: Running) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    lines = len(server.log)
    with pytest.raises(ssl.SSLError):
        connect(server.port, context)
    server.wait_for_line("handshake failed: unsupported protocol", since=lines)


def test_nothing_a_client_sends_breaks_a_log_line(server: Running, protocol: str) -> None:
    lines = len(server.log)
    # A range that is understood is quoted in the log's reason.
    ask(server.port, "/large.bin", "Range: bytes=9999999-\t", protocol=protocol)
    assert "9999999" in server.wait_for_line("416 GET /large.bin", since=lines)
    ask(server.port, "/%0a%0d127.0.0.1:1", protocol=protocol)
    for target, method in (("/", "\x1b[31m"), ("/%0a%0d127.0.0.1:1 200", "GET")):
        # HTTP/2 has no status for a malformed request.
        with pytest.raises(BrokenError) if protocol == HTTP_2 else contextlib.nullcontext():
            ask(server.port, target, method=method, protocol=protocol)
    assert all(line.isprintable() and line.isascii() for line in server.log)
