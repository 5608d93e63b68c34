"""Streams and their states (RFC 9113 section 5.1): pure.

Strategy: an object for each stream that is open for either side, a short memory of those that are closed, and a table
that says for each state what a frame is. A server without push has no reserved streams, and a stream whose response
ended is closed: if the client could send more, it was reset.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, NamedTuple

from msgspec import Struct

from ktlsd.http2.errors import ErrorCode
from ktlsd.http2.frames import FrameType
from ktlsd.http2.priority import Priority

_MOST_RESET: Final = 256
"""Streams reset by this server that are remembered, the newest: frames that were under way are no error."""
_MOST_GAPS: Final = 16
"""Gaps between stream identifiers that are remembered."""


class Stream(Struct, gc=False):
    """A stream that is open, or half-closed by the client."""

    stream_id: int
    window: int
    """Bytes that may be sent on it; less than 0 after the client made windows smaller."""
    priority: Priority
    receiving: bool
    """Whether the client can send more."""
    content_length: int | None = None
    """Bytes of its body, if the client told."""
    received: int = 0
    """Bytes that count for its window: DATA with padding."""
    body: int = 0
    """Bytes of the request body."""
    began: bool = False
    """Whether the head of the response was sent."""
    offered: int = 0
    """Bytes of the response that can be sent as soon as the windows allow."""
    complete: bool = False
    """Whether nothing follows these."""
    waiting: bool = False
    """Whether the scheduler has it."""
    in_turns: bool = True
    """How the scheduler has it."""
    held: bool = False
    """Whether its bytes are being read from a disk: no turn until then."""


class State(enum.Enum):
    """Of a stream, as the client's frames find it."""

    IDLE = enum.auto()
    OPEN = enum.auto()
    HALF_CLOSED = enum.auto()
    """The client ended its side."""
    CLOSED = enum.auto()
    """Both sides ended, or the client reset it."""
    RESET = enum.auto()
    """This server reset it, or ignores it after GOAWAY."""
    SKIPPED = enum.auto()
    """A larger identifier came first."""


class Action(enum.Enum):
    """The action for a frame."""

    PROCESS = enum.auto()
    IGNORE = enum.auto()
    STREAM_ERROR = enum.auto()
    CONNECTION_ERROR = enum.auto()


class Verdict(NamedTuple):
    action: Action
    code: ErrorCode = ErrorCode.NO_ERROR


_PROCESS: Final = Verdict(Action.PROCESS)
_IGNORE: Final = Verdict(Action.IGNORE)
_RESET_CLOSED: Final = Verdict(Action.STREAM_ERROR, ErrorCode.STREAM_CLOSED)
_CLOSED: Final = Verdict(Action.CONNECTION_ERROR, ErrorCode.STREAM_CLOSED)
_PROTOCOL: Final = Verdict(Action.CONNECTION_ERROR, ErrorCode.PROTOCOL_ERROR)

_ROWS: Final = {
    # state: DATA, HEADERS, RST_STREAM, WINDOW_UPDATE, PRIORITY_UPDATE
    State.IDLE: (_PROTOCOL, _PROCESS, _PROTOCOL, _PROTOCOL, _PROCESS),
    State.OPEN: (_PROCESS, _PROCESS, _PROCESS, _PROCESS, _PROCESS),
    State.HALF_CLOSED: (_RESET_CLOSED, _RESET_CLOSED, _PROCESS, _PROCESS, _PROCESS),
    State.CLOSED: (_CLOSED, _CLOSED, _IGNORE, _IGNORE, _IGNORE),
    State.RESET: (_IGNORE, _IGNORE, _IGNORE, _IGNORE, _IGNORE),
    State.SKIPPED: (_CLOSED, _PROTOCOL, _IGNORE, _IGNORE, _IGNORE),
}
_COLUMNS: Final = (
    FrameType.DATA,
    FrameType.HEADERS,
    FrameType.RST_STREAM,
    FrameType.WINDOW_UPDATE,
    FrameType.PRIORITY_UPDATE,
)
TABLE: Final = {
    (state, frame): verdict for state, row in _ROWS.items() for frame, verdict in zip(_COLUMNS, row, strict=True)
}
"""The action for a frame, by the stream's state and the frame's type. PRIORITY is allowed in all, and ignored."""


class ClosedStreams:
    """The short memory of one connection."""

    __slots__ = ("_gaps", "_reset")

    def __init__(self) -> None:
        # Most connections never need either.
        self._reset: dict[int, None] | None = None
        self._gaps: deque[tuple[int, int]] | None = None

    def reset(self, stream_id: int) -> None:
        """This server reset it."""
        if self._reset is None:
            self._reset = {}
        self._reset[stream_id] = None
        if len(self._reset) > _MOST_RESET:
            del self._reset[next(iter(self._reset))]

    def skip(self, first: int, last: int) -> None:
        """No stream came with these identifiers, both included."""
        if self._gaps is None:
            self._gaps = deque(maxlen=_MOST_GAPS)
        self._gaps.append((first, last))

    def state(self, stream_id: int) -> State:
        """The state of a stream that is neither idle nor open."""
        if self._reset is not None and stream_id in self._reset:
            return State.RESET
        if self._gaps is not None and any(first <= stream_id <= last for first, last in self._gaps):
            return State.SKIPPED
        return State.CLOSED
