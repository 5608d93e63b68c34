"""What a protocol asks of the rest of ktlsd: the seam between HTTP/1.1, HTTP/2 and everything that they share.

A protocol turns bytes into request heads, and responses into bytes. It needs five things for that:

- remembered responses: Responder.find(), find_alike(), recall() and begin_remembered(), and Exchange.remember();
- decisions: Exchange.decide(), one Exchange for each request that has no remembered response (exchange.py);
- the access log: Responder.new_log(), for each sequence of requests that come one after the other (exchange_log.py):
  a connection of HTTP/1.1, or a stream of HTTP/2; the metrics and limits: `shared.row` and `limits`;
- the body of a response: pieces() and send_part() (response_body.py), which keep calls that may wait for a file system
  off the event loop;
- the transport: PacedTransport (connection/transport.py), which encrypts, sends files, and ends slow clients.

Strategy: one Responder for each connection. It knows no wire format: a cache key is bytes that the protocol chooses,
and what it remembers is bytes that the protocol wrote, around the value of Date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from ktlsd.connection.transport import PacedTransport
from ktlsd.http import forwarded
from ktlsd.http.forwarded import Origin
from ktlsd.http.request_fields import Field, TrackedFields, joined
from ktlsd.metrics.metrics import REQUESTS
from ktlsd.protocol.client import Client
from ktlsd.protocol.shared import Shared
from ktlsd.service import Service
from ktlsd.site.response_cache import CacheEntry

if TYPE_CHECKING:
    # It is imported only if there is an access log.
    from ktlsd.logs.exchange_log import Noted, RequestLog, Sending


class Found(Struct, frozen=True, gc=False):
    """A remembered response, for one request."""

    remembered: CacheEntry
    noted: Noted | None
    """The request as the access log shows it; None without an access log."""
    origin: Origin | None = None
    """Where the request came from, if a trusted proxy tells."""


class Responder:
    """The requests of one connection, independent of the protocol."""

    __slots__ = ("_partition", "client", "limits", "requests_left", "shared", "transport")

    def __init__(self, shared: Shared, transport: PacedTransport, client: Client) -> None:
        self.shared = shared
        self.transport = transport
        self.client = client
        self.limits = limits = shared.service.settings.limits
        """Of the service that was in force when this connection began."""
        self.requests_left = limits.requests_per_connection or sys.maxsize
        self._partition = client.partition(https=client.origin.https)

    def new_log(self, sending: Sending) -> RequestLog | None:
        """The access log of requests that come one after the other, and whose responses `sending` counts the bytes of.

        None if there is no access log.
        """
        access_log, channel = self.shared.access_log, self.client.channel
        return None if access_log is None or channel is None else access_log.of_connection(channel, sending)

    # --- remembered responses -----------------------------------------------------------------------------------------

    def find(self, head: bytes) -> Found | None:
        """The response that Exchange.remember() kept under this key, if the key is all that decides.

        Behind a trusted proxy it is not: fields that differ between clients name the scheme there.
        """
        if self.client.trusted is not None:
            return None
        remembered = self.shared.service.response_cache.get((self._partition, head))
        return None if remembered is None else Found(remembered, remembered.noted)

    def find_alike(self, line: bytes, fields: Iterable[Field], log: RequestLog | None) -> Found | None:
        """The response to another request that agrees with this one in everything that decided.

        `line` is the request line in the form of HTTP/1.1, without its end.
        """
        service, client = self.shared.service, self.client
        values = joined(fields)
        origin = None
        if client.trusted is not None:
            origin = self.origin_of(values, service)
        remembered = service.response_cache.get_alike(self.partition(origin or client.origin), line, values)
        if remembered is None:
            return None
        noted = log.note_alike(remembered.status, line, fields) if log is not None else None
        return Found(remembered, noted, origin)

    def recall(self, remembered: CacheEntry) -> tuple[bytes, int] | None:
        """The head of a remembered response, and a descriptor of its file for the caller to close.

        None if the file is not what it was, or a disk has to be waited for.
        """
        shared = self.shared
        descriptor = shared.service.response_cache.open(remembered)
        return None if descriptor is None else (remembered.head(shared.clock.date()), descriptor)

    def begin_remembered(self, found: Found, head_size: int, log: RequestLog | None) -> None:
        """Count and log a request that gets a remembered response; `log.end()` follows."""
        self.shared.row[REQUESTS[found.remembered.status]] += 1
        self.requests_left -= 1
        if log is not None:
            log.begin_again(cast("Noted", found.noted), head_size)
            if found.origin is not None:
                log.came_from(found.origin)

    # --- for requests of both kinds -----------------------------------------------------------------------------------

    def origin_of(self, values: Mapping[bytes, bytes], service: Service) -> Origin:
        """Where a request with these fields (request_fields.joined) came from, as a trusted proxy tells."""
        client = self.client
        if client.trusted is None:
            return client.origin
        return forwarded.origin(TrackedFields(values), client.origin, client.trusted, service.forwarded)

    def partition(self, origin: Origin) -> str | None:
        """The cache partition of a request that came from there."""
        client = self.client
        return self._partition if origin.https is client.origin.https else client.partition(https=origin.https)
