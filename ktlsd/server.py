"""The server: its start, accept, drain and end; one coroutine per connection, which becomes a task when it needs to.

Strategy: an accepted connection is arrival.py's, from its first byte to its last. Until become_task(), nothing of
trio's may be awaited there, nor a cancel scope entered (driver.py). Draining is the cancellation of accepting and of
idle waiting.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

from ktlsd.admission import EXHAUSTED
from ktlsd.arrival import Arrivals
from ktlsd.config.limits import Limit
from ktlsd.config.listener_kind import Kind
from ktlsd.connection.driver import InlineTasks, Sleeper
from ktlsd.connection.keepalive import IdleConnections
from ktlsd.connection.listener import BACKLOG, Listener, accepting
from ktlsd.connection.peers import peer_of
from ktlsd.connection.poller import Batch, Poller
from ktlsd.logs.error_log import NOTICE
from ktlsd.metrics.connection_kinds import ConnectionKinds
from ktlsd.metrics.metrics import UNCOUNTED, Row
from ktlsd.protocol.shared import Clock, Shared
from ktlsd.service import Service
from ktlsd.site.followed_root import LOOK_SECONDS, FollowedRoot

if TYPE_CHECKING:
    # It brings prometheus_client along, which takes long to import.
    from ktlsd.logs.exchange_log import AccessLog
    from ktlsd.status.metrics_listener import MetricsListener

log = logging.getLogger("ktlsd")

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_ACCEPTS_IN_A_ROW: Final = 16
_EXHAUSTED_PAUSE_SECONDS: Final = 0.1


class Server:
    """One process's event loop over bound listening sockets."""

    def __init__(
        self,
        service: Service,
        access_log: AccessLog | None = None,
        row: Row = UNCOUNTED,
        metrics: MetricsListener | None = None,
        kinds: ConnectionKinds | None = None,
        *,
        alone: bool = True,
        tells_of_roots: bool = True,
    ) -> None:
        """`row` has the counters of this process, `metrics` answers with those of all workers; all share `kinds`.

        A process that is not `alone` has a parent, which logs the end of all of them. One process logs
        changed roots (`tells_of_roots`).
        """
        self._alone = alone
        self._tells_of_roots = tells_of_roots
        self._row = row
        self._metrics = metrics
        self._accepting = trio.CancelScope()
        self._listening: dict[Listener, trio.CancelScope] = {}
        self.draining = trio.Event()
        """Set once drain() is called."""
        self._shared = Shared(
            service,
            IdleConnections(service.settings.limits.idle_seconds, row),
            Clock(),
            row,
            access_log,
            kinds or ConnectionKinds(),
        )
        self._arrivals = Arrivals(self._shared)
        self._count_sites(service)

    async def run(self, listeners: Sequence[Listener], ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, then finish requests in progress; a second signal aborts them.

        `ready` is called once signals are handled and connections accepted.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery)
            await self.serve(listeners, ready)
            nursery.cancel_scope.cancel()

    async def serve(self, listeners: Sequence[Listener], ready: Callable[[], None]) -> None:
        """Serve until drain() is called and the last response is sent; `ready` is called once clients are accepted."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._shared.idle.watch)
                nursery.start_soon(self._follow_roots)
                self._nursery = nursery
                self._serve_metrics()
                async with trio.open_nursery() as connections:
                    self._connections = connections
                    self._inline_tasks = InlineTasks(self._shared.idle.sockets, connections)
                    nursery.start_soon(self._inline_tasks.enforce_time_limits)
                    try:
                        await self._serve_connections(listeners, ready)
                    finally:
                        self._inline_tasks.close()
                nursery.cancel_scope.cancel()
        finally:
            self._arrivals.close()
            self._shared.idle.close()

    async def _serve_connections(self, listeners: Sequence[Listener], ready: Callable[[], None]) -> None:
        with self._accepting:
            async with trio.open_nursery() as acceptors:
                self._acceptors = acceptors
                self.listen_on(listeners)
                ready()
                # Without any listener it goes on.
                await trio.sleep_forever()
        await self._inline_tasks.wait_until_all_end()

    def listen_on(self, added: Sequence[Listener], removed: Sequence[Listener] = ()) -> None:
        """Accept on more listeners, and close others; their connections go on. Once draining, all are closed."""
        for listener in added:
            if self.draining.is_set():
                listener.socket.close()
            else:
                scope = self._listening[listener] = trio.CancelScope()
                self._acceptors.start_soon(self._accept, listener, scope)
        for listener in removed:
            if listener in self._listening:
                self._listening[listener].cancel()

    def use_metrics(self, metrics: MetricsListener | None) -> None:
        """Answer with metrics there, and no longer where it was; None for nowhere."""
        if self._metrics is not None:
            self._metrics.stop()
        self._metrics = metrics
        self._serve_metrics()

    def _serve_metrics(self) -> None:
        metrics = self._metrics
        if metrics is None:
            return

        def ready() -> bool:
            # After use_metrics(), other processes go on if this one drains.
            return not self._shared.idle.draining or metrics is not self._metrics

        self._nursery.start_soon(metrics.serve, lambda: self._shared.service, ready)

    def use_access_log(self, access_log: AccessLog | None) -> None:
        """Log the requests of connections from now on there; None for no access log."""
        self._shared.access_log = access_log

    def drain(self) -> None:
        """Accept no more, end idle connections, and let serve() return when the last response is sent."""
        self.draining.set()
        self._accepting.cancel()
        self._shared.idle.drain()

    def replace(self, service: Service) -> None:
        """Serve another service from the next handshake and the next request on; the old one is closed after use."""
        old, self._shared.service = self._shared.service, service
        self._shared.idle.seconds = service.settings.limits.idle_seconds
        self._arrivals.use(service)
        self._count_sites(service)
        old.retire()

    def _count_sites(self, service: Service) -> None:
        """Count by site from the first service on that has several."""
        if len(service.all) > 1:
            for counts in self._shared.responses.values():
                counts.count_sites()

    async def _follow_roots(self) -> None:
        """Have each root follow its path, forever."""
        async with trio.open_nursery() as looks:
            while True:
                await trio.sleep(LOOK_SECONDS)
                service = self._shared.service
                for followed in service.followed:
                    if not followed.is_the_same():
                        looks.start_soon(self._follow, service, followed)

    async def _follow(self, service: Service, followed: FollowedRoot) -> None:
        with service.in_use():
            await followed.look(tell=self._tells_of_roots)

    async def _cut_off(self, everything: trio.CancelScope) -> None:
        """Abort the remaining requests after the time for draining."""
        seconds = self._shared.service.settings.drain_seconds
        await trio.sleep(seconds)
        log.warning("connections cut off: %d, still open %d s after the signal", self._open(), seconds)
        everything.cancel()

    async def _watch_signals(
        self, nursery: trio.Nursery, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        # The receiver gives signals back to these handlers when it closes: one that comes while the process ends
        # changes nothing any more, and one that comes before the receiver opens is not lost.
        early: list[int] = []
        for number in END_SIGNALS:
            signal.signal(number, lambda number, frame: early.append(number))
        with trio.open_signal_receiver(*END_SIGNALS) as signals:
            # Workers have them blocked from their fork on.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
            task_status.started()
            first = signal.Signals(early[0] if early else await anext(signals))
            seconds = self._shared.service.settings.drain_seconds
            self._tell("shutting down on %s: %s, %d s to finish", first.name, self._open_in_words(), seconds)
            self.drain()
            nursery.start_soon(self._cut_off, nursery.cancel_scope)
            second = signal.Signals(await anext(signals))
            self._tell("second %s: exiting immediately, %s cut off", second.name, self._open_in_words())
            nursery.cancel_scope.cancel()

    def _open(self) -> int:
        return len(self._connections.child_tasks) + len(self._inline_tasks)

    def _open_in_words(self) -> str:
        return f"{(count := self._open())} connection{'' if count == 1 else 's'}"

    def _tell(self, text: str, *arguments: object) -> None:
        log.log(NOTICE if self._alone else logging.DEBUG, text, *arguments)

    async def _accept(self, listener: Listener, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._accept_until_cancelled(listener)
        finally:
            # From here on new clients are refused instead of waiting in a queue that no process serves.
            self._accept_queued(listener)
            listener.socket.close()
            del self._listening[listener]

    def _accept_queued(self, listener: Listener) -> None:
        """Accept the connections that the kernel would reset when the socket is closed."""
        accept = accepting(listener.socket)
        with contextlib.suppress(OSError, MemoryError):
            for _ in range(BACKLOG):
                sock, peer = accept()
                self._inline_tasks.start(sock, self._arrivals.serve(sock, peer_of(peer), listener.kind))

    async def _accept_until_cancelled(self, listener: Listener) -> None:
        while True:
            try:
                await _Acceptor(self, listener, self._shared.idle.sockets).open()
            except OSError as error:
                # The kernel had no memory for the wait (epoll_ctl(2)): the server must not stop accepting forever.
                log.error("accepting pauses: %s", error.strerror)
            await trio.sleep(_EXHAUSTED_PAUSE_SECONDS)

    def accept_some(self, accept: Callable[[], tuple[socket.socket, Any]], kind: Kind) -> bool:
        """Accept queued connections by listener.accepting(); False if the limit is reached."""
        for _ in range(_ACCEPTS_IN_A_ROW):
            try:
                sock, peer = accept()
            except BlockingIOError:
                break
            except (OSError, MemoryError) as error:
                lacking = Limit.MEMORY if isinstance(error, MemoryError) else EXHAUSTED.get(error.errno or 0)
                # Anything else is the fate of one connection that ended while it was queued (accept(2)).
                if lacking is not None:
                    self._arrivals.lacks(lacking, error)
                    return False
                continue
            self._inline_tasks.start(sock, self._arrivals.serve(sock, peer_of(peer), kind))
        return True


class _Acceptor(Sleeper):
    """A listening socket, until the connection limit is reached."""

    __slots__ = ("_accept", "_listener", "_server", "_sockets")
    low_priority = True

    def __init__(self, server: Server, listener: Listener, sockets: Poller) -> None:
        super().__init__()
        self._server = server
        self._listener = listener
        self._sockets = sockets
        self._accept = accepting(listener.socket)

    async def open(self) -> None:
        """Let clients in for as long as there is room. Raises OSError."""
        self._listener.prepare()
        self._sockets.set(self._listener.socket.fileno(), self)
        await self.sleep(self._close)

    def ready(self, batch: Batch) -> None:
        if not self._server.accept_some(self._accept, self._listener.kind):
            self._close()
            self.wake(outcome.Value(None))

    def _close(self) -> None:
        self._sockets.remove(self._listener.socket.fileno())
