"""Lines for a log that are written together, so that each costs little, and by a thread, so that no disk and no reader
holds up the event loop.

Strategy: the caller makes the lines, since a thread that runs Python holds the event loop up. The first line wakes the
thread, which gives the others a moment. Lines that cannot be written, or come while too many wait, are dropped and
counted; the error log says so once, and again when it is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from ktlsd.logs.log_files import LogFile, Lost

log = logging.getLogger("ktlsd")

GATHER_SECONDS: Final = 0.1
MOST_WAITING: Final = 4 << 20
"""Bytes that may wait for a write; lines beyond are dropped."""
PATIENCE_SECONDS: Final = 5.0
"""Longest wait of one write for a reader that takes nothing."""
LAST_SECONDS: Final = 1.0
"""The same for the last one, before the process ends."""


class LogBatch:
    """Lines of one process on their way to a LogFile, which stays the caller's to close."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self._waiting: list[bytes] = []
        self._calls: deque[tuple[list[bytes], Callable[[], object]]] = deque()
        """Functions to call, each with the lines before it."""
        # Each number has one writing thread: for these the one that adds, for the others the one that writes lines.
        self._added = self._overflowed = 0
        self._taken = self._unwritten = self._told = 0
        self._some = threading.Event()
        self._losing = False
        self._ending = False

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._overflowed + self._unwritten

    def add(self, line: bytes) -> None:
        """Add a line with its end."""
        if self._added - self._taken > MOST_WAITING:
            self._overflowed += 1
            return
        self._waiting.append(line)
        self._added += len(line)
        # The thread takes what waits until nothing does.
        if len(self._waiting) == 1:
            self._some.set()

    def call(self, function: Callable[[], object]) -> None:
        """Have this called in the thread, once all lines before it are written."""
        self._calls.append((self._waiting, function))
        self._waiting = []
        self._some.set()

    async def write_until_end(self) -> None:
        """Have lines written until end() is called, however late: it is not cancelled."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._write_for_ever, limiter=trio.CapacityLimiter(1))

    def end(self) -> None:
        """Have the lines of the last moment written, and no more."""
        self._ending = True
        self._some.set()

    def _write_for_ever(self) -> None:
        ended = False
        while not ended:
            self._some.wait()
            time.sleep(GATHER_SECONDS)
            # Lines added from here on are taken now, or set it again.
            self._some.clear()
            ended = self._ending
            while self._write(LAST_SECONDS if ended else PATIENCE_SECONDS):
                pass

    def _write(self, patience: float) -> bool:
        """Write what waits up to the next call, and make that; whether there is more to do."""
        lines, function = self._waiting, None
        if self._calls:
            # The lines before the call; later ones are in a new list.
            lines, function = self._calls.popleft()
        # Each step is atomic under the interpreter lock. Lines that are added between them stay for the next write.
        taken = lines[:]
        del lines[: len(taken)]
        text = b"".join(taken)
        if text:
            self._tell(self._file.write(text, patience))
        self._taken += len(text)
        if function is not None:
            function()
        return function is not None or bool(lines)

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
