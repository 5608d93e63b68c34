"""Session ticket keys in a file that all workers share, and the next start finds again.

Strategy: the file is opened once, before workers are forked and privileges given up, and changed in place under a lock;
without a usable place, it is an anonymous file in memory, which lasts as long as the processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Final

import msgspec

from ktlsd.config.refusal import Refusal
from ktlsd.tls.ticket_keys import Ring, TicketKey, ring, rotated

FILE: Final = "ticket-keys.json"
_LARGEST: Final = 65536


class TicketFileError(Refusal):
    """A file that cannot hold keys; the text is one line for the operator."""


class TicketFile:
    """An open file with ticket keys; the creator closes it."""

    def __init__(self, path: Path | None) -> None:
        """Open `path`, made with mode 0600 where it is absent; None for one in memory.

        Raises TicketFileError: also for a file that others may read, since a reader of the keys can read what clients
        send in sessions that began with a ticket.
        """
        self.in_memory = path is None
        """Only processes that are forked from this one share the keys then."""
        self._descriptor = os.memfd_create("ktlsd-ticket-keys") if path is None else _open(path)
        try:
            self.ring()
        except OSError as error:
            self.close()
            raise TicketFileError(f"{path}: cannot keep session ticket keys there: {error.strerror}") from error

    def ring(self) -> Ring:
        """The keys as they are to be used now; makes a new one where it is due. Blocks shortly. Raises OSError."""
        now = time.time()
        # Of the process, not of the descriptor, which workers share (fcntl_locking(2)).
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            kept = _parse(os.pread(self._descriptor, _LARGEST, 0))
            keys = rotated(kept, now, os.urandom)
            if keys != kept:
                os.pwrite(self._descriptor, data := msgspec.json.encode(keys), 0)
                os.ftruncate(self._descriptor, len(data))
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
        return ring(keys, now)

    def close(self) -> None:
        os.close(self._descriptor)


def _open(path: Path) -> int:
    # O_NONBLOCK: a FIFO must not wait for a writer.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise TicketFileError(f"{path}: cannot keep session ticket keys there: {reason}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        os.close(descriptor)
        wrong = "not a regular file" if not stat.S_ISREG(status.st_mode) else "open to other users: chmod 600 it"
        raise TicketFileError(f"{path}: cannot keep session ticket keys there: it is {wrong}")
    return descriptor


def _parse(data: bytes) -> tuple[TicketKey, ...]:
    """The keys in a file; none for anything else, such as a half-written file after a crash."""
    try:
        return msgspec.json.decode(data, type=tuple[TicketKey, ...])
    except msgspec.DecodeError:
        return ()
