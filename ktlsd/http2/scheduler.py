"""The order among responses that can be sent (RFC 9218 section 10): pure.

Strategy: by urgency; among those of equal urgency incremental ones take turns, and the others go one after the other,
in the order of their requests, as one more that takes turns. A large response takes turns in any case: a client has
use for parts of it, or is patient, and a small one must not wait for it.
"""

from __future__ import annotations

import bisect
from operator import attrgetter
from typing import Final

from ktlsd.http2.streams import Stream

LARGEST_IN_LINE: Final = 1 << 20
"""Bytes of a response that others of its urgency wait for."""

_BY_ID: Final = attrgetter("stream_id")


class _Level:
    """The streams of one urgency."""

    __slots__ = ("line", "line_is_next", "turns")

    def __init__(self) -> None:
        self.turns: dict[int, Stream] = {}
        """Those that take turns, by identifier; the next one first."""
        self.line: list[Stream] = []
        """Those that go one after the other, in rising order of identifiers."""
        self.line_is_next = True


class Scheduler:
    """The streams of one connection that have bytes to send and a window for them."""

    __slots__ = ("levels",)

    def __init__(self) -> None:
        self.levels: dict[int, _Level] = {}
        """By urgency, those with streams."""

    def add(self, stream: Stream) -> None:
        """Have it take part; `waiting` becomes true."""
        level = self.levels.get(stream.priority.urgency)
        if level is None:
            level = self.levels[stream.priority.urgency] = _Level()
        stream.waiting = True
        stream.in_turns = stream.priority.incremental or stream.offered > LARGEST_IN_LINE
        if stream.in_turns:
            level.turns[stream.stream_id] = stream
        else:
            bisect.insort(level.line, stream, key=_BY_ID)

    def remove(self, stream: Stream) -> None:
        """Have it take part no more; its priority has to be as it was."""
        urgency = stream.priority.urgency
        level = self.levels[urgency]
        stream.waiting = False
        if stream.in_turns:
            del level.turns[stream.stream_id]
        else:
            del level.line[bisect.bisect_left(level.line, stream.stream_id, key=_BY_ID)]
        if not level.turns and not level.line:
            del self.levels[urgency]

    def more_urgent_than(self, urgency: int) -> bool:
        """Whether a stream waits that is more urgent than that."""
        return min(self.levels, default=urgency) < urgency

    def next(self) -> tuple[Stream, bool] | None:
        """The stream whose turn it is, and whether no other takes turns with it; None if there is none."""
        if not self.levels:
            return None
        level = self.levels[min(self.levels)]
        turns, line = level.turns, level.line
        if line and (level.line_is_next or not turns):
            level.line_is_next = False
            return line[0], not turns
        level.line_is_next = True
        stream_id = next(iter(turns))
        stream = turns.pop(stream_id)
        turns[stream_id] = stream
        return stream, len(turns) == 1 and not line
