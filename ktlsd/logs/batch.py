"""Lines for a log that are made and written together, so that each costs little, and by a thread, so that no disk and
no reader holds up the event loop.

Strategy: the first line wakes the thread, which gives the others a moment. Lines that cannot be written, or come while
too many wait, are dropped and counted; the error log says so once, and again when it is over.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Generic, TypeVar

import trio

from ktlsd.logs.log_files import LogFile, Lost

log = logging.getLogger("ktlsd")

T = TypeVar("T")

GATHER_SECONDS: Final = 0.1
MOST_WAITING: Final = 4 << 20
"""Characters that may wait for a write; lines beyond are dropped."""
PATIENCE_SECONDS: Final = 5.0
"""Longest wait of one write for a reader that takes nothing."""
LAST_SECONDS: Final = 1.0
"""The same for the last one, before the process ends."""


class LogBatch(Generic[T]):
    """Lines of one process on their way to a LogFile, which stays the caller's to close."""

    def __init__(self, file: LogFile, render: Callable[[Iterator[T]], Iterator[str]]) -> None:
        """`render` makes lines of ASCII, with their ends, from the added items. It runs in the thread."""
        self._file = file
        self._render = render
        self._waiting: deque[tuple[T, int]] = deque()
        # Each number has one writing thread: for these the one that adds, for the others the one that writes lines.
        self._added = self._overflowed = 0
        self._taking = self._taken = self._unwritten = self._told = 0
        self._some = threading.Event()
        self._losing = False
        self._ending = False

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._overflowed + self._unwritten

    def add(self, told: T, size: int) -> None:
        """Add the item of a line of about `size` characters."""
        if self._added - self._taken > MOST_WAITING:
            self._overflowed += 1
            return
        self._waiting.append((told, size))
        self._added += size
        # The thread takes what waits until nothing does.
        if len(self._waiting) == 1:
            self._some.set()

    @contextlib.asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        """Have lines written for as long as this is open; those of the last moment are written when it closes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_in_thread)
            try:
                yield
            finally:
                self._ending = True
                self._some.set()

    async def _write_in_thread(self) -> None:
        # It ends without a cancellation, even if everything else is cancelled.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._write_for_ever, limiter=trio.CapacityLimiter(1))

    def _write_for_ever(self) -> None:
        ended = False
        while not ended:
            self._some.wait()
            time.sleep(GATHER_SECONDS)
            # Items added from here on are taken now, or set it again.
            self._some.clear()
            ended = self._ending
            text = "".join(self._render(self._take()))
            if text:
                self._tell(self._file.write(text.encode("ascii"), LAST_SECONDS if ended else PATIENCE_SECONDS))
            self._taken = self._taking

    def _take(self) -> Iterator[T]:
        while self._waiting:
            told, size = self._waiting.popleft()
            self._taking += size
            yield told

    def _tell(self, lost: Lost | None) -> None:
        if lost is not None:
            self._unwritten += lost.lines
            if not self._losing:
                reason = lost.error.strerror or str(lost.error)
                log.error("access log %s: cannot be written (%s), lines are dropped", self._file.place, reason)
        elif self.dropped > self._told:
            log.warning("access log %s: written again, %d lines were lost", self._file.place, self.dropped - self._told)
            self._told = self.dropped
        self._losing = lost is not None
