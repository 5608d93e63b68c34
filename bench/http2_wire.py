"""The benchmark's own client of HTTP/2, for what h2load does not measure: idle connections, and small requests beside
downloads on the same connection.

Strategy: frames by hand over wire.Connection. Downloads go at a pace that their windows give, so that bytes wait in no
buffer: a small response has only what the server sends before it to wait for.
"""

from __future__ import annotations

import contextlib
import gc
import ssl
import struct
import time
from collections.abc import Iterator
from typing import Final

from bench import wire

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
_ACK = _END_STREAM = 1
_HEAD: Final = struct.Struct(">IBI")
_HEAD_BYTES: Final = 9
_LARGEST_WINDOW: Final = (1 << 31) - 1
_DEFAULT_WINDOW: Final = 65535
_TICK_SECONDS: Final = 0.01
"""Time between two renewals of the windows of downloads."""


def context() -> ssl.SSLContext:
    """wire.context(), and HTTP/2 is offered."""
    made = wire.context()
    made.set_alpn_protocols(["h2"])
    return made


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def _block(path: str, *, first: bool) -> bytes:
    """A header block of GET without Huffman coding. As those of curl and browsers, the first one of a connection puts
    the fields that stay into the dynamic table (RFC 7541 section 6.2.1), and the next ones have their indices."""
    target = path.encode("ascii")
    fields = ((b"\x41", b"127.0.0.1"), (b"\x7a", b"ktlsd-bench"), (b"\x53", b"*/*"))  # :authority, user-agent, accept
    added = b"".join(b"%b%c%b" % (name, len(value), value) for name, value in fields)
    return b"\x82\x87\x04%c%b%b" % (len(target), target, added if first else b"\xc0\xbf\xbe")


class Connection:
    """One connection; raises wire.WireError where a stream or the connection ends early."""

    def __init__(self, port: int, using: ssl.SSLContext) -> None:
        self.tls = wire.Connection(port, using)
        self._next_stream = 1
        self._received = b""
        self.lengths: dict[int, int] = {}
        """Bytes of the bodies that have come, by stream."""
        begin = _frame(_SETTINGS, 0, 0), self._window_update(0, _LARGEST_WINDOW - _DEFAULT_WINDOW)
        self.tls.send(b"".join((_PREFACE, *begin)))

    def ask(self, path: str) -> int:
        """Send a request; its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self.lengths[stream] = 0
        self.tls.send(_frame(_HEADERS, 0x5, stream, _block(path, first=stream == 1)))
        return stream

    def renew(self, streams: Iterator[int], increment: int) -> None:
        """Let so many more bytes come on each of these streams."""
        self.tls.send(b"".join(self._window_update(stream, increment) for stream in streams))

    def receive(self) -> list[int]:
        """Take what has come, or comes next; the streams that ended with it."""
        data = self.tls.receive()
        if not data:
            raise wire.WireError("the connection ended")
        data, ended, start = self._received + data, [], 0
        while len(data) - start >= _HEAD_BYTES:
            length_and_kind, flags, stream = _HEAD.unpack_from(data, start)
            length, kind = length_and_kind >> 8, length_and_kind & 0xFF
            if len(data) - start < _HEAD_BYTES + length:
                break
            start += _HEAD_BYTES + length
            if kind in (_RST_STREAM, _GOAWAY):
                raise wire.WireError("a stream was reset" if kind == _RST_STREAM else "the connection ends")
            if kind == _SETTINGS and not flags & _ACK:
                self.tls.send(_frame(_SETTINGS, _ACK, 0))
            elif kind == _DATA:
                self.lengths[stream] += length
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                ended.append(stream)
        self._received = data[start:]
        return ended

    def exchange(self, path: str) -> int:
        """One request; the length of its response."""
        stream = self.ask(path)
        while stream not in self.receive():
            pass
        return self.lengths.pop(stream)

    def close(self) -> None:
        self.tls.close()

    @staticmethod
    def _window_update(stream: int, increment: int) -> bytes:
        return _frame(_WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


@contextlib.contextmanager
def idle_connections(port: int, path: str, count: int) -> Iterator[None]:
    """Hold connections that have had one response each. Raises wire.WireError, OSError."""
    using, held = context(), []
    try:
        for _ in range(count):
            connection = Connection(port, using)
            held.append(connection.tls.socket)  # the engine is let go: this process needs no memory for it
            connection.exchange(path)
        yield
    finally:
        for one in held:
            one.close()


def paced(
    port: int, path: str, rate: int, seconds: int, big: str, downloads: int, pace: int
) -> tuple[list[float], float]:
    """The seconds that each of rate * seconds requests took from the moment when it was due, while so many downloads of
    another file go on at `pace` bytes a second each, all on one connection; and the bytes a second of these.

    Raises wire.WireError, OSError.
    """
    connection = Connection(port, context())
    gc.disable()
    try:
        connection.exchange(path)
        running = [connection.ask(big) for _ in range(downloads)]
        times: list[float] = []
        due, asked_at = 0, dict[int, float]()
        started = renewed = time.monotonic()
        while len(times) < rate * seconds:
            now = time.monotonic()
            if now - started > 3 * seconds + wire.WAIT_SECONDS:
                raise wire.WireError("too few responses")
            if running and now - renewed >= _TICK_SECONDS:
                connection.renew(iter(running), int(pace * (now - renewed)))
                renewed = now
            while due < rate * seconds and started + due / rate <= now:
                asked_at[connection.ask(path)] = started + due / rate
                due += 1
            until = min(started + due / rate if due < rate * seconds else now + _TICK_SECONDS, now + _TICK_SECONDS)
            if connection.tls.has_input(max(0.0, until - now)):
                for stream in connection.receive():
                    if stream in asked_at:
                        times.append(time.monotonic() - asked_at.pop(stream))
                        del connection.lengths[stream]
                    else:
                        running[running.index(stream)] = connection.ask(big)
        return times, sum(connection.lengths.values()) / (time.monotonic() - started)
    finally:
        gc.enable()
        connection.close()
