"""A log's file, stderr or stdout: opened to append, reopened after a rotation, with a bound on each wait.

Strategy: every write(2) has whole lines, so that processes can share a file. A pipe or terminal is opened anew, since
O_NONBLOCK on an inherited descriptor would affect the processes that share it; a socket, such as journald's, has
MSG_DONTWAIT.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from ktlsd.config.values import LogPlace

MODE: Final = 0o640
"""Of a file that is made; the umask takes from it."""

_NEWLINE: Final = 0x0A
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Lost(NamedTuple):
    """Lines that could not be written, and why."""

    lines: int
    error: OSError


class LogFile:
    """The destination of a log. Threads and signal handlers may call write() and reopen() at any time."""

    def __init__(self, place: LogPlace) -> None:
        """Raises OSError."""
        self.place = place
        self._descriptor = _open(place)
        self._torn = False
        self._look()

    def close(self) -> None:
        os.close(self._descriptor)

    def reopen(self) -> None:
        """Go on in the file that has the name now; stderr and stdout stay. Raises OSError, and keeps the old file."""
        if self.place.path is None:
            return
        new = _open(self.place)
        try:
            self._go_on_in(new)
        finally:
            os.close(new)

    def become(self, other: LogFile) -> None:
        """Go on where another file, which stays the caller's to close, writes to."""
        self.place = other.place
        self._go_on_in(other._descriptor)

    def _go_on_in(self, descriptor: int) -> None:
        # A write in another thread goes to the one or to the other.
        os.dup2(descriptor, self._descriptor, inheritable=False)
        self._look()

    def write(self, lines: bytes, patience: float) -> Lost | None:
        """Append whole lines, waiting up to `patience` seconds for a reader that takes none; the lost ones, if any.

        A full disk can cut a line in two: the next one begins on a line of its own.
        """
        deadline = time.monotonic() + patience
        data = b"\n" + lines if self._torn else lines
        written = 0
        try:
            for end in _ends(data, self._most):
                while written < end:
                    try:
                        written += self._write(data[written:end])
                    except BlockingIOError:
                        self._wait(deadline)
        except OSError as error:
            lost = (data[written:] if written else lines).count(b"\n")
            self._torn = data[written - 1] != _NEWLINE if written else self._torn
            return Lost(lost, error)
        self._torn = False
        return None

    def _look(self) -> None:
        """See what kind of file this is."""
        mode = os.fstat(self._descriptor).st_mode
        self._is_socket = stat.S_ISSOCK(mode)
        # Of a pipe, writes up to this size are never mixed with others (pipe(7)).
        self._most = None if stat.S_ISREG(mode) else select.PIPE_BUF
        self._torn = False

    def _write(self, data: bytes) -> int:
        if not self._is_socket:
            return os.write(self._descriptor, data)
        with socket.socket(fileno=os.dup(self._descriptor)) as journal:
            return journal.send(data, socket.MSG_DONTWAIT)

    def _wait(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("its reader takes nothing")


def _open(place: LogPlace) -> int:
    if place.path is not None:
        return os.open(place.path, _FLAGS | os.O_CREAT, MODE)
    descriptor = place.descriptor
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # It may belong to another process: then the write waits for a full pipe.
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", _FLAGS)
    return os.dup(descriptor)


def _ends(lines: bytes, most: int | None) -> Iterator[int]:
    """The ends of runs of whole lines of up to `most` bytes; a longer line is a run of its own."""
    start = 0
    while most is not None and len(lines) - start > most:
        start = lines.rfind(b"\n", start, start + most) + 1 or lines.index(b"\n", start) + 1
        yield start
    if start < len(lines):
        yield len(lines)
