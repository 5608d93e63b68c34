"""The queue of verifications that wait for a thread: by rank, the newest first among equals, bounded.

Strategy: the newest comes first, since a client that has waited for long has mostly given up, and a burst must not
delay the next visitor. If the queue is full, its worst entry is refused, not the new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import trio

MOST_WAITING: Final = 64
LONGEST_SECONDS: Final = 10.0
"""Longest wait for a thread."""


class _Waiter:
    def __init__(self, rank: float) -> None:
        self.rank = rank
        self.decided = trio.Event()
        self.admitted = False


class VerificationQueue:
    """Lets a few verifications run at a time."""

    def __init__(self, threads: int) -> None:
        self._free = threads
        self._waiting: list[_Waiter] = []
        """In the order of their arrival."""

    @contextlib.asynccontextmanager
    async def turn(self, rank: float) -> AsyncIterator[bool]:
        """Wait for a turn, and keep it; False if there is none. The lowest rank comes first."""
        admitted = await self._wait(rank)
        try:
            yield admitted
        finally:
            if admitted:
                self._pass_on()

    async def _wait(self, rank: float) -> bool:
        if self._free:
            self._free -= 1
            return True
        waiter = _Waiter(rank)
        self._waiting.append(waiter)
        if len(self._waiting) > MOST_WAITING:
            # max() finds the oldest among equals.
            worst = max(self._waiting, key=lambda each: each.rank)
            self._waiting.remove(worst)
            worst.decided.set()
        try:
            with trio.move_on_after(LONGEST_SECONDS):
                await waiter.decided.wait()
        except BaseException:
            # It was cancelled before, but had no time to leave the queue.
            if waiter.admitted:
                self._pass_on()
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        return waiter.admitted

    def _pass_on(self) -> None:
        """Give a turn that has ended to the best that waits."""
        if not self._waiting:
            self._free += 1
            return
        # min() finds the first among equals.
        best = min(reversed(self._waiting), key=lambda each: each.rank)
        self._waiting.remove(best)
        best.admitted = True
        best.decided.set()
