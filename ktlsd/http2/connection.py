"""A server's side of one HTTP/2 connection without input and output (RFC 9113): pure.

Strategy: receive() takes bytes and gives events, sender.py has the calls that answer. A request that is one HEADERS
frame is read in the loop itself, all other frames by a table of handlers. A connection error is an exception inside,
and the last event outside.

    connection = Connection(limits, cache, now)
    for event in connection.receive(data, now): ...      # Request -> connection.sender.respond() or begin(), offer()
    write(connection.sender.take())                      # then turns: connection.sender.next_turn(room), sent(turn)

A caller that reads no more while the socket does not take what there is to send bounds what a connection holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ktlsd.http.request_fields import Field
from ktlsd.http.request_head import RequestHead
from ktlsd.http2 import credit as price
from ktlsd.http2 import frames
from ktlsd.http2.credit import Credit
from ktlsd.http2.errors import ConnectionFault, ErrorCode, Exceeded
from ktlsd.http2.events import (
    BodyReceived,
    BodyTooLarge,
    ConnectionFailed,
    Event,
    GoawayReceived,
    HeadTooLarge,
    Request,
    RequestEnded,
    StreamReset,
)
from ktlsd.http2.frames import (
    ACK,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADER_BYTES,
    LARGEST_NUMBER,
    PREFACE,
    PRIORITY,
    RECEIVED,
    FrameType,
    code_at,
    number_at,
)
from ktlsd.http2.head_cache import HeadCache
from ktlsd.http2.header_block import HeaderBlock
from ktlsd.http2.limits import Http2Limits
from ktlsd.http2.peer_settings import SETTINGS_ACK, Setting, read_settings, server_settings
from ktlsd.http2.priority import Priority, parse_priority
from ktlsd.http2.request_fields import SharedHead, wrong_trailers
from ktlsd.http2.sender import Sender
from ktlsd.http2.streams import TABLE, Action, ClosedStreams, State, Stream

# Members as plain numbers, for the loop.
_HEADERS: Final = int(FrameType.HEADERS)
_TYPE: Final = 3
"""The place of the type in a frame."""
_REQUEST: Final = _HEADERS << 8 | END_HEADERS | END_STREAM
"""Type and flags of a frame that is a whole request."""
_REQUESTS: Final = frozenset((_REQUEST, _REQUEST | PRIORITY))
"""The same, also as Chromium writes it."""

_DRAIN_PING: Final = b"draining"
"""Payload of the PING whose answer shows that the client has seen the first GOAWAY."""

_Payload = tuple[bytes, int, int]


class Connection:
    """One connection, from its first byte on; `sender` has the other direction."""

    __slots__ = (
        *("_block", "_buffer", "_cache", "_closed", "_credit", "_draining", "_early_priorities", "_expected", "_last"),
        *("_last_accepted", "_limits", "_preface_left", "_received", "_settings_came", "_table", "failed", "sender"),
    )

    def __init__(self, limits: Http2Limits, cache: HeadCache, now: float) -> None:
        """`cache` is the process's, of the same `header_list_bytes`; `now` are seconds on a clock that never goes back.

        The server's SETTINGS are there to be sent at once.
        """
        self._limits = limits
        self._cache = cache
        self._table = cache.root
        self._credit = Credit(limits, now)
        self._closed = ClosedStreams()
        first = server_settings(limits.concurrent_streams, limits.header_list_bytes)
        self.sender = Sender(self._credit, self._closed, first)
        self._buffer = b""
        self._preface_left = PREFACE
        self._settings_came = False
        self._expected = -1
        """The stream on which a HEADERS frame is the next request of the usual kind; -1 if others have to be told from
        it."""
        self._block: HeaderBlock | None = None
        self._last = 0
        """The largest identifier of a stream that the client opened."""
        self._last_accepted: int | None = None
        """The largest one that is answered, once the last GOAWAY was sent."""
        self._received = 0
        """Bytes of DATA since the connection's window was renewed."""
        self._early_priorities: dict[int, Priority] | None = None
        """Of streams whose request has not come."""
        self._draining = False
        self.failed = False
        """Whether the last event came: ConnectionFailed."""

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether the connection can be closed: the last GOAWAY was written, and no stream is open."""
        return self._last_accepted is not None and not self.sender.streams

    def drain(self) -> None:
        """Tell the client to open no more streams; those under way are still answered (RFC 9113 section 6.8).

        The last GOAWAY follows as soon as the client is known to have seen this. Until then it may still open streams.
        """
        if not self._draining and self._last_accepted is None and not self.failed:
            self._draining = True
            self.sender.write(frames.goaway(LARGEST_NUMBER, ErrorCode.NO_ERROR))
            self.sender.write(frames.ping(_DRAIN_PING, ack=False))

    def refuse_more(self) -> None:
        """The last GOAWAY: streams that are opened from now on are ignored, and a client may repeat their requests."""
        if self._last_accepted is None and not self.failed:
            self._last_accepted = self._last
            self._expected = -1
            self.sender.write(frames.goaway(self._last, ErrorCode.NO_ERROR))

    def close(self, code: ErrorCode, reason: str, exceeded: Exceeded | None = None) -> ConnectionFailed:
        """End the connection with an error of the caller's, such as a deadline; the event that receive() would give."""
        return self._fail(ConnectionFault(code, reason, exceeded))

    def _fail(self, fault: ConnectionFault) -> ConnectionFailed:
        if not self.failed:
            self.failed = True
            self._buffer = b""
            self._block = None
            last = self._last if self._last_accepted is None else self._last_accepted
            self.sender.write(frames.goaway(last, fault.code))
        return ConnectionFailed(fault.code, fault.reason, fault.exceeded)

    # --- receiving ---------------------------------------------------------------------------------------------------

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and not ended: within its first frame, or between its frames."""
        begun = self._buffer
        return self._block is not None or (len(begun) > _TYPE and begun[_TYPE] == _HEADERS)

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes that the client sent; what they mean, in order. After ConnectionFailed they mean nothing."""
        events: list[Event] = []
        if self.failed:
            return events
        if self._buffer:
            data = self._buffer + data
        self._credit.now = now
        try:
            position = self._read_preface(data) if self._preface_left else 0
            position = self._read_frames(data, position, events)
        except ConnectionFault as fault:
            events.append(self._fail(fault))
            return events
        self._buffer = data[position:]
        return events

    def _read_preface(self, data: bytes) -> int:
        """The bytes of the preface in what was received."""
        left = self._preface_left
        count = min(len(left), len(data))
        if data[:count] != left[:count]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 connection preface")
        self._preface_left = left[count:]
        return count

    def _read_frames(self, data: bytes, position: int, events: list[Event]) -> int:
        """Read whole frames; the position after them."""
        size, last = len(data), len(data) - HEADER_BYTES
        unpack, table, expected = RECEIVED.unpack_from, self._table, self._expected
        streams, most_streams = self.sender.streams, self._limits.concurrent_streams
        while position <= last:
            high, length, kind, stream_id = unpack(data, position)
            if high or length > DEFAULT_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame of more than 16,384 bytes")
            start = position + HEADER_BYTES
            stop = start + length
            if stop > size:
                break
            position = stop
            if stream_id == expected and kind in _REQUESTS:
                dependency = 0
                if kind != _REQUEST:
                    start, stop, dependency = frames.header_block(data, start, stop, PRIORITY)
                block = data[start:stop]
                shared, head, table = table.known.get(block) or self._cache.decode_new(table, block)
                if shared.plain and dependency != stream_id and len(streams) < most_streams:
                    self._last = stream_id
                    expected = stream_id + 2 if stream_id < LARGEST_NUMBER else -1
                    # open(), without a call.
                    streams[stream_id] = Stream(stream_id, self.sender.initial_window, shared.priority, False)
                    events.append(Request(stream_id, head, shared, True))
                    continue
                self._table = table
                self._open(stream_id, shared, head, events, ended=True, wrong=dependency == stream_id)
            else:
                self._table = table
                payload = data, start, stop
                self._read_frame(kind >> 8, kind & 0xFF, stream_id & LARGEST_NUMBER, payload, events)
            usual = self._settings_came and self._block is None and self._last_accepted is None
            usual = usual and 0 < self._last < LARGEST_NUMBER and self._early_priorities is None
            table, expected = self._table, self._last + 2 if usual else -1
        self._expected, self._table = expected, table
        return position

    def _read_frame(self, kind: int, flags: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        if not self._settings_came:
            if kind != FrameType.SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "another frame before SETTINGS")
            self._settings_came = True
        block = self._block
        if block is not None and (kind != FrameType.CONTINUATION or stream_id != block.stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "another frame within a header block")
        handler = _HANDLERS.get(kind)
        if handler is None:
            self._credit.spend(price.FRAME, "a frame of an unknown type")
        else:
            handler(self, flags, stream_id, payload, events)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _on_headers(self, flags: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        start, stop, dependency = frames.header_block(*payload, flags)
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that no client can open")
        fragment = payload[0][start:stop]
        wrong = dependency == stream_id
        if flags & END_HEADERS:
            self._end_block(stream_id, flags, fragment, events, wrong=wrong)
        else:
            self._block = HeaderBlock(stream_id, flags, fragment, self._limits, self_dependent=wrong)

    def _on_continuation(self, flags: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        data, start, stop = payload
        block.add(data[start:stop])
        if flags & END_HEADERS:
            self._block = None
            self._end_block(stream_id, block.flags, block.data, events, wrong=block.self_dependent)

    def _end_block(self, stream_id: int, flags: int, block: bytes, events: list[Event], *, wrong: bool) -> None:
        """A whole header block. It is decoded in any case: the next blocks count on the table after it."""
        ended = bool(flags & END_STREAM)
        state = self._state(stream_id)
        if state is State.IDLE:
            shared, head, self._table = self._cache.decode(self._table, block)
            self._open(stream_id, shared, head, events, ended=ended, wrong=wrong)
            return
        fields, self._table = self._cache.decode_fields(self._table, block)
        stream = self._judged(state, FrameType.HEADERS, stream_id, events)
        if stream is not None:
            self._take_trailers(stream, fields, events, ended=ended)
        elif state is State.RESET:
            self._credit.spend(price.FRAME, "HEADERS on a closed stream")

    def _open(
        self, stream_id: int, shared: SharedHead, head: RequestHead, events: list[Event], *, ended: bool, wrong: bool
    ) -> None:
        """A stream that the client opens with this head; `wrong` if it depends on itself."""
        if stream_id > self._last + 2:
            self._closed.skip(self._last + 1, stream_id - 1)
        self._last = stream_id
        if self._last_accepted is not None:
            self._closed.reset(stream_id)
            self._credit.spend(price.FRAME, "a request after GOAWAY")
            return
        early = None
        if self._early_priorities is not None:
            early = self._early_priorities.get(stream_id)
            # Those of smaller identifiers are of no use any more.
            later = {one: priority for one, priority in self._early_priorities.items() if one > stream_id}
            self._early_priorities = later or None
        reason = "the stream depends on itself" if wrong else shared.refused
        if reason is None and ended and shared.content_length:
            reason = f"a Content-Length of {shared.content_length}, and no body"
        if len(self.sender.streams) >= self._limits.concurrent_streams:
            self._credit.spend_reset(price.REFUSAL, "requests beyond the limit of concurrent streams")
            exceeded = Exceeded.CONCURRENT_STREAMS
            self._reset(stream_id, ErrorCode.REFUSED_STREAM, "too many concurrent streams", events, exceeded)
        elif shared.too_large and not wrong:
            self._credit.spend(price.LARGE_HEAD, "heads beyond the limit")
            self.sender.open(stream_id, shared.priority, receiving=not ended, content_length=None)
            accept = shared.of_fields.values.get(b"accept")
            events.append(HeadTooLarge(stream_id, shared.method, shared.list_bytes, ended, accept))
        elif reason is not None:
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, reason, events)
        else:
            length = shared.content_length
            self.sender.open(stream_id, early or shared.priority, receiving=not ended, content_length=length)
            events.append(Request(stream_id, head, shared, ended))
            if length is not None and length > DEFAULT_WINDOW:
                events.append(BodyTooLarge(stream_id))

    def _take_trailers(self, stream: Stream, fields: list[Field], events: list[Event], *, ended: bool) -> None:
        reason = wrong_trailers(fields, self._cache.checks) if ended else "HEADERS within a request body"
        if reason is not None:
            self._stream_error(stream.stream_id, ErrorCode.PROTOCOL_ERROR, reason, events)
        else:
            self._end_request(stream, tuple(fields), events)

    def _end_request(self, stream: Stream, trailers: tuple[Field, ...], events: list[Event]) -> None:
        if stream.content_length is not None and stream.body != stream.content_length:
            reason = f"a body of {stream.body} bytes with a Content-Length of {stream.content_length}"
            self._stream_error(stream.stream_id, ErrorCode.PROTOCOL_ERROR, reason, events)
        else:
            stream.receiving = False
            events.append(RequestEnded(stream.stream_id, trailers))

    # --- bodies ------------------------------------------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        data, frame_start, frame_stop = payload
        start, stop = frames.unpadded(data, frame_start, frame_stop, flags, FrameType.DATA)
        self._need_stream(stream_id, "DATA")
        size, count = frame_stop - frame_start, stop - start
        # Whatever becomes of the stream, the bytes count for the connection.
        self._received += size
        if self._received > DEFAULT_WINDOW // 2:
            self.sender.write(frames.window_update(0, self._received))
            self._received = 0
        ended = bool(flags & END_STREAM)
        useful = ended or count >= price.SMALL_DATA
        self._credit.spend(price.USEFUL_FRAME if useful else price.FRAME, "small DATA")
        state = self._state(stream_id)
        stream = self._judged(state, FrameType.DATA, stream_id, events)
        if stream is None:
            if state is State.RESET and useful:
                self._credit.spend(price.FRAME, "DATA on a closed stream")
            return
        stream.received += size
        stream.body += count
        if stream.received > DEFAULT_WINDOW:
            self._stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the window", events)
        elif stream.content_length is not None and stream.body > stream.content_length:
            reason = f"a body of more than its Content-Length of {stream.content_length}"
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, reason, events)
        else:
            if count:
                events.append(BodyReceived(stream_id, count))
            if ended:
                self._end_request(stream, (), events)
            elif stream.received == DEFAULT_WINDOW and size and (stream.content_length or 0) <= DEFAULT_WINDOW:
                events.append(BodyTooLarge(stream_id))

    # --- other frames of streams -------------------------------------------------------------------------------------

    def _on_rst_stream(self, _: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        data, start, stop = payload
        if stop - start != 4:
            raise frames.size_fault(FrameType.RST_STREAM)
        self._need_stream(stream_id, "RST_STREAM")
        self._credit.spend_reset(price.RESET, "RST_STREAM")
        if self._judged(self._state(stream_id), FrameType.RST_STREAM, stream_id, events) is not None:
            self.sender.drop(stream_id)
            code = code_at(data, start)
            events.append(StreamReset(stream_id, code, True, "the client reset it"))

    def _on_window_update(self, _: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        data, start, stop = payload
        if stop - start != 4:
            raise frames.size_fault(FrameType.WINDOW_UPDATE)
        increment = number_at(data, start)
        small = increment < price.SMALL_INCREMENT
        self._credit.spend(price.FRAME if small else price.USEFUL_FRAME, "WINDOW_UPDATE by little")
        if not stream_id:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            if not self.sender.grow(increment):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window gets too large")
            return
        stream = self._judged(self._state(stream_id), FrameType.WINDOW_UPDATE, stream_id, events)
        if stream is None:
            return
        if not increment:
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0", events)
        elif not self.sender.grow_stream(stream, increment):
            self._stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "the window gets too large", events)

    def _on_priority(self, _: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        data, start, stop = payload
        self._need_stream(stream_id, "PRIORITY")
        self._credit.spend(price.FRAME, "PRIORITY")
        if stop - start != 5:
            code, reason = ErrorCode.FRAME_SIZE_ERROR, "the length of PRIORITY"
        elif number_at(data, start) == stream_id:
            code, reason = ErrorCode.PROTOCOL_ERROR, "the stream depends on itself"
        else:
            # Deprecated: the signal counts for nothing (RFC 9113 section 5.3.2).
            return
        if self._state(stream_id) is State.IDLE:
            # No RST_STREAM can name it.
            raise ConnectionFault(code, reason)
        self._stream_error(stream_id, code, reason, events)

    def _on_priority_update(self, _: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        data, start, stop = payload
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY_UPDATE on a stream")
        if stop - start < 4:
            raise frames.size_fault(FrameType.PRIORITY_UPDATE)
        prioritised = number_at(data, start)
        if not prioritised & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY_UPDATE for a stream that no client can open")
        self._credit.spend(price.FRAME, "PRIORITY_UPDATE")
        priority = parse_priority(data[start + 4 : stop])
        state = self._state(prioritised)
        if priority is None or TABLE[state, FrameType.PRIORITY_UPDATE].action is not Action.PROCESS:
            return
        if state is State.IDLE:
            early = self._early_priorities
            if early is None:
                early = self._early_priorities = {}
            early.pop(prioritised, None)
            if len(early) >= self._limits.concurrent_streams:
                del early[next(iter(early))]
            early[prioritised] = priority
        else:
            self.sender.reprioritise(self.sender.streams[prioritised], priority)

    # --- frames of the connection ------------------------------------------------------------------------------------

    def _on_settings(self, flags: int, stream_id: int, payload: _Payload, _: list[Event]) -> None:
        data, start, stop = payload
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        self._credit.spend(price.FRAME + price.SETTING * (stop - start) / 6, "SETTINGS")
        if flags & ACK:
            if stop != start:
                raise frames.size_fault(FrameType.SETTINGS)
            return
        sender = self.sender
        for number, value in read_settings(data[start:stop]):
            if number == Setting.INITIAL_WINDOW_SIZE:
                sender.set_initial_window(value)
            elif number == Setting.MAX_FRAME_SIZE:
                sender.set_frame_bytes(value)
            elif number == Setting.HEADER_TABLE_SIZE:
                sender.set_table_size(value)
        sender.write(SETTINGS_ACK)

    def _on_ping(self, flags: int, stream_id: int, payload: _Payload, _: list[Event]) -> None:
        data, start, stop = payload
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if stop - start != 8:
            raise frames.size_fault(FrameType.PING)
        self._credit.spend(price.FRAME, "PING")
        content = data[start:stop]
        if not flags & ACK:
            self.sender.write(frames.ping(content, ack=True))
        elif self._draining and content == _DRAIN_PING:
            self.refuse_more()

    def _on_goaway(self, _: int, stream_id: int, payload: _Payload, events: list[Event]) -> None:
        data, start, stop = payload
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if stop - start < 8:
            raise frames.size_fault(FrameType.GOAWAY)
        self._credit.spend(price.FRAME, "GOAWAY")
        events.append(GoawayReceived(code_at(data, start + 4)))

    def _on_push_promise(self, _: int, __: int, ___: _Payload, ____: list[Event]) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE of a client")

    # --- states and errors -------------------------------------------------------------------------------------------

    def _need_stream(self, stream_id: int, frame: str) -> None:
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{frame} on stream 0")

    def _state(self, stream_id: int) -> State:
        stream = self.sender.streams.get(stream_id)
        if stream is not None:
            return State.OPEN if stream.receiving else State.HALF_CLOSED
        # No client opens a stream with an even identifier, and this server opens none.
        if stream_id > self._last or not stream_id & 1:
            return State.IDLE
        return self._closed.state(stream_id)

    def _judged(self, state: State, frame: FrameType, stream_id: int, events: list[Event]) -> Stream | None:
        """The stream whose frame is to be processed; None if that was ignored, or answered with a stream error."""
        action, code = TABLE[state, frame]
        if action is Action.PROCESS:
            return self.sender.streams[stream_id]
        reason = f"{frame.name} on a stream that is {state.name.lower().replace('_', '-')}"
        if action is Action.CONNECTION_ERROR:
            raise ConnectionFault(code, reason)
        if action is Action.STREAM_ERROR:
            self._stream_error(stream_id, code, reason, events)
        return None

    def _stream_error(self, stream_id: int, code: ErrorCode, reason: str, events: list[Event]) -> None:
        self._credit.spend_reset(price.STREAM_ERROR, reason)
        self._reset(stream_id, code, reason, events)

    def _reset(
        self, stream_id: int, code: ErrorCode, reason: str, events: list[Event], exceeded: Exceeded | None = None
    ) -> None:
        self.sender.refuse(stream_id, code)
        events.append(StreamReset(stream_id, code, False, reason, exceeded))


_Handler = Callable[[Connection, int, int, _Payload, list[Event]], None]
_HANDLERS: Final[dict[int, _Handler]] = {
    FrameType.DATA: Connection._on_data,
    FrameType.HEADERS: Connection._on_headers,
    FrameType.PRIORITY: Connection._on_priority,
    FrameType.RST_STREAM: Connection._on_rst_stream,
    FrameType.SETTINGS: Connection._on_settings,
    FrameType.PUSH_PROMISE: Connection._on_push_promise,
    FrameType.PING: Connection._on_ping,
    FrameType.GOAWAY: Connection._on_goaway,
    FrameType.WINDOW_UPDATE: Connection._on_window_update,
    FrameType.CONTINUATION: Connection._on_continuation,
    FrameType.PRIORITY_UPDATE: Connection._on_priority_update,
}
