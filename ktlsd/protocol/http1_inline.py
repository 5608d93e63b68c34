"""Requests of HTTP/1.1 that are answered without a task, as most are: those that need no wait.

Strategy: scan the head, take the remembered response or try to decide one on the spot (attempt.py), and send head and
file in one write. A small response is made once for all connections that ask in the same pass of the event loop. Work
that would wait is left to the connection's task (http1.py), and so is the rest of a large response that has begun.
"""

from __future__ import annotations

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
from ktlsd.http.decide import Response
from ktlsd.http.empty_lines import EmptyLines
from ktlsd.http.rate_check import InProgress
from ktlsd.http.request_head import RequestHead
from ktlsd.metrics.site_names import NO_SITE
from ktlsd.openssl.results import Wait
from ktlsd.protocol import http1_writer as writer
from ktlsd.protocol.exchange import Exchange, fields_of
from ktlsd.protocol.http1_reader import BLANK_LINE
from ktlsd.protocol.responder import Responder

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
    part: ByteRange = ByteRange(0, 0)
    """The part of the file that follows."""
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
        transport, lines = self.transport, self._lines
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
            head = self._scan(received, size)
            if head is None:
                return PendingWork(received)
            made = self._make(head, batch)
            if made is None:
                return PendingWork(received)
            yield
            received = received[size:]
            closes = head.closes
            if closes:
                transport.hold_back()
            in_progress = self.in_progress
            rest = self._send(made) if in_progress is None or in_progress.pace is None else _unsent(made)
            if rest is not None:
                arrived = self._shared.idle.sockets.now
                return PendingWork(received, rest, made.descriptor, ends=closes, size=made.size, arrived=arrived)
            counts = self._counts
            counts.at_once.append(made.size)
            if counts.by_site is not None:
                counts.sites_at_once.append(self.site)
            if in_progress is not None:
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

    def _scan(self, received: bytes, size: int) -> RequestHead | None:
        """The request whose head is the first `size` bytes received, if a task is not needed to tell what it is.

        The last response on a connection says so in its head, which is the task's to write.
        """
        responder, shared = self._responder, self._shared
        if (
            not len(BLANK_LINE) <= size <= responder.limits.head_bytes
            or responder.requests_left <= 1
            or shared.idle.draining
            or self.transport.key_update_owed()
        ):
            return None
        return shared.scanner.scan(received[:size])

    # --- making -------------------------------------------------------------------------------------------------------

    def _make(self, head: RequestHead, batch: Batch) -> _Made | None:
        """The response, counted and logged as begun; None if it would wait."""
        responder = self._responder
        entry, closes = responder.find(head), head.closes
        made: _Made | None = None if closes or entry is None else batch.get(entry)
        if entry is None or made is None:
            descriptor = None if entry is None else self._shared.service.response_cache.open(entry)
            if entry is None or descriptor is None:
                found = responder.find_file(head)
                if found is None:
                    return self._decide(head)
                entry, descriptor = found
            made = self._join(entry.head, closes, descriptor, entry.part, entry.body, entry.identity)
            if made is None:
                return None
            if not closes and made.descriptor < 0:
                batch[entry] = made
        else:
            self._shared.service.response_cache.uses += 1
        self.site = entry.site
        self.in_progress = responder.begin_remembered(entry, head, made.head_size, self._log)
        return made

    def _decide(self, head: RequestHead) -> _Made | None:
        log = self._log
        if log is None:
            return self._try_to_decide(head)
        log.begin()
        log.asked(head)
        made = self._try_to_decide(head)
        if made is None:
            log.forget()
        return made

    def _try_to_decide(self, head: RequestHead) -> _Made | None:
        try:
            exchange = Exchange(self._responder, head, self._log)
            answer = attempt(exchange.decide())
        except WouldWait:
            return None
        response, opened = answer.response, answer.opened
        body, made = response.body, None
        try:
            if response.close or writer.is_chunked(response.status, response.fields, head.http_version):
                return None
            data = writer.beginning(response.status, fields_of(response, self._shared.service.server_field))
            exchange.remember(opened, data)
            if isinstance(body, bytes):
                made = self._join(data, head.closes, -1, None, body)
            elif isinstance(body, ByteRange) and opened is not None:
                file, opened, part = opened, None, body if body.count else None
                made = self._join(data, head.closes, file.descriptor, part, identity=file.identity)
        finally:
            if opened is not None:
                opened.close()
        if made is not None:
            self._count(exchange, response, made)
        return made

    def _count(self, exchange: Exchange, response: Response, made: _Made) -> None:
        self.site = exchange.site
        self._responder.count(response, exchange.site)
        self.in_progress = exchange.begin()
        if self._log is not None:
            self._log.answered(response.status.value, made.head_size)
        self._responder.log_refusal(exchange.described, exchange.head, response)

    def _join(
        self,
        beginning: bytes,
        closes: bool,
        descriptor: int,
        part: ByteRange | None,
        body: bytes = b"",
        identity: FileIdentity | None = None,
    ) -> _Made | None:
        """Head and body; takes the descriptor of the file with this identity over. None if that would wait for a
        disk."""
        head = beginning + writer.end(self._shared.clock.date(), closes=closes)
        if part is None:
            if descriptor >= 0:
                os.close(descriptor)
            return _Made(head + body, len(head), len(body))
        if part.count > SMALL:
            return _Made(head, len(head), part.count, descriptor, part, identity)
        try:
            data = self.transport.gathered(head, descriptor, part.offset, part.count, identity)
        finally:
            os.close(descriptor)
        return None if data is None else _Made(data, len(head), part.count)

    # --- sending ------------------------------------------------------------------------------------------------------

    def _send(self, made: _Made) -> Rest | None:
        """Send what goes without waiting; the rest, if any, of whose file the descriptor is kept open."""
        data, descriptor, part = made.data, made.descriptor, made.part
        rest: Rest | None
        try:
            if descriptor < 0:
                unsent = self.transport.send_at_once(data)
                return Rest(unsent) if unsent else None
            rest = self.transport.begin_file(bytes(data), descriptor, part.offset, part.count, made.identity)
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


def _unsent(made: _Made) -> Rest:
    """All of it, for a task."""
    return Rest(made.data, made.part.offset, made.part.count if made.descriptor >= 0 else 0)
