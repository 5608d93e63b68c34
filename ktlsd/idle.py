"""Connections that wait for a request: the only ones that may be ended at any moment.

Strategy: one task watches the sockets of all of them by an epoll of its own, and has each answer at once what it can
answer without waiting; a connection's own task is woken only for the rest, since waking it costs more than such an
answer. To end a wait, its socket is told that nothing more will come (shutdown(2), SHUT_RD). The oldest come first.
"""

from __future__ import annotations

import select
import time
from typing import Final, NamedTuple, Protocol

import outcome
import trio

from ktlsd.pacing import PacedTransport

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


class _Waiting:
    __slots__ = ("connection", "since", "task")

    def __init__(self, connection: Answering, task: trio.lowlevel.Task) -> None:
        self.connection = connection
        self.task = task
        self.since = time.monotonic()


class Idle:
    """One process's idle connections. Whoever makes one closes it."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is how long a connection may wait, and a quarter more at most."""
        self.seconds = seconds
        self._epoll = select.epoll()
        self._waiting: dict[int, _Waiting] = {}
        self.draining = False
        """Whether no request is waited for any more."""

    def close(self) -> None:
        self._epoll.close()

    async def wait(self, connection: Answering) -> Left:
        """What is left to do when the client has sent something, is done, sent nothing for too long, or the server
        drains.

        Raises TLSError.
        """
        if self.draining:
            return Left(b"")
        transport = connection.transport
        if transport.holds():
            return Left(None)
        number = transport.fileno()
        self._waiting[number] = _Waiting(connection, trio.lowlevel.current_task())
        self._epoll.register(number, select.EPOLLIN)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(number)
            return trio.lowlevel.Abort.SUCCEEDED

        left: Left = await trio.lowlevel.wait_task_rescheduled(abort)
        return left

    def drain(self) -> None:
        """End all waits, and let none begin."""
        self.draining = True
        for waiting in self._waiting.values():
            waiting.connection.transport.stop_reading()

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
        waiting = self._waiting[number]
        sent = waiting.connection.transport.sent
        try:
            left = waiting.connection.answer_known()
        except Exception as error:
            self._forget(number)
            trio.lowlevel.reschedule(waiting.task, outcome.Error(error))
            return
        if left is not None:
            self._forget(number)
            trio.lowlevel.reschedule(waiting.task, outcome.Value(left))
        elif waiting.connection.transport.sent != sent:
            # It was answered, and waits anew.
            waiting.since = now
            self._waiting[number] = self._waiting.pop(number)

    def _forget(self, number: int) -> None:
        del self._waiting[number]
        self._epoll.unregister(number)

    async def _watch_clock(self) -> None:
        while True:
            await trio.sleep(self.seconds / 4)
            oldest = time.monotonic() - self.seconds
            for waiting in self._waiting.values():
                if waiting.since > oldest:
                    break
                waiting.connection.transport.stop_reading()
