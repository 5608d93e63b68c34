"""Connections that wait for a request, or for the first byte: the only ones that may be ended at any moment.

Strategy: to end a wait, its socket is told that nothing more will come (shutdown(2), SHUT_RD). What came before is
still read, so no request is lost, and a wait needs no cancel scope of its own. The oldest waits come first.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Final, Protocol

import trio

from ktlsd.limits import Limit
from ktlsd.metrics import LIMITED, UNCOUNTED, Row
from ktlsd.pacing import PacedTransport
from ktlsd.ssl_ffi import ConnectionLost

FIRST_REQUEST_SECONDS: Final = 2.0
"""How long a connection that had no request yet may wait for one while the server drains."""


class _Waiting(Protocol):
    """What can be told that nothing more will come."""

    stopped: bool

    def stop_reading(self) -> None: ...


class _Silent:
    """A connection that nothing has come over yet."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.stopped = False

    def stop_reading(self) -> None:
        self.stopped = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)


class Idle:
    """One process's idle connections."""

    def __init__(self, seconds: float, row: Row = UNCOUNTED) -> None:
        """`row` counts the waits that took too long."""
        self.seconds = seconds
        """How long a connection may wait, and a quarter more at most."""
        self._row = row
        self._since: dict[_Waiting, float] = {}
        self._fresh: set[_Waiting] = set()
        self.draining = False
        """Whether every request is the last on its connection."""
        self._drains = trio.Event()

    async def wait(self, transport: PacedTransport, *, fresh: bool = False) -> bytes:
        """What the client sends next; b"" when it is done, sent nothing for too long, or the server drains.

        A `fresh` connection had no request yet: its client cannot know that the server drains. Raises TLSError.
        """
        if self.draining and not fresh:
            return b""
        if fresh:
            self._fresh.add(transport)
        self._since[transport] = time.monotonic()
        try:
            return await transport.read()
        except ConnectionLost:
            if transport.stopped:
                return b""
            raise
        finally:
            del self._since[transport]
            if fresh:
                self._fresh.remove(transport)

    @contextlib.contextmanager
    def silent(self, sock: socket.socket) -> Iterator[None]:
        """A fresh connection waits for the client's first byte, for as long as this lasts."""
        silent = _Silent(sock)
        self._fresh.add(silent)
        self._since[silent] = time.monotonic()
        try:
            yield
        finally:
            del self._since[silent]
            self._fresh.remove(silent)

    def drain(self) -> None:
        """End all waits but for a first request, and let none but such begin."""
        self.draining = True
        self._drains.set()
        now = time.monotonic()
        for transport in self._since:
            if transport in self._fresh:
                self._since[transport] = now
            else:
                transport.stop_reading()

    def end_oldest(self) -> bool:
        """End the longest wait to make room; whether there was one."""
        oldest = next((transport for transport in self._since if not transport.stopped), None)
        if oldest is None:
            return False
        oldest.stop_reading()
        return True

    async def watch(self) -> None:
        """End the waits that take too long, for ever."""
        while not self.draining:
            with trio.move_on_after(self.seconds / 4):
                await self._drains.wait()
            self._row[LIMITED[Limit.IDLE]] += self._end_older_than(self.seconds)
        while True:
            await trio.sleep(FIRST_REQUEST_SECONDS / 4)
            self._end_older_than(FIRST_REQUEST_SECONDS)

    def _end_older_than(self, seconds: float) -> int:
        """How many there were."""
        ended = 0
        oldest = time.monotonic() - seconds
        for transport, since in self._since.items():
            if since > oldest:
                break
            if not transport.stopped:
                transport.stop_reading()
                ended += 1
        return ended
