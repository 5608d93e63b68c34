"""Lines for a log that are written together, so that each costs little, and by a thread, so that no disk and no reader
holds up the event loop.

Strategy: the first line wakes the writer, which gives the others a moment or WRITE_AT characters. Lines that cannot be
written, or come while too many wait, are dropped and counted; the error log says so once, and again when it is over.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

import trio

from ktlsd.log_files import LogFile, Lost

log = logging.getLogger("ktlsd")

GATHER_SECONDS: Final = 0.1
WRITE_AT: Final = 65536
"""Characters that are worth a write of their own."""
MOST_WAITING: Final = 1 << 20
"""Characters that may wait while a write is under way; lines beyond are dropped."""
PATIENCE_SECONDS: Final = 5.0
"""How long one write may wait for a reader that takes nothing."""
LAST_SECONDS: Final = 1.0
"""The same for the last one, before the process ends."""


class GatheredLines:
    """Lines of one process on their way to a LogFile, which stays the caller's to close."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self._lines: list[str] = []
        self._size = 0
        self._some, self._many = trio.Event(), trio.Event()
        self._losing = False
        self.dropped = 0
        """Lines that were not written."""
        self._told = 0

    def add(self, line: str) -> None:
        """Take a line of ASCII with its end."""
        if self._size > MOST_WAITING:
            self.dropped += 1
            return
        self._lines.append(line)
        self._size += len(line)
        if len(self._lines) == 1:
            self._some.set()
        if self._size >= WRITE_AT:
            self._many.set()

    @contextlib.asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        """Have lines written for as long as this is open; those of the last moment are written when it closes."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_for_ever)
                yield
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._write(LAST_SECONDS)

    async def _write_for_ever(self) -> None:
        while True:
            await self._some.wait()
            with trio.move_on_after(GATHER_SECONDS):
                await self._many.wait()
            # What was taken out for writing is not lost when the process ends meanwhile.
            with trio.CancelScope(shield=True):
                await self._write(PATIENCE_SECONDS)

    async def _write(self, patience: float) -> None:
        text = "".join(self._lines)
        self._lines.clear()
        self._size = 0
        self._some, self._many = trio.Event(), trio.Event()
        if text:
            self._tell(await trio.to_thread.run_sync(self._file.write, text.encode("ascii"), patience))

    def _tell(self, lost: Lost | None) -> None:
        if lost is not None:
            self.dropped += lost.lines
            if not self._losing:
                reason = lost.error.strerror or str(lost.error)
                log.error("access log %s: cannot be written (%s), lines are dropped", self._file.place, reason)
        elif self.dropped > self._told:
            log.warning("access log %s: written again, %d lines were lost", self._file.place, self.dropped - self._told)
            self._told = self.dropped
        self._losing = lost is not None
