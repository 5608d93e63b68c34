"""HTTP/1.1 on one connection: wait -> read head -> decide -> send, again and again.

Strategy: remembered responses answer most requests, some of them before there is a task (http1_cached.py). All others
go through h11 (http1_reader.py, http1_writer.py), and the site that they name decides (exchange.py). The connection
ends if its next request might be read in two ways.
"""

from __future__ import annotations

import contextlib
import logging
from http import HTTPStatus
from typing import Final, cast

import h11
import trio
from msgspec.structs import replace

from ktlsd.config.limits import Limit
from ktlsd.connection import driver
from ktlsd.connection.scheduler import current_scheduler
from ktlsd.connection.transport import PacedTransport
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Miss, Response, refuse_head, short
from ktlsd.http.empty_lines import EmptyLines
from ktlsd.metrics.metrics import IN_FLIGHT, LIMITED, REQUESTS, REQUESTS_OTHER, counted
from ktlsd.openssl.errors import ConnectionLost
from ktlsd.protocol import http1_writer as writer
from ktlsd.protocol.client import Client
from ktlsd.protocol.exchange import Exchange, fields_of
from ktlsd.protocol.http1_cached import CachedResponses
from ktlsd.protocol.http1_reader import LIMIT_OF, HeadReader
from ktlsd.protocol.refusals import log_closed, log_refusal
from ktlsd.protocol.request_body import RequestBody, TooLarge
from ktlsd.protocol.responder import Responder
from ktlsd.protocol.response_body import is_made_while_sent, pieces, send_part
from ktlsd.protocol.shared import Shared
from ktlsd.site.lookup import OpenFile
from ktlsd.site.site import Answer

log = logging.getLogger("ktlsd")

# With any of these a request is more than its head, or the last on its connection.
_UNREPEATABLE: Final = frozenset({"content-length", "transfer-encoding", "expect", "upgrade"})
_REPEATABLE_VERSIONS: Final = (b"1.1", b"1.0")
_UNLOGGED: Final = contextlib.nullcontext()


class Http1:
    """One connection that speaks HTTP/1.1."""

    __slots__ = (
        *("_body", "_cached", "_client", "_exchange", "_limits", "_lines", "_log", "_reader", "_responder"),
        *("_shared", "_transport"),
    )

    def __init__(self, shared: Shared, transport: PacedTransport, client: Client) -> None:
        self._shared = shared
        self._transport = transport
        self._client = client
        self._lines = EmptyLines()
        self._responder = Responder(shared, transport, client)
        self._limits = self._responder.limits
        self._log = self._responder.new_log(transport)
        self._cached = CachedResponses(self._responder, self._lines, self._log)
        self._reader = HeadReader(self._limits.head_bytes, self._lines)
        self._exchange: Exchange | None = None
        """The request that is being answered, once its head is read."""
        self._body: RequestBody | None = None
        """Its body."""

    async def serve(self) -> None:
        """Answer requests until the client is done, idle for too long or told to close, or the server drains.

        Raises TLSError, FileShrank, OSError.
        """
        while True:
            left = await self._shared.idle.wait(self._cached)
            if left.unsent is not None:
                await self._cached.finish(left.unsent, left.descriptor)
            if left.ends:
                await self._transport.finish(unread=True)
                return
            if left.unsent is not None and left.received == b"":
                continue
            received = self._lines.joined(await self._read_idle()) if left.received is None else left.received
            if not received:
                await self._transport.finish()
                return
            await driver.become_task()
            if not self._client.redirected:
                rest = await self._cached.repeat(received)
                if rest is None:
                    await self._transport.finish(unread=True)
                    return
                received = rest
            received = self._lines.without_them(received)
            if received:
                self._reader.receive(received)
                if not await self._answer_received():
                    return

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

    async def _answer_received(self) -> bool:
        """Answer the requests that have begun to arrive; whether the connection can be used again."""
        while self._reader.begins():
            with counted(self._shared.row, IN_FLIGHT), self._log.exchange() if self._log is not None else _UNLOGGED:
                reusable = await self._answer_next()
            if not reusable or not await self._throw_body_away():
                return False
            self._reader.http.start_next_cycle()
            if self._reader.http.trailing_data[0]:
                await trio.lowlevel.checkpoint()
        return True

    async def _answer_next(self) -> bool:
        """Answer one request; whether the connection can be used again, once its body is read."""
        transport, row = self._transport, self._shared.row
        self._exchange = self._body = None
        self._responder.requests_left -= 1
        request, answer = None, None
        try:
            request = await self._read_head()
            if request is None:
                await transport.finish()
                return False
            answer = await self._decide(request)
            response = self._closing(answer.response)
        except h11.RemoteProtocolError as error:
            response = self._reader.refusal(error, request)
        except trio.TooSlowError:
            reason = f"no whole request head within {self._limits.head_seconds:g} s"
            response = short(HTTPStatus.REQUEST_TIMEOUT, reason, close=True)
        opened = None if answer is None else answer.opened
        try:
            row[REQUESTS.get(response.status, REQUESTS_OTHER)] += 1
            if response.reason == Miss.STALLED.reason:
                row[LIMITED[Limit.FILE]] += 1
            if request is None and response.status in LIMIT_OF:
                row[LIMITED[LIMIT_OF[response.status]]] += 1
            if response.reason:
                log_refusal(self._client_described(), request, response)
            await self._send(request, response, opened)
        finally:
            if opened is not None:
                opened.close()
        http = self._reader.http
        if http.our_state is not h11.DONE:
            await transport.finish(unread=http.their_state is not h11.DONE)
            return False
        return True

    async def _read_head(self) -> h11.Request | None:
        """The next request; None if the client left instead.

        Raises h11.RemoteProtocolError, trio.TooSlowError for a head that does not end, TLSError.
        """
        reader = self._reader
        request = reader.next_request()
        if request is h11.NEED_DATA:
            with trio.fail_after(self._limits.head_seconds):
                while request is h11.NEED_DATA:
                    reader.receive(await self._transport.read())
                    request = reader.next_request()
        return cast("h11.Request | None", request)

    async def _decide(self, request: h11.Request) -> Answer:
        """The decision about a request, once the part of its body that came with its head is read.

        Raises h11.RemoteProtocolError.
        """
        if self._log is not None:
            self._log.asked(request)
        # A client may wait for the answer before it sends the body, and what came with the head may be malformed.
        self._body = body = RequestBody(self._reader.http, request)
        if not body.unwanted:
            body.look()
        self._exchange = exchange = Exchange(self._responder, request, self._log)
        refused = refuse_head(request.http_version, exchange.request)
        return Answer(refused) if refused is not None else await exchange.decide()

    def _closing(self, response: Response) -> Response:
        """A response to a request that was read, which says so if it is the last."""
        last = not self._responder.requests_left
        if last:
            self._shared.row[LIMITED[Limit.REQUESTS]] += 1
            log.debug("%s: request %d is the last", self._client.address, self._limits.requests_per_connection)
        unwanted = self._body is not None and self._body.unwanted
        if self._shared.idle.draining or last or unwanted or self._transport.key_update_owed():
            return replace(response, close=True)
        return response

    def _client_described(self) -> str:
        """For the log."""
        return self._client.described(self._client.origin) if self._exchange is None else self._exchange.described()

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _send(self, request: h11.Request | None, response: Response, opened: OpenFile | None) -> None:
        """Send a response, and have it remembered; without a request, it refuses the bytes that were received."""
        date = self._shared.clock.date()
        fields = fields_of(response, date, self._shared.service.server_field)
        head = writer.head(self._reader.http, response, fields)
        if self._log is not None:
            if request is None:
                self._log.received(self._reader.head)
            self._log.answered(response.status.value, len(head))
        if opened is not None:
            self._remember(response, opened, head, date)
        await self._send_body(head, response, opened)
        if self._log is not None:
            self._log.end(complete=True)

    async def _send_body(self, data: bytes, response: Response, opened: OpenFile | None) -> None:
        """Send a head and the body that follows it."""
        http, transport = self._reader.http, self._transport
        one_by_one = is_made_while_sent(response.body)
        parts = 0
        for piece in pieces(response.body):
            if isinstance(piece, ByteRange):
                if parts:
                    # Hundreds of small parts together take milliseconds.
                    await current_scheduler().next()
                parts += 1
                writer.count_part(http, piece)
                await send_part(transport, data, cast(OpenFile, opened), piece)
                data = b""
            elif piece:
                data += writer.framed(http, piece)
                if one_by_one:
                    await transport.send_text(data)
                    data = b""
            if one_by_one:
                await trio.lowlevel.checkpoint()
        data += writer.end(http)
        if data:
            await transport.send_text(data)

    def _remember(self, response: Response, opened: OpenFile, head: bytes, date: bytes) -> None:
        """Keep a response for the next time that the same head comes, unless the request is more than that head."""
        exchange = cast(Exchange, self._exchange)
        version, fields = exchange.head.http_version, exchange.request.fields
        connection = fields.get("connection", "keep-alive").lower()
        if (
            version in _REPEATABLE_VERSIONS
            and connection in ("keep-alive", "close")
            and not any(name in fields for name in _UNREPEATABLE)
        ):
            closes = version == b"1.0" or connection == "close"
            exchange.remember(self._reader.head, response, opened, head, date, closes=closes)

    # --- the body of a request ----------------------------------------------------------------------------------------

    async def _throw_body_away(self) -> bool:
        """Read what is left of the body of a request that is answered; whether its end was found.

        If not, the connection is finished: what follows could be taken for a request. Raises TLSError.
        """
        body, exchange, idle = cast(RequestBody, self._body), cast(Exchange, self._exchange), self._shared.idle
        # They have copies of what was received, which an idle connection does not need.
        self._body = self._exchange = None
        if body.whole:
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
            log_closed(exchange.described(), body.request, problem)
        await self._transport.finish(unread=True)
        return False
