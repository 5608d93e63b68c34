"""The state that all connections of a process share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import Struct, field

from ktlsd.config.limits import FileLimiter, LogThrottle
from ktlsd.connection.keepalive import IdleConnections
from ktlsd.http.head_scanner import HeadScanner
from ktlsd.http.validators import http_date
from ktlsd.http2.head_cache import HeadCache
from ktlsd.metrics.connection_kinds import ConnectionKinds
from ktlsd.metrics.metrics import HttpVersion, Row
from ktlsd.metrics.response_counts import ResponseCounts
from ktlsd.service import Service

if TYPE_CHECKING:
    # It is imported only if there is an access log.
    from ktlsd.logs.exchange_log import AccessLog


class Clock:
    """The value of Date, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._date = b""

    def date(self) -> bytes:
        now = int(time.time())
        if self._second != now:
            self._second, self._date = now, http_date(now).encode("ascii")
        return self._date


class Shared(Struct):
    """One process's."""

    service: Service
    """Replaced when the configuration is read again."""
    idle: IdleConnections
    clock: Clock
    row: Row
    """The counters of this process."""
    access_log: AccessLog | None = None
    kinds: ConnectionKinds = field(default_factory=ConnectionKinds)
    """Shared by all processes."""
    scanner: HeadScanner = field(default_factory=HeadScanner)
    head_caches: dict[int, HeadCache] = {}
    """Header blocks of HTTP/2, by the limit of header lists in bytes."""

    files: FileLimiter = field(default_factory=FileLimiter)
    throttle: LogThrottle = field(default_factory=LogThrottle)
    """Of log lines about the limits of connections."""
    responses: dict[HttpVersion, ResponseCounts] = {}
    """Their durations and sizes, by protocol."""

    def __post_init__(self) -> None:
        for version in HttpVersion:
            self.responses[version] = counts = ResponseCounts(self.row, version)
            self.idle.sockets.on_batch_end.append(counts.end_batch)

    def head_cache(self, list_bytes: int) -> HeadCache:
        """The memory of header blocks for this limit of header lists."""
        cache = self.head_caches.get(list_bytes)
        if cache is None:
            cache = self.head_caches[list_bytes] = HeadCache(list_bytes)
        return cache
