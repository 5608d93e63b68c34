"""The client of one connection: its address, its handshake, and the proxies between.

Strategy: made once, before the first request. Its influence on responses, beside the request head, is its cache
partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from ktlsd.config.networks import Networks
from ktlsd.config.values import ForwardedFields
from ktlsd.connection.peers import Peer
from ktlsd.http.access import Visitor
from ktlsd.http.forwarded import Origin, is_https, origin
from ktlsd.http.request_fields import TrackedFields
from ktlsd.http.request_head import RequestHead
from ktlsd.openssl.results import Handshake
from ktlsd.tls.ktls import Path

if TYPE_CHECKING:
    # It is imported only if there is an access log.
    from ktlsd.logs.access_log import Channel


class Secured(NamedTuple):
    """The outcome of a TLS handshake."""

    handshake: Handshake
    tx: Path
    """Of sent bytes."""
    rx: Path
    """Of received bytes."""
    server_name: str | None
    """The name in the ClientHello."""
    clients: bytes
    """Digest of the requirements on the client's certificate (Context.clients)."""


class Client(Struct, frozen=True, kw_only=True):
    """The other end of a connection."""

    address: str
    """With its port; that of the client if a PROXY header names it."""
    secure: bool
    """Whether TLS is spoken on this connection."""
    origin: Origin
    """Holds for a request without fields of a proxy."""
    server_name: str | None = None
    """The name in its ClientHello (RFC 6066 section 3)."""
    via: str = ""
    """The proxy that sent the PROXY header."""
    trusted: Networks | None = None
    """The proxies whose fields about the client are believed; None if this peer's are not."""
    clients: bytes = b""
    """Digest of the requirements on its certificate (Context.clients)."""
    certificate: str | None = None
    """The subject of its verified certificate."""
    certificate_names: frozenset[str] = frozenset()
    """The names of paths' rules that the certificate has."""
    certificate_fault: str = ""
    """Why its certificate is not accepted, if it sent one."""
    redirected: bool = False
    """Whether it gets nothing but redirects to HTTPS."""
    channel: Channel | None = None
    """The connection as the access log shows it; None without an access log."""

    def partition(self, *, https: bool) -> str | None:
        """The cache partition: no two partitions share remembered responses. `https` is the request's scheme."""
        if self.secure and self.trusted is None and not self.clients:
            return self.server_name
        # No host name has a colon.
        scheme = "https" if https else "http"
        return f"{self.server_name or ''}:{scheme}:{self.secure}:{self.trusted is not None}:{self.clients.hex()}"

    def origin_of(self, values: Mapping[bytes, bytes], written: ForwardedFields) -> Origin:
        """The origin of a request with these fields (request_fields.joined), from a trusted proxy."""
        if self.trusted is None:
            return self.origin
        return origin(TrackedFields(values), self.origin, self.trusted, written)

    def is_https(self, values: Mapping[bytes, bytes], written: ForwardedFields) -> bool:
        """The scheme of origin_of()."""
        if self.trusted is None:
            return self.origin.https
        return is_https(TrackedFields(values), self.origin, self.trusted, written)

    def visitor(self, head: RequestHead, origin: Origin) -> Visitor:
        """A request of this connection, for the checks of access. The handshake was for the site that it is for: a
        remembered response is for connections with the same requirements on certificates."""
        by_certificate = self.certificate, self.certificate_names, self.certificate_fault
        return Visitor(head.method, head.target, head.of_fields.values, origin, *by_certificate)

    def described(self, origin: Origin) -> str:
        """The client for the log, with the proxies between and the id of the request that has this origin."""
        hops = [origin.address, *(hop for hop in (self.address, self.via) if hop and hop != origin.address)]
        return " via ".join(hops) + (f" (request {origin.request_id})" if origin.request_id else "")


def make_client(
    peer: Peer, trusted: Networks, secured: Secured | None = None, *, logged: bool, redirected: bool = False
) -> Client:
    """The client of a connection; without a handshake, of plain HTTP. `trusted` are proxies whose fields are believed,
    `logged` is whether there is an access log."""
    https, name = secured is not None, peer.name
    return Client(
        address=name,
        secure=https,
        origin=Origin(name, https=https or peer.https),
        server_name=None if secured is None else secured.server_name,
        via=peer.via,
        trusted=trusted if trusted and trusted.holds(peer.address) else None,
        clients=b"" if secured is None else secured.clients,
        certificate=None if secured is None else secured.handshake.client,
        certificate_names=frozenset() if secured is None else secured.handshake.client_names,
        certificate_fault="" if secured is None else secured.handshake.client_fault,
        redirected=redirected,
        channel=_channel(peer, secured) if logged else None,
    )


def _channel(peer: Peer, secured: Secured | None) -> Channel:
    from ktlsd.logs.access_log import Channel

    channel = Channel(peer.host, peer.port or None, peer.via or None)
    if secured is None:
        return channel
    handshake = secured.handshake
    return channel._replace(
        protocol=handshake.protocol,
        cipher=handshake.cipher,
        resumed=handshake.resumed,
        server_name=secured.server_name or handshake.server_name,
        client_certificate=handshake.client or None,
        ktls_tx=secured.tx,
        ktls_rx=secured.rx,
    )
