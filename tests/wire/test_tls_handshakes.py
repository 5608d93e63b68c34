"""Handshakes and records as no client makes them: the right alert or an end, and the next client is served.

The messages are tlslite-ng's, the bytes around them are made here; the cases are of the kind that tlsfuzzer and
TLS-Anvil try. The numbers of alerts are those of RFC 8446 section 6.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import warnings
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import pytest

from tests.serving import WAIT_SECONDS, Running, get, serving

with warnings.catch_warnings():
    # It imports asyncore where Python still has it.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite.api import HandshakeSettings, TLSConnection
    from tlslite.errors import TLSAbruptCloseError
    from tlslite.messages import Message


class Kind(IntEnum):
    """ContentType of a record."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23
    HEARTBEAT = 24


class Alert(IntEnum):
    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    RECORD_OVERFLOW = 22
    HANDSHAKE_FAILURE = 40
    ILLEGAL_PARAMETER = 47
    DECODE_ERROR = 50
    PROTOCOL_VERSION = 70
    INTERNAL_ERROR = 80
    INAPPROPRIATE_FALLBACK = 86
    NO_RENEGOTIATION = 100
    MISSING_EXTENSION = 109
    UNRECOGNIZED_NAME = 112


SERVER_HELLO, RETRY, END = "server hello", "hello retry request", "end"
FATAL = 2
Outcome = Alert | str
MALFORMED = (Alert.DECODE_ERROR, Alert.ILLEGAL_PARAMETER)
NO_ROOM_FOR_A_TAG = (Alert.BAD_RECORD_MAC, Alert.INTERNAL_ERROR)
"""Either, where versions of OpenSSL differ."""
TLS_1_2, TLS_1_3 = (3, 3), (3, 4)
LONGEST = 2**14
GREASE = b"\x3a\x3a"
X25519, P256, P384, X448 = b"\0\x1d", b"\0\x17", b"\0\x18", b"\0\x1e"
RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
BASE_POINT = b"\x09".ljust(32, b"\0")


# --- bytes


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width) + data


def record(kind: int, data: bytes, version: int = 0x0303) -> bytes:
    return struct.pack(">BHH", kind, version, len(data)) + data


def handshake(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + vector(3, body)


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">H", kind) + vector(2, body)


def share(group: bytes, key: bytes = BASE_POINT) -> bytes:
    return group + vector(2, key)


NAME = extension(0, vector(2, b"\0" + vector(2, b"localhost")))
GROUPS = extension(10, vector(2, X25519 + P256))
POINTS = extension(11, vector(1, b"\0"))
ALGORITHMS = extension(13, vector(2, b"\x04\x03\x08\x04\x04\x01"))
VERSIONS = extension(43, vector(1, b"\x03\x04"))
MODES = extension(45, vector(1, b"\x01"))
SHARES = extension(51, vector(2, share(X25519)))
OF_1_3 = (NAME, GROUPS, ALGORITHMS, VERSIONS, MODES, SHARES)
OF_1_2 = (NAME, GROUPS, POINTS, ALGORITHMS)


def but(old: bytes, *new: bytes) -> tuple[bytes, ...]:
    """The extensions of TLS 1.3 with others in place of one."""
    return tuple(part for one in OF_1_3 for part in (new if one == old else (one,)))


def hello(
    *extensions: bytes,
    version: bytes = b"\x03\x03",
    session: bytes = b"s" * 32,
    suites: bytes = b"\x13\x01\xc0\x2b\xc0\x2f",
    compression: bytes = b"\0",
    after: bytes = b"",
) -> bytes:
    """A ClientHello of TLS 1.3 unless extensions are given."""
    listed = vector(2, b"".join(extensions or OF_1_3))
    parts = (version, b"r" * 32, vector(1, session), vector(2, suites), vector(1, compression), listed, after)
    return handshake(1, b"".join(parts))


def sent(message: bytes, *, size: int = LONGEST, version: int = 0x0303) -> bytes:
    """A handshake message in records of this size."""
    pieces = (message[start : start + size] for start in range(0, len(message), size))
    return b"".join(record(Kind.HANDSHAKE, piece, version) for piece in pieces)


HELLO_1_2 = sent(hello(*OF_1_2, suites=b"\xc0\x2b\xc0\x2f"))
CCS = record(Kind.CHANGE_CIPHER_SPEC, b"\x01")
PSK_BINDER = vector(2, vector(1, b"b" * 32))
PSK = extension(41, vector(2, vector(2, b"t" * 192) + b"\0\0\0\0") + PSK_BINDER)
NO_SHARES = extension(51, vector(2, b""))
WITHOUT_SHARE = hello(*but(SHARES, NO_SHARES))


# --- what comes back


def records_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Raises struct.error or IndexError for half a record."""
    while data:
        kind, _, length = struct.unpack_from(">BHH", data)
        data[length + 4]
        yield kind, data[5 : 5 + length]
        data = data[5 + length :]


def outcome_of(data: bytes) -> Outcome:
    """The first sign: an alert, or the server's result for a ClientHello."""
    for kind, body in records_of(data):
        if kind == Kind.ALERT:
            assert body[0] == FATAL
            return Alert(body[1])
        if kind == Kind.HANDSHAKE and body[0] == 2:
            return RETRY if body[6:38] == RETRY_RANDOM else SERVER_HELLO
    return END


def send(client: socket.socket, data: bytes) -> None:
    # What the server answers to the first of it can be there before the rest is sent.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(data)


def receive(client: socket.socket) -> Outcome:
    """The next outcome; the server must say something, or end."""
    received = b""
    # A reset follows where not all was read that was sent.
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
            with contextlib.suppress(IndexError, struct.error):
                if (found := outcome_of(received)) != END:
                    return found
    return outcome_of(received)


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_SECONDS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("root")
    (folder / "a.txt").write_text("content")
    # A kernel that decrypts has answers of its own to bad records: docs/tls.md.
    with serving(folder, "--ktls", "off", state=tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serving(server: Running) -> Iterator[None]:
    """Whatever was sent, the next client is served and no defect shows."""
    lines = len(server.log)
    yield
    assert get(server.port, "/a.txt").body == b"content"
    assert not any("defect" in line or "Traceback" in line for line in server.log[lines:])


# --- a ClientHello, and what comes before it

GREASED = (
    extension(0x3A3A, b""),
    *but(GROUPS, extension(10, vector(2, GREASE + X25519 + P256))),
    extension(0x4A4A, b"x"),
)
GREASED_SHARE = (
    extension(10, vector(2, GREASE + X25519)),
    *(one for one in OF_1_3 if one not in (GROUPS, SHARES)),
    extension(51, vector(2, share(GREASE, b"\0") + share(X25519))),
)
HELLOS: dict[str, tuple[bytes, Outcome | tuple[Outcome, ...]]] = {
    "TLS 1.3": (sent(hello()), SERVER_HELLO),
    "TLS 1.2": (HELLO_1_2, SERVER_HELLO),
    "without a session name": (sent(hello(session=b"")), SERVER_HELLO),
    "GREASE everywhere": (sent(hello(*GREASED, suites=GREASE + b"\x13\x01")), SERVER_HELLO),
    "GREASE version": (sent(hello(*but(VERSIONS, extension(43, vector(1, GREASE + b"\x03\x04"))))), SERVER_HELLO),
    "GREASE key share": (sent(hello(*GREASED_SHARE)), SERVER_HELLO),
    "unknown extension of 10 KB": (sent(hello(*OF_1_3, extension(0xFFCE, bytes(10_000)))), SERVER_HELLO),
    "two records": (sent(hello(*OF_1_3, extension(21, bytes(20_000)))), SERVER_HELLO),
    "three records": (sent(hello(*OF_1_3, extension(21, bytes(40_000)))), SERVER_HELLO),
    "records of 50 bytes": (sent(hello(), size=50), SERVER_HELLO),
    "records of one byte": (sent(hello(), size=1), SERVER_HELLO),
    "record version SSL 3.0": (sent(hello(), version=0x0300), SERVER_HELLO),
    "record version TLS 1.0": (sent(hello(), version=0x0301), SERVER_HELLO),
    "record version TLS 1.3": (sent(hello(), version=0x0304), SERVER_HELLO),
    "record version 4": (sent(hello(), version=0x0400), END),
    "record version 2": (sent(hello(), version=0x0200), END),
    "duplicated extension": (sent(hello(*OF_1_3, NAME)), Alert.ILLEGAL_PARAMETER),
    "duplicated unknown extension": (
        sent(hello(*OF_1_3, extension(0xFFCE, b""), extension(0xFFCE, b""))),
        SERVER_HELLO,
    ),
    "only an unknown version": (
        sent(hello(*but(VERSIONS, extension(43, vector(1, b"\x03\x05"))))),
        Alert.PROTOCOL_VERSION,
    ),
    "TLS 1.1": (sent(hello(*OF_1_2, version=b"\x03\x02")), Alert.PROTOCOL_VERSION),
    "SSL 3.0": (sent(hello(*OF_1_2, version=b"\x03\0")), Alert.HANDSHAKE_FAILURE),
    "version 3.5": (sent(hello(*OF_1_2, version=b"\x03\x05")), SERVER_HELLO),
    "a fall back from TLS 1.3": (sent(hello(*OF_1_2, suites=b"\xc0\x2b\xc0\x2f\x56\0")), Alert.INAPPROPRIATE_FALLBACK),
    "only unknown suites": (sent(hello(suites=b"\x13\x99")), Alert.HANDSHAKE_FAILURE),
    "no suites": (sent(hello(suites=b"")), MALFORMED),
    "half a suite": (sent(hello(suites=b"\x13\x01\x13")), Alert.DECODE_ERROR),
    "a session name of 33 bytes": (sent(hello(session=b"s" * 33)), Alert.DECODE_ERROR),
    "compression in TLS 1.3": (sent(hello(compression=b"\x01\0")), Alert.ILLEGAL_PARAMETER),
    "nothing but compression": (sent(hello(*OF_1_2, compression=b"\x01")), MALFORMED),
    "no compression method": (sent(hello(compression=b"")), Alert.DECODE_ERROR),
    "bytes after the extensions": (sent(hello(after=b"x")), Alert.DECODE_ERROR),
    "an extension that ends early": (sent(hello(*OF_1_3, b"\0\x23\0\x10abc")), Alert.DECODE_ERROR),
    "half an extension's head": (sent(hello(*OF_1_3, b"\0\x23\0")), Alert.DECODE_ERROR),
    "no algorithms": (sent(hello(*but(ALGORITHMS))), Alert.MISSING_EXTENSION),
    "algorithms that fit no key": (
        sent(hello(*but(ALGORITHMS, extension(13, vector(2, b"\x08\x08"))))),
        Alert.HANDSHAKE_FAILURE,
    ),
    "an empty list of algorithms": (sent(hello(*but(ALGORITHMS, extension(13, vector(2, b""))))), Alert.DECODE_ERROR),
    "half an algorithm": (sent(hello(*but(ALGORITHMS, extension(13, vector(2, b"\x04\x03\x08"))))), Alert.DECODE_ERROR),
    "no groups": (sent(hello(*but(GROUPS))), Alert.MISSING_EXTENSION),
    "no key shares": (sent(hello(*but(SHARES))), Alert.MISSING_EXTENSION),
    "only unknown groups": (
        sent(hello(*(one for one in but(GROUPS, extension(10, vector(2, b"\x01\x23"))) if one != SHARES), NO_SHARES)),
        Alert.HANDSHAKE_FAILURE,
    ),
    "an empty list of groups": (sent(hello(*but(GROUPS, extension(10, vector(2, b""))))), Alert.DECODE_ERROR),
    "a group that needs a retry": (sent(WITHOUT_SHARE), RETRY),
    "a key share of 31 bytes": (
        sent(hello(*but(SHARES, extension(51, vector(2, share(X25519, bytes(31))))))),
        Alert.ILLEGAL_PARAMETER,
    ),
    "a key share of zeros": (
        sent(hello(*but(SHARES, extension(51, vector(2, share(X25519, bytes(32))))))),
        Alert.ILLEGAL_PARAMETER,
    ),
    "a point that is on no curve": (
        sent(hello(*but(SHARES, extension(51, vector(2, share(P256, b"\x04" + b"\x01" * 64)))))),
        Alert.ILLEGAL_PARAMETER,
    ),
    "a key share for no listed group": (
        sent(hello(*but(SHARES, extension(51, vector(2, share(P384, b"\x04" + b"\x01" * 96)))))),
        Alert.ILLEGAL_PARAMETER,
    ),
    "two key shares of one group": (
        sent(hello(*but(SHARES, extension(51, vector(2, share(X25519) * 2))))),
        SERVER_HELLO,
    ),
    "an empty name": (sent(hello(*but(NAME, extension(0, vector(2, b"\0\0\0"))))), SERVER_HELLO),
    "a name with a NUL": (
        sent(hello(*but(NAME, extension(0, vector(2, b"\0" + vector(2, b"local\0host")))))),
        Alert.UNRECOGNIZED_NAME,
    ),
    "a name of an unknown type": (
        sent(hello(*but(NAME, extension(0, vector(2, b"\x01" + vector(2, b"localhost")))))),
        Alert.DECODE_ERROR,
    ),
    "a name of 300 bytes": (
        sent(hello(*but(NAME, extension(0, vector(2, b"\0" + vector(2, b"a" * 300)))))),
        Alert.UNRECOGNIZED_NAME,
    ),
    "a fragment length there is not": (sent(hello(*OF_1_3, extension(1, b"\x09"))), Alert.ILLEGAL_PARAMETER),
    "an unknown ticket": (sent(hello(*OF_1_3, PSK)), SERVER_HELLO),
    "a ticket that is not last": (sent(hello(PSK, *OF_1_3)), Alert.ILLEGAL_PARAMETER),
    "a ticket without modes": (sent(hello(*but(MODES), PSK)), Alert.MISSING_EXTENSION),
    "a ticket without binder": (
        sent(hello(*OF_1_3, extension(41, vector(2, vector(2, b"t" * 192) + b"\0\0\0\0")))),
        SERVER_HELLO,
    ),
    "a TLS 1.2 ticket of rubbish": (sent(hello(*OF_1_2, extension(35, b"t" * 192), suites=b"\xc0\x2b")), SERVER_HELLO),
    "early data that nobody allowed": (
        sent(hello(*OF_1_3, extension(42, b""))) + record(Kind.APPLICATION_DATA, os.urandom(500)),
        SERVER_HELLO,
    ),
    "more early data than is skipped": (
        sent(hello(*OF_1_3, extension(42, b""), PSK)) + record(Kind.APPLICATION_DATA, os.urandom(16000)) * 3,
        SERVER_HELLO,
    ),
    "a length of 16 MiB": (record(Kind.HANDSHAKE, b"\x01\xff\xff\xff" + hello()[4:]), Alert.ILLEGAL_PARAMETER),
    "a record of 64 KiB": (record(Kind.HANDSHAKE, hello() + bytes(65_535 - len(hello()))), Alert.RECORD_OVERFLOW),
    "a record one byte too long": (
        record(Kind.HANDSHAKE, hello(*OF_1_3, extension(21, bytes(20_000)))[: LONGEST + 1]),
        Alert.RECORD_OVERFLOW,
    ),
    "an empty record": (record(Kind.HANDSHAKE, b"") + sent(hello()), SERVER_HELLO),
    "many empty records": (record(Kind.HANDSHAKE, b"") * 100, Alert.UNEXPECTED_MESSAGE),
    "another message first": (sent(handshake(20, bytes(32))), Alert.UNEXPECTED_MESSAGE),
    "a ServerHello": (sent(b"\x02" + hello()[1:]), Alert.UNEXPECTED_MESSAGE),
    "data first": (record(Kind.APPLICATION_DATA, b"GET / HTTP/1.1\r\n"), Alert.UNEXPECTED_MESSAGE),
    "ChangeCipherSpec first": (CCS + sent(hello()), Alert.UNEXPECTED_MESSAGE),
    "a heartbeat": (record(Kind.HEARTBEAT, b"\x01\x40\0"), Alert.UNEXPECTED_MESSAGE),
    "an unknown type of record": (record(99, b"x"), Alert.UNEXPECTED_MESSAGE),
    "close_notify first": (record(Kind.ALERT, b"\x01\0"), Alert.UNEXPECTED_MESSAGE),
    "a fatal alert first": (record(Kind.ALERT, b"\x02\x28"), Alert.UNEXPECTED_MESSAGE),
    "an alert of no level": (record(Kind.ALERT, b"\x09\x28"), Alert.UNEXPECTED_MESSAGE),
    "half an alert": (record(Kind.ALERT, b"\x02"), Alert.UNEXPECTED_MESSAGE),
    "an alert between two pieces": (
        sent(hello(), size=50)[:55] + record(Kind.ALERT, b"\x01\x5a") + sent(hello(), size=50)[55:],
        Alert.UNEXPECTED_MESSAGE,
    ),
    "data between two pieces": (
        sent(hello(), size=50)[:55] + record(Kind.APPLICATION_DATA, b"x") + sent(hello(), size=50)[55:],
        Alert.UNEXPECTED_MESSAGE,
    ),
    "SSL 2.0": (
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\x01\0\x80" * 7 + bytes(16),
        Alert.PROTOCOL_VERSION,
    ),
}


@pytest.mark.parametrize(("data", "expected"), HELLOS.values(), ids=HELLOS)
def test_a_client_hello(server: Running, data: bytes, expected: Outcome | tuple[Outcome, ...]) -> None:
    with connected(server) as client:
        send(client, data)
        outcome = receive(client)
    assert outcome in expected if isinstance(expected, tuple) else outcome == expected


@pytest.mark.parametrize("data", [b"", b"\x16\x03", sent(hello())[:100], sent(hello(), size=50)[:110]])
def test_a_client_that_leaves_before_its_hello_is_whole(server: Running, data: bytes) -> None:
    with connected(server) as client:
        send(client, data)
        client.shutdown(socket.SHUT_WR)
        assert receive(client) in (Alert.DECODE_ERROR, END)


# --- after the server's first flight


SECOND_HELLOS: dict[str, tuple[bytes, Outcome]] = {
    "with the key share": (hello(), SERVER_HELLO),
    "still without": (WITHOUT_SHARE, Alert.ILLEGAL_PARAMETER),
    "for another group": (
        hello(*but(SHARES, extension(51, vector(2, share(P256, b"\x04" + b"\x01" * 64))))),
        Alert.ILLEGAL_PARAMETER,
    ),
    "with another suite": (hello(suites=b"\x13\x02"), Alert.ILLEGAL_PARAMETER),
    "of TLS 1.2": (hello(*OF_1_2), Alert.PROTOCOL_VERSION),
    "a Finished": (handshake(20, bytes(32)), Alert.UNEXPECTED_MESSAGE),
}


@pytest.mark.parametrize("between", [b"", CCS], ids=["", "with ChangeCipherSpec"])
@pytest.mark.parametrize(("again", "expected"), SECOND_HELLOS.values(), ids=SECOND_HELLOS)
def test_a_second_client_hello(server: Running, again: bytes, expected: Outcome, between: bytes) -> None:
    with connected(server) as client:
        send(client, sent(WITHOUT_SHARE))
        assert receive(client) == RETRY
        send(client, between + sent(again))
        assert receive(client) == expected


def flight(client: socket.socket) -> None:
    """Read up to the ServerHelloDone of TLS 1.2, which is the last of its flight."""
    received = b""
    while not received.endswith(handshake(14, b"")):
        data = client.recv(65536)
        assert data, "ended early"
        received += data


KEY_EXCHANGE = handshake(16, vector(1, b"\x04" + b"\x01" * 64))
IN_TLS_1_2: dict[str, tuple[bytes, Outcome]] = {
    # CVE-2014-0224.
    "ChangeCipherSpec before the keys": (CCS, Alert.UNEXPECTED_MESSAGE),
    "Finished before the keys": (sent(handshake(20, bytes(12))), Alert.UNEXPECTED_MESSAGE),
    "a point that is on no curve": (sent(KEY_EXCHANGE), Alert.ILLEGAL_PARAMETER),
    "an empty key": (sent(handshake(16, vector(1, b""))), Alert.ILLEGAL_PARAMETER),
    "half a key": (sent(handshake(16, b"\x41\x04")), Alert.DECODE_ERROR),
    "a certificate that nobody asked for": (sent(handshake(11, bytes(3))), Alert.UNEXPECTED_MESSAGE),
    "another ClientHello": (HELLO_1_2, Alert.UNEXPECTED_MESSAGE),
    "data": (record(Kind.APPLICATION_DATA, b"GET / HTTP/1.1\r\n\r\n"), Alert.UNEXPECTED_MESSAGE),
    "a heartbeat": (record(Kind.HEARTBEAT, b"\x01\x40\0"), Alert.UNEXPECTED_MESSAGE),
    "a record of another version": (record(Kind.HANDSHAKE, KEY_EXCHANGE, 0x0301), Alert.PROTOCOL_VERSION),
    "a fatal alert": (record(Kind.ALERT, b"\x02\x28"), END),
    "close_notify": (record(Kind.ALERT, b"\x01\0"), END),
    "many warnings": (record(Kind.ALERT, b"\x01\x5a") * 100, Alert.UNEXPECTED_MESSAGE),
    "a key and data in between": (
        sent(KEY_EXCHANGE, size=40)[:45] + record(Kind.APPLICATION_DATA, b"x"),
        Alert.UNEXPECTED_MESSAGE,
    ),
}


@pytest.mark.parametrize(("data", "expected"), IN_TLS_1_2.values(), ids=IN_TLS_1_2)
def test_in_the_midst_of_a_tls_1_2_handshake(server: Running, data: bytes, expected: Outcome) -> None:
    with connected(server) as client:
        send(client, HELLO_1_2)
        flight(client)
        send(client, data)
        assert receive(client) == expected


# --- after the handshake


@contextlib.contextmanager
def tls(server: Running, version: tuple[int, int]) -> Iterator[Any]:
    """tlslite-ng's connection with the handshake done."""
    settings = HandshakeSettings()
    settings.minVersion = settings.maxVersion = version
    with connected(server) as client:
        connection = TLSConnection(client)
        connection.handshakeClientCert(settings=settings)
        yield connection


def send_record(connection: Any, kind: int, data: bytes) -> None:
    """One record, encrypted, whatever is in it."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in connection._recordLayer.sendRecord(Message(kind, bytearray(data))):
            pass


def next_record(connection: Any) -> tuple[int, bytes] | None:
    """Decrypted; None for the end."""
    try:
        for found in connection._recordLayer.recvRecord():
            if found not in (0, 1):
                head, parser = found
                return head.type, bytes(parser.bytes)
    except (TLSAbruptCloseError, ConnectionResetError):
        pass
    return None


def said(connection: Any) -> tuple[Outcome, bytes]:
    """What the server says up to its first alert, or the end: the alert, and the data before it."""
    data = b""
    while (found := next_record(connection)) is not None:
        kind, body = found
        if kind == Kind.ALERT:
            return Alert(body[1]), data
        if kind == Kind.APPLICATION_DATA:
            data += body
    return END, data


REQUEST = b"GET /a.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
RAW = -1
"""In place of a kind: bytes that are sent as they are, not encrypted."""

BOTH, ONLY_1_2, ONLY_1_3 = {TLS_1_2, TLS_1_3}, {TLS_1_2}, {TLS_1_3}
Records = list[tuple[int, bytes]]
AFTERWARDS: dict[str, tuple[set[tuple[int, int]], Records, Outcome | tuple[Alert, Alert]]] = {
    "a request": (BOTH, [(Kind.APPLICATION_DATA, REQUEST)], Alert.CLOSE_NOTIFY),
    "a request byte by byte": (
        BOTH,
        [(Kind.APPLICATION_DATA, bytes([byte])) for byte in REQUEST],
        Alert.CLOSE_NOTIFY,
    ),
    "a few empty records": (
        BOTH,
        [*[(Kind.APPLICATION_DATA, b"")] * 5, (Kind.APPLICATION_DATA, REQUEST)],
        Alert.CLOSE_NOTIFY,
    ),
    "many empty records": (BOTH, [(Kind.APPLICATION_DATA, b"")] * 200, Alert.UNEXPECTED_MESSAGE),
    "a record one byte too long": (BOTH, [(Kind.APPLICATION_DATA, bytes(LONGEST + 1))], Alert.RECORD_OVERFLOW),
    "a record that nobody encrypted": (
        BOTH,
        [(RAW, record(Kind.APPLICATION_DATA, os.urandom(100)))],
        Alert.BAD_RECORD_MAC,
    ),
    "a record too short for its tag": (BOTH, [(RAW, record(Kind.APPLICATION_DATA, b"x"))], NO_ROOM_FOR_A_TAG),
    "a record that says 64 KiB": (BOTH, [(RAW, b"\x17\x03\x03\xff\xff" + bytes(70_000))], Alert.RECORD_OVERFLOW),
    "an unknown type of record": (BOTH, [(99, b"x")], Alert.UNEXPECTED_MESSAGE),
    "a record of padding alone": (ONLY_1_3, [(0, b"")], Alert.UNEXPECTED_MESSAGE),
    "a record in the clear": (ONLY_1_3, [(RAW, sent(hello()))], Alert.UNEXPECTED_MESSAGE),
    "ChangeCipherSpec": (BOTH, [(Kind.CHANGE_CIPHER_SPEC, b"\x01")], Alert.UNEXPECTED_MESSAGE),
    "ClientHello": (ONLY_1_3, [(Kind.HANDSHAKE, hello())], Alert.UNEXPECTED_MESSAGE),
    "Finished": (BOTH, [(Kind.HANDSHAKE, handshake(20, bytes(12)))], Alert.UNEXPECTED_MESSAGE),
    "a ticket": (BOTH, [(Kind.HANDSHAKE, handshake(4, bytes(20)))], Alert.UNEXPECTED_MESSAGE),
    "a certificate that nobody asked for": (
        BOTH,
        [(Kind.HANDSHAKE, handshake(11, bytes(4)))],
        Alert.UNEXPECTED_MESSAGE,
    ),
    "KeyUpdate of no kind": (ONLY_1_3, [(Kind.HANDSHAKE, handshake(24, b"\x09"))], Alert.ILLEGAL_PARAMETER),
    "KeyUpdate without a kind": (ONLY_1_3, [(Kind.HANDSHAKE, handshake(24, b""))], Alert.DECODE_ERROR),
    "half a message, then data": (
        ONLY_1_3,
        [(Kind.HANDSHAKE, handshake(24, b"\x00")[:3]), (Kind.APPLICATION_DATA, REQUEST)],
        Alert.UNEXPECTED_MESSAGE,
    ),
    "renegotiation": (ONLY_1_2, [(Kind.HANDSHAKE, hello(*OF_1_2))], Alert.NO_RENEGOTIATION),
    "a fatal alert": (BOTH, [(Kind.ALERT, b"\x02\x50")], END),
    "close_notify": (BOTH, [(Kind.ALERT, b"\x01\x00")], Alert.CLOSE_NOTIFY),
    "an alert of no level": (ONLY_1_2, [(Kind.ALERT, b"\x09\x50")], Alert.ILLEGAL_PARAMETER),
    "half an alert": (BOTH, [(Kind.ALERT, b"\x02")], Alert.UNEXPECTED_MESSAGE),
    "many warnings": (BOTH, [(Kind.ALERT, b"\x01\x5a")] * 100, Alert.UNEXPECTED_MESSAGE),
}


@pytest.mark.parametrize(
    ("version", "records", "expected"),
    [
        pytest.param(version, records, expected, id=f"{name}-{'TLS 1.2' if version == TLS_1_2 else 'TLS 1.3'}")
        for name, (versions, records, expected) in AFTERWARDS.items()
        for version in sorted(versions)
    ],
)
def test_records_after_the_handshake(
    server: Running, version: tuple[int, int], records: Records, expected: Outcome | tuple[Alert, Alert]
) -> None:
    with tls(server, version) as connection:
        for kind, data in records:
            if kind == RAW:
                send(connection.sock, data)
            else:
                send_record(connection, kind, data)
        outcome, data = said(connection)
    assert outcome in expected if isinstance(expected, tuple) else outcome == expected
    asked = b"".join(data for _, data in records) == REQUEST
    assert data.startswith(b"HTTP/1.1 200 OK") == asked
