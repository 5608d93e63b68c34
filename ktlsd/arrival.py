"""One connection from accept to its protocol: PROXY header -> admission -> handshake -> protocol.

Strategy: a staircase that leads down only, each step handing its outcome to the next: serve() has a Peer and a refusal
or none, then a Secured or none (handshake.py), then a Client, which is all that a protocol needs to know (client.py).
Everything that ends a connection before its time is logged here.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from http import HTTPStatus
from typing import Final

import trio

from ktlsd.admission import AdmissionControl
from ktlsd.config.limits import FileLimiter, Limit
from ktlsd.config.listener_kind import Kind
from ktlsd.config.refusal import cause
from ktlsd.connection import driver, open_files
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.peers import Peer, client_of
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.connection.proxy_protocol import BadHeader, NoHeader
from ktlsd.connection.transport import FileShrank
from ktlsd.file_threads import Stalled
from ktlsd.handshake import Handshakes
from ktlsd.metrics.metrics import ACCEPTED, FAILED, LIMITED, OPEN, OPEN_TLS, Failure
from ktlsd.openssl.errors import ConnectionLost, TLSError
from ktlsd.protocol.client import make_client
from ktlsd.protocol.http1 import Http1
from ktlsd.protocol.http2 import Http2
from ktlsd.protocol.refusals import last_words
from ktlsd.protocol.shared import Shared
from ktlsd.service import Service

log = logging.getLogger("ktlsd")

_BUSY: Final = (HTTPStatus.SERVICE_UNAVAILABLE, "too many connections, try again later", ("Retry-After", "10"))


class Arrivals:
    """One for each process. The creator closes it."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._row = row = shared.row
        self._page_cache = PageCache(row)
        self._handshakes = Handshakes(shared, self._page_cache)
        self._admission = AdmissionControl(shared.service, self._page_cache, row)
        shared.files = FileLimiter(self._admission.limiter, open_files.allowed())

    def close(self) -> None:
        self._handshakes.close()

    def use(self, service: Service) -> None:
        """Take another service's limits from now on."""
        self._handshakes.settings_changed()
        self._admission.use(service)

    def lacks(self, limit: Limit, error: Exception) -> None:
        """Accepting stops for lack of something: make room, and log it now and then."""
        self._admission.reached(limit, "accepting pauses: %s", cause(error))
        self._make_room()

    def _make_room(self) -> None:
        self._row[LIMITED[Limit.CROWDED]] += self._shared.idle.end_oldest()

    async def serve(self, sock: socket.socket, peer: Peer, kind: Kind) -> None:
        """Serve a connection from its first byte to its last, and close it. Raises nothing but cancellation."""
        row, admission, service = self._row, self._admission, self._shared.service
        row[ACCEPTED[kind]] += 1
        row[OPEN[kind]] += 1
        began = now = driver.current_time()
        # Contexts for what ends with a connection would be some twenty calls more for each of them.
        try:
            sock.setblocking(False)
            with admission.limiter.permit() as permit:
                if admission.limiter.crowded:
                    self._make_room()
                if permit.refused is None and service.speak_proxy and service.speak_proxy.holds(peer.address):
                    peer, now = await self._named(sock, peer, began), driver.current_time()
                refused = admission.refuses(permit, peer, now, with_handshake=kind is Kind.HTTPS)
                if refused is None:
                    if kind is Kind.HTTPS:
                        await self._serve_tls(sock, peer, began)
                    else:
                        await self._serve_plain(sock, peer, redirected=kind is Kind.REDIRECT)
            if refused is not None:
                await self._reject(sock, peer, kind, refused)
        except FileShrank:
            log.error("%s cut off: the file shrank while it was sent", peer)
        except ConnectionLost as error:
            log.debug("%s disconnected: %s", peer, error)
        except NoHeader:
            row[FAILED[Failure.PROXY_HEADER]] += 1
            log.info(
                "%s cut off: proxy_protocol names this address, but no PROXY header came: switch it on in the proxy"
                " (send-proxy-v2), or take the address out",
                peer,
            )
        except BadHeader as error:
            row[FAILED[Failure.PROXY_HEADER]] += 1
            log.info("%s cut off: proxy_protocol requires a PROXY header, but it sent %s", peer, error)
        except trio.TooSlowError:
            row[FAILED[Failure.PROXY_HEADER]] += 1
            row[LIMITED[Limit.HANDSHAKE]] += 1
            log.info("%s cut off: no PROXY header within %g s", peer, service.settings.limits.handshake_seconds)
        except TLSError as error:
            log.info("%s cut off: %s", peer, error)
        except Stalled as error:
            row[LIMITED[Limit.FILE]] += 1
            log.error("%s cut off: the file system did not answer a read within %g s", peer, error.seconds)
        except OSError as error:
            log.error("%s cut off: %s", peer, cause(error))
        except MemoryError:
            self._admission.reached(Limit.MEMORY, "%s cut off", peer)
        except Exception:
            # A defect in serving one connection must not end the others.
            log.exception("%s cut off by a defect in ktlsd, please report it", peer)
        finally:
            if sock.fileno() >= 0:
                sock.close()
            row[OPEN[kind]] -= 1

    async def _named(self, sock: socket.socket, peer: Peer, began: float) -> Peer:
        """The client that a proxy speaks for, which begins with a PROXY header.

        Raises BadHeader, ConnectionLost, trio.TooSlowError.
        """
        await driver.become_task()
        with driver.within(self._shared.service.settings.limits.handshake_seconds, began):
            return await client_of(sock, peer)

    async def _reject(self, sock: socket.socket, peer: Peer, kind: Kind, refused: Limit) -> None:
        await driver.become_task()
        response = b""
        # Before a handshake nothing can be said.
        if kind is not Kind.HTTPS:
            server_field = self._shared.service.server_field
            response = last_words(*_BUSY, date=self._shared.clock.date(), server_field=server_field)
        await self._admission.reject(sock, peer, refused, response)

    async def _serve_plain(self, sock: socket.socket, peer: Peer, *, redirected: bool) -> None:
        shared = self._shared
        service, logged = shared.service, shared.access_log is not None
        with contextlib.closing(
            PlainTransport(sock, self._page_cache, self._row, service.settings.limits)
        ) as transport:
            client = make_client(peer, service.trusted, logged=logged, redirected=redirected)
            may_be_http2 = service.settings.http2 and not redirected
            begun = await Http1(shared, transport, client, may_be_http2=may_be_http2).serve()
            if begun:
                await Http2(shared, transport, client).serve(begun)

    async def _serve_tls(self, sock: socket.socket, peer: Peer, began: float) -> None:
        """Shake hands within a time that began when the connection was accepted, and serve."""
        shared, row = self._shared, self._row
        done = await self._handshakes.complete(sock, peer, began)
        if done is None:
            return
        transport, secured = done
        gauge = OPEN_TLS[secured.tx.offload]
        row[gauge] += 1
        try:
            client = make_client(peer, shared.service.trusted, secured, logged=shared.access_log is not None)
            if secured.handshake.alpn == "h2":
                await Http2(shared, transport, client).serve()
            else:
                await Http1(shared, transport, client).serve()
        finally:
            row[gauge] -= 1
            transport.close()
