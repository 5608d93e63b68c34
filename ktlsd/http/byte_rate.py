"""When the next bytes of a response may be sent: pure.

Strategy: a bucket of bytes for each response, connection or client network, stored as one number (GCRA, ITU-T I.371). A
response reserves a turn in all of its buckets and waits for the latest of them, so that connections that share a bucket
take turns. Turns grow with the response: the first ones are small, for an even rate, and later ones cost little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_SHORTEST_TURN: Final = 0.125
"""Seconds' worth of bytes in the first turns; a late turn is made up for within as much."""
_LONGEST_TURN: Final = 0.5
_PART_OF_TURN: Final = 20
"""A turn is at most this part of what was sent: the rate is kept within 5 %."""
_LEAST_BYTES: Final = 4096
"""Of a turn, if many share a bucket."""


class ByteBucket:
    """Bytes a second of one response, connection or client network. Callers pass times, in seconds of any clock."""

    __slots__ = ("burst_seconds", "free_at", "rate", "users")

    def __init__(self, rate: float, burst: int, now: float) -> None:
        """`rate` bytes a second, after `burst` bytes at any rate."""
        self.rate = rate
        self.burst_seconds = max(_SHORTEST_TURN, burst / rate)
        """The bucket is full if the next byte may be sent since as long."""
        self.free_at = now - burst / rate
        """When the next byte may be sent."""
        self.users = 0
        """Responses that share it."""

    def reserve(self, count: int, now: float) -> float:
        """Take the next bytes; the time at which they may be sent."""
        at = max(self.free_at, now - self.burst_seconds)
        self.free_at = at + count / self.rate
        return at


class Pace:
    """The pace of one response."""

    __slots__ = ("_buckets", "_sent")

    def __init__(self, buckets: Sequence[ByteBucket]) -> None:
        self._buckets = buckets
        self._sent = 0

    def next_turn(self, most: int, now: float) -> tuple[int, float]:
        """How many of the next `most` bytes, at least one, are sent together, and when."""
        count = most
        for bucket in self._buckets:
            # Of what a burst allows at once, all is sent at once.
            at_once = min(now - bucket.free_at, bucket.burst_seconds) * bucket.rate
            share = bucket.rate / max(1, bucket.users)
            turn = min(share * _LONGEST_TURN, max(share * _SHORTEST_TURN, self._sent / _PART_OF_TURN))
            count = min(count, max(_LEAST_BYTES, int(max(turn, at_once))))
        self._sent += count
        return count, max([bucket.reserve(count, now) for bucket in self._buckets])
