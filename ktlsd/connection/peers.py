"""The peer of a connection: from the socket, or from the PROXY header of a proxy.

Strategy: a PROXY header is read only from peers that the operator named, and replaces the socket's address if it names
a client. Trust in request fields about the client is decided once for each connection.
"""

from __future__ import annotations

import logging
import socket
from typing import NamedTuple

from ktlsd.config.networks import UNIX, Address, address_of
from ktlsd.config.values import address_text
from ktlsd.connection.proxy_header import take_proxy_header

log = logging.getLogger("ktlsd")


class Peer(NamedTuple):
    """A client, by its connection; as text, the form of the log."""

    host: str
    """Its address, or "unix" on a Unix socket."""
    port: int
    via: str = ""
    """The proxy that sent the address, with its port; empty if it is the socket's."""
    https: bool = False
    """Whether that proxy took TLS off the connection."""

    def __str__(self) -> str:
        return f"{self.name} via {self.via}" if self.via else self.name

    @property
    def name(self) -> str:
        """Address and port."""
        return self.host if self.host == UNIX else address_text(self.host, self.port)

    @property
    def address(self) -> Address | None:
        """None on a Unix socket."""
        return None if self.host == UNIX else address_of(self.host)


def peer_of(sockname: tuple[str, int] | str | bytes) -> Peer:
    """The peer that accept(2) named."""
    return Peer(sockname[0], sockname[1]) if isinstance(sockname, tuple) else Peer(UNIX, 0)


async def client_of(sock: socket.socket, peer: Peer) -> Peer:
    """The client that the PROXY header on a fresh connection from `peer` speaks of; `peer` where it names none.

    Takes the header and nothing that follows it. Raises BadHeader, ConnectionLost.
    """
    header = await take_proxy_header(sock)
    source = header.source
    https = header.tls is not None
    if source is None:
        log.debug("%s sent a PROXY header that names no client", peer)
        return peer._replace(https=https)
    if header.unique_id is not None:
        log.debug("%s is for %s, connection %s", peer, source.address, ascii(header.unique_id))
    return Peer(str(source.address), source.port, peer.name, https)
