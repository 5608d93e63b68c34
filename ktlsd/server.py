"""The server: accept -> handshake -> serve, one coroutine per connection, which becomes a trio task when it needs to.

Strategy: the site that a client names in its handshake gives the certificate, then the connection belongs to its
protocol (http1.py). Until become_task(), nothing of trio's may be awaited, nor a cancel scope entered (driver.py).
Draining is the cancellation of accepting and of idle waiting.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import outcome
import trio

from ktlsd.admission import EXHAUSTED, Door
from ktlsd.config.limits import Limit
from ktlsd.config.listener_kind import Kind
from ktlsd.config.refusal import cause
from ktlsd.config.values import Mode
from ktlsd.connection import driver
from ktlsd.connection.driver import Lights, Sleeper
from ktlsd.connection.keepalive import Idle
from ktlsd.connection.listener import Listener
from ktlsd.connection.page_cache import Residency
from ktlsd.connection.peers import Peer, client_of, peer_of
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.connection.poller import Turn, Watch
from ktlsd.connection.proxy_protocol import BadHeader
from ktlsd.connection.sni import peek_client_hello
from ktlsd.connection.tls_transport import Transport
from ktlsd.connection.transport import FileShrank
from ktlsd.file_threads import Stalled
from ktlsd.http.forwarded import Origin
from ktlsd.logs.error_log import NOTICE
from ktlsd.metrics.metrics import (
    ACCEPTED,
    FAILED,
    LIMITED,
    OPEN,
    OPEN_TLS,
    UNCOUNTED,
    Failure,
    Row,
    count_handshake,
    counted,
)
from ktlsd.openssl.errors import ConnectionLost, PlainHTTP, TLSError
from ktlsd.openssl.results import Handshake
from ktlsd.protocol.client import Client
from ktlsd.protocol.http1 import Http1
from ktlsd.protocol.refusals import last_words
from ktlsd.protocol.shared import Clock, Shared
from ktlsd.service import Service
from ktlsd.site.followed_root import LOOK_SECONDS, FollowedRoot
from ktlsd.ssl_ffi import Context
from ktlsd.tls.client_hello import NOTHING
from ktlsd.tls.ktls import Direction, Offload, Path, explain
from ktlsd.tls.tls_stat import Offloads

if TYPE_CHECKING:
    # It brings prometheus_client along, which takes long to import.
    from ktlsd.logs.exchange_log import AccessLog
    from ktlsd.status.metrics_listener import MetricsListener

log = logging.getLogger("ktlsd")

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_ACCEPTS_IN_A_ROW: Final = 16
_EXHAUSTED_PAUSE_SECONDS: Final = 0.1
_SPEAK_HTTPS: Final = (HTTPStatus.BAD_REQUEST, "this port speaks HTTPS, use an https:// address")
_BUSY: Final = (HTTPStatus.SERVICE_UNAVAILABLE, "too many connections, try again later", ("Retry-After", "10"))


class Server:
    """One process's event loop over listening sockets that somebody else bound."""

    def __init__(
        self,
        service: Service,
        access_log: AccessLog | None = None,
        row: Row = UNCOUNTED,
        metrics: MetricsListener | None = None,
        *,
        alone: bool = True,
        tells_of_roots: bool = True,
    ) -> None:
        """`row` is what it counts into, `metrics` where it answers with what all workers count.

        A process that is not `alone` has a parent, which tells the operator when all of them end. One process
        `tells_of_roots` that have changed.
        """
        self._alone = alone
        self._tells_of_roots = tells_of_roots
        self._row = row
        self._metrics = metrics
        self._residency = Residency(row)
        self._offloads = Offloads()
        self._not_offloaded: dict[tuple[str, str, bool], tuple[Path, Path]] = {}
        """The paths of connections without kTLS, by what decides about them."""
        self._accepting = trio.CancelScope()
        self.draining = trio.Event()
        """Set once drain() is called."""
        self._door = Door(service, self._residency, row)
        self._shared = Shared(service, Idle(service.settings.limits.idle_seconds, row), Clock(), row, access_log)

    async def run(self, listeners: Sequence[Listener], ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is in flight; a second signal ends that too.

        `ready` is called once signals are heeded and connections accepted.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery)
            await self.serve(listeners, ready)
            nursery.cancel_scope.cancel()

    async def serve(self, listeners: Sequence[Listener], ready: Callable[[], None]) -> None:
        """Serve until drain() is called and the last response is sent; `ready` is called once clients are accepted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._shared.idle.watch)
            nursery.start_soon(self._follow_roots)
            if self._metrics is not None:
                nursery.start_soon(
                    self._metrics.serve, lambda: self._shared.service, lambda: not self._shared.idle.draining
                )
            async with trio.open_nursery() as connections:
                self._connections = connections
                self._lights = Lights(self._shared.idle.sockets, connections)
                nursery.start_soon(self._lights.watch_terms)
                with self._accepting:
                    async with trio.open_nursery() as acceptors:
                        for listener in listeners:
                            acceptors.start_soon(self._accept, listener)
                        ready()
                # From here on new clients are refused instead of waiting in a queue that nobody serves.
                for listener in listeners:
                    listener.socket.close()
                await self._lights.until_none()
            nursery.cancel_scope.cancel()
        self._offloads.close()
        self._shared.idle.close()

    def drain(self) -> None:
        """Accept no more, end idle connections, and let serve() return when the last response is sent."""
        self.draining.set()
        self._accepting.cancel()
        self._shared.idle.drain()

    def replace(self, service: Service) -> None:
        """Serve another service from the next handshake and the next request on; the old one is closed after use."""
        old, self._shared.service = self._shared.service, service
        self._not_offloaded.clear()
        self._shared.idle.seconds = service.settings.limits.idle_seconds
        self._door.use(service)
        old.retire()

    async def _follow_roots(self) -> None:
        """Have each root follow its path, for ever."""
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
        """Give up on what is still in flight when draining has taken long enough."""
        seconds = self._shared.service.settings.drain_seconds
        await trio.sleep(seconds)
        log.warning("connections cut off: %d, not done %d s after the signal", self._open(), seconds)
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
            task_status.started()
            first = signal.Signals(early[0] if early else await anext(signals))
            seconds = self._shared.service.settings.drain_seconds
            self._tell("shutting down on %s: %d connections, %d s to finish", first.name, self._open(), seconds)
            self.drain()
            nursery.start_soon(self._cut_off, nursery.cancel_scope)
            second = signal.Signals(await anext(signals))
            self._tell("%s again: %d connections cut off", second.name, self._open())
            nursery.cancel_scope.cancel()

    def _open(self) -> int:
        return len(self._connections.child_tasks) + len(self._lights)

    def _tell(self, text: str, *arguments: object) -> None:
        log.log(NOTICE if self._alone else logging.DEBUG, text, *arguments)

    async def _accept(self, listener: Listener) -> None:
        while True:
            try:
                await _Entrance(self, listener, self._shared.idle.sockets).open()
            except OSError as error:
                # The kernel had no memory for the wait (epoll_ctl(2)): no reason to accept nobody ever after.
                log.error("accepting pauses: %s", error.strerror)
            await trio.sleep(_EXHAUSTED_PAUSE_SECONDS)

    def accept_some(self, listener: Listener) -> bool:
        """Take in who queues; False when there is no room for more."""
        for _ in range(_ACCEPTS_IN_A_ROW):
            try:
                sock, peer = listener.socket.accept()
            except BlockingIOError:
                break
            except (OSError, MemoryError) as error:
                lacking = Limit.MEMORY if isinstance(error, MemoryError) else EXHAUSTED.get(error.errno or 0)
                # Anything else is the fate of one connection that ended while it was queued (accept(2)).
                if lacking is not None:
                    self._door.reached(lacking, "accepting pauses: %s", cause(error))
                    self._make_room()
                    return False
                continue
            self._lights.start(sock, self._serve_connection(sock, peer_of(peer), listener.kind))
        return True

    def _make_room(self) -> None:
        self._row[LIMITED[Limit.CROWDED]] += self._shared.idle.end_oldest()

    async def _serve_connection(self, sock: socket.socket, peer: Peer, kind: Kind) -> None:
        row = self._row
        row[ACCEPTED[kind]] += 1
        limits = self._shared.service.settings.limits
        try:
            with sock, counted(row, OPEN[kind]):
                sock.setblocking(False)
                began = trio.current_time()
                with self._door.gate.visit() as visit:
                    if self._door.gate.crowded:
                        self._make_room()
                    if visit.refused is None:
                        peer = await self._named(sock, peer, began)
                    refused = self._door.refuses(visit, peer, shakes=kind is Kind.HTTPS)
                    if refused is None:
                        await self._serve_visitor(sock, peer, kind, began)
                if refused is not None:
                    await driver.become_task()
                    response = b"" if kind is Kind.HTTPS else self._last_words(*_BUSY)
                    await self._door.turn_away(sock, peer, refused, response)
        except FileShrank:
            log.error("%s cut off: the file shrank while it was sent", peer)
        except ConnectionLost as error:
            log.debug("%s left: %s", peer, error)
        except BadHeader as error:
            row[FAILED[Failure.PROXY_HEADER]] += 1
            log.info("%s cut off: proxy_protocol demands a PROXY header of it, and it sent %s", peer, error)
        except trio.TooSlowError:
            row[FAILED[Failure.PROXY_HEADER]] += 1
            row[LIMITED[Limit.HANDSHAKE]] += 1
            log.info("%s cut off: no PROXY header within %g s", peer, limits.handshake_seconds)
        except TLSError as error:
            log.info("%s cut off: %s", peer, error)
        except Stalled as error:
            row[LIMITED[Limit.FILE]] += 1
            log.error("%s cut off: the file system did not answer a read within %g s", peer, error.seconds)
        except OSError as error:
            log.error("%s cut off: %s", peer, cause(error))
        except MemoryError:
            self._door.reached(Limit.MEMORY, "%s cut off", peer)
        except Exception:
            # A defect in serving one connection must not end the others.
            log.exception("%s cut off by a defect in ktlsd, please report it", peer)

    async def _named(self, sock: socket.socket, peer: Peer, began: float) -> Peer:
        """The client that a proxy speaks for, where that is to begin with a PROXY header; else the peer itself.

        Raises BadHeader, ConnectionLost, trio.TooSlowError.
        """
        speak_proxy = self._shared.service.speak_proxy
        if not speak_proxy or not speak_proxy.holds(peer.address):
            return peer
        await driver.become_task()
        with driver.within(self._shared.service.settings.limits.handshake_seconds, began):
            return await client_of(sock, peer)

    async def _serve_visitor(self, sock: socket.socket, peer: Peer, kind: Kind, began: float) -> None:
        """Serve a client that was let in, whose time for a handshake began then."""
        if kind is Kind.HTTPS:
            await self._serve_tls(sock, peer, began)
            return
        limits = self._shared.service.settings.limits
        with contextlib.closing(PlainTransport(sock, self._residency, self._row, limits)) as transport:
            await Http1(self._shared, transport, self._client(peer, redirected=kind is Kind.REDIRECT)).serve()

    async def _serve_tls(self, sock: socket.socket, peer: Peer, began: float) -> None:
        """Handshake, with the certificate of the site that the client names, and serve."""
        row, seconds = self._row, self._shared.service.settings.limits.handshake_seconds
        asked = NOTHING
        # Only a look: after a resumed TLS 1.2 handshake OpenSSL no longer tells the name.
        with contextlib.suppress(trio.TooSlowError), driver.within(seconds, began), self._shared.idle.silent(sock):
            asked = await peek_client_hello(sock)
        service = self._shared.service
        hosted = service.sites.of_name(asked.server_name)
        context = hosted.context
        limits = service.settings.limits
        with contextlib.closing(Transport(context, sock, self._residency, row, limits)) as transport:
            if hosted.refused and asked.server_name is not None:
                row[FAILED[Failure.NO_CERTIFICATE]] += 1
                log.info("%s handshake refused: there is no usable certificate for %s", peer, asked.server_name)
                await transport.refuse_name()
                return
            # No ticket is good for a site that is refused.
            older_key = None if hosted.refused else service.older_ticket_key(asked.ticket_key_name)
            try:
                with driver.within(seconds, began):
                    handshake = await transport.handshake(older_key)
            except trio.TooSlowError:
                row[FAILED[Failure.TIMEOUT]] += 1
                row[LIMITED[Limit.HANDSHAKE]] += 1
                log.info("%s handshake failed: none within %g s", peer, seconds)
                return
            except ConnectionLost as error:
                row[FAILED[Failure.LOST]] += 1
                log.info("%s handshake failed: %s", peer, error)
                return
            except TLSError as error:
                if asked.plain_http or isinstance(error, PlainHTTP):
                    row[FAILED[Failure.PLAIN_HTTP]] += 1
                    log.info("%s handshake failed: plain HTTP on the HTTPS port", peer)
                    await transport.answer_plain_http(self._last_words(*_SPEAK_HTTPS))
                    return
                row[FAILED[Failure.NO_CERTIFICATE if hosted.refused else Failure.TLS_ERROR]] += 1
                log.info("%s handshake failed: %s", peer, error)
                await transport.end_refused()
                return
            paths = self._paths(sock, handshake)
            count_handshake(row, trio.current_time() - began, handshake, *paths)
            if self._may_go_on(peer, context, handshake, *paths):
                client = self._client(peer, handshake, paths, asked.server_name, context.clients)
                tx = paths[0]
                with counted(row, OPEN_TLS[tx.offload]):
                    await Http1(self._shared, transport, client).serve()
            else:
                await transport.finish()

    def _client(
        self,
        peer: Peer,
        handshake: Handshake | None = None,
        paths: tuple[Path | None, Path | None] = (None, None),
        server_name: str | None = None,
        clients: bytes = b"",
        *,
        redirected: bool = False,
    ) -> Client:
        """Without a handshake, a client of plain HTTP."""
        channel = None
        if self._shared.access_log is not None:
            from ktlsd.logs.access_log import Channel

            channel = Channel(peer.host, peer.port or None, peer.via or None)
            if handshake is not None:
                channel = channel._replace(
                    protocol=handshake.protocol,
                    cipher=handshake.cipher,
                    resumed=handshake.resumed,
                    server_name=server_name or handshake.server_name,
                    client_certificate=handshake.client or None,
                    ktls_tx=paths[0],
                    ktls_rx=paths[1],
                )
        trusted = self._shared.service.trusted
        name = peer.name
        return Client(
            address=name,
            secure=handshake is not None,
            server_name=server_name,
            origin=Origin(name, https=handshake is not None or peer.https),
            via=peer.via,
            trusted=trusted if trusted and trusted.holds(peer.address) else None,
            clients=clients,
            redirected=redirected,
            channel=channel,
        )

    def _paths(self, sock: socket.socket, handshake: Handshake) -> tuple[Path, Path]:
        """The path of what is sent and of what is received."""
        if handshake.ktls_tx or handshake.ktls_rx:
            return self._explained(sock, handshake)
        key = handshake.protocol, handshake.cipher, handshake.max_fragment_length
        if (paths := self._not_offloaded.get(key)) is None:
            paths = self._not_offloaded[key] = self._explained(sock, handshake)
        return paths

    def _explained(self, sock: socket.socket, handshake: Handshake) -> tuple[Path, Path]:
        support = self._shared.service.support
        tx, rx = (
            explain(support, handshake, direction, self._offloads.of(sock, direction) if engaged else Offload.NONE)
            for direction, engaged in ((Direction.TX, handshake.ktls_tx), (Direction.RX, handshake.ktls_rx))
        )
        return tx, rx

    def _may_go_on(self, peer: Peer, context: Context, handshake: Handshake, tx: Path, rx: Path) -> bool:
        """Log which path the connection takes, and whose it is; whether both are allowed."""
        if log.isEnabledFor(logging.INFO):
            cipher, resumed = handshake.cipher, " resumed" if handshake.resumed else ""
            whose = "" if handshake.client is None else f" client={handshake.client or '(no subject)'}"
            log.info("%s %s %s%s ktls tx=%s rx=%s%s", peer, handshake.protocol, cipher, resumed, tx, rx, whose)
        if context.clients and handshake.client is None:
            self._row[FAILED[Failure.CLIENT_CERTIFICATE]] += 1
            log.warning("%s closed: its session has no verified client certificate", peer)
        elif self._shared.service.support.mode is Mode.REQUIRE and tx.reason is not None:
            self._row[FAILED[Failure.KTLS_REQUIRED]] += 1
            log.warning("%s closed: --ktls require, and sends are not offloaded: %s", peer, tx.reason.value)
        else:
            return True
        return False

    def _last_words(self, status: HTTPStatus, reason: str, *fields: tuple[str, str]) -> bytes:
        """A whole response, in the clear, without a request that was read."""
        date, server_field = self._shared.clock.date(), self._shared.service.server_field
        return last_words(status, reason, *fields, date=date, server_field=server_field)


class _Entrance(Sleeper):
    """A listening socket, until there is no room for more."""

    __slots__ = ("_listener", "_server", "_sockets")
    patient = True

    def __init__(self, server: Server, listener: Listener, sockets: Watch) -> None:
        super().__init__()
        self._server = server
        self._listener = listener
        self._sockets = sockets

    async def open(self) -> None:
        """Let clients in for as long as there is room. Raises OSError."""
        self._listener.prepare()
        self._sockets.set(self._listener.socket.fileno(), self)
        await self.sleep(self._close)

    def ready(self, turn: Turn) -> None:
        if not self._server.accept_some(self._listener):
            self._close()
            self.wake(outcome.Value(None))

    def _close(self) -> None:
        self._sockets.remove(self._listener.socket.fileno())
