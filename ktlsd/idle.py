"""Connections that wait for a request, or for the first byte: the only ones that may be ended at any moment.

Strategy: one task watches the sockets of all of them by an epoll of its own, and has each answer at once what it can
answer without waiting; a connection's own task is woken only for the rest, since waking it costs more than such an
answer. To end a wait, its socket is told that nothing more will come (shutdown(2), SHUT_RD). The oldest come first.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import outcome
import trio

from ktlsd.limits import Limit
from ktlsd.metrics import LIMITED, UNCOUNTED, Row
from ktlsd.pacing import PacedTransport

FIRST_REQUEST_SECONDS: Final = 2.0
"""How long a connection that had no request yet may wait for one while the server drains."""

_AT_ONCE: Final = 32
"""Connections that are looked at before other tasks get their turn."""


class Left(NamedTuple):
    """What is left for a connection's own task to do."""

    received: bytes | None
    """What the client sent, b"" after its end; None where that has to be read first."""
    unsent: bytes | bytearray = b""
    """The rest of a response that has begun, to be sent before."""


class Answering(Protocol):
    """A connection that waits for a request."""

    @property
    def transport(self) -> PacedTransport: ...

    def answer_known(self) -> Left | None:
        """Answer what has come, without waiting, as far as possible; None once nothing is left of it.

        Raises TLSError.
        """


class _Waiting(NamedTuple):
    connection: Answering
    task: trio.lowlevel.Task


class _Endable(Protocol):
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
    """One process's idle connections. Whoever makes one closes it."""

    def __init__(self, seconds: float, row: Row = UNCOUNTED) -> None:
        """`row` counts the waits that took too long."""
        self.seconds = seconds
        """How long a connection may wait, and a quarter more at most."""
        self._row = row
        self._epoll = select.epoll()
        self._waiting: dict[int, _Waiting] = {}
        self._since: dict[_Endable, float] = {}
        self._fresh: set[_Endable] = set()
        self.draining = False
        """Whether every request is the last on its connection."""
        self._drains = trio.Event()

    def close(self) -> None:
        self._epoll.close()

    async def wait(self, connection: Answering, *, fresh: bool = False) -> Left:
        """What is left to do when the client has sent something, is done, sent nothing for too long, or the server
        drains.

        A `fresh` connection had no request yet: its client cannot know that the server drains. Raises TLSError.
        """
        if self.draining and not fresh:
            return Left(b"")
        transport = connection.transport
        if transport.holds():
            return Left(None)
        number = transport.fileno()
        self._epoll.register(number, select.EPOLLIN)
        self._waiting[number] = _Waiting(connection, trio.lowlevel.current_task())
        self._since[transport] = time.monotonic()
        if fresh:
            self._fresh.add(transport)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(number)
            return trio.lowlevel.Abort.SUCCEEDED

        left: Left = await trio.lowlevel.wait_task_rescheduled(abort)
        return left

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
        for endable in self._since:
            if endable in self._fresh:
                self._since[endable] = now
            else:
                endable.stop_reading()

    def end_oldest(self) -> bool:
        """End the longest wait to make room; whether there was one."""
        oldest = next((endable for endable in self._since if not endable.stopped), None)
        if oldest is None:
            return False
        oldest.stop_reading()
        return True

    async def watch(self) -> None:
        """Answer those that send something, and end the waits that take too long, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_sockets)
            nursery.start_soon(self._watch_clock)

    async def _watch_sockets(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            while ready := self._epoll.poll(0, _AT_ONCE):
                now = time.monotonic()
                for number, _ in ready:
                    self._look_after(number, now)
                await trio.lowlevel.checkpoint()

    def _look_after(self, number: int, now: float) -> None:
        connection, task = self._waiting[number]
        transport = connection.transport
        sent = transport.sent
        try:
            left = connection.answer_known()
        except Exception as error:
            self._forget(number)
            trio.lowlevel.reschedule(task, outcome.Error(error))
            return
        if left is not None:
            self._forget(number)
            trio.lowlevel.reschedule(task, outcome.Value(left))
        elif transport.sent != sent:
            # It was answered, and waits anew: as the last, and for another than its first request.
            del self._since[transport]
            self._since[transport] = now
            self._fresh.discard(transport)

    def _forget(self, number: int) -> None:
        transport = self._waiting.pop(number).connection.transport
        self._epoll.unregister(number)
        del self._since[transport]
        self._fresh.discard(transport)

    async def _watch_clock(self) -> None:
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
        for endable, since in self._since.items():
            if since > oldest:
                break
            if not endable.stopped:
                endable.stop_reading()
                ended += 1
        return ended
