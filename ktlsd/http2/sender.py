"""The sending side of one connection: responses, flow control and control frames: pure.

Strategy: head and small body of a response are bytes at once, in `take()`. A larger body is only counted here: it is
offered, next_turn() says which bytes of which response can go now and in which frames, and the caller reads and sends
them. Windows are charged when a turn is given out, so that nothing that comes meanwhile can promise the same twice.

The order on the wire: what take() gives, then the turns, then what take() gives next. A stream may be gone when its
response comes; each call says so or does nothing.
"""

from __future__ import annotations

from typing import Final

from ktlsd.http2.credit import Credit
from ktlsd.http2.errors import ConnectionFault, ErrorCode
from ktlsd.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADER_BYTES,
    LARGEST_NUMBER,
    FrameType,
    data_header,
    headers_frames,
    rst_stream,
)
from ktlsd.http2.header_table import DEFAULT_CAPACITY
from ktlsd.http2.hpack_encoder import TABLE_SIZE_ZERO
from ktlsd.http2.priority import Priority
from ktlsd.http2.scheduler import Scheduler
from ktlsd.http2.streams import ClosedStreams, Stream
from ktlsd.http2.turns import RECORD_BYTES, Turn, frame_sizes, largest_payload

MOST_BODIES: Final = 131072
"""Bytes of bodies in memory that take() can hold; then a response has to be offered."""
SHARED_TURN_BYTES: Final = 4 * RECORD_BYTES
"""Of a turn with its headers if others of the same urgency take turns with it; and the largest body of respond()."""

_HEADERS: Final = int(FrameType.HEADERS)
_END: Final = END_HEADERS | END_STREAM
# A header of type 0 is that of DATA.
_pack: Final = HEADER.pack


class Sender:
    """One connection's. `streams` are those that are open, by identifier."""

    __slots__ = (
        *("_bodies", "_closed", "_credit", "_frame_bytes", "_largest_payload", "_later", "_out", "_scheduler"),
        *("_table_size", "_update", "initial_window", "streams", "window"),
    )

    def __init__(self, credit: Credit, closed: ClosedStreams, first: bytes) -> None:
        """`first` is sent before all else."""
        self.streams: dict[int, Stream] = {}
        self.window = DEFAULT_WINDOW
        """Bytes of DATA that may be sent on the connection."""
        self._credit = credit
        self._closed = closed
        self._out: list[bytes | bytearray | memoryview] = [first]
        self._later: list[bytes | bytearray | memoryview] = []
        """Frames for the take() after the next one."""
        self._bodies = 0
        self._scheduler = Scheduler()
        self.initial_window = DEFAULT_WINDOW
        """Bytes of DATA that may be sent on a new stream."""
        self._frame_bytes = DEFAULT_FRAME_BYTES
        self._largest_payload = largest_payload(DEFAULT_FRAME_BYTES)
        self._table_size = DEFAULT_CAPACITY
        """The client's table that header blocks count on: none is used, but a smaller one has to be acknowledged."""
        self._update = b""
        """The beginning of the next header block."""

    # --- output ------------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether take() has something."""
        return bool(self._out)

    def take(self) -> bytes:
        """Control frames, heads and small bodies that are to be sent, in this order, before any turn."""
        data = b"".join(self._out)
        self._out, self._later = self._later, []
        self._bodies = 0
        return data

    def write(self, frame: bytes) -> None:
        """Have whole frames sent."""
        self._out.append(frame)

    def shrink(self) -> None:
        """Give back the memory that many streams needed, once none is open: a dictionary keeps its largest size."""
        if not self.streams:
            self.streams.clear()

    # --- responses ---------------------------------------------------------------------------------------------------

    def takes(self, stream_id: int, size: int) -> bool:
        """Whether respond() takes a body of this size now."""
        stream = self.streams.get(stream_id)
        return stream is not None and self._takes(stream, size)

    def _takes(self, stream: Stream, size: int) -> bool:
        if size > stream.window or size > self.window or size > SHARED_TURN_BYTES or self._bodies + size > MOST_BODIES:
            return False
        scheduler = self._scheduler
        # A body of several frames does not go before others of its urgency.
        return not scheduler.levels or not scheduler.more_urgent_than(
            stream.priority.urgency + (size > self._frame_bytes)
        )

    def respond(self, stream_id: int, block: bytes, body: bytes | bytearray = b"") -> bool:
        """A whole response from memory: a header block (hpack_encoder.py), and a body that may be empty.

        False if windows, priorities or the size do not allow it at once: then begin() and offer().
        """
        stream = self.streams.get(stream_id)
        if stream is None:
            return True
        size = len(body)
        if size and not self._takes(stream, size):
            return False
        most, out = self._frame_bytes, self._out
        if self._update or len(block) > most:
            self._write_headers(stream_id, block, end=not size)
        else:
            out += (_pack(len(block) << 8 | _HEADERS, END_HEADERS if size else _END, stream_id), block)
        if 0 < size <= most:
            out += (_pack(size << 8, END_STREAM, stream_id), body)
        elif size:
            rest = memoryview(body)
            for start in range(0, size, most):
                piece = rest[start : start + most]
                out += (data_header(len(piece), stream_id, end=start + most >= size), piece)
            self._credit.earn_bytes(size)
        self.window -= size
        self._bodies += size
        if stream.receiving or stream.waiting:
            self._finish(stream)
        else:
            # The same, without a call.
            del self.streams[stream_id]
            self._credit.responses += 1
        return True

    def begin(self, stream_id: int, block: bytes) -> bool:
        """The head of a response whose body is offered. False if the stream is gone."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        self._write_headers(stream_id, block, end=False)
        stream.began = True
        return True

    def offer(self, stream_id: int, count: int, *, last: bool) -> bool:
        """So many more bytes of a response that began; `last` if it ends with them. False if the stream is gone."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        if not stream.began or stream.complete:
            raise ValueError(f"stream {stream_id} has no response that could go on")
        stream.complete = last
        if last and not count and not stream.offered:
            self.write(data_header(0, stream_id, end=True))
            self._finish(stream)
            return True
        stream.offered += count
        self._schedule(stream)
        return True

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream without its response, or without the rest of it."""
        if stream_id in self.streams:
            self.refuse(stream_id, code)

    def refuse(self, stream_id: int, code: ErrorCode, *, apart: bool = False) -> None:
        """Send RST_STREAM, `apart` in a write after the next one; frames that were under way are then no error."""
        (self._later if apart else self._out).append(rst_stream(stream_id, code))
        self._closed.reset(stream_id)
        self.drop(stream_id)

    def drop(self, stream_id: int) -> Stream | None:
        """Forget an open stream."""
        stream = self.streams.pop(stream_id, None)
        if stream is not None and stream.waiting:
            self._scheduler.remove(stream)
        return stream

    # --- turns -------------------------------------------------------------------------------------------------------

    def next_turn(self, room: int, before: int = 0) -> Turn | None:
        """The bytes that are to be sent next, with their frames' headers at most `room`; None if nothing can be sent.

        `before` bytes of the same TLS record go before them. Each turn ends with sent() or abandon(). The bytes follow
        those of the stream's turn before.
        """
        if self.window <= 0 or room <= HEADER_BYTES:
            return None
        found = self._scheduler.next()
        if found is None:
            return None
        stream, alone = found
        if not alone:
            room = min(room, SHARED_TURN_BYTES - before % RECORD_BYTES)
        allowed = min(stream.offered, stream.window, self.window)
        sizes = frame_sizes(min(allowed, room), room, before % RECORD_BYTES, self._largest_payload)
        count = sum(sizes)
        stream.offered -= count
        stream.window -= count
        self.window -= count
        if not stream.offered or stream.window <= 0:
            self._scheduler.remove(stream)
        return Turn(stream.stream_id, sizes, stream.complete and not stream.offered)

    def sent(self, turn: Turn, *, ended: bool = True) -> None:
        """The turn's bytes were sent, or are to be sent before take() gives anything more.

        If the response ends with the turn, but the last header had no END_STREAM, `ended` is false: an empty frame ends
        the stream then.
        """
        self._credit.earn_bytes(turn.count)
        stream = self.streams.get(turn.stream_id)
        if stream is None or not turn.last:
            return
        if not ended:
            self.write(data_header(0, turn.stream_id, end=True))
        self._finish(stream)

    def abandon(self, turn: Turn, sent: int = 0, code: ErrorCode = ErrorCode.INTERNAL_ERROR) -> None:
        """The turn's bytes could not be read. The stream is reset, and what was not sent is free for others.

        `sent` bytes were sent in whole frames, none of them with END_STREAM.
        """
        self.window += turn.count - sent
        self.reset(turn.stream_id, code)

    def postpone(self, turn: Turn) -> None:
        """Nothing of the turn was sent, since its bytes have to be waited for: they are offered again, and the stream
        has no turn until resume()."""
        self.window += turn.count
        stream = self.streams[turn.stream_id]
        stream.offered += turn.count
        stream.window += turn.count
        stream.held = True
        self._schedule(stream)

    def resume(self, stream_id: int) -> None:
        """The bytes of a postponed turn can be had."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.held = False
            self._schedule(stream)

    def stalled(self) -> bool:
        """Whether bytes are offered, but the client's windows let none of them go."""
        if self._scheduler.levels:
            return self.window <= 0
        return any(stream.offered and not stream.held for stream in self.streams.values())

    # --- the client's frames -----------------------------------------------------------------------------------------

    def open(self, stream_id: int, priority: Priority, *, receiving: bool, content_length: int | None) -> Stream:
        """A request came; `receiving` if the client can send more."""
        stream = Stream(stream_id, self.initial_window, priority, receiving, content_length)
        self.streams[stream_id] = stream
        return stream

    def grow(self, increment: int) -> bool:
        """Enlarge the connection's window; False if it would get too large."""
        if self.window + increment > LARGEST_NUMBER:
            return False
        self.window += increment
        return True

    def grow_stream(self, stream: Stream, increment: int) -> bool:
        """Enlarge a stream's window; False if it would get too large."""
        if stream.window + increment > LARGEST_NUMBER:
            return False
        stream.window += increment
        self._schedule(stream)
        return True

    def reprioritise(self, stream: Stream, priority: Priority) -> None:
        """Give a stream another place."""
        if stream.waiting:
            self._scheduler.remove(stream)
        stream.priority = priority
        self._schedule(stream)

    def set_initial_window(self, size: int) -> None:
        """The client's SETTINGS_INITIAL_WINDOW_SIZE, also for open streams (RFC 9113 section 6.9.2).

        Raises ConnectionFault if a window gets too large.
        """
        change, self.initial_window = size - self.initial_window, size
        for stream in self.streams.values():
            if not self.grow_stream(stream, change):
                reason = "SETTINGS_INITIAL_WINDOW_SIZE makes a window too large"
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, reason)

    def set_frame_bytes(self, most: int) -> None:
        """The client's SETTINGS_MAX_FRAME_SIZE."""
        self._frame_bytes = most
        self._largest_payload = largest_payload(most)

    def set_table_size(self, most: int) -> None:
        """The client's SETTINGS_HEADER_TABLE_SIZE: a smaller one has to be acknowledged (RFC 7541 section 4.2)."""
        if most < self._table_size:
            self._table_size = 0
            self._update = TABLE_SIZE_ZERO

    # --- inside ------------------------------------------------------------------------------------------------------

    def _write_headers(self, stream_id: int, block: bytes, *, end: bool) -> None:
        self._out.append(headers_frames(self._update + block, stream_id, self._frame_bytes, end=end))
        self._update = b""

    def _schedule(self, stream: Stream) -> None:
        """Have the scheduler know whether a stream can send."""
        can_send = stream.offered > 0 and stream.window > 0 and not stream.held
        if can_send and not stream.waiting:
            self._scheduler.add(stream)
        elif stream.waiting and not can_send:
            self._scheduler.remove(stream)

    def _finish(self, stream: Stream) -> None:
        """The response was sent to its end."""
        stream_id = stream.stream_id
        if stream.receiving:
            # In a write of its own: curl 7.88 loses a response that it reads together with RST_STREAM.
            self.refuse(stream_id, ErrorCode.NO_ERROR, apart=bool(self._out))
        elif stream.waiting:
            self.drop(stream_id)
        else:
            del self.streams[stream_id]
        self._credit.responses += 1
