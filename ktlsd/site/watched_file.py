"""Files outside of the root that requests look at: users and keys, read again when they change, and switches.

Strategy: a request looks at most once a second, in a thread. A look that fails, or finds a version that cannot be used,
changes nothing and is logged once; a version that has just been written is read at the next look, in case more is to
come.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import trio

from ktlsd.attempt import needs_task
from ktlsd.config.refusal import cause
from ktlsd.file_identity import FileIdentity, identify
from ktlsd.file_threads import FileThreads

log = logging.getLogger("ktlsd")

T = TypeVar("T")

LARGEST: Final = 4 << 20
"""Bytes."""

_SPECIAL: Final = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}

_LOOK_SECONDS: Final = 1.0
_SOON_SECONDS: Final = 0.2
_SETTLED_NS: Final = 100_000_000
_THREADS: Final = 2
_STALLED_SECONDS: Final = 2.0


class _Watched(ABC):
    """A file that requests look at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._threads = FileThreads(str(path), _STALLED_SECONDS, _THREADS)
        self._looking = trio.Lock()
        self._look_again = 0.0
        self._complaint = ""

    @property
    def due(self) -> bool:
        """Whether refresh() would look at the file."""
        return time.monotonic() >= self._look_again and not self._looking.locked()

    async def refresh(self) -> None:
        """Take over what has changed. A concurrent request gets the former state."""
        if not self.due:
            return
        needs_task()
        async with self._looking:
            self._look_again = time.monotonic() + _LOOK_SECONDS
            try:
                await self._threads.run(self._look)
            except (OSError, ValueError) as error:
                self._complain(cause(error))

    @abstractmethod
    def _look(self) -> None:
        """Look at the file, in a thread. Raises OSError and ValueError."""

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            log.error("%s: %s; the former version stays in force", self.path, reason.removeprefix(f"{self.path}: "))


class WatchedFile(_Watched, Generic[T]):
    """A file and what it means."""

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        """Reads the file. `parse` raises ValueError for what it cannot use. Raises OSError and ValueError, whose text
        does not name the file."""
        super().__init__(path)
        self._parse = parse
        self._identity, data = self._read()
        self.value = parse(data)
        """The meaning of the last version that could be used."""

    def _look(self) -> None:
        """Raises OSError and ValueError."""
        identity, data = self._read(self._identity)
        if identity == self._identity:
            return
        # By ctime, since any program can set a mtime, also one in the future.
        if 0 <= time.time_ns() - identity[-1] < _SETTLED_NS:
            self._look_again = time.monotonic() + _SOON_SECONDS
            return
        # Once is enough for a version that cannot be used.
        self._identity = identity
        self.value = self._parse(data)
        self._complaint = ""
        log.info("%s: read again", self.path)

    def _read(self, known: FileIdentity | None = None) -> tuple[FileIdentity, bytes]:
        """The version and the content, unless it is the `known` version. Raises OSError and ValueError."""
        # To open a device may have an effect.
        _refuse_special(os.stat(self.path))
        # To open a named pipe, which it may have become, would wait for its other end.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _refuse_special(os.fstat(descriptor))
            identity = identify(descriptor)
            data = b"" if identity == known else _content(descriptor)
        finally:
            os.close(descriptor)
        if len(data) > LARGEST:
            raise ValueError(f"is larger than {LARGEST} bytes: shorten it")
        return identity, data


class WatchedSwitch(_Watched):
    """A file whose presence alone means something."""

    def __init__(self, path: Path) -> None:
        """Looks for it. Raises OSError."""
        super().__init__(path)
        self.on = self._is_there()
        """Whether it was there at the last look that succeeded."""

    def _look(self) -> None:
        self.on = self._is_there()
        self._complaint = ""

    def _is_there(self) -> bool:
        try:
            os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def _refuse_special(status: os.stat_result) -> None:
    """Raises ValueError for all but a regular file: others would count as empty, or never end."""
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise ValueError(f"is {_SPECIAL.get(kind, 'a device')}, not a regular file: put a file there")


def _content(descriptor: int) -> bytes:
    """At most a byte more than the largest file. Raises OSError."""
    pieces, left = [], LARGEST + 1
    while left and (piece := os.read(descriptor, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
