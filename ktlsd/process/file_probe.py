"""Whether the file systems of certificates and of the configuration answer: a child process tries first.

Strategy: a process cannot end while a file system holds up a call of it (request_wait_answer() in fs/fuse/dev.c, Linux
6.18), and the parent of the workers must heed signals. So a child reads the files on network and FUSE file systems
before the parent does. One that does not end in time is left behind, and the parent reads nothing until it has ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ktlsd.server import END_SIGNALS
from ktlsd.site.mounts import mounts

SECONDS: Final = 5.0
"""Longest time for all files together."""

_POLL_SECONDS: Final = 0.005
_DESCRIPTORS: Final = 1 << 20
_READ_BYTES: Final = 1 << 20


def may_wait(paths: Iterable[Path]) -> tuple[str, ...]:
    """The files, links resolved, that are on file systems that may hold up their callers. Asks these."""
    found = {os.path.realpath(path) for path in paths}
    try:
        among = mounts()
    except OSError:
        return ()
    return tuple(path for path in sorted(found) if _waits(os.fsencode(path), [(m.point, m.waits) for m in among]))


def _waits(path: bytes, among: Iterable[tuple[bytes, bool]]) -> bool:
    """Whether the mount that a resolved path is on waits; of two at the same place, the later covers the former."""
    longest, waits = 0, False
    for point, slow in among:
        if len(point) >= longest and (path + b"/").startswith(point.rstrip(b"/") + b"/"):
            longest, waits = len(point), slow
    return waits


class FileProbe:
    """The files of one process that may hold it up."""

    def __init__(self) -> None:
        self.paths: tuple[str, ...] = ()
        """Links resolved."""
        self._child = 0

    def watch(self, paths: Iterable[Path]) -> None:
        """Try these from now on, which have just been read."""
        self.paths = may_wait(paths)

    def answers(self) -> bool:
        """Whether all files can be read at once, or there are none; False too if the process is to end meanwhile."""
        if not self.paths:
            return True
        if self._child and not self._has_ended():
            return False
        try:
            self._child = os.fork()
        except OSError:
            return False
        if not self._child:
            _read_and_exit(self.paths)
        deadline = time.monotonic() + SECONDS
        while not self._has_ended():
            if time.monotonic() >= deadline or not signal.sigpending().isdisjoint(END_SIGNALS):
                os.kill(self._child, signal.SIGKILL)
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _has_ended(self) -> bool:
        if self._child and os.waitpid(self._child, os.WNOHANG)[0]:
            self._child = 0
        return not self._child


def _read_and_exit(paths: Iterable[str]) -> None:
    try:
        # A child that is held up must not keep listening sockets open.
        os.closerange(0, _DESCRIPTORS)
        for path in paths:
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
                os.fstat(descriptor)
                os.read(descriptor, _READ_BYTES)
                os.close(descriptor)
    finally:
        os._exit(0)
