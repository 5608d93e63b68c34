"""Conformance of a running server: RFC 9113 and RFC 7541, section by section, as outside suites look at it.

Strategy: one server, one connection for each case. A case is the frames that a client sends after its preface and
SETTINGS, and their outcome: a connection error, a stream error after which the connection goes on, or a response. The
engine's own tests (tests/http2/) have more cases. CONTRIBUTING.md says how to run an outside suite.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator

import hpack
import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from ktlsd.http.request_fields import Field
from ktlsd.http2.errors import ErrorCode
from ktlsd.http2.frames import PREFACE, FrameType, frame, goaway, ping
from tests.http2.blocks import GET, encoded, literals, with_fields, without
from tests.http2.client import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    PRIORITY,
    data,
    headers,
    number,
    parsed,
    priority_update,
    rst_stream,
    settings,
    window_update,
)
from tests.http2.test_connection import CONNECTION_ERRORS
from tests.http2_client import h2_context
from tests.serving import Running, connect, serving

CONTENT = b"content " * 40
PRI, BLOCK, POST = number(0) + b"\x0f", literals(GET), (*without(b":method"), (b":method", b"POST"))
GOES_ON = ping(b"goes on?", ack=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("conformance")
    (folder / "www").mkdir()
    (folder / "www/file").write_bytes(CONTENT)
    with serving(folder / "www", state=folder) as running:
        yield running


class Peer:
    """A client that sends any bytes, and takes frames."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection
        self._received = b""
        self.frames: list[Frame] = []
        self.decoder = hpack.Decoder()

    def send(self, data: bytes) -> None:
        # The server may have ended the connection for the first of these bytes.
        with contextlib.suppress(OSError):
            self._connection.sendall(data)

    def receive(self) -> bool:
        """Take what comes next; False at the end of the connection."""
        data = self._connection.recv(65536)
        self._received += data
        while (size := 9 + int.from_bytes(self._received[:3])) <= len(self._received):
            self.frames += parsed(self._received[:size])
            self._received = self._received[size:]
        return bool(data)

    def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The first frame of this kind, once it has come."""
        while True:
            for one in self.frames:
                if wanted(one):
                    return one
            assert self.receive(), f"the connection ended after {self.frames}"

    def goes_on(self) -> None:
        self.send(GOES_ON)
        self.until(lambda one: getattr(one, "opaque_data", b"") == GOES_ON[9:])
        assert not [one for one in self.frames if isinstance(one, GoAwayFrame)]

    def response(self, stream_id: int) -> tuple[int, bytes]:
        """Status and body of a whole response."""
        ended = self.until(lambda one: one.stream_id == stream_id and "END_STREAM" in one.flags)
        mine = self.frames[: self.frames.index(ended) + 1]
        heads = [one for one in self.frames if isinstance(one, HeadersFrame)]
        # In their order: the decoder has a state.
        fields = {
            one.stream_id: {bytes(name): bytes(value) for name, value in self.decoder.decode(one.data, raw=True)}
            for one in heads
        }
        body = b"".join(one.data for one in mine if isinstance(one, DataFrame) and one.stream_id == stream_id)
        return int(fields[stream_id][b":status"]), body


@contextlib.contextmanager
def peer(server: Running, *values: tuple[int, int]) -> Iterator[Peer]:
    """A connection whose client has sent its SETTINGS."""
    with connect(server.port, h2_context("h2")) as connection:
        one = Peer(connection)
        one.send(PREFACE + settings(*values))
        yield one


# --- connection errors (section 5.4.1)


def assert_fails(one: Peer, code: int) -> None:
    while one.receive():
        pass
    last = one.frames[-1]
    assert isinstance(last, GoAwayFrame), one.frames
    assert last.error_code == code


@pytest.mark.parametrize(("bytes_", "code"), CONNECTION_ERRORS)
def test_connection_errors(server: Running, bytes_: bytes, code: ErrorCode) -> None:
    with peer(server) as one:
        one.send(headers(1, literals(POST), END_HEADERS) + bytes_)
        assert_fails(one, code)


@pytest.mark.parametrize(
    "first", [b"INVALID CONNECTION PREFACE\r\n\r\n", PREFACE + ping(b"12345678", ack=False), PREFACE[:-1] + b"X"]
)
def test_wrong_prefaces(server: Running, first: bytes) -> None:
    """Section 3.4."""
    with connect(server.port, h2_context("h2")) as connection:
        one = Peer(connection)
        one.send(first)
        assert_fails(one, ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("bytes_", [data(1, b"x"), headers(1, literals([(b"a", b"b")]))])
def test_frames_on_a_closed_stream(server: Running, bytes_: bytes) -> None:
    """Section 5.1."""
    with peer(server) as one:
        one.send(headers(1, BLOCK))
        assert one.response(1) == (200, CONTENT)
        one.send(bytes_)
        assert_fails(one, ErrorCode.STREAM_CLOSED)


# --- stream errors (section 5.4.2)

MALFORMED: dict[str, tuple[Field, ...]] = {
    # section 8.2
    "upper case": with_fields((b"X-Test", b"ok")),
    "space in a name": with_fields((b"x test", b"ok")),
    "empty name": with_fields((b"", b"ok")),
    "line feed in a value": with_fields((b"x", b"a\nb")),
    "NUL in a value": with_fields((b"x", b"a\0b")),
    "space before a value": with_fields((b"x", b" a")),
    "space after a value": with_fields((b"x", b"a ")),
    # section 8.2.2
    "connection": with_fields((b"connection", b"keep-alive")),
    "keep-alive": with_fields((b"keep-alive", b"timeout=5")),
    "proxy-connection": with_fields((b"proxy-connection", b"keep-alive")),
    "transfer-encoding": with_fields((b"transfer-encoding", b"chunked")),
    "upgrade": with_fields((b"upgrade", b"h2c")),
    "te": with_fields((b"te", b"trailers, deflate")),
    # section 8.3
    "unknown pseudo-field": (*GET, (b":test", b"ok")),
    "pseudo-field of responses": (*GET, (b":status", b"200")),
    "pseudo-field after a field": (*without(b":path"), (b"x", b"ok"), (b":path", b"/")),
    "no method": without(b":method"),
    "no scheme": without(b":scheme"),
    "no path": without(b":path"),
    "empty path": (*without(b":path"), (b":path", b"")),
    "relative path": (*without(b":path"), (b":path", b"file")),
    "asterisk": (*without(b":path"), (b":path", b"*")),
    "method twice": (*GET, (b":method", b"GET")),
    "scheme twice": (*GET, (b":scheme", b"https")),
    "path twice": (*GET, (b":path", b"/")),
    "authority twice": (*GET, (b":authority", b"example.org")),
    "user information": (*without(b":authority"), (b":authority", b"user@example.org")),
    "another host": with_fields((b"host", b"example.net")),
    # section 8.5
    "CONNECT with a path": (*without(b":method"), (b":method", b"CONNECT")),
    # section 8.1.1
    "content-length": with_fields((b"content-length", b"1")),
    "two lengths": with_fields((b"content-length", b"0"), (b"content-length", b"0")),
}


def assert_reset(one: Peer, stream_id: int, code: ErrorCode) -> None:
    found = one.until(lambda one: isinstance(one, RstStreamFrame))
    assert (found.stream_id, getattr(found, "error_code", None)) == (stream_id, code)
    one.goes_on()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests(server: Running, name: str) -> None:
    with peer(server) as one:
        one.send(headers(1, literals(MALFORMED[name])))
        assert_reset(one, 1, ErrorCode.PROTOCOL_ERROR)
        one.send(headers(3, BLOCK))
        assert one.response(3) == (200, CONTENT)


LENGTH_1 = literals((*POST, (b"content-length", b"1")))
BEGUN = headers(1, literals(POST), END_HEADERS)
STREAM_ERRORS = {
    # section 8.1.1
    "less than content-length": (headers(1, LENGTH_1, END_HEADERS) + data(1, b"", END_STREAM), "PROTOCOL_ERROR"),
    "more than content-length": (headers(1, LENGTH_1, END_HEADERS) + data(1, b"ab", END_STREAM), "PROTOCOL_ERROR"),
    "more in two frames": (headers(1, LENGTH_1, END_HEADERS) + 2 * data(1, b"a"), "PROTOCOL_ERROR"),
    # section 8.1
    "HEADERS that do not end": (BEGUN + headers(1, literals([(b"a", b"b")]), END_HEADERS), "PROTOCOL_ERROR"),
    "pseudo-field in trailers": (BEGUN + headers(1, literals([(b":path", b"/")])), "PROTOCOL_ERROR"),
    "upper case in trailers": (BEGUN + headers(1, literals([(b"A", b"b")])), "PROTOCOL_ERROR"),
    # section 5.1
    "DATA after the end": (headers(1, BLOCK) + data(1, b"x"), "STREAM_CLOSED"),
    "HEADERS after the end": (headers(1, BLOCK) + headers(1, literals([(b"a", b"b")])), "STREAM_CLOSED"),
    # section 6.3, and section 5.3.1 of RFC 7540
    "length of PRIORITY": (BEGUN + frame(FrameType.PRIORITY, 0, 1, b"abcd"), "FRAME_SIZE_ERROR"),
    "length of PRIORITY, later": (headers(1, BLOCK) + frame(FrameType.PRIORITY, 0, 1, b"abcd"), "FRAME_SIZE_ERROR"),
    "PRIORITY on itself": (BEGUN + frame(FrameType.PRIORITY, 0, 1, number(1) + b"\x0f"), "PROTOCOL_ERROR"),
    "HEADERS on themselves": (headers(1, number(1) + b"\x0f" + BLOCK, 0x25), "PROTOCOL_ERROR"),
    # section 6.9
    "WINDOW_UPDATE by 0": (BEGUN + window_update(1, 0), "PROTOCOL_ERROR"),
    "window too large": (BEGUN + window_update(1, 0x7FFFFFFF), "FLOW_CONTROL_ERROR"),
    "windows too large": (BEGUN + 2 * window_update(1, 0x40000000), "FLOW_CONTROL_ERROR"),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_stream_errors(server: Running, name: str) -> None:
    """A window of one byte keeps the stream open."""
    sent, code = STREAM_ERRORS[name]
    with peer(server, (4, 1)) as one:
        one.send(sent)
        assert_reset(one, 1, ErrorCode[code])


def test_more_streams_than_allowed(server: Running) -> None:
    """Section 5.1.2."""
    with peer(server, (4, 0)) as one:
        announced = one.until(lambda one: isinstance(one, SettingsFrame))
        most = getattr(announced, "settings", {})[3]
        one.send(b"".join(headers(stream_id, BLOCK) for stream_id in range(1, 2 * most + 2, 2)))
        assert_reset(one, 2 * most + 1, ErrorCode.REFUSED_STREAM)


# --- what has to be accepted

ACCEPTED = {
    "one frame": headers(1, BLOCK),
    "HEAD": headers(1, literals((*without(b":method"), (b":method", b"HEAD")))),
    "body": BEGUN + data(1, b"body", END_STREAM),
    "body in frames": BEGUN + data(1, b"bo") + data(1, b"dy") + data(1, b"", END_STREAM),
    "padded body": BEGUN + data(1, b"\x03body\0\0\0", PADDED | END_STREAM),
    "trailers": BEGUN + data(1, b"body") + headers(1, literals([(b"x-test", b"ok")])),
    "only trailers": BEGUN + headers(1, literals([(b"x-test", b"ok")])),
    # section 6.2
    "padding": headers(1, b"\x02" + BLOCK + b"\0\0", PADDED | END_HEADERS | END_STREAM),
    "old priority": headers(1, PRI + BLOCK, PRIORITY | END_HEADERS | END_STREAM),
    "exclusive": headers(1, b"\x80\0\0\0\xff" + BLOCK, PRIORITY | END_HEADERS | END_STREAM),
    "padding and priority": headers(1, b"\x01" + PRI + BLOCK + b"\0", PADDED | PRIORITY | END_HEADERS | END_STREAM),
    "on a stream to come": headers(1, number(7) + b"\x0f" + BLOCK, PRIORITY | END_HEADERS | END_STREAM),
    # section 6.10
    "CONTINUATION": headers(1, BLOCK[:9], END_STREAM)
    + frame(FrameType.CONTINUATION, 0, 1, BLOCK[9:20])
    + frame(FrameType.CONTINUATION, END_HEADERS, 1, BLOCK[20:]),
    "empty fragments": headers(1, b"", END_STREAM)
    + frame(FrameType.CONTINUATION, 0, 1)
    + frame(FrameType.CONTINUATION, END_HEADERS, 1, BLOCK),
    # sections 5.1 and 6.3
    "PRIORITY, idle": frame(FrameType.PRIORITY, 0, 1, PRI) + headers(1, BLOCK),
    "PRIORITY, half-closed": headers(1, BLOCK) + frame(FrameType.PRIORITY, 0, 1, PRI),
    "WINDOW_UPDATE, half-closed": headers(1, BLOCK) + window_update(1, 10),
    # section 4.1, 5.5
    "unknown type": frame(FrameType(0x2), 0, 3, PRI).replace(b"\x02", b"\x16", 1) + headers(1, BLOCK),
    "unknown flags": headers(1, BLOCK, 0xD2 | END_HEADERS | END_STREAM),
    "reserved bit": headers(0x80000001, BLOCK),
    # section 6.5
    "unknown setting": settings((0xFF, 1)) + headers(1, BLOCK),
    "acknowledgement": settings(ack=True) + headers(1, BLOCK),
    "settings, each twice": settings((4, 100), (4, 1000), (1, 0), (1, 4096), (5, 70000)) + headers(1, BLOCK),
    # section 6.7 to 6.9
    "PING": ping(b"12345678", ack=False) + headers(1, BLOCK),
    "answer to no PING": ping(b"12345678", ack=True) + headers(1, BLOCK),
    "GOAWAY of another stream": goaway(0, ErrorCode.NO_ERROR) + headers(1, BLOCK),
    "window of the connection": window_update(0, 100) + headers(1, BLOCK),
    # RFC 9218
    "PRIORITY_UPDATE": priority_update(1, b"u=1, i") + headers(1, BLOCK),
    "malformed PRIORITY_UPDATE": priority_update(1, b"\xff") + headers(1, BLOCK),
    # RFC 7541: section 6.1, 6.2.1 to 6.2.3, 5.2, 6.3
    "indexed names": headers(1, b"\x82\x87\x04\x05/file\x01\x0bexample.org"),
    "incremental": headers(1, b"\x82\x87\x44\x05/file\x41\x0bexample.org\x40\x01a\x01b\xbe"),
    "never indexed": headers(1, b"\x82\x87\x14\x05/file\x11\x0bexample.org\x10\x01a\x01b"),
    "Huffman code": headers(1, encoded(GET)),
    "no Huffman code": headers(1, encoded(GET, huffman=False)),
    "table size": headers(1, b"\x20" + BLOCK),
    "two table sizes": headers(1, b"\x20\x3f\xe1\x1f" + BLOCK),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(server: Running, name: str) -> None:
    with peer(server) as one:
        one.send(ACCEPTED[name])
        status, body = one.response(1)
        assert (status, body) in [(200, CONTENT), (200, b""), (405, b"405 Method Not Allowed\n")]
        assert (status == 405) is ACCEPTED[name].startswith(BEGUN)
        one.goes_on()


@pytest.mark.parametrize("bytes_", [frame(FrameType.PRIORITY, 0, 1, PRI), window_update(1, 10), rst_stream(1)])
def test_accepted_on_a_closed_stream(server: Running, bytes_: bytes) -> None:
    with peer(server) as one:
        one.send(headers(1, BLOCK))
        one.response(1)
        one.send(bytes_)
        one.goes_on()


def test_reset_of_a_request(server: Running) -> None:
    with peer(server, (4, 0)) as one:
        one.send(headers(1, BLOCK) + rst_stream(1, 0xFF) + headers(3, BLOCK) + window_update(3, 1000))
        assert one.response(3) == (200, CONTENT)


def test_settings_are_acknowledged(server: Running) -> None:
    """Section 6.5.3: once for each frame."""
    with peer(server) as one:
        one.send(settings((4, 1)) + settings())
        one.goes_on()
        acknowledged = [one for one in one.frames if isinstance(one, SettingsFrame) and "ACK" in one.flags]
        assert len(acknowledged) == 3


# --- flow control (section 6.9)


def bytes_of(one: Peer, stream_id: int = 1) -> int:
    return sum(len(one.data) for one in one.frames if isinstance(one, DataFrame) and one.stream_id == stream_id)


def test_window_of_one_byte(server: Running) -> None:
    with peer(server, (4, 1)) as one:
        one.send(headers(1, BLOCK))
        one.until(lambda one: isinstance(one, DataFrame))
        one.goes_on()
        assert bytes_of(one) == 1
        one.send(window_update(1, 5))
        while bytes_of(one) < 6:
            one.receive()
        one.goes_on()
        assert bytes_of(one) == 6


def test_window_that_settings_change(server: Running) -> None:
    """Section 6.9.2: open streams, too, and below 0."""
    with peer(server, (4, 10)) as one:
        one.send(headers(1, BLOCK))
        while bytes_of(one) < 10:
            one.receive()
        one.send(settings((4, 2)) + window_update(1, 8))
        one.goes_on()
        assert bytes_of(one) == 10
        one.send(window_update(1, 1))
        while bytes_of(one) < 11:
            one.receive()
        one.send(settings((4, 1000)))
        assert one.response(1) == (200, CONTENT)


def test_window_of_the_connection(server: Running) -> None:
    """65,535 bytes for all streams, whatever theirs are."""
    streams = range(1, 2 * (65_535 // len(CONTENT)) + 20, 2)
    with peer(server, (4, 1 << 20)) as one:
        for stream_id in streams:
            one.send(headers(stream_id, BLOCK))
            # Some at a time: the limit of concurrent streams.
            if stream_id % 100 == 99:
                one.goes_on()
                one.frames = [kept for kept in one.frames if not hasattr(kept, "opaque_data")]
        one.goes_on()
        assert sum(bytes_of(one, stream_id) for stream_id in streams) == 65_535
        one.send(window_update(0, 65_535))
        assert one.until(lambda one: one.stream_id == streams[-1] and "END_STREAM" in one.flags)


@pytest.mark.parametrize("size", [16_384, 16_385])
def test_frames_of_the_largest_size(server: Running, size: int) -> None:
    """Section 4.2."""
    with peer(server) as one:
        one.send(BEGUN + data(1, bytes(size), END_STREAM))
        if size > 16_384:
            assert_fails(one, ErrorCode.FRAME_SIZE_ERROR)
        else:
            assert one.response(1)[0] == 405
