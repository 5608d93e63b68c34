"""HTTP/1.1 on one connection: read head -> decide -> send, again and again.

Strategy: a head that is known byte for byte, or agrees with a known one in all that had a say, is answered from memory;
any other goes through h11, which parses requests and writes response heads, and the site that it names says what to
answer.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import logging
import os
import re
import sys
import time
from collections.abc import Generator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import h11
import trio
from msgspec import Struct
from msgspec.structs import replace

from ktlsd.config.limits import Limit
from ktlsd.config.networks import Networks
from ktlsd.connection import driver
from ktlsd.connection.keepalive import Idle, Left
from ktlsd.connection.poller import Turn
from ktlsd.connection.scheduler import of_this_loop
from ktlsd.connection.transport import AT_ONCE, SMALL, FileShrank, PacedTransport, Rest
from ktlsd.http import forwarded
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Miss, Request, Response, options, refuse_head, refuse_method, short
from ktlsd.http.empty_lines import HALF, from_request_line
from ktlsd.http.forwarded import Origin
from ktlsd.http.multipart import Multipart
from ktlsd.http.request_fields import Consulted, joined
from ktlsd.http.request_target import BadTarget, parse_target
from ktlsd.http.uri_host import host_of
from ktlsd.http.validators import http_date
from ktlsd.metrics.metrics import IN_FLIGHT, LIMITED, REQUESTS, REQUESTS_OTHER, Row, counted
from ktlsd.protocol.request_body import RequestBody, TooLarge
from ktlsd.service import Service
from ktlsd.site.lookup import OpenFile
from ktlsd.site.response_cache import Grounds, Key, Remembered
from ktlsd.site.site import Answer
from ktlsd.ssl_ffi import ConnectionLost, Wait

if TYPE_CHECKING:
    # What is not asked for is not imported.
    from ktlsd.logs.access_log import Channel
    from ktlsd.logs.exchange_log import AccessLog, Noted

log = logging.getLogger("ktlsd")

# What h11 takes for the end of a head, and what it forgives in one; both are refused here, since a proxy in front may
# see other lines in them (RFC 9112 sections 2.2, 5.2 and 11.2).
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_AMBIGUOUS: Final = re.compile(rb"\n(?:(?<!\r\n)|[ \t])")
# Looked up now: a module that is imported when the first refusal is logged may find no descriptor left.
_escaped: Final = codecs.getencoder("unicode_escape")
_BLANK_LINE: Final = b"\r\n\r\n"
_KNOWN_AT_ONCE: Final = 4
"""Pipelined requests that are answered before other connections get their turn."""
# With any of these a request is more than its head, or the last on its connection.
_UNREPEATABLE: Final = frozenset({"content-length", "transfer-encoding", "expect", "upgrade"})
_UNLOGGED: Final = contextlib.nullcontext()
_LIMIT_OF: Final = {
    HTTPStatus.REQUEST_TIMEOUT: Limit.HEAD,
    HTTPStatus.REQUEST_URI_TOO_LONG: Limit.HEAD_BYTES,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: Limit.HEAD_BYTES,
}
"""Which limit a head that could not be read was beyond, by the status that it gets."""
_REPEATABLE_VERSIONS: Final = (b"1.1", b"1.0")
_REPEATABLE_STATUSES: Final = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_MODIFIED)


class Client(Struct, frozen=True, kw_only=True):
    """Who is at the other end of a connection."""

    address: str
    """With its port; that of the client where a PROXY header names it."""
    secure: bool
    """Whether TLS is spoken on this connection."""
    origin: Origin
    """What holds for a request without fields of a proxy."""
    server_name: str | None = None
    """What it asked for in the handshake (RFC 6066 section 3)."""
    via: str = ""
    """The proxy that sent the PROXY header."""
    trusted: Networks | None = None
    """Whose fields about the client are believed; None where this peer's are not."""
    clients: bytes = b""
    """What was demanded of its certificate (Context.clients)."""
    redirected: bool = False
    """Whether it gets nothing but the way to HTTPS."""
    channel: Channel | None = None
    """What the access log, where there is one, says of the connection."""


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
    """What all connections of a process share."""

    service: Service
    """Another one takes its place when the configuration is read again."""
    idle: Idle
    clock: Clock
    row: Row
    """What this process counts into."""
    access_log: AccessLog | None = None


class _Found(Struct, frozen=True, gc=False):
    """What is remembered for a head."""

    remembered: Remembered
    size: int
    """Bytes of the head."""
    noted: Noted | None
    """What the access log, where there is one, says of this request."""
    origin: Origin | None = None
    """Where the request came from, if a trusted proxy tells."""


class Http1:
    """One connection that speaks HTTP/1.1."""

    def __init__(self, shared: Shared, transport: PacedTransport, client: Client) -> None:
        self._shared = shared
        self.transport = transport
        self._client = client
        self.origin = client.origin
        """Of the request that is being answered."""
        self._realm = _realm(client, https=client.origin.https)
        self._limits = limits = shared.service.settings.limits
        """Of the service that was in force when this connection came."""
        self._requests_left = limits.requests_per_connection or sys.maxsize
        self._head = b""
        """The bytes of the request that h11 gave last."""
        self._half = False
        """Whether the first half of an empty line has come, and nothing else of the next request."""
        self._body: RequestBody | None = None
        """Of the request that is being answered, once its head is read."""
        self._looked_at = 0
        """How many bytes of the head that is being read were looked at: one that comes byte by byte is read once."""
        self._heads = shared.service.heads
        """Of the service that answered last."""
        self._rules: frozenset[bytes] | None = None
        """Of the answer that it gave (Answer.rules)."""
        self._any_query = False
        """The same (Answer.any_query)."""
        self._asked_ns = 0
        """When the last request was there, in ns since the epoch."""
        self._log = None
        if shared.access_log is not None and client.channel is not None:
            self._log = shared.access_log.of_connection(client.channel, transport)

    @functools.cached_property
    def _http(self) -> h11.Connection:
        # Many connections never need it.
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)

    async def serve(self) -> None:
        """Answer requests until the client is done, idle for too long or told to close, or the server drains.

        Raises TLSError, FileShrank, OSError.
        """
        while True:
            left = await self._shared.idle.wait(self)
            if left.unsent is not None:
                await self._finish_repeating(left.unsent, left.descriptor)
            if left.ends:
                await self.transport.finish(unread=True)
                return
            if left.unsent is not None and left.received == b"":
                continue
            received = self._joined(await self._read_idle()) if left.received is None else left.received
            if not received:
                await self.transport.finish()
                return
            await driver.become_task()
            self.origin = self._client.origin
            if not self._client.redirected:
                rest = await self._repeat(received)
                if rest is None:
                    await self.transport.finish(unread=True)
                    return
                received = rest
            received = self._from_request_line(received)
            if received:
                self._http.receive_data(received)
                if not await self._answer_received():
                    return

    async def _answer_received(self) -> bool:
        """Answer the requests that h11 has the beginning of; whether the connection can be used again."""
        while self._request_begins():
            with counted(self._shared.row, IN_FLIGHT), self._log.exchange() if self._log is not None else _UNLOGGED:
                reusable = await self._cycle()
            if not reusable or not await self._throw_body_away():
                return False
            self._http.start_next_cycle()
            if self._http.trailing_data[0]:
                await trio.lowlevel.checkpoint()
        return True

    async def _read_idle(self) -> bytes:
        """What the client sent, where that is known to have come; b"" also when the wait for it was ended."""
        await driver.become_task()
        with trio.move_on_after(self._shared.idle.seconds):
            try:
                return await self.transport.read()
            except ConnectionLost:
                if not self.transport.stopped:
                    raise
        return b""

    # --- empty lines before a request ---------------------------------------------------------------------------------

    def _joined(self, received: bytes) -> bytes:
        """Received bytes with those that were kept back before them."""
        if self._half and received:
            self._half = False
            return HALF + received
        return received

    def _from_request_line(self, received: bytes) -> bytes:
        """Received bytes without empty lines before a request line; half an empty line is kept back (_joined)."""
        rest = from_request_line(received)
        if rest == HALF:
            self._half = True
            return b""
        return rest

    def _request_begins(self) -> bool:
        """Whether h11 has bytes of a request; empty lines before it are taken away, which h11 would refuse."""
        received = self._http.trailing_data[0]
        rest = self._from_request_line(received)
        if len(rest) != len(received):
            # Between two requests another one of h11's connections is as good.
            del self._http
            if rest:
                self._http.receive_data(rest)
        return bool(rest)

    # --- from memory --------------------------------------------------------------------------------------------------

    def answer_known(self, turn: Turn) -> Generator[None, None, Left | None]:
        """Answer the heads that have come and are remembered, where that takes one write each and no wait.

        The steps are to receive, and then for each head to make and to send its answer.
        """
        transport = self.transport
        if transport.stopped:
            return Left(None)
        received = transport.receive()
        if not isinstance(received, bytes):
            return None if received is Wait.READABLE else Left(None)
        if self._half:
            received = self._joined(received)
        if not received:
            return Left(received)
        if self._client.redirected:
            return self._left_of(received)
        yield
        for _ in range(_KNOWN_AT_ONCE):
            found = self._find(received)
            if found is None:
                rest = self._from_request_line(received)
                if not rest or len(rest) == len(received):
                    return self._left_of(rest)
                received = rest
                continue
            remembered = found.remembered
            part = remembered.part
            if part is not None and part.count > SMALL:
                yield
                return self._begin_large(found, part, received)
            made = turn.get(remembered)
            if made is None:
                made = self._make(remembered)
                if made is None:
                    return Left(received)
                turn[remembered] = made
            else:
                self._shared.service.heads.uses += 1
            data, head_size = made
            yield
            self._begin_again(found, head_size)
            if remembered.closes:
                transport.hold_back()
            try:
                unsent = transport.send_at_once(data)
            except BaseException:
                self._end_again(complete=False)
                raise
            received = received[found.size :]
            if unsent:
                return Left(received, Rest(unsent), ends=remembered.closes)
            left = self._left_after(remembered, received)
            if left is not None or not received:
                return left
        return Left(received)

    def _left_of(self, received: bytes) -> Left | None:
        """What is left to do about received bytes, before an answer; None where that is to wait for more."""
        # Empty lines alone are no request: the time that the connection has been idle goes on.
        if rest := self._from_request_line(received):
            return Left(rest)
        return Left(None) if self.transport.holds() else None

    def _begin_large(self, found: _Found, part: ByteRange, received: bytes) -> Left | None:
        """Answer the head at the beginning of `received`, as far as possible without waiting; None once nothing is left
        of it."""
        if part.count > AT_ONCE:
            return Left(received)
        remembered = found.remembered
        descriptor = self._shared.service.heads.open(remembered)
        if descriptor is None:
            return Left(received)
        head = remembered.head(self._shared.clock.date())
        self._begin_again(found, len(head))
        try:
            rest = self.transport.begin_file(head, descriptor, part.offset, part.count)
        except BaseException:
            os.close(descriptor)
            self._end_again(complete=False)
            raise
        received = received[found.size :]
        if rest is not None:
            return Left(received, rest, descriptor, ends=remembered.closes)
        os.close(descriptor)
        left = self._left_after(remembered, received)
        # A client that asks for many at once lets others have their turn between them.
        return Left(received) if left is None and received else left

    def _left_after(self, remembered: Remembered, received: bytes) -> Left | None:
        """What is left to do after a response that is all sent, of whose request `received` followed; None where that
        is to go on with `received`, or to wait where there is none."""
        self._end_again(complete=True)
        if remembered.closes:
            return Left(b"", ends=True)
        return Left(None) if not received and self.transport.holds() else None

    def _make(self, remembered: Remembered) -> tuple[bytes | bytearray, int] | None:
        """A small remembered response in one piece and the size of its head; None where it is no longer what it was, or
        a disk is to be waited for."""
        part = remembered.part
        descriptor = self._shared.service.heads.open(remembered)
        if descriptor is None:
            return None
        head = remembered.head(self._shared.clock.date())
        try:
            data = head if part is None else self.transport.gathered(head, descriptor, part.offset, part.count)
        finally:
            os.close(descriptor)
        return None if data is None else (data, len(head))

    async def _finish_repeating(self, rest: Rest, descriptor: int) -> None:
        """Send the rest of what answer_known() has begun."""
        complete = False
        try:
            with counted(self._shared.row, IN_FLIGHT):
                await driver.become_task()
                if rest.size:
                    await self.transport.send_file(bytes(rest.data), descriptor, rest.offset, rest.size)
                else:
                    await self.transport.send_text(rest.data)
            complete = True
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            self._end_again(complete=complete)

    async def _repeat(self, received: bytes) -> bytes | None:
        """Answer the heads at the beginning of `received` that are remembered; what follows them, or None when the last
        of them ends the connection."""
        while (received := self._from_request_line(received)) and (found := self._find(received)) is not None:
            remembered = found.remembered
            descriptor = self._shared.service.heads.open(remembered)
            if descriptor is None:
                break
            head = remembered.head(self._shared.clock.date())
            part = remembered.part
            self._begin_again(found, len(head))
            complete = False
            try:
                with counted(self._shared.row, IN_FLIGHT):
                    if part is None:
                        await self.transport.send_text(head)
                    else:
                        await self.transport.send_file(head, descriptor, part.offset, part.count)
                complete = True
            finally:
                os.close(descriptor)
                self._end_again(complete=complete)
            if remembered.closes:
                return None
            received = received[found.size :]
            if received:
                await trio.lowlevel.checkpoint()
        return received

    def _find(self, received: bytes) -> _Found | None:
        """What is remembered for the head at the beginning of `received`."""
        if self._requests_left <= 1 or self._shared.idle.draining or self.transport.key_update_owed():
            return None
        size = received.find(_BLANK_LINE) + len(_BLANK_LINE)
        head = received[:size]
        if self._client.trusted is None:
            remembered = self._shared.service.heads.get((self._realm, head))
            if remembered is not None:
                return _Found(remembered, size, remembered.noted)
        return None if size < len(_BLANK_LINE) else self._find_alike(head)

    def _find_alike(self, head: bytes) -> _Found | None:
        """What is remembered for a head that says the same to whoever decides."""
        client, limits, service = self._client, self._limits, self._shared.service
        read = service.heads.read(head, limits.header_fields) if len(head) <= limits.head_bytes else None
        if read is None:
            return None
        line, fields = read
        if len(line) > limits.target_bytes:
            # Its target may be, too.
            return None
        values = joined(fields)
        origin = None
        if client.trusted is not None:
            origin = self._told(client.trusted, values, service)
        remembered = service.heads.get_alike(self._realm_of(origin or client.origin), line, values)
        if remembered is None:
            return None
        noted = self._log.note_alike(remembered.status, line, fields) if self._log is not None else None
        return _Found(remembered, len(head), noted, origin)

    def _told(self, trusted: Networks, values: Mapping[bytes, bytes], service: Service) -> Origin:
        """Where a trusted proxy says that a request with these fields came from; it has a say in the realm alone."""
        return forwarded.origin(Consulted(values), self._client.origin, trusted, service.forwarded)

    def _realm_of(self, origin: Origin) -> str | None:
        client = self._client
        return self._realm if origin.https is client.origin.https else _realm(client, https=origin.https)

    def _begin_again(self, found: _Found, head_size: int) -> None:
        self._shared.row[REQUESTS[found.remembered.status]] += 1
        self._requests_left -= 1
        if self._log is not None:
            self._log.begin_again(cast("Noted", found.noted), head_size)
            if found.origin is not None:
                self._log.came_from(found.origin)

    def _end_again(self, *, complete: bool) -> None:
        if self._log is not None:
            self._log.end(complete=complete)

    def _remember(
        self, version: bytes, request: Request, response: Response, opened: OpenFile, head: bytes, date: bytes
    ) -> None:
        """Keep a response for the next time that the same head comes, where it would be the same again.

        `date` is the value of Date in `head`.
        """
        fields = cast(Consulted, request.fields)
        body = response.body
        part = body if isinstance(body, ByteRange) and body.count else None
        connection = fields.get("connection", "keep-alive").lower()
        if (
            version in _REPEATABLE_VERSIONS
            and response.status in _REPEATABLE_STATUSES
            and (isinstance(body, ByteRange) or body == b"")
            and not response.close
            and connection in ("keep-alive", "close")
            and not any(name in fields for name in _UNREPEATABLE)
        ):
            key: Key = (self._realm_of(self.origin), self._head)
            names = fields.asked_for()
            grounds = None if names is None else Grounds.of(key, names, fields.sent, any_query=self._any_query)
            noted = self._log.noted if self._log is not None else None
            closes = version == b"1.0" or connection == "close"
            self._heads.remember(
                *(key, response.status.value, head, date, opened, part, noted),
                grounds=grounds,
                closes=closes,
                rules=self._rules,
                asked_ns=self._asked_ns,
            )

    # --- through h11 --------------------------------------------------------------------------------------------------

    async def _cycle(self) -> bool:
        """Answer one request; whether the connection can be used again, once its body is read."""
        http, transport = self._http, self.transport
        event = request = opened = None
        self._body = None
        self.origin = self._client.origin
        self._requests_left -= 1
        try:
            event = await self._read_head()
            if event is None:
                await transport.finish()
                return False
            if self._log is not None:
                self._log.asked(event)
            # A client may wait for the answer before it sends the body, and what came with the head may be malformed.
            self._body = body = RequestBody(http, event)
            if not body.unwanted:
                body.look()
            self._asked_ns = time.time_ns()
            request = _request(event)
            response, opened, _, self._rules, self._any_query = await self._answer(event, request)
        except h11.RemoteProtocolError as error:
            response = _refuse_malformed(error, http, event)
        except trio.TooSlowError:
            reason = f"no whole request head within {self._limits.head_seconds:g} s"
            response = short(HTTPStatus.REQUEST_TIMEOUT, reason, close=True)
        else:
            if not self._requests_left:
                self._shared.row[LIMITED[Limit.REQUESTS]] += 1
                log.debug("%s: request %d is the last", self._client.address, self._limits.requests_per_connection)
            if self._shared.idle.draining or not self._requests_left or body.unwanted or transport.key_update_owed():
                response = replace(response, close=True)
        self._shared.row[REQUESTS.get(response.status, REQUESTS_OTHER)] += 1
        if response.reason == Miss.STALLED.reason:
            self._shared.row[LIMITED[Limit.FILE]] += 1
        if event is None and response.status in _LIMIT_OF:
            self._shared.row[LIMITED[_LIMIT_OF[response.status]]] += 1
        try:
            if response.reason:
                _log_refusal(self._who(), event, response)
            await self._send(event, request, response, opened)
        finally:
            if opened is not None:
                opened.close()
        if http.our_state is not h11.DONE:
            await transport.finish(unread=http.their_state is not h11.DONE)
            return False
        return True

    async def _read_head(self) -> h11.Request | None:
        """The next request; None when the client left instead.

        Raises h11.RemoteProtocolError, trio.TooSlowError for a head that does not end, TLSError.
        """
        self._looked_at = 0
        event = self._next_head()
        if event is h11.NEED_DATA:
            with trio.fail_after(self._limits.head_seconds):
                while event is h11.NEED_DATA:
                    self._http.receive_data(await self.transport.read())
                    event = self._next_head()
        return event if isinstance(event, h11.Request) else None

    def _next_head(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """h11's next event, unless the head that it would read has lines that another reader may see otherwise.

        Raises h11.RemoteProtocolError.
        """
        received = self._http.trailing_data[0]
        # What is looked for is three bytes long at most.
        start = max(0, self._looked_at - 2)
        end = _HEAD_END.search(received, start)
        self._head = received[: end.end()] if end else received
        self._looked_at = len(self._head)
        if len(self._head) > self._limits.head_bytes:
            raise h11.RemoteProtocolError(f"a head of {len(self._head)} bytes or more", error_status_hint=431)
        if _AMBIGUOUS.search(self._head, start):
            raise h11.RemoteProtocolError("a bare line feed or a folded line in the head", error_status_hint=400)
        return self._http.next_event()

    async def _throw_body_away(self) -> bool:
        """Read what is left of the body of a request that is answered; whether its end was found.

        Where it was not, the connection is finished: what follows could be taken for a request. Raises TLSError.
        """
        body, idle = cast(RequestBody, self._body), self._shared.idle
        # It has copies of what was received, which an idle connection needs no longer.
        self._body = None
        if body.whole:
            return True
        problem = ""
        try:
            with idle.body_wait(self._limits.head_seconds) as waiting:
                while not body.whole:
                    data = await self.transport.read()
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
            _log_closed(self._who(), body.request, problem)
        await self.transport.finish(unread=True)
        return False

    async def _answer(self, event: h11.Request, request: Request) -> Answer:
        """Decide the response, and the open file that it takes its body from."""
        service = self._shared.service
        self._heads = service.heads
        with service.in_use():
            return await self._answer_by(service, event, request)

    async def _answer_by(self, service: Service, event: h11.Request, request: Request) -> Answer:
        client, target = self._client, event.target
        head = request.method == "HEAD"
        if client.trusted is not None:
            self.origin = self._told(client.trusted, cast(Consulted, request.fields).sent, service)
            if self._log is not None:
                self._log.came_from(self.origin)
        refused = refuse_head(event.http_version, request) or refuse_method(request.method)
        if refused is not None:
            return Answer(refused)
        if len(event.headers) > self._limits.header_fields:
            self._shared.row[LIMITED[Limit.HEADER_FIELDS]] += 1
            reason = f"{len(event.headers)} header fields"
            return Answer(short(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason, head=head))
        if len(target) > self._limits.target_bytes:
            self._shared.row[LIMITED[Limit.TARGET_BYTES]] += 1
            return Answer(short(HTTPStatus.REQUEST_URI_TOO_LONG, f"a target of {len(target)} bytes", head=head))
        if request.method == "OPTIONS" and target == b"*":
            return Answer(options())
        try:
            parsed = parse_target(target)
        except BadTarget as error:
            return Answer(short(HTTPStatus.BAD_REQUEST, str(error), head=head))
        host = parsed.host or host_of(request.fields.get("host", "")) or None
        if client.redirected:
            return await service.https_redirect.answer(request, parsed, host)
        # HTTP/1.0 may leave the host out: then the handshake alone says which site.
        hosted = service.sites.of_request(host or client.server_name, client.server_name)
        if hosted is None:
            reason = f"{host} is not of the site {client.server_name} that the handshake was for"
            return Answer(short(HTTPStatus.MISDIRECTED_REQUEST, reason, head=head))
        demanded = hosted.context.clients
        if demanded and demanded != client.clients:
            reason = f"{host} demands a client certificate, and the handshake was for another site or none"
            return Answer(short(HTTPStatus.MISDIRECTED_REQUEST, reason, head=head))
        return await hosted.site.answer(request, parsed, secure=self.origin.https)

    def _who(self) -> str:
        """The client for the log, with those who told about it and the request's id."""
        client, origin = self._client, self.origin
        hops = [origin.address, *(hop for hop in (client.address, client.via) if hop and hop != origin.address)]
        return " via ".join(hops) + (f" (request {origin.request_id})" if origin.request_id else "")

    async def _send(
        self, event: h11.Request | None, request: Request | None, response: Response, opened: OpenFile | None
    ) -> None:
        http, transport = self._http, self.transport
        signature = () if response.signed else self._shared.service.server_field
        date = self._shared.clock.date()
        fields = [("Date", date.decode("ascii")), *signature, *response.fields]
        if response.close:
            fields.append(("Connection", "close"))
        status, body = response.status, response.body
        data = http.send(h11.Response(status_code=status.value, headers=fields, reason=status.phrase.encode())) or b""
        if self._log is not None:
            if event is None:
                self._log.received(self._head)
            self._log.answered(status.value, len(data))
        if event is not None and request is not None and opened is not None and not self._client.redirected:
            self._remember(event.http_version, request, response, opened, data, date)
        if isinstance(body, ByteRange):
            body = Multipart("", body.count, ((b"", body),), b"") if body.count else b""
        if isinstance(body, Multipart):
            file = cast(OpenFile, opened)
            for number, (before, part) in enumerate(body.parts):
                if number:
                    # Hundreds of small parts together take milliseconds.
                    await of_this_loop().next()
                data += _framed(http, before)
                # h11 counts the bytes against Content-Length without seeing them.
                http.send_with_data_passthrough(h11.Data(data=cast(bytes, _Placeholder(part))))
                await self._send_part(data, file, part)
                data = b""
            body = body.tail
        elif not isinstance(body, bytes):
            for piece in body:
                data += _framed(http, piece)
                if piece:
                    await transport.send_text(data)
                    data = b""
                await trio.lowlevel.checkpoint()
            body = b""
        data += _framed(http, body) + (http.send(h11.EndOfMessage()) or b"")
        if data:
            await transport.send_text(data)
        if self._log is not None:
            self._log.end(complete=True)

    async def _send_part(self, data: bytes, file: OpenFile, part: ByteRange) -> None:
        """Send bytes from memory, and then a part of the file. Raises as PacedTransport.send_file() does."""
        if not file.waits:
            await self.transport.send_file(data, file.descriptor, part.offset, part.count)
            return
        # The kernel must not read it for a sendfile: it might wait for the file system on the event loop.
        offset, end = part.offset, part.offset + part.count
        while offset < end:
            piece = await file.read_piece(offset, end - offset)
            if not piece:
                raise FileShrank
            await self.transport.send_text(data + piece)
            data = b""
            offset += len(piece)


def _realm(client: Client, *, https: bool) -> str | None:
    """What a response depends on beside the request's head: no two realms share remembered responses."""
    if client.secure and client.trusted is None and not client.clients:
        return client.server_name
    # No host name has a colon.
    scheme = "https" if https else "http"
    return f"{client.server_name or ''}:{scheme}:{client.secure}:{client.trusted is not None}:{client.clients.hex()}"


class _Placeholder:
    """Stands for the bytes of a file part where h11 wants to know their number only."""

    def __init__(self, part: ByteRange) -> None:
        self._part = part

    def __len__(self) -> int:
        return self._part.count


def _framed(http: h11.Connection, data: bytes) -> bytes:
    return http.send(h11.Data(data=data)) or b"" if data else b""


def _request(event: h11.Request) -> Request:
    return Request(event.method.decode("ascii"), Consulted(joined(event.headers)))


def _refuse_malformed(error: h11.RemoteProtocolError, http: h11.Connection, event: h11.Request | None) -> Response:
    """The answer to bytes that are no HTTP/1.1: to a request whose body went wrong, or to no request at all."""
    status = HTTPStatus(error.error_status_hint)
    if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE and event is None and b"\n" not in http.trailing_data[0]:
        status = HTTPStatus.REQUEST_URI_TOO_LONG
    return short(status, str(error), head=event is not None and event.method == b"HEAD", close=True)


def _log_refusal(peer: str, event: h11.Request | None, response: Response) -> None:
    what = _line_of(event) if event else "a request"
    _log_escaped(f"{peer} {response.status.value} {what[:1024]}: {response.reason[:1024]}")


def _log_closed(peer: str, event: h11.Request, problem: str) -> None:
    _log_escaped(f"{peer} closed after the answer to {_line_of(event)[:1024]}: its body: {problem[:1024]}")


def _line_of(event: h11.Request) -> str:
    return f"{event.method.decode()} {event.target.decode('ascii', 'replace')}"


def _log_escaped(text: str) -> None:
    # Whatever a client sent could reach the log here: nothing that ends a line or moves a terminal gets through.
    log.info("%s", _escaped(text)[0].decode("ascii"))
