"""The interface between a protocol and the rest of ktlsd, which HTTP/1.1 and HTTP/2 share.

A protocol turns bytes into request heads, and responses into bytes. It needs six things for that:

- remembered responses: Responder.find(), ResponseCache.open(), Responder.begin_remembered() and Exchange.remember();
- plain files that are not remembered: Responder.find_file(), whose entry is used as a remembered one's;
- decisions: Exchange.decide() and Responder.count(), one Exchange for each request that has no remembered response
  (exchange.py). Most return without a wait: try that first, outside of a task (attempt.py);
- the access log: Responder.new_log(), for each sequence of requests that come one after the other (exchange_log.py):
  a connection of HTTP/1.1, or a stream of HTTP/2; the metrics and limits: `shared.row`, `responses` and `limits`;
- the body of a response: pieces() and send_part() (response_body.py), which keep calls that may wait for a file system
  off the event loop;
- the transport: PacedTransport (connection/transport.py), which encrypts, sends files, and ends slow clients.

Strategy: one Responder for each connection. It knows no wire format.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from ktlsd.config.limits import Limit
from ktlsd.connection.transport import PacedTransport
from ktlsd.http.access import Check
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Miss, Response
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import Origin
from ktlsd.http.rate_check import ConnectionBuckets, InProgress, begin
from ktlsd.http.request_head import RequestHead
from ktlsd.metrics.metrics import DENIED, LIMITED, REQUESTS, HttpVersion
from ktlsd.protocol import http1_writer
from ktlsd.protocol.client import Client
from ktlsd.protocol.refusals import log_refusal
from ktlsd.protocol.shared import Shared
from ktlsd.site.plain_files import DECIDING
from ktlsd.site.response_cache import CacheEntry, CacheKey, new_entry

if TYPE_CHECKING:
    # It is imported only if there is an access log.
    from ktlsd.logs.exchange_log import ConnectionLog, RequestLog, Sending


log = logging.getLogger("ktlsd")

# The look-up of a member of an enumeration is slow in Python 3.11.
_OK: Final = HTTPStatus.OK
_STALLED: Final = Miss.STALLED.reason


class Responder:
    """The requests of one connection, independent of the protocol."""

    __slots__ = (
        *("_buckets", "_log", "_origin", "_requests", "_user"),
        *("client", "limits", "partitions", "requests_left", "responses", "shared", "transport"),
    )

    def __init__(self, shared: Shared, transport: PacedTransport, client: Client, version: HttpVersion) -> None:
        self.shared = shared
        self._requests = REQUESTS[version]
        self.responses = shared.responses[version]
        """Counts each response that ends, whole or not."""
        self.transport = transport
        self.client = client
        self.limits = limits = shared.service.settings.limits
        """Of the service that was in force when this connection began."""
        self.requests_left = limits.requests_per_connection or sys.maxsize
        self._user: bytes | None = None
        """The name in the request that find() had last, if it passed checks."""
        self._origin = client.origin
        """The origin of that request."""
        self._buckets: ConnectionBuckets = {}
        self._log: ConnectionLog | None = None
        self.partitions = client.partition(https=False), client.partition(https=True)
        """The cache partitions of requests, by whether their scheme is https."""

    def new_log(self, sending: Sending) -> RequestLog | None:
        """The access log of requests that come one after the other, and whose responses `sending` counts the bytes of.

        None if there is no access log.
        """
        access_log, channel = self.shared.access_log, self.client.channel
        if self._log is None and access_log is not None and channel is not None:
            self._log = access_log.of_connection(channel)
        return None if self._log is None else self._log.of_requests(sending)

    # --- remembered responses -----------------------------------------------------------------------------------------

    def find(self, head: RequestHead) -> CacheEntry | None:
        """The response to an earlier request that agrees with this one in everything that decided."""
        if not self._is_ordinary(head):
            return None
        service = self.shared.service
        https = self.client.is_https(head.of_fields.values, service.forwarded)
        entry = service.response_cache.get(self.partitions[https], head)
        if entry is not None and (not entry.checks or self._passes(entry, head)):
            return entry
        if service.refusals is None:
            return None
        entry = service.refusals.get(self.partitions[https], head)
        return entry if entry is not None and self._passes(entry, head) else None

    def find_file(
        self, head: RequestHead, block: Callable[[HTTPStatus, Fields], bytes] | None = None
    ) -> tuple[CacheEntry, int] | None:
        """The response to a plain request of a plain file (plain_files.py) and a descriptor of the file, for the caller
        to close, as if the response were remembered; None if Exchange has to decide. `block` writes the header block of
        HTTP/2, which the entry has then; the head of HTTP/1.1 only if it is remembered."""
        service = self.shared.service
        site = service.plain_site(head.of_fields.values.get(b"host", b""), self.client)
        if site is None or site.plain_files is None or not self._is_ordinary(head):
            return None
        https, began_ns = self.client.is_https(head.of_fields.values, service.forwarded), time.time_ns()
        write = http1_writer.beginning if block is None else None
        found = site.plain_files.find(head, write, secure=https, now=began_ns / 1e9)
        if found is None:
            return None
        opened, cache = found.opened, service.response_cache
        try:
            entry, beginning, came_before = None, found.head, cache.came_before(opened.path)
            if not beginning and (came_before or block is None):
                beginning = http1_writer.beginning(_OK, found.fields)
            response = Response(_OK, found.fields, ByteRange(0, opened.size))
            if came_before:
                key = CacheKey.of(self.partitions[https], head, DECIDING, any_query=True)
                entry = cache.remember(key, response, beginning, opened, rules=found.rules, asked_ns=began_ns)
            entry = entry or new_entry(beginning, opened, response)
            entry.site = site.number
            if block is not None:
                entry.block = block(_OK, found.fields)
        except BaseException:
            opened.close()
            raise
        return entry, opened.descriptor

    def _is_ordinary(self, head: RequestHead) -> bool:
        """Whether no limit and no redirect of all requests is for this one."""
        limits = self.limits
        within = len(head.of_fields.fields) <= limits.header_fields and len(head.target) <= limits.target_bytes
        return within and not self.client.redirected

    def _passes(self, entry: CacheEntry, head: RequestHead) -> bool:
        """Whether a remembered response to others is right for a request, by its checks of access and by the limit that
        its client is at, told without a wait."""
        self._origin = origin = self.client.origin_of(head.of_fields.values, self.shared.service.forwarded)
        visitor = self.client.visitor(head, origin)
        passes = all(check.admits(visitor) for check in entry.checks)
        self._user = visitor.user
        return passes and (entry.excess is None or entry.excess.is_that_of(origin))

    def begin_remembered(
        self, entry: CacheEntry, head: RequestHead, head_size: int, log: RequestLog | None
    ) -> InProgress | None:
        """Count and log a request that gets a remembered response; `log.end()` follows, and the end of what is
        returned."""
        response = entry.response
        self.count(response, entry.site)
        if log is not None:
            log.begin(head)
            if self.client.trusted is not None:
                log.came_from(self.client.origin_of(head.of_fields.values, self.shared.service.forwarded))
            if entry.checks:
                log.came_as(self._user)
            log.answered(response.status, head_size)
        if response.reason:
            client, values, shared = self.client, head.of_fields.values, self.shared
            written = shared.service.forwarded
            log_refusal(shared.throttle, lambda: client.described(client.origin_of(values, written)), head, response)
        return self.begin(response, entry.checks, self._origin) if entry.checks else None

    def begin(self, response: Response, checks: Iterable[Check], origin: Origin) -> InProgress | None:
        """Count a request from there, once, when its response begins, in the rates among the checks that it has passed;
        the end of what is returned follows."""
        return begin(checks, origin, self._buckets) if checks and response.limit is None else None

    def count(self, response: Response, site: int) -> None:
        """Count a request that gets this response from the site with this number."""
        row = self.shared.row
        requests = self._requests
        row[requests.get(response.status) or requests[0]] += 1
        if self.responses.by_site is not None:
            self.responses.by_site.begin(site, response.status)
        if response.reason:
            limit = Limit.FILE if response.reason == _STALLED else response.limit
            if limit is not None:
                row[LIMITED[limit]] += 1
            if response.denied is not None:
                row[DENIED[response.denied]] += 1
        self.requests_left -= 1

    def reached(self, limit: Limit, text: str, *arguments: object) -> None:
        """Count a limit that the client reached, and log it unless the log has had a line about it recently."""
        shared = self.shared
        shared.row[LIMITED[limit]] += 1
        ending = shared.throttle.ending(limit, getattr(self.limits, limit.value, None), time.monotonic())
        if ending is not None:
            log.info(f"%s {text}%s", self.client.address, *arguments, ending)
