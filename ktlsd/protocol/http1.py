"""HTTP/1.1 on one connection: wait -> read head -> decide -> send, again and again.

Strategy: most requests are answered before there is a task (http1_inline.py). The others are read here, through h11 if
they are more than a head (http1_reader.py), and the site that they name decides (exchange.py). The connection ends if
its next request might be read in two ways.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Final, cast

import h11
import trio

from ktlsd.config.limits import Limit
from ktlsd.connection import driver
from ktlsd.connection.keepalive import PendingWork
from ktlsd.connection.scheduler import current_scheduler
from ktlsd.connection.transport import PacedTransport, Rest
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.byte_rate import Pace
from ktlsd.http.decide import Response, refuse_head, short
from ktlsd.http.empty_lines import EmptyLines
from ktlsd.http.request_head import RequestHead
from ktlsd.http2.frames import PREFACE
from ktlsd.metrics.metrics import IN_FLIGHT, LIMITED, HttpVersion, counted
from ktlsd.metrics.site_names import NO_SITE
from ktlsd.openssl.errors import ConnectionLost
from ktlsd.protocol import http1_writer as writer
from ktlsd.protocol.client import Client
from ktlsd.protocol.exchange import Exchange, fields_of
from ktlsd.protocol.http1_inline import InlineResponses
from ktlsd.protocol.http1_reader import LIMIT_OF, HeadReader
from ktlsd.protocol.pacing import send_file, send_text
from ktlsd.protocol.refusals import log_closed, log_refusal
from ktlsd.protocol.request_body import TooLarge
from ktlsd.protocol.responder import Responder
from ktlsd.protocol.response_body import is_made_while_sent, pieces, send_part
from ktlsd.protocol.shared import Shared
from ktlsd.site.error_page import accept_in, for_client
from ktlsd.site.lookup import FilePart, OpenFile
from ktlsd.site.site import Answer

log = logging.getLogger("ktlsd")

_UNLOGGED: Final = contextlib.nullcontext()


class Http1:
    """One connection that speaks HTTP/1.1."""

    __slots__ = (
        *("_arrived", "_client", "_exchange", "_inline", "_limits", "_lines", "_log", "_may_be_http2", "_reader"),
        "_responder",
        *("_shared", "_transport"),
    )

    def __init__(
        self, shared: Shared, transport: PacedTransport, client: Client, *, may_be_http2: bool = False
    ) -> None:
        """`may_be_http2` is whether the client may speak HTTP/2 with prior knowledge instead (RFC 9113 section 3.3)."""
        self._may_be_http2 = may_be_http2
        self._shared = shared
        self._transport = transport
        self._client = client
        self._lines = EmptyLines()
        self._responder = Responder(shared, transport, client, HttpVersion.HTTP_1)
        self._limits = self._responder.limits
        self._log = self._responder.new_log(transport)
        self._inline = InlineResponses(self._responder, self._lines, self._log)
        self._reader = HeadReader(self._limits.head_bytes, self._lines, shared.scanner)
        self._exchange: Exchange | None = None
        """The request that is being answered, once its head is read."""
        self._arrived = 0.0
        """When that head came, or the first bytes of what is no request (time.monotonic())."""

    async def serve(self) -> bytes:
        """Answer requests until the client is done or idle for too long, the connection must close, or the server ends.

        Returns the first bytes of a client that speaks HTTP/2 instead; otherwise b"", and the connection is finished.
        Raises TLSError, FileShrank, OSError.
        """
        while True:
            left = await self._shared.idle.wait(self._inline)
            if left.unsent is not None:
                await self._finish(left.unsent, left)
            if left.ends:
                await self._transport.finish(unread=True)
                return b""
            if left.unsent is not None and left.received == b"":
                continue
            received = self._lines.joined(await self._read_idle()) if left.received is None else left.received
            at_once = left.received is not None and left.unsent is None
            self._arrived = self._shared.idle.sockets.now if at_once else time.monotonic()
            if not received:
                await self._transport.finish()
                return b""
            await driver.become_task()
            if self._may_be_http2 and not self._transport.sent:
                received = await self._with_whole_preface(received)
                if received.startswith(PREFACE):
                    return received
            self._reader.receive(received)
            if not await self._answer_received():
                return b""

    async def _finish(self, rest: Rest, left: PendingWork) -> None:
        """Send the rest of a response that has begun, and close its file, if any."""
        descriptor, complete = left.descriptor, False
        unsent, sent = len(rest.data) + rest.size, self._transport.sent
        try:
            with counted(self._shared.row, IN_FLIGHT):
                await driver.become_task()
                in_progress = self._inline.in_progress
                pace = None if in_progress is None else in_progress.pace
                if rest.size:
                    await send_file(self._transport, pace, bytes(rest.data), descriptor, rest.offset, rest.size)
                else:
                    await send_text(self._transport, pace, rest.data)
            complete = True
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            self._inline.end_in_progress()
            size = left.size - unsent + self._transport.sent - sent
            self._responder.responses.count(left.arrived, (max(0, size),), (self._inline.site,))
            if self._log is not None:
                self._log.end(complete=complete)

    async def _read_idle(self) -> bytes:
        """Bytes of the client, which are known to have come; b"" also if the wait for them was ended."""
        await driver.become_task()
        with trio.move_on_after(self._shared.idle.seconds):
            try:
                return await self._transport.read()
            except ConnectionLost:
                if not self._transport.stopped:
                    raise
        return b""

    async def _with_whole_preface(self, received: bytes) -> bytes:
        """The first bytes of a connection; if they may be the beginning of HTTP/2's preface, enough to tell."""
        with trio.move_on_after(self._limits.head_seconds):
            while len(received) < len(PREFACE) and PREFACE.startswith(received):
                more = await self._transport.read()
                if not more:
                    break
                received += more
        return received

    async def _answer_received(self) -> bool:
        """Answer the requests that have begun to arrive; whether the connection can be used again."""
        while self._reader.begins():
            with counted(self._shared.row, IN_FLIGHT), self._log.exchange() if self._log is not None else _UNLOGGED:
                reusable = await self._answer_next()
            if not reusable or not await self._throw_body_away():
                return False
            if self._reader.received:
                await trio.lowlevel.checkpoint()
                self._arrived = time.monotonic()
        return True

    async def _answer_next(self) -> bool:
        """Answer one request; whether the connection can be used again, once its body is read."""
        row = self._shared.row
        self._exchange = None
        head, answer = None, None
        try:
            head = await self._read_head()
            if head is None:
                await self._transport.finish()
                return False
            if self._log is not None:
                self._log.asked(head)
            answer = await self._decide(head)
            response, closes = answer.response, self._closes(head, answer.response)
        except h11.RemoteProtocolError as error:
            response, closes = self._reader.refusal(error, head), True
        except trio.TooSlowError:
            reason = f"no whole request head within {self._limits.head_seconds:g} s"
            response = for_client(short(HTTPStatus.REQUEST_TIMEOUT, reason, close=True), accept_in(self._reader.head))
            closes = True
        opened = None if answer is None else answer.opened
        in_progress = None
        try:
            self._responder.count(response, self._site())
            if answer is not None and self._exchange is not None:
                in_progress = self._responder.begin(response, answer.checks, self._exchange.origin)
            if head is None and response.status in LIMIT_OF:
                row[LIMITED[LIMIT_OF[response.status]]] += 1
            log_refusal(self._shared.throttle, self._client_described, head, response)
            pace = None if in_progress is None else in_progress.pace
            await self._send(head, response, answer, pace, closes=closes)
        finally:
            if opened is not None:
                opened.close()
            if in_progress is not None:
                in_progress.end()
        return await self._reusable(closes=closes)

    async def _read_head(self) -> RequestHead | None:
        """The next request; None if the client left instead.

        Raises h11.RemoteProtocolError, trio.TooSlowError for a head that does not end, TLSError.
        """
        reader = self._reader
        head = reader.next_request()
        if head is h11.NEED_DATA:
            # What may have been the beginning of HTTP/2's preface was waited for already.
            waited = time.monotonic() - self._arrived
            with trio.fail_after(max(0.0, self._limits.head_seconds - waited)):
                while head is h11.NEED_DATA:
                    reader.receive(await self._transport.read())
                    head = reader.next_request()
                    self._arrived = time.monotonic()
        return cast("RequestHead | None", head)

    async def _decide(self, head: RequestHead) -> Answer:
        """The decision about a request, once the part of its body that came with its head is read.

        Raises h11.RemoteProtocolError.
        """
        # A client may wait for the answer before it sends the body, and what came with the head may be malformed.
        body = self._reader.body
        if body is not None and not body.unwanted:
            body.look()
        self._exchange = exchange = Exchange(self._responder, head, self._log)
        refused = None if head.alone else refuse_head(head.http_version, exchange.request)
        return exchange.refused(refused) if refused is not None else await exchange.decide()

    def _closes(self, head: RequestHead, response: Response) -> bool:
        """Whether the response to a request is the last on the connection."""
        last = self._responder.requests_left <= 1
        if last:
            self._shared.row[LIMITED[Limit.REQUESTS]] += 1
            log.debug("%s: request %d is the last", self._client.address, self._limits.requests_per_connection)
        body = self._reader.body
        unwanted = body is not None and body.unwanted
        return (
            last
            or unwanted
            or head.closes
            or response.close
            or self._shared.idle.draining
            or self._transport.key_update_owed
        )

    async def _reusable(self, *, closes: bool) -> bool:
        """Whether the connection can be used again after a response, once the request's body is read; finished if
        not."""
        if closes:
            body = self._reader.body
            await self._transport.finish(unread=bool(self._reader.received) or (body is not None and not body.whole))
        return not closes

    def _site(self) -> int:
        """The number of the site of the request that is being answered."""
        return NO_SITE if self._exchange is None else self._exchange.site

    def _client_described(self) -> str:
        """For the log."""
        return self._client.described(self._client.origin) if self._exchange is None else self._exchange.described()

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _send(
        self,
        head: RequestHead | None,
        response: Response,
        answer: Answer | None,
        pace: Pace | None,
        *,
        closes: bool,
    ) -> None:
        """Send a response, and have it remembered; without a head, it refuses the bytes that were received."""
        beginning = writer.beginning(response.status, fields_of(response, self._shared.service.server_field))
        chunked = head is not None and writer.is_chunked(response.status, response.fields, head.http_version)
        data = beginning + writer.end(self._shared.clock.date(), closes=closes, chunked=chunked)
        if self._log is not None:
            if head is None:
                self._log.received(self._reader.head)
            self._log.answered(response.status, len(data))
        if head is not None and head.alone and answer is not None and self._exchange is not None:
            self._exchange.remember(answer, beginning)
        sent = self._transport.sent + len(data)
        chunked = chunked and head is not None and head.method != b"HEAD"
        try:
            await self._send_body(data, response, None if answer is None else answer.opened, pace, chunked=chunked)
        finally:
            size = max(0, self._transport.sent - sent)
            self._responder.responses.count(self._arrived, (size,), (self._site(),))
        if self._log is not None:
            self._log.end(complete=True)

    async def _send_body(
        self, data: bytes, response: Response, opened: OpenFile | None, pace: Pace | None, *, chunked: bool
    ) -> None:
        """Send a head and the body that follows it."""
        transport = self._transport
        if isinstance(response.body, AsyncGenerator):
            await self._send_gathered(data, response.body, pace)
            return
        one_by_one = is_made_while_sent(response.body)
        parts = 0
        for piece in pieces(response.body):
            if isinstance(piece, ByteRange):
                if parts:
                    # Hundreds of small parts together take milliseconds.
                    await current_scheduler().next()
                parts += 1
                await send_part(transport, data, cast(OpenFile, opened), piece, pace)
                data = b""
            elif piece:
                data += writer.chunk(piece) if chunked else piece
                if one_by_one:
                    await send_text(transport, pace, data)
                    data = b""
            if one_by_one:
                await trio.lowlevel.checkpoint()
        data += writer.LAST_CHUNK if chunked else b""
        if data:
            await send_text(transport, pace, data)

    async def _send_gathered(self, data: bytes, body: AsyncGenerator[bytes | FilePart], pace: Pace | None) -> None:
        """Send a head and a body of several files."""
        transport = self._transport
        async with contextlib.aclosing(body):
            async for piece in body:
                await current_scheduler().next()
                if isinstance(piece, FilePart):
                    await send_part(transport, data, piece.file, piece.part, pace)
                else:
                    await send_text(transport, pace, data + piece)
                data = b""
        if data:
            await send_text(transport, pace, data)

    # --- the body of a request ----------------------------------------------------------------------------------------

    async def _throw_body_away(self) -> bool:
        """Read what is left of the body of a request that is answered; whether its end was found.

        If not, the connection is finished: following bytes could be taken for a request. Raises TLSError.
        """
        body, exchange, idle = self._reader.body, self._exchange, self._shared.idle
        # It has a copy of what was received, which an idle connection does not need.
        self._exchange = None
        if body is None or body.whole or exchange is None:
            return True
        problem = ""
        try:
            with idle.body_wait(self._limits.head_seconds) as waiting:
                while not body.whole:
                    data = await self._transport.read()
                    if not data:
                        break
                    body.receive(data)
        except (h11.RemoteProtocolError, TooLarge) as error:
            problem = str(error)
        else:
            if body.whole:
                return True
            if waiting.cancelled_caught and not idle.draining:
                self._shared.row[LIMITED[Limit.HEAD]] += 1
                problem = f"not all there within {self._limits.head_seconds:g} s"
        if problem:
            log_closed(exchange.described(), exchange.head, problem)
        await self._transport.finish(unread=True)
        return False
