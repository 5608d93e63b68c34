"""Requests of HTTP/1.1 that are answered without a task, as most are: those that need no wait.

Strategy: scan the head, take the remembered response or try to decide one on the spot (attempt.py), and send head and
file in one write. A small response is made once for all connections that ask in the same pass of the event loop. Work
that would wait is left to the connection's task (http1.py), and so is the rest of a large response that has begun.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ktlsd.attempt import WouldWait, attempt
from ktlsd.connection.keepalive import PendingWork
from ktlsd.connection.poller import Batch
from ktlsd.connection.transport import SMALL, PacedTransport, Rest
from ktlsd.file_identity import FileIdentity
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.empty_lines import EmptyLines
from ktlsd.http.rate_check import InProgress
from ktlsd.http.request_head import RequestHead
from ktlsd.metrics.site_names import NO_SITE
from ktlsd.openssl.results import Wait
from ktlsd.protocol import http1_writer as writer
from ktlsd.protocol.exchange import Exchange, fields_of
from ktlsd.protocol.http1_reader import BLANK_LINE
from ktlsd.protocol.refusals import log_refusal
from ktlsd.protocol.responder import Responder
from ktlsd.site.response_cache import CacheEntry, new_entry
from ktlsd.site.site import Answer

if TYPE_CHECKING:
    # It is imported only if there is an access log.
    from ktlsd.logs.exchange_log import RequestLog

_AT_A_TIME: Final = 4
"""Pipelined requests that are answered before other connections get their turn."""


class _Made(Struct, frozen=True, gc=False):
    """A response that can be sent without waiting."""

    data: bytes | bytearray
    """Its head, and its body if that is small."""
    head_size: int
    size: int
    """Bytes of its body."""
    descriptor: int = -1
    """The file of a larger body, to be closed."""
    offset: int = 0
    """Where the body begins in the file."""
    identity: FileIdentity | None = None
    """The file's."""


class InlineResponses:
    """The connection as the event loop sees it while it has nothing to wait for (KeepAliveConnection)."""

    __slots__ = ("_counts", "_lines", "_log", "_responder", "_shared", "in_progress", "site", "transport")
    says_goodbye = False

    def __init__(self, responder: Responder, lines: EmptyLines, log: RequestLog | None) -> None:
        self._responder = responder
        self._shared = responder.shared
        self._counts = responder.responses
        self._lines = lines
        self._log = log
        self.in_progress: InProgress | None = None
        """The response that is being sent, if rates count it."""
        self.site = NO_SITE
        """The number of the site of that response."""
        self.transport: PacedTransport = responder.transport

    def idle_since(self, now: float) -> float:
        return now

    def answer_at_once(self, batch: Batch) -> Generator[None, None, PendingWork | None]:
        """Answer the requests that have come, as long as that takes no wait.

        The steps are to receive, and then for each request to make and to send its response.
        """
        transport, lines, responder, shared = self.transport, self._lines, self._responder, self._shared
        if transport.stopped:
            return PendingWork(None)
        received = transport.receive()
        if not isinstance(received, bytes):
            return None if received is Wait.READABLE else PendingWork(None)
        if lines.half:
            received = lines.joined(received)
        if not received:
            return PendingWork(received)
        yield
        for _ in range(_AT_A_TIME):
            received = lines.without_them(received)
            if not received:
                # Empty lines alone are no request: the time that the connection has been idle goes on.
                return PendingWork(None) if transport.holds() else None
            size = received.find(BLANK_LINE) + len(BLANK_LINE)
            if (
                not len(BLANK_LINE) <= size <= responder.limits.head_bytes
                # The last response on a connection says so in its head, which is the task's to write.
                or responder.requests_left <= 1
                or shared.idle.draining
                or transport.key_update_owed
                or (head := shared.scanner.scan(received[:size])) is None
                or (made := self._make(head, batch)) is None
            ):
                return PendingWork(received)
            yield
            received = received[size:]
            closes = head.closes
            if closes:
                transport.hold_back()
            rest = self._send(made)
            if rest is not None:
                arrived = shared.idle.sockets.now
                return PendingWork(received, rest, made.descriptor, ends=closes, size=made.size, arrived=arrived)
            counts = self._counts
            counts.at_once.append(made.size)
            if counts.by_site is not None:
                counts.sites_at_once.append(self.site)
            if self.in_progress is not None:
                self.end_in_progress()
            if self._log is not None:
                self._log.end(complete=True)
            if closes:
                return PendingWork(b"", ends=True)
            if not received:
                return PendingWork(None) if transport.holds() else None
            if made.descriptor >= 0:
                # A client that asks for many at once lets others have their turn between them.
                break
        return PendingWork(received)

    def end_in_progress(self) -> None:
        """The response has ended, also if only its rest was sent elsewhere."""
        if self.in_progress is not None:
            self.in_progress.end()
            self.in_progress = None

    # --- making -------------------------------------------------------------------------------------------------------

    def _make(self, head: RequestHead, batch: Batch) -> _Made | None:
        """The response, counted and logged as begun; None if it would wait."""
        responder, cache, closes = self._responder, self._shared.service.response_cache, head.closes
        entry = responder.find(head)
        made: _Made | None = None if closes or entry is None else batch.get(entry)
        if entry is None or made is None:
            descriptor = None if entry is None else cache.open(entry)
            if entry is None or descriptor is None:
                found = responder.find_file(head)
                if found is None:
                    return self._decide(head)
                entry, descriptor = found
            made = self._join(entry, descriptor, closes=closes)
            if made is None:
                return None
            if not closes and made.descriptor < 0:
                batch[entry] = made
        else:
            cache.uses += 1
        self.site = entry.site
        self.in_progress = responder.begin_remembered(entry, head, made.head_size, self._log)
        return made

    def _decide(self, head: RequestHead) -> _Made | None:
        log, made = self._log, None
        if log is not None:
            log.begin(head)
        exchange = Exchange(self._responder, head, log)
        with contextlib.suppress(WouldWait):
            answer = attempt(exchange.decide())
            made = self._make_decided(exchange, answer)
        if made is None:
            if log is not None:
                log.forget()
            return None
        response = answer.response
        self.site = exchange.site
        self._responder.count(response, exchange.site)
        self.in_progress = self._responder.begin(response, answer.checks, exchange.origin)
        if log is not None:
            log.answered(response.status, made.head_size)
        log_refusal(self._shared.throttle, exchange.described, head, response)
        return made

    def _make_decided(self, exchange: Exchange, answer: Answer) -> _Made | None:
        response, opened = answer.response, answer.opened
        body, version = response.body, exchange.head.http_version
        try:
            if response.close or writer.is_chunked(response.status, response.fields, version):
                return None
            data = writer.beginning(response.status, fields_of(response, self._shared.service.server_field))
            exchange.remember(answer, data)
            closes = exchange.head.closes
            if isinstance(body, ByteRange) and opened is not None:
                file, opened = opened, None
                return self._join(new_entry(data, file, response), file.descriptor, closes=closes)
            return self._join(new_entry(data, None, response), -1, closes=closes) if isinstance(body, bytes) else None
        finally:
            if opened is not None:
                opened.close()

    def _join(self, entry: CacheEntry, descriptor: int, *, closes: bool) -> _Made | None:
        """Head and body; takes the descriptor of the entry's file over. None if that would wait for a disk."""
        head, part = entry.head + writer.end(self._shared.clock.date(), closes=closes), entry.part
        if part is None:
            if descriptor >= 0:
                os.close(descriptor)
            return _Made(head + entry.body, len(head), len(entry.body))
        if part.count > SMALL:
            return _Made(head, len(head), part.count, descriptor, part.offset, entry.identity)
        try:
            data = self.transport.page_cache.read_after(head, descriptor, part.offset, part.count, entry.identity)
        finally:
            os.close(descriptor)
        return None if data is None else _Made(data, len(head), part.count)

    # --- sending ------------------------------------------------------------------------------------------------------

    def _send(self, made: _Made) -> Rest | None:
        """Send what goes without waiting; the rest, if any, of whose file the descriptor is kept open."""
        data, descriptor, in_progress = made.data, made.descriptor, self.in_progress
        if in_progress is not None and in_progress.pace is not None:
            return Rest(data, made.offset, made.size if descriptor >= 0 else 0)
        try:
            if descriptor < 0:
                unsent = self.transport.send_at_once(data)
                return Rest(unsent) if unsent else None
            rest = self.transport.begin_file(bytes(data), descriptor, made.offset, made.size, made.identity)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            self._counts.at_once.append(0)
            self._counts.sites_at_once.append(self.site)
            self.end_in_progress()
            if self._log is not None:
                self._log.end(complete=False)
            raise
        if rest is None:
            os.close(descriptor)
        return rest
