"""Admission control: connections beyond a limit get a response, if possible, and are closed.

Strategy: limits.py decides. Before a TLS handshake no response is possible. The server waits for a few of the clients
to close, since a close with unread data would reset the connection before the client has read the response. Log lines
are throttled; the metrics count every refusal.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import socket
from typing import Final

import trio

from ktlsd.config.limits import (
    ConnectionLimiter,
    ConnectionPermit,
    Limit,
    LogThrottle,
    descriptors_for,
    most_connections,
)
from ktlsd.config.networks import UNIX, Address, address_of
from ktlsd.config.options import LimitOptions
from ktlsd.connection import open_files
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.peers import Peer
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.metrics.metrics import LIMITED, Row
from ktlsd.openssl.errors import TLSError
from ktlsd.service import Service

log = logging.getLogger("ktlsd")

MOST_REJECTING: Final = 64
"""Maximum number of refused connections that are closed gracefully at the same time."""
_REMEMBERED_CLIENTS: Final = 1024
_TOO_FEW: Final = 100
"""Connections: a browser opens up to six to a site (HTTP/1.1), so some 16 visitors."""
EXHAUSTED: Final = {
    errno.EMFILE: Limit.DESCRIPTORS,
    errno.ENFILE: Limit.DESCRIPTORS,
    errno.ENOBUFS: Limit.MEMORY,
    errno.ENOMEM: Limit.MEMORY,
}
"""The exhausted resource for each errno of accept(2)."""


class AdmissionControl:
    """The admission control of one process."""

    def __init__(self, service: Service, page_cache: PageCache, row: Row) -> None:
        self._service = service
        self._limited = functools.lru_cache(_REMEMBERED_CLIENTS)(self._limited_address)
        self._page_cache = page_cache
        self._row = row
        self._throttle = LogThrottle()
        self._rejecting = 0
        limits = service.settings.limits
        self.limiter = ConnectionLimiter(limits, _most(limits))

    def use(self, service: Service) -> None:
        """Apply the limits of another service from here on."""
        limits = service.settings.limits
        if limits.connections != self._service.settings.limits.connections:
            warn_lowered_limit(limits)
        self._service = service
        self._limited.cache_clear()
        self.limiter.use(limits, _most(limits))

    def refuses(self, permit: ConnectionPermit, peer: Peer, now: float, *, with_handshake: bool) -> Limit | None:
        """The limit that forbids a connection; `with_handshake`: it begins with a TLS handshake.

        `now` is of trio's clock. A trusted proxy is exempt, since its connections belong to many clients.
        """
        if permit.refused is not None:
            return permit.refused
        address = self._limited(peer.host, not peer.via)
        return None if address is None else permit.is_of(address, now, with_handshake=with_handshake)

    def _limited_address(self, host: str, direct: bool) -> Address | None:
        """The address by which a client is limited; None for one that is exempt. `direct`: no PROXY header named it."""
        address, service = None if host == UNIX else address_of(host), self._service
        if address is None or service.exempt.holds(address) or service.trusted.holds(address):
            return None
        return None if direct and service.speak_proxy.holds(address) else address

    async def reject(self, sock: socket.socket, peer: Peer, limit: Limit, response: bytes) -> None:
        """Count, log and close a connection after sending `response`, which is empty before a TLS handshake."""
        self.reached(limit, "%s refused", peer)
        if self._rejecting >= MOST_REJECTING:
            return
        self._rejecting += 1
        try:
            with contextlib.closing(PlainTransport(sock, self._page_cache)) as transport, contextlib.suppress(TLSError):
                await transport.send_text(response)
                await transport.finish(unread=True)
        finally:
            self._rejecting -= 1

    def reached(self, limit: Limit, text: str, *arguments: object) -> None:
        """Count a limit that was reached, and log it unless the log has had a line about it recently."""
        self._row[LIMITED[limit]] += 1
        limiter = self.limiter
        value = limiter.most if limit is Limit.CONNECTIONS else getattr(limiter.limits, limit.value, None)
        ending = self._throttle.ending(limit, value, trio.current_time())
        if ending is not None:
            log.warning(f"{text}%s", *arguments, ending)


def warn_lowered_limit(limits: LimitOptions) -> None:
    """Log that the connection limit was lowered for lack of open files.

    An error if a handful of clients can exhaust the lowered limit, else a warning.
    """
    most, allowed = _most(limits), open_files.allowed()
    if most < limits.connections:
        log.log(
            logging.ERROR if most < _TOO_FEW else logging.WARNING,
            "connection limit lowered from %d to %d: the limit of open files (RLIMIT_NOFILE) is %d; raise it to %d"
            " (%s), or lower connections in [limits]",
            *(limits.connections, most, allowed, descriptors_for(limits.connections), open_files.REMEDY),
        )


def _most(limits: LimitOptions) -> int:
    return most_connections(limits.connections, open_files.allowed())
