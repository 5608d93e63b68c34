"""The host name in real ClientHellos, in made-up ones, in fragments and in nonsense."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Sequence
from typing import Any, SupportsIndex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.tls.client_hello import (
    LONGEST_HELLO,
    NOTHING,
    Asked,
    HelloReader,
    Incomplete,
    allows_tls_1_2,
    asked,
    host_name,
)

SERVER_NAME = 0
PROTOCOLS = 16
SUPPORTED_GROUPS = 10
PADDING = 21
PRE_SHARED_KEY = 41
SUPPORTED_VERSIONS = 43
KEY_SHARE = 51
QUIET_SECONDS = 0.5


def server_name(data: bytes) -> str | Incomplete | None:
    found = asked(data)
    return found if isinstance(found, Incomplete) else found.server_name


def record(payload: bytes, kind: int = 22) -> bytes:
    return bytes([kind, 3, 1]) + len(payload).to_bytes(2) + payload


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width) + data


def names(*entries: tuple[int, bytes]) -> bytes:
    """The body of a server_name extension."""
    return vector(2, b"".join(bytes([kind]) + vector(2, name) for kind, name in entries))


def message(
    extensions: Sequence[tuple[int, bytes]] | None,
    kind: int = 1,
    ciphers: bytes = b"\x13\x01",
    compressions: bytes = b"\0",
) -> bytes:
    """A ClientHello without its record."""
    body = b"\x03\x03" + bytes(32) + vector(1, bytes(32)) + vector(2, ciphers) + vector(1, compressions)
    if extensions is not None:
        body += vector(2, b"".join(kind.to_bytes(2) + vector(2, data) for kind, data in extensions))
    return bytes([kind]) + vector(3, body)


def asking(name: bytes) -> bytes:
    return record(message([(SERVER_NAME, names((0, name)))]))


def real_hello(name: str | None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def captured(*command: str) -> bytes:
    """All that a client sends before it has an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        arguments = [argument.replace("PORT", port) for argument in command]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet) as client:
            connection, _ = listener.accept()
            with connection:
                data = connection.recv(65536)
                connection.settimeout(QUIET_SECONDS)
                with contextlib.suppress(TimeoutError):
                    while more := connection.recv(65536):
                        data += more
            client.kill()
    return data


def split(hello: bytes, sizes: Sequence[int]) -> bytes:
    """The same message over records of these sizes, the last size as often as needed."""
    rest = b""
    while hello:
        length = int.from_bytes(hello[3:5])
        rest += hello[5 : 5 + length]
        hello = hello[5 + length :]
    pieces = []
    remaining = list(sizes)
    while rest:
        size = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        pieces.append(record(rest[:size]))
        rest = rest[size:]
    return b"".join(pieces)


def huge() -> bytes:
    """The longest ClientHello that there can be, for example.org, without its record: 131,396 bytes and a header."""
    name = (SERVER_NAME, names((0, b"example.org")))
    padding = (PADDING, bytes(65535 - 8 - len(name[1])))
    return message([padding, name], ciphers=b"\x13\x01" * 32767, compressions=bytes(255))


def looks(data: bytes) -> tuple[int, str | None]:
    """How often one has to look when each time just as much is there as was said to be needed; what is found."""
    have = count = 0
    reader = HelloReader()
    while True:
        count += 1
        found = reader.read(data[:have])
        # What was read before makes no difference.
        assert have > 10_000 or found == asked(data[:have])
        if isinstance(found, Asked):
            return count, found.server_name
        assert have < found.needed <= len(data)
        have = found.needed


REAL = real_hello("www.example.org")
LONG_ALPN = ",".join(f"protocol-{number:04}-{'x' * 200}" for number in range(55))
S_CLIENT = ("openssl", "s_client", "-connect", "127.0.0.1:PORT", "-servername", "Www.Example.Org")


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["localhost", "www.example.org", "a_b.example.org", "xn--bcher-kva.example"])
def test_pythons_own_hello(name: str, newest: ssl.TLSVersion) -> None:
    assert server_name(real_hello(name, newest)) == name


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_real_hello_without_a_name(newest: ssl.TLSVersion) -> None:
    assert server_name(real_hello(None, newest)) is None


@pytest.mark.parametrize(
    ("command", "longer_than", "records"),
    [
        (S_CLIENT, 200, 1),
        ((*S_CLIENT, "-tls1_2"), 100, 1),
        ((*S_CLIENT, "-alpn", LONG_ALPN), 10000, 1),
        ((*S_CLIENT, "-alpn", LONG_ALPN, "-max_send_frag", "512"), 10000, 20),
        (("gnutls-cli", "--insecure", "-p", "PORT", "--sni-hostname=www.example.org", "127.0.0.1"), 200, 1),
    ],
    ids=["openssl", "openssl-1.2", "openssl-long", "openssl-fragments", "gnutls"],
)
def test_other_clients_hellos(command: Sequence[str], longer_than: int, records: int) -> None:
    hello = captured(*command)
    assert len(hello) > longer_than
    assert 5 + int.from_bytes(hello[3:5]) <= len(hello) // records
    assert server_name(hello) == "www.example.org"
    assert all(isinstance(server_name(hello[:end]), Incomplete) for end in range(len(hello)))


def test_a_hello_is_incomplete_until_its_last_byte() -> None:
    for end in range(len(REAL)):
        found = server_name(REAL[:end])
        assert isinstance(found, Incomplete)
        assert end < found.needed <= len(REAL)
    assert looks(REAL) == (3, "www.example.org")


def test_what_follows_a_hello_does_not_matter() -> None:
    assert server_name(REAL + record(b"\1", kind=20) + bytes(100)) == "www.example.org"


@given(st.lists(st.integers(1, 600), max_size=20).map(lambda sizes: [*sizes, 20]))
def test_fragments_are_joined(sizes: list[int]) -> None:
    fragments = split(REAL, sizes)
    count, found = looks(fragments)
    assert found == "www.example.org"
    assert count <= records_in(fragments) + 3
    end = len(fragments) - 1
    assert server_name(fragments[:end]) == Incomplete(len(fragments))


def records_in(data: bytes) -> int:
    count = position = 0
    while position < len(data):
        position += 5 + int.from_bytes(data[position + 3 : position + 5])
        count += 1
    return count


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10])
def test_each_of_many_records_is_looked_at_once(size: int) -> None:
    extensions = [(PADDING, bytes(450 * size)), (SERVER_NAME, names((0, b"example.org")))]
    hello = split(record(message(extensions)), [size])
    count, found = looks(hello)
    assert found == "example.org"
    # One look at nothing, one at the first header, one at the message's, and one for each record with the next header.
    assert count <= records_in(hello) + 3
    assert records_in(hello) > 400


def test_records_that_were_joined_are_not_joined_again() -> None:
    """However often a client makes one look: it costs the same at the end as at the beginning."""

    class Counted(bytes):
        slices = 0

        def __getitem__(self, place: SupportsIndex | slice) -> Any:
            Counted.slices += 1
            return super().__getitem__(place)

    hello = split(record(message([(PADDING, bytes(4000))])), [1])
    reader = HelloReader()
    for end in range(6, len(hello), 6):
        before = Counted.slices
        assert isinstance(reader.read(Counted(hello[:end])), Incomplete)
        assert Counted.slices - before < 8
    assert reader.read(hello) == NOTHING


@pytest.mark.parametrize("size", [100, 512, 16384])
def test_a_large_hello(size: int) -> None:
    """As with post-quantum key shares, of which the largest that exist have some 1600 bytes, and padding."""
    extensions = [(KEY_SHARE, bytes(1600)), (PADDING, bytes(2000)), (SERVER_NAME, names((0, b"example.org")))]
    assert looks(split(record(message(extensions)), [size]))[1] == "example.org"


@pytest.mark.parametrize("size", [41, 1000, 16384])
def test_the_longest_hello_has_a_name(size: int) -> None:
    whole = huge()
    assert len(whole) == 4 + 131396
    hello = b"".join(record(whole[start : start + size]) for start in range(0, len(whole), size))
    assert len(hello) <= LONGEST_HELLO
    assert looks(hello)[1] == "example.org"


@pytest.mark.parametrize(("length", "found"), [(131396, Incomplete(9 + 1000 + 5 - 4)), (131397, NOTHING)])
def test_a_hello_longer_than_openssl_takes_is_not_waited_for(length: int, found: Asked | Incomplete) -> None:
    hello = record(b"\1" + length.to_bytes(3) + bytes(996))
    assert asked(hello[:9]) == found
    assert asked(hello[:-1]) == found


def test_a_hello_in_too_many_tiny_records_has_no_name() -> None:
    whole = message([(PADDING, bytes(25000)), (SERVER_NAME, names((0, b"example.org")))])
    hello = b"".join(record(whole[place : place + 1]) for place in range(len(whole)))
    assert len(hello) > LONGEST_HELLO
    assert asked(hello) == NOTHING
    assert isinstance(asked(hello[: LONGEST_HELLO - 12]), Incomplete)


@pytest.mark.parametrize("begin", [1, 2, 3, 4, 5, 50])
@pytest.mark.parametrize(
    "alien",
    [
        record(b"", 23),
        record(b"a", 23),
        record(b"\2\x28", 21),
        record(b"\1", 20),
        record(b"\1\0\0", 24),
        record(b""),
        b"\x16\x02\x00\x00\x01",
        b"\x16\x03\x01\x40\x01",
        b"GET /",
    ],
    ids=["empty data", "data", "alert", "ccs", "heartbeat", "empty", "version", "length", "HTTP"],
)
def test_no_more_is_waited_for_than_an_alien_record_has(begin: int, alien: bytes) -> None:
    """Only a record of a handshake can go on with the message: OpenSSL has an alert for all others."""
    first = record(message([])[:begin])
    found = asked(first)
    assert found == Incomplete(len(first) + 5)
    assert asked(first + alien[:5]) == NOTHING


@pytest.mark.parametrize(
    "data",
    [
        b"GETS / HTTP/1.1\r\n\r\n",
        b"g",
        b"GETS",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"\x16\x02",
        b"\x16\x04\x01\x00\x05",
        b"\x80\x2e\x01\x03\x01",  # SSL 2.0's ClientHello
        record(b"\x02\x28", kind=21),
        record(b""),
        record(message([]))[:5] + b"\x02",  # ServerHello
        record(b"\x01\x00")[:7] + record(b""),
        b"\x16\x03\x01\x40\x01",  # a record longer than 16 KiB
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff",  # a message of 16 MiB
        record(message([])[:20]) + b"GET / ",
    ],
)
def test_what_is_no_client_hello_has_no_name_at_once(data: bytes) -> None:
    assert server_name(data) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH", "MOVE"])
def test_a_request_without_tls_is_known_by_its_first_bytes(method: str) -> None:
    """With the fifth byte OpenSSL refuses it."""
    request = f"{method} /a HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    assert {asked(request[:end]) for end in range(5)} == {Incomplete(5)}
    assert {asked(request[:end]) for end in range(5, len(request))} == {Asked(plain_http=True)}


@pytest.mark.parametrize(
    "hello",
    [
        message(None),
        message([]),
        message([(PADDING, b"example.org")]),
        message([(SERVER_NAME, b"")]),
        message([(SERVER_NAME, b"\0")]),
        message([(SERVER_NAME, names())]),
        message([(SERVER_NAME, names((1, b"example.org")))]),
        message([(SERVER_NAME, names((0, b"")))]),
        message([(SERVER_NAME, names((0, b"example.org"))[:-1])]),
        message([(SERVER_NAME, b"\xff\xff" + names((0, b"example.org"))[2:])]),
        b"\1" + vector(3, b""),
        b"\1" + vector(3, bytes(34)),
        b"\1" + vector(3, bytes(34) + b"\xff"),
        b"\1" + vector(3, message([(SERVER_NAME, names((0, b"example.org")))])[4:-3]),
    ],
)
def test_a_hello_without_a_whole_name_has_none(hello: bytes) -> None:
    assert server_name(record(hello)) is None


@pytest.mark.parametrize("body", [b"", b"\xff", vector(2, b"\xff\xff"), b"\0\0"])
def test_a_name_beside_a_broken_pre_shared_key_counts(body: bytes) -> None:
    """OpenSSL reads no such extension where it chooses TLS 1.2, and serves the name."""
    found = asked(record(message([(SERVER_NAME, names((0, b"example.org"))), (PRE_SHARED_KEY, body)])))
    assert found == Asked("example.org")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.org", "example.org"),
        ("EXAMPLE.org", "example.org"),
        ("example.org.", "example.org"),
        ("localhost", "localhost"),
        ("a_b.example", "a_b.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("a" * 63 + ".b", "a" * 63 + ".b"),
        (".".join(["a" * 49] * 5) + ".abc", ".".join(["a" * 49] * 5) + ".abc"),
        (".".join(["a" * 49] * 5) + ".abcd", None),
        ("a" * 64 + ".b", None),
        ("", None),
        (".", None),
        (".example.org", None),
        ("example.org..", None),
        ("example..org", None),
        ("example.org\n", None),
        ("example.org\0", None),
        ("example.org:443", None),
        ("*.example.org", None),
        ("a b", None),
        ("a/b", None),
        ("bücher.example", None),
        ("\u212a.example", None),  # the Kelvin sign, which is k in lower case
        ("[::1]", None),
    ],
)
def test_host_names(text: str, name: str | None) -> None:
    assert host_name(text) == name
    assert server_name(asking(text.encode())) == name


def test_bytes_that_are_no_utf_8_are_no_name() -> None:
    assert server_name(asking(b"\xff\xfe.example")) is None


def check(data: bytes) -> None:
    found = server_name(data)
    if isinstance(found, Incomplete):
        assert len(data) < found.needed <= LONGEST_HELLO
    elif found is not None:
        assert host_name(found) == found
        assert found.encode() in data.lower() or data.count(b"\x16\x03") > 1


@given(st.binary(max_size=300))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    check(data)
    check(record(data))
    check(record(b"\1" + vector(3, data)))
    check(record(message([])[:-2] + vector(2, data)))


@given(
    st.lists(st.tuples(st.integers(0, len(REAL) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(REAL)),
)
def test_a_damaged_hello_has_an_answer(changes: list[tuple[int, int]], end: int) -> None:
    damaged = bytearray(REAL)
    for position, value in changes:
        damaged[position] = value
    check(bytes(damaged))
    check(bytes(damaged[:end]))
    # The same damage within a message whose length is right.
    check(record(b"\1" + vector(3, bytes(damaged[9:end]))))


GCM_WITH_ECDSA = frozenset({0xC02B, 0xC02C})
BOTH_CURVES = (SUPPORTED_GROUPS, vector(2, b"\x00\x1d\x00\x17\x00\x18"))
BOTH_VERSIONS = (SUPPORTED_VERSIONS, vector(1, b"\x03\x04\x03\x03"))
SUITES = b"\x13\x01\xc0\x2b"


@pytest.mark.parametrize(
    ("hello", "allowed"),
    [
        (record(message([BOTH_CURVES, BOTH_VERSIONS], ciphers=SUITES)), True),
        # Without the extension, the version in the message counts.
        (record(message([BOTH_CURVES], ciphers=SUITES)), True),
        (split(record(message([BOTH_CURVES, BOTH_VERSIONS], ciphers=SUITES)), [7]), True),
        (record(message([BOTH_CURVES, (SUPPORTED_VERSIONS, vector(1, b"\x03\x04"))], ciphers=SUITES)), False),
        (record(message([BOTH_CURVES, BOTH_VERSIONS], ciphers=b"\x13\x01\xc0\x2f")), False),
        (record(message([(SUPPORTED_GROUPS, vector(2, b"\x00\x1d")), BOTH_VERSIONS], ciphers=SUITES)), False),
        (record(message([BOTH_VERSIONS], ciphers=SUITES)), False),
        (record(message([], ciphers=SUITES)), False),
        (record(message(None, ciphers=SUITES)), False),
        (real_hello("example.org"), True),
        (real_hello("example.org", ssl.TLSVersion.TLSv1_2), True),
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (b"", False),
    ],
)
def test_tls_1_2_suits_a_client(hello: bytes, allowed: bool) -> None:
    assert allows_tls_1_2(hello, GCM_WITH_ECDSA) is allowed
    assert not allows_tls_1_2(hello, frozenset())


@given(st.binary(max_size=200))
def test_nonsense_allows_nothing(data: bytes) -> None:
    assert not allows_tls_1_2(data, GCM_WITH_ECDSA)
    hello = record(message([BOTH_CURVES, BOTH_VERSIONS], ciphers=SUITES))
    # Cut short or garbled, it must not raise.
    allows_tls_1_2(hello[: len(data) % len(hello)] + data, GCM_WITH_ECDSA)


@pytest.mark.parametrize(
    ("protocols", "challenged"),
    [
        ([b"acme-tls/1"], True),
        ([b"acme-tls/1", b"h2"], False),
        ([b"h2", b"http/1.1"], False),
        ([b"acme-tls/2"], False),
        ([], False),
        (None, False),
    ],
)
def test_a_challenge_of_an_acme_server(protocols: Sequence[bytes] | None, challenged: bool) -> None:
    """Its only protocol is acme-tls/1 (RFC 8737 section 3); a reader that does not look for it sees none."""
    extensions = [(SERVER_NAME, names((0, b"www.example.org")))]
    if protocols is not None:
        extensions.append((PROTOCOLS, vector(2, b"".join(vector(1, protocol) for protocol in protocols))))
    hello = record(message(extensions))
    assert HelloReader(acme=True).read(hello) == Asked("www.example.org", acme=challenged)
    assert HelloReader().read(hello) == Asked("www.example.org")
