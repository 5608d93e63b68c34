"""Connections that wait for a request, or for the first byte: the only ones that may be ended at any moment.

Strategy: one task watches the sockets of all of them by an epoll of its own, and has each answer at once what it can
answer without waiting; a connection's own task is woken only for the rest, since waking it costs more than such an
answer. To end a wait, its socket is told that nothing more will come (shutdown(2), SHUT_RD). The oldest come first.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol

import outcome
import trio

from ktlsd.limits import Limit
from ktlsd.metrics import LIMITED, UNCOUNTED, Row
from ktlsd.pacing import PART_SECONDS, PacedTransport

log = logging.getLogger("ktlsd")

FIRST_REQUEST_SECONDS: Final = 2.0
"""How long a connection that had no request yet may wait for one while the server drains."""
_PAUSE_SECONDS: Final = 0.1
_EACH_PART_SECONDS: Final = 0.0005
_AT_ONCE: Final = 32
"""Connections that are looked at before other tasks get their turn."""


Turn = dict[Any, Any]
"""What one answer was made of, for others of the same turn: all of them were asked for before the first one is made."""


class Left(NamedTuple):
    """What is left for a connection's own task to do."""

    received: bytes | None
    """What the client sent, b"" after its end; None where that has to be read first."""
    unsent: bytes | bytearray = b""
    """The rest of a response that has begun, to be sent before."""
    ends: bool = False
    """Whether that response, or one that is all sent, is the last, whatever else the client sends."""


class Answering(Protocol):
    """A connection that waits for a request."""

    @property
    def transport(self) -> PacedTransport: ...

    def answer_known(self, turn: Turn) -> Left | None:
        """Answer what has come, without waiting, as far as possible; None once nothing is left of it.

        Raises TLSError.
        """


class _Waiting:
    __slots__ = ("connection", "since", "task")

    def __init__(self, connection: Answering, task: trio.lowlevel.Task) -> None:
        self.connection = connection
        self.task = task
        self.since = time.monotonic()


class _Silent:
    """A connection that nothing has come over yet."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.stopped = False
        self.since = time.monotonic()

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
        self._parts: list[int] = []
        """Those that are not watched for a while, since what came may be a part of a TLS record that the socket shows
        until the rest is there (PacedTransport.wakes_early)."""
        self._part_came = trio.Event()
        self._silent: dict[_Silent, None] = {}
        self.draining = False
        """Whether every request is the last on its connection."""
        self._drains = trio.Event()

    def close(self) -> None:
        self._epoll.close()

    async def wait(self, connection: Answering) -> Left:
        """What is left to do when the client has sent something, is done, sent nothing for too long, or the server
        drains: one that had no request yet is still waited for then, for a while, as its client cannot know.

        Raises TLSError.
        """
        transport = connection.transport
        if self.draining and transport.sent:
            return Left(b"")
        if transport.holds():
            return Left(None)
        number = transport.fileno()
        self._epoll.register(number, select.EPOLLIN)
        self._waiting[number] = _Waiting(connection, trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(number)
            return trio.lowlevel.Abort.SUCCEEDED

        left: Left = await trio.lowlevel.wait_task_rescheduled(abort)
        return left

    @contextlib.contextmanager
    def silent(self, sock: socket.socket) -> Iterator[None]:
        """A connection waits for the first byte of its client, for as long as this lasts."""
        silent = _Silent(sock)
        self._silent[silent] = None
        try:
            yield
        finally:
            del self._silent[silent]

    def drain(self) -> None:
        """End all waits but for a first request, and let none but such begin."""
        self.draining = True
        self._drains.set()
        now = time.monotonic()
        for waiting in self._waiting.values():
            if waiting.connection.transport.sent:
                waiting.connection.transport.stop_reading()
            else:
                waiting.since = now

    def end_oldest(self) -> bool:
        """End the longest wait to make room; whether there was one."""
        waits = (waiting for waiting in self._waiting.values() if not waiting.connection.transport.stopped)
        silents = (silent for silent in self._silent if not silent.stopped)
        oldest = [(waiting.since, waiting.connection.transport.stop_reading) for waiting in islice(waits, 1)]
        oldest += [(silent.since, silent.stop_reading) for silent in islice(silents, 1)]
        if oldest:
            min(oldest, key=itemgetter(0))[1]()
        return bool(oldest)

    async def watch(self) -> None:
        """Answer those that send something, and end the waits that take too long, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_sockets)
            nursery.start_soon(self._watch_parts)
            nursery.start_soon(self._watch_clock)

    async def _watch_sockets(self) -> None:
        while True:
            try:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                while ready := self._epoll.poll(0, _AT_ONCE):
                    now = time.monotonic()
                    turn: Turn = {}
                    for number, _ in ready:
                        self._look_after(number, now, turn)
                    if len(ready) < _AT_ONCE and not self._epoll.poll(0, 1):
                        # The next wait gives the others their turn too.
                        break
                    await trio.lowlevel.checkpoint()
            except (OSError, MemoryError) as error:
                # There was no memory for the wait (epoll_ctl(2)): no reason to answer nobody ever after.
                log.error("idle connections have to wait: %s", error)
                await trio.sleep(_PAUSE_SECONDS)

    async def _watch_parts(self) -> None:
        while True:
            await self._part_came.wait()
            self._part_came = trio.Event()
            parts, self._parts = self._parts, []
            # The more there are the longer, so that a great many are not much work.
            await trio.sleep(PART_SECONDS + len(parts) * _EACH_PART_SECONDS)
            for number in parts:
                if number in self._waiting:
                    with contextlib.suppress(OSError):
                        self._epoll.modify(number, select.EPOLLIN)

    def _look_after(self, number: int, now: float, turn: Turn) -> None:
        waiting = self._waiting.get(number)
        if waiting is None:
            self._unregister(number)
            return
        sent = waiting.connection.transport.sent
        try:
            left = waiting.connection.answer_known(turn)
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
        elif waiting.connection.transport.wakes_early:
            self._epoll.modify(number, 0)
            self._parts.append(number)
            self._part_came.set()

    def _forget(self, number: int) -> None:
        del self._waiting[number]
        self._unregister(number)

    def _unregister(self, number: int) -> None:
        # What fails is tried again when the socket shows something, and close(2) does it too (epoll(7)).
        with contextlib.suppress(OSError):
            self._epoll.unregister(number)

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
        for waiting in self._waiting.values():
            if waiting.since > oldest:
                break
            if not waiting.connection.transport.stopped:
                waiting.connection.transport.stop_reading()
                ended += 1
        return ended
