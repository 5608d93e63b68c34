"""The server: accept -> handshake -> serve, one trio task per connection.

Strategy: the site that a client names in its handshake gives the certificate, then the connection belongs to its
protocol (http1.py). Cancel scopes hold every time-out; draining is the cancellation of accepting and of idle waiting.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final

import h11
import trio

from ktlsd.forwarded import Origin
from ktlsd.head_cache import HeadCache
from ktlsd.http1 import Client, Clock, Http1, Shared
from ktlsd.idle import Idle
from ktlsd.ktls import Direction, Mode, Offload, explain
from ktlsd.listeners import Kind, Listener
from ktlsd.pacing import FileShrank
from ktlsd.peers import Peer, client_of, peer_of
from ktlsd.plain_transport import PlainTransport
from ktlsd.proxy_protocol import BadHeader
from ktlsd.residency import Residency
from ktlsd.service import Service
from ktlsd.sni import peek_server_name
from ktlsd.ssl_ffi import ConnectionLost, Context, Handshake, PlainHTTP, TLSError
from ktlsd.tls_stat import Offloads
from ktlsd.transport import Transport

log = logging.getLogger("ktlsd")

HANDSHAKE_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 75.0
"""Between requests on a kept-alive connection."""

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_ACCEPTS_IN_A_ROW: Final = 16
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EXHAUSTED_PAUSE_SECONDS: Final = 0.1


class Server:
    """One process's event loop over listening sockets that somebody else bound."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._residency = Residency(service.library.file_system_type)
        self._offloads = Offloads()
        self._accepting = trio.CancelScope()
        self.heads = HeadCache(service.library)
        self._shared = Shared(service, self.heads, Idle(IDLE_SECONDS), Clock())

    async def run(self, listeners: Sequence[Listener], ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is in flight; a second signal ends that too.

        `ready` is called once signals are heeded and connections accepted.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            await self.serve(listeners, ready)
            nursery.cancel_scope.cancel()

    async def serve(self, listeners: Sequence[Listener], ready: Callable[[], None]) -> None:
        """Serve until drain() is called and the last response is sent; `ready` is called once clients are accepted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._shared.idle.watch)
            async with trio.open_nursery() as connections:
                with self._accepting:
                    async with trio.open_nursery() as acceptors:
                        for listener in listeners:
                            acceptors.start_soon(self._accept, listener, connections)
                        ready()
                # From here on new clients are refused instead of waiting in a queue that nobody serves.
                for listener in listeners:
                    listener.socket.close()
            nursery.cancel_scope.cancel()
        self._offloads.close()

    def drain(self) -> None:
        """Accept no more, end idle connections, and let serve() return when the last response is sent."""
        self._accepting.cancel()
        self._shared.idle.drain()

    async def _watch_signals(
        self, everything: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        # The receiver gives signals back to these handlers when it closes: one that comes while the process ends
        # changes nothing any more, and one that comes before the receiver opens is not lost.
        early: list[int] = []
        for number in END_SIGNALS:
            signal.signal(number, lambda number, frame: early.append(number))
        with trio.open_signal_receiver(*END_SIGNALS) as signals:
            task_status.started()
            if early:
                self.drain()
            async for _ in signals:
                if self._shared.idle.draining:
                    everything.cancel()
                self.drain()

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener.socket)
            for _ in range(_ACCEPTS_IN_A_ROW):
                try:
                    sock, peer = listener.socket.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        log.error("accepting pauses: %s", error.strerror)
                        await trio.sleep(_EXHAUSTED_PAUSE_SECONDS)
                    # Anything else is the fate of one connection that ended while it was queued (accept(2)).
                    continue
                connections.start_soon(self._serve_connection, sock, peer_of(peer), listener.kind)

    async def _serve_connection(self, sock: socket.socket, peer: Peer, kind: Kind) -> None:
        try:
            with sock:
                sock.setblocking(False)
                if sock.family != socket.AF_UNIX:
                    # Heads and files share records by MSG_MORE; nothing else is worth holding back.
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                deadline = trio.current_time() + HANDSHAKE_SECONDS
                if self._service.speak_proxy and self._service.speak_proxy.holds(peer.address):
                    with trio.fail_at(deadline):
                        peer = await client_of(sock, peer)
                if kind is Kind.HTTPS:
                    await self._serve_tls(sock, peer, deadline)
                else:
                    with contextlib.closing(PlainTransport(sock, self._residency)) as transport:
                        client = self._client(peer, secure=False, redirected=kind is Kind.REDIRECT)
                        await Http1(self._shared, transport, client).serve()
        except FileShrank:
            log.error("%s cut off: the file shrank while it was sent", peer)
        except ConnectionLost as error:
            log.debug("%s left: %s", peer, error)
        except BadHeader as error:
            log.info("%s cut off: proxy_protocol demands a PROXY header of it, and it sent %s", peer, error)
        except trio.TooSlowError:
            log.info("%s cut off: no PROXY header within %g s", peer, HANDSHAKE_SECONDS)
        except TLSError as error:
            log.info("%s cut off: %s", peer, error)
        except OSError as error:
            log.error("%s cut off: %s", peer, error)
        except Exception:
            # A defect in serving one connection must not end the others.
            log.exception("%s cut off by a defect in ktlsd, please report it", peer)

    def _client(
        self,
        peer: Peer,
        *,
        secure: bool,
        server_name: str | None = None,
        clients: bytes = b"",
        redirected: bool = False,
    ) -> Client:
        trusted = self._service.trusted
        return Client(
            peer.name,
            secure,
            server_name,
            via=peer.via,
            origin=Origin(peer.name, https=secure or peer.https),
            trusted=trusted if trusted and trusted.holds(peer.address) else None,
            clients=clients,
            redirected=redirected,
        )

    async def _serve_tls(self, sock: socket.socket, peer: Peer, deadline: float) -> None:
        """Handshake, with the certificate of the site that the client names, and serve."""
        server_name = None
        if self._service.several:
            # Only a look: after a resumed TLS 1.2 handshake OpenSSL no longer tells the name.
            with trio.move_on_at(deadline):
                server_name = await peek_server_name(sock)
        context = self._service.sites.of_name(server_name).context
        with contextlib.closing(Transport(context, sock, self._residency)) as transport:
            try:
                with trio.fail_at(deadline):
                    handshake = await transport.handshake()
            except trio.TooSlowError:
                log.info("%s handshake failed: none within %g s", peer, HANDSHAKE_SECONDS)
                return
            except PlainHTTP:
                log.info("%s handshake failed: plain HTTP on the HTTPS port", peer)
                await transport.answer_plain_http(self._plain_http_response())
                return
            except ConnectionLost as error:
                log.info("%s handshake failed: %s", peer, error)
                return
            except TLSError as error:
                log.info("%s handshake failed: %s", peer, error)
                await transport.end_refused()
                return
            if await self._may_go_on(transport, sock, peer, handshake, context):
                client = self._client(peer, secure=True, server_name=server_name, clients=context.clients)
                await Http1(self._shared, transport, client).serve()

    async def _may_go_on(
        self, transport: Transport, sock: socket.socket, peer: Peer, handshake: Handshake, context: Context
    ) -> bool:
        """Log which path the connection takes, and whose it is; whether both are allowed."""
        support = self._service.support
        tx, rx = (
            explain(support, handshake, direction, self._offloads.of(sock, direction) if engaged else Offload.NONE)
            for direction, engaged in ((Direction.TX, handshake.ktls_tx), (Direction.RX, handshake.ktls_rx))
        )
        resumed = " resumed" if handshake.resumed else ""
        whose = f" client={handshake.client}" if handshake.client else ""
        cipher = handshake.cipher
        log.info("%s %s %s%s ktls tx=%s rx=%s%s", peer, handshake.protocol, cipher, resumed, tx, rx, whose)
        if context.clients and not handshake.client:
            log.warning("%s closed: its session has no verified client certificate", peer)
            await transport.finish()
            return False
        if support.mode is Mode.REQUIRE and tx.reason is not None:
            log.warning("%s closed: --ktls require, and sends are not offloaded: %s", peer, tx.reason.value)
            await transport.finish()
            return False
        return True

    def _plain_http_response(self) -> bytes:
        http = h11.Connection(h11.SERVER)
        text = b"400 Bad Request: this port speaks HTTPS, use an https:// address\n"
        fields = [
            ("Date", self._shared.clock.date().decode("ascii")),
            *self._service.server_field,
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(text))),
            ("Connection", "close"),
        ]
        events = (h11.Response(status_code=400, headers=fields, reason=b"Bad Request"), h11.Data(data=text))
        return b"".join(http.send(event) or b"" for event in events)
