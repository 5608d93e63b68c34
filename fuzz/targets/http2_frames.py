"""The bytes of one HTTP/2 connection: the same events however they are cut, whole frames only, and bounded memory.

Strategy: the first byte says whether preface and SETTINGS come before the rest. One engine takes all at once, the other
piece by piece; both answer every request. No exception comes out, and after the last event nothing.
"""

from __future__ import annotations

from typing import Final

from hyperframe.frame import Frame

from ktlsd.http2.connection import Connection
from ktlsd.http2.errors import ErrorCode
from ktlsd.http2.events import ConnectionFailed, Event, HeadTooLarge, Request, RequestEnded, StreamReset
from ktlsd.http2.frames import PREFACE, FrameType, frame
from ktlsd.http2.head_cache import HeadCache
from ktlsd.http2.limits import Http2Limits

_GET: Final = b"\x82\x87\x84\x41\x0bexample.org"
TOKENS: Final = (
    PREFACE,
    frame(FrameType.SETTINGS, 0, 0),
    frame(FrameType.SETTINGS, 0, 0, b"\0\4\0\0\0\1\0\5\0\1\0\0"),
    frame(FrameType.HEADERS, 5, 1, _GET),
    frame(FrameType.HEADERS, 5, 3, _GET),
    frame(FrameType.HEADERS, 4, 5, b"\x83\x87\x84\xbe"),
    frame(FrameType.HEADERS, 0, 3, b""),
    frame(FrameType.CONTINUATION, 4, 3, _GET),
    frame(FrameType.DATA, 0, 1, b"x"),
    frame(FrameType.DATA, 1, 5, b""),
    frame(FrameType.RST_STREAM, 0, 1, b"\0\0\0\x08"),
    frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\xff\xff"),
    frame(FrameType.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"),
    frame(FrameType.PRIORITY, 0, 1, b"\0\0\0\x03\0"),
    frame(FrameType.PRIORITY_UPDATE, 0, 0, b"\0\0\0\x01u=1, i"),
    frame(FrameType.PING, 0, 0, b"12345678"),
    frame(FrameType.GOAWAY, 0, 0, bytes(8)),
)

_LIMITS: Final = Http2Limits(3, 1024, 2048, resets_per_second=1, overhead_frames_per_second=2)
_BLOCK: Final = b"\x88"
_ROOM: Final = 20_000


def check(data: bytes) -> None:
    if data[:1] < b"\x80":
        data = PREFACE + frame(FrameType.SETTINGS, 0, 0) + data[1:]
    cache = HeadCache(_LIMITS.header_list_bytes)
    assert _told([data], cache) == _told([data[:40], *(data[at : at + 7] for at in range(40, len(data), 7))], cache)


def _told(pieces: list[bytes], cache: HeadCache) -> list[tuple[object, ...]]:
    """What an engine makes of these pieces."""
    connection = Connection(_LIMITS, cache, 0.0)
    told: list[tuple[object, ...]] = []
    begun: set[int] = set()
    ready: list[int] = []
    for piece in pieces:
        for event in connection.receive(piece, 0.0):
            assert not told or told[-1][0] is not ConnectionFailed
            told.append(_described(event))
            if isinstance(event, Request | HeadTooLarge):
                assert event.stream_id % 2 == 1
                assert event.stream_id not in begun
                begun.add(event.stream_id)
                if event.ended:
                    ready.append(event.stream_id)
            elif isinstance(event, RequestEnded):
                ready.append(event.stream_id)
        assert len(connection.sender.streams) <= _LIMITS.concurrent_streams
        assert connection.sender.window <= 0x7FFFFFFF
    # Answers come once all has been read: what is in flight meanwhile must not depend on the pieces.
    for stream_id in ready:
        _answer(connection, stream_id)
    _check_frames(connection.sender.take(), begun)
    while (turn := connection.sender.next_turn(_ROOM)) is not None:
        assert turn.frame_bytes <= _ROOM
        connection.sender.sent(turn)
    return told


def _answer(connection: Connection, stream_id: int) -> None:
    sender = connection.sender
    if not sender.respond(stream_id, _BLOCK, bytes(stream_id % 1000)) and sender.begin(stream_id, _BLOCK):
        sender.offer(stream_id, stream_id % 1000, last=True)


def _check_frames(output: bytes, begun: set[int]) -> None:
    while output:
        one, length = Frame.parse_frame_header(memoryview(output[:9]))
        one.parse_body(memoryview(output[9 : 9 + length]))
        assert len(output) >= 9 + length
        assert not one.stream_id or one.stream_id % 2 == 1
        assert type(one).__name__ in ("RstStreamFrame", "WindowUpdateFrame") or one.stream_id in {0, *begun}
        output = output[9 + length :]


def _described(event: Event) -> tuple[object, ...]:
    if isinstance(event, Request):
        assert event.shared.refused is None
        return Request, event.stream_id, event.head.key, event.head.headers, event.shared.priority, event.ended
    if isinstance(event, ConnectionFailed | StreamReset):
        assert event.reason.isprintable()
        # A client can send codes that no RFC has.
        by_peer = isinstance(event, StreamReset) and event.by_peer
        assert by_peer or event.code in list(ErrorCode)
    return type(event), event
