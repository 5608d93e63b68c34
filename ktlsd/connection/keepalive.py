"""Idle keep-alive connections, and connections without a first byte: the only ones that may be closed at any moment.

Strategy: the poller of their sockets (poller.py) lets each send at once the responses that need no waiting; a task is
woken only for the rest, since waking it costs more than such a response. A wait is ended with shutdown(2), SHUT_RD, on
its socket. The oldest are closed first.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from typing import Final, NamedTuple, Protocol

import outcome
import trio

from ktlsd.config.limits import Limit
from ktlsd.connection.driver import Sleeper
from ktlsd.connection.poller import Batch, Poller, Steps
from ktlsd.connection.scheduler import current_scheduler
from ktlsd.connection.transport import PacedTransport, Rest
from ktlsd.metrics.metrics import LIMITED, UNCOUNTED, Row

FIRST_REQUEST_SECONDS: Final = 2.0
"""Time-out of the first request on a connection while the server drains."""


class PendingWork(NamedTuple):
    """Work left for the coroutine of a connection."""

    received: bytes | None
    """Received bytes, b"" at the end of the stream; None if they must be read first."""
    unsent: Rest | None = None
    """The rest of a response that has begun, to be sent first."""
    descriptor: int = -1
    """The file of that rest, to be closed afterwards; negative for none."""
    ends: bool = False
    """True if that response, or the one just sent, is the last on the connection."""
    size: int = 0
    """Bytes of the body of that response."""
    arrived: float = 0.0
    """When its request came (time.monotonic())."""


def _noop() -> None:
    pass


class KeepAliveConnection(Protocol):
    """A connection that waits for its next request."""

    @property
    def transport(self) -> PacedTransport: ...

    @property
    def says_goodbye(self) -> bool:
        """Whether it is woken while the server drains, to end by itself; otherwise it ends at once."""

    def idle_since(self, now: float) -> float:
        """The start of a wait that starts or goes on now (time.monotonic()). Frames that are no request, such as PING
        of HTTP/2, do not start another one."""

    def answer_at_once(self, batch: Batch) -> Generator[None, None, PendingWork | None]:
        """Answer received requests, step by step without waiting; None if nothing is left to do.

        Raises TLSError.
        """


class _Waiting(Sleeper):
    __slots__ = ("_idle", "connection", "number", "since")
    low_priority = False

    def __init__(self, idle: IdleConnections, connection: KeepAliveConnection, number: int) -> None:
        super().__init__()
        self._idle = idle
        self.connection = connection
        self.number = number
        self.since = connection.idle_since(time.monotonic())

    def ready(self, batch: Batch) -> Steps:
        return self._idle.look_after(self, batch)


class IdleConnections:
    """The idle connections of one process. The creator closes it."""

    def __init__(self, seconds: float, row: Row = UNCOUNTED) -> None:
        """`row` counts the waits that timed out."""
        self.seconds = seconds
        """Time-out of an idle connection, enforced within 25 %."""
        self._row = row
        self.sockets = Poller()
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()
        self.silent: dict[socket.socket, float] = {}
        """The sockets that wait for their first byte, the oldest first, and since when (time.monotonic()). The caller
        enters a socket before it waits, and removes it afterwards if it is still there."""
        self._body_waits: dict[trio.CancelScope, None] = {}
        self.draining = False
        """True if every response is the last on its connection."""
        self._drains = trio.Event()
        self.on_drain: dict[Callable[[], None], None] = {}
        """Called once the server drains, for connections that are not idle."""

    def close(self) -> None:
        self.sockets.close()

    async def wait(self, connection: KeepAliveConnection) -> PendingWork:
        """Wait for a request, the end of the stream, the time-out, or the drain of the server, and return the work
        left.

        While the server drains, a connection without a request so far still gets a short time for its first one, since
        its client cannot know of the drain. Raises TLSError.
        """
        transport = connection.transport
        if self.draining and transport.sent:
            return PendingWork(None if connection.says_goodbye else b"")
        if transport.holds():
            return PendingWork(None)
        number = transport.fileno()
        waiting = _Waiting(self, connection, number)
        self.sockets.set(number, waiting)
        self._waiting[number] = waiting
        if waiting.since < self.sockets.now:
            self._waiting.move_to_end(number, last=False)
        try:
            if waiting.inline_task:
                pending: PendingWork = await waiting.sleep(_noop)
            else:
                with current_scheduler().busy(-1):
                    pending = await waiting.sleep(lambda: self._forget(waiting))
        finally:
            self._waiting.pop(number, None)
        return pending

    @contextlib.contextmanager
    def body_wait(self, seconds: float) -> Iterator[trio.CancelScope]:
        """The time-out for the body of an answered request; ends at once if the server drains."""
        with trio.move_on_after(seconds) as scope, current_scheduler().busy(-1):
            self._body_waits[scope] = None
            if self.draining:
                scope.cancel()
            try:
                yield scope
            finally:
                del self._body_waits[scope]

    def drain(self) -> None:
        """End all waits except for a first request, and allow only such waits from here on."""
        self.draining = True
        self._drains.set()
        for scope in self._body_waits:
            scope.cancel()
        for call in list(self.on_drain):
            call()
        now = time.monotonic()
        for waiting in list(self._waiting.values()):
            if waiting.connection.says_goodbye:
                self._forget(waiting)
                waiting.wake(outcome.Value(PendingWork(None)))
            elif waiting.connection.transport.sent:
                waiting.connection.transport.stop_reading()
            else:
                waiting.since = now

    def end_oldest(self) -> bool:
        """Close the connection with the longest wait to make room; false if there is none."""
        waits = (waiting for waiting in self._waiting.values() if not waiting.connection.transport.stopped)
        oldest, silent = next(waits, None), next(iter(self.silent), None)
        if silent is not None and (oldest is None or self.silent[silent] < oldest.since):
            del self.silent[silent]
            with contextlib.suppress(OSError):
                silent.shutdown(socket.SHUT_RD)
            return True
        if oldest is not None:
            oldest.connection.transport.stop_reading()
        return oldest is not None

    async def watch(self) -> None:
        """Answer requests and enforce the time-out, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sockets.run)
            nursery.start_soon(self._watch_clock)

    def look_after(self, waiting: _Waiting, batch: Batch) -> Steps:
        """Let the connection answer received requests."""
        transport = waiting.connection.transport
        sent = transport.sent
        try:
            pending = yield from waiting.connection.answer_at_once(batch)
        except Exception as error:
            self._forget(waiting)
            waiting.wake(outcome.Error(error))
            return
        if pending is not None:
            self._forget(waiting)
            waiting.wake(outcome.Value(pending))
        elif transport.sent != sent:
            since = waiting.connection.idle_since(self.sockets.now)
            if since > waiting.since:
                # A response was sent; a new wait begins.
                waiting.since = since
                self._waiting.move_to_end(waiting.number)
        elif transport.wakes_early:
            self.sockets.pause(waiting.number)

    def _forget(self, waiting: _Waiting) -> None:
        del self._waiting[waiting.number]
        if not waiting.inline_task:
            self.sockets.remove(waiting.number)

    async def _watch_clock(self) -> None:
        while not self.draining:
            with trio.move_on_after(self.seconds / 4):
                await self._drains.wait()
            self._row[LIMITED[Limit.IDLE]] += self._end_older_than(self.seconds)
        while True:
            await trio.sleep(FIRST_REQUEST_SECONDS / 4)
            self._end_older_than(FIRST_REQUEST_SECONDS)

    def _end_older_than(self, seconds: float) -> int:
        """Returns the number of closed connections."""
        ended = 0
        oldest = time.monotonic() - seconds
        for waiting in self._waiting.values():
            if waiting.since <= oldest and not waiting.connection.transport.stopped:
                waiting.connection.transport.stop_reading()
                ended += 1
        return ended
