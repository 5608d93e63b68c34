"""The server: accept -> handshake -> read head -> decide -> send, one trio task per connection.

Strategy: h11 parses requests and writes response heads; the site that a request names says what to answer; a transport
moves the bytes. Cancel scopes hold every time-out, and draining is the cancellation of accepting and of idle waiting.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final, cast

import h11
import trio

from ktlsd.byte_range import ByteRange
from ktlsd.decide import Request, Response, options, refuse_head, refuse_method, short
from ktlsd.ktls import Direction, Mode, Offload, explain
from ktlsd.listeners import Listener
from ktlsd.lookup import OpenFile
from ktlsd.multipart import Multipart
from ktlsd.pacing import FileShrank, PacedTransport
from ktlsd.plain_transport import PlainTransport
from ktlsd.request_target import LONGEST_TARGET, BadTarget, parse_target
from ktlsd.residency import Residency
from ktlsd.service import Service
from ktlsd.site import Answer
from ktlsd.sites import host_of
from ktlsd.sni import peek_server_name
from ktlsd.ssl_ffi import ConnectionLost, Handshake, PlainHTTP, TLSError
from ktlsd.tls_stat import Offloads
from ktlsd.transport import Transport
from ktlsd.validators import http_date

log = logging.getLogger("ktlsd")

HANDSHAKE_SECONDS: Final = 10.0
HEAD_SECONDS: Final = 20.0
"""For a whole request head, from its first byte."""
IDLE_SECONDS: Final = 75.0
"""Between requests on a kept-alive connection."""
LONGEST_HEAD: Final = 32768
"""Bytes of a request line and its header fields."""
LARGEST_SKIPPED_BODY: Final = 65536
"""Bytes of a request body that are read and thrown away so that the connection can be kept."""

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_ACCEPTS_IN_A_ROW: Final = 16
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EXHAUSTED_PAUSE_SECONDS: Final = 0.1


# What h11 takes for the end of a head, and what it forgives in one; both are refused here, since a proxy in front may
# see other lines in them (RFC 9112 sections 2.2, 5.2 and 11.2).
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_AMBIGUOUS: Final = re.compile(rb"(?<!\r)\n|\n[ \t]")
# Of the last chunk or trailer, and of the body (RFC 9112 section 7.1).
_CHUNKED_END: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end of a connection."""

    address: str
    secure: bool
    server_name: str | None = None
    """What it asked for in the handshake (RFC 6066 section 3)."""


class Server:
    """One process's event loop over listening sockets that somebody else bound."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._residency = Residency(service.library.file_system_type)
        self._offloads = Offloads()
        self._draining = False
        self._accepting = trio.CancelScope()
        self._idle: set[trio.CancelScope] = set()
        self._date = (0, "")

    async def run(self, listeners: Sequence[Listener], ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is in flight; a second signal ends that too.

        `ready` is called once signals are heeded and connections accepted.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            async with trio.open_nursery() as connections:
                with self._accepting:
                    async with trio.open_nursery() as acceptors:
                        for listener in listeners:
                            acceptors.start_soon(self._accept, listener, connections)
                        ready()
                # From here on new clients are refused instead of waiting in a queue that nobody serves.
                for listener in listeners:
                    listener.socket.close()
            nursery.cancel_scope.cancel()
        self._offloads.close()

    def drain(self) -> None:
        """Accept no more, end idle connections, and let run() return when the last response is sent."""
        self._draining = True
        self._accepting.cancel()
        for scope in self._idle:
            scope.cancel()

    async def _watch_signals(
        self, everything: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        # The receiver gives signals back to these handlers when it closes: one that comes while the process ends
        # changes nothing any more, and one that comes before the receiver opens is not lost.
        early: list[int] = []
        for number in END_SIGNALS:
            signal.signal(number, lambda number, frame: early.append(number))
        with trio.open_signal_receiver(*END_SIGNALS) as signals:
            task_status.started()
            if early:
                self.drain()
            async for _ in signals:
                if self._draining:
                    everything.cancel()
                self.drain()

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener.socket)
            for _ in range(_ACCEPTS_IN_A_ROW):
                try:
                    sock, peer = listener.socket.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        log.error("accepting pauses: %s", error.strerror)
                        await trio.sleep(_EXHAUSTED_PAUSE_SECONDS)
                    # Anything else is the fate of one connection that ended while it was queued (accept(2)).
                    continue
                connections.start_soon(self._serve_connection, sock, _address(peer), listener.secure)

    async def _serve_connection(self, sock: socket.socket, peer: str, secure: bool) -> None:
        try:
            with sock:
                sock.setblocking(False)
                # Heads and files share records by MSG_MORE; nothing else is worth holding back.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if secure:
                    await self._serve_tls(sock, peer)
                else:
                    with contextlib.closing(PlainTransport(sock, self._residency)) as transport:
                        await self._serve_requests(transport, Client(peer, secure=False))
        except FileShrank:
            log.error("%s cut off: the file shrank while it was sent", peer)
        except ConnectionLost as error:
            log.debug("%s left: %s", peer, error)
        except TLSError as error:
            log.info("%s cut off: %s", peer, error)
        except OSError as error:
            log.error("%s cut off: %s", peer, error)
        except Exception:
            # A defect in serving one connection must not end the others.
            log.exception("%s cut off by a defect in ktlsd, please report it", peer)

    async def _serve_tls(self, sock: socket.socket, peer: str) -> None:
        """Handshake, with the certificate of the site that the client names, and serve."""
        deadline = trio.current_time() + HANDSHAKE_SECONDS
        server_name = None
        if self._service.several:
            # Only a look: after a resumed TLS 1.2 handshake OpenSSL no longer tells the name.
            with trio.move_on_at(deadline):
                server_name = await peek_server_name(sock)
        context = self._service.sites.of_name(server_name).context
        with contextlib.closing(Transport(context, sock, self._residency)) as transport:
            try:
                with trio.fail_at(deadline):
                    handshake = await transport.handshake()
            except trio.TooSlowError:
                log.info("%s handshake failed: none within %g s", peer, HANDSHAKE_SECONDS)
                return
            except PlainHTTP:
                log.info("%s handshake failed: plain HTTP on the HTTPS port", peer)
                await transport.answer_plain_http(self._plain_http_response())
                return
            except TLSError as error:
                log.info("%s handshake failed: %s", peer, error)
                return
            if await self._may_go_on(transport, sock, peer, handshake):
                await self._serve_requests(transport, Client(peer, secure=True, server_name=server_name))

    async def _may_go_on(self, transport: Transport, sock: socket.socket, peer: str, handshake: Handshake) -> bool:
        """Log which path the connection takes; whether that is one that --ktls allows."""
        support = self._service.support
        tx, rx = (
            explain(support, handshake, direction, self._offloads.of(sock, direction) if engaged else Offload.NONE)
            for direction, engaged in ((Direction.TX, handshake.ktls_tx), (Direction.RX, handshake.ktls_rx))
        )
        resumed = " resumed" if handshake.resumed else ""
        log.info("%s %s %s%s ktls tx=%s rx=%s", peer, handshake.protocol, handshake.cipher, resumed, tx, rx)
        if support.mode is Mode.REQUIRE and tx.reason is not None:
            log.warning("%s closed: --ktls require, and sends are not offloaded: %s", peer, tx.reason.value)
            await transport.finish()
            return False
        return True

    async def _serve_requests(self, transport: PacedTransport, client: Client) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        while True:
            event = opened = None
            try:
                event = await self._read_head(http, transport)
                if event is None:
                    await transport.finish()
                    return
                body_skipped = await self._skip_body(http, transport, event)
                response, opened, _ = await self._answer(event, client)
            except h11.RemoteProtocolError as error:
                response = _refuse_malformed(error, http, event)
            except trio.TooSlowError:
                response = short(HTTPStatus.REQUEST_TIMEOUT, "a request head took too long", close=True)
            else:
                if self._draining or not body_skipped or transport.key_update_owed():
                    response = replace(response, close=True)
            try:
                if response.reason:
                    _log_refusal(client.address, event, response)
                await self._send(http, transport, response, opened)
            finally:
                if opened is not None:
                    opened.close()
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                await transport.finish(unread=http.their_state is not h11.DONE)
                return
            http.start_next_cycle()
            if http.trailing_data[0]:
                await trio.lowlevel.checkpoint()

    async def _read_head(self, http: h11.Connection, transport: PacedTransport) -> h11.Request | None:
        """The next request; None when the client is done, or idle for too long, or the server drains.

        Raises h11.RemoteProtocolError, trio.TooSlowError for a head that does not end, TLSError.
        """
        event = _next_head(http)
        if event is h11.NEED_DATA and not http.trailing_data[0]:
            with self._idle_scope() as scope:
                http.receive_data(await transport.read())
            if scope.cancelled_caught:
                return None
            event = _next_head(http)
        if event is h11.NEED_DATA:
            with trio.fail_after(HEAD_SECONDS):
                while event is h11.NEED_DATA:
                    http.receive_data(await transport.read())
                    event = _next_head(http)
        return event if isinstance(event, h11.Request) else None

    @contextlib.contextmanager
    def _idle_scope(self) -> Iterator[trio.CancelScope]:
        """A scope that ends by itself after IDLE_SECONDS, and at once when the server drains."""
        scope = trio.CancelScope(deadline=trio.current_time() + IDLE_SECONDS)
        if self._draining:
            scope.cancel()
        self._idle.add(scope)
        try:
            with scope:
                yield scope
        finally:
            self._idle.discard(scope)

    async def _skip_body(self, http: h11.Connection, transport: PacedTransport, request: h11.Request) -> bool:
        """Read a request's body and throw it away; False when it is too large or too slow to keep the connection.

        Raises h11.RemoteProtocolError, TLSError.
        """
        if http.they_are_waiting_for_100_continue:
            return False
        body = bytearray(http.trailing_data[0])
        # What counts is what was received, not what it carried: chunks can be nearly all framing.
        most = len(body) + LARGEST_SKIPPED_BODY
        with trio.move_on_after(HEAD_SECONDS):
            while len(body) <= most:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    data = await transport.read()
                    body += data
                    http.receive_data(data)
                elif not isinstance(event, h11.Data):
                    del body[len(body) - len(http.trailing_data[0]) :]
                    if _is_chunked(request) and not body.endswith(_CHUNKED_END):
                        raise h11.RemoteProtocolError("a bare line feed after the last chunk", error_status_hint=400)
                    return isinstance(event, h11.EndOfMessage)
        return False

    async def _answer(self, event: h11.Request, client: Client) -> Answer:
        """Decide the response, and the open file that it takes its body from."""
        request, target = _request(event), event.target
        head = request.method == "HEAD"
        refused = refuse_head(event.http_version, request) or refuse_method(request.method)
        if refused is not None:
            return Answer(refused)
        if len(target) > LONGEST_TARGET:
            return Answer(short(HTTPStatus.REQUEST_URI_TOO_LONG, f"a target of {len(target)} bytes", head=head))
        if request.method == "OPTIONS" and target == b"*":
            return Answer(options())
        try:
            parsed = parse_target(target)
        except BadTarget as error:
            return Answer(short(HTTPStatus.BAD_REQUEST, str(error), head=head))
        host = parsed.host or host_of(request.fields.get("host", ""))
        if not client.secure:
            return await self._service.https_redirect.answer(request, parsed, host)
        # HTTP/1.0 may leave the host out: then the handshake alone says which site.
        hosted = self._service.sites.of_request(host or client.server_name, client.server_name)
        if hosted is None:
            reason = f"{host} is not of the site {client.server_name} that the handshake was for"
            return Answer(short(HTTPStatus.MISDIRECTED_REQUEST, reason, head=head))
        return await hosted.site.answer(request, parsed, secure=True)

    async def _send(
        self,
        http: h11.Connection,
        transport: PacedTransport,
        response: Response,
        opened: OpenFile | None,
    ) -> None:
        signature = () if response.signed else self._service.server_field
        fields = [("Date", self._http_date()), *signature, *response.fields]
        if response.close:
            fields.append(("Connection", "close"))
        status, body = response.status, response.body
        data = http.send(h11.Response(status_code=status.value, headers=fields, reason=status.phrase.encode())) or b""
        if isinstance(body, ByteRange):
            body = Multipart("", body.count, ((b"", body),), b"") if body.count else b""
        if isinstance(body, Multipart):
            descriptor = cast(OpenFile, opened).descriptor
            for before, part in body.parts:
                data += _framed(http, before)
                # h11 counts the bytes against Content-Length without seeing them.
                http.send_with_data_passthrough(h11.Data(data=cast(bytes, _Placeholder(part))))
                await transport.send_file(data, descriptor, part.offset, part.count)
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

    def _http_date(self) -> str:
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, http_date(now))
        return self._date[1]

    def _plain_http_response(self) -> bytes:
        http = h11.Connection(h11.SERVER)
        text = b"400 Bad Request: this port speaks HTTPS, use an https:// address\n"
        fields = [
            ("Date", self._http_date()),
            *self._service.server_field,
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(text))),
            ("Connection", "close"),
        ]
        events = (h11.Response(status_code=400, headers=fields, reason=b"Bad Request"), h11.Data(data=text))
        return b"".join(http.send(event) or b"" for event in events)


class _Placeholder:
    """Stands for the bytes of a file part where h11 wants to know their number only."""

    def __init__(self, part: ByteRange) -> None:
        self._part = part

    def __len__(self) -> int:
        return self._part.count


def _framed(http: h11.Connection, data: bytes) -> bytes:
    return http.send(h11.Data(data=data)) or b"" if data else b""


def _next_head(http: h11.Connection) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
    """h11's next event, unless the head that it would read has lines that another reader may see otherwise.

    Raises h11.RemoteProtocolError.
    """
    received = http.trailing_data[0]
    end = _HEAD_END.search(received)
    if _AMBIGUOUS.search(received, 0, end.end() if end else len(received)):
        raise h11.RemoteProtocolError("a bare line feed or a folded line in the head", error_status_hint=400)
    return http.next_event()


def _is_chunked(request: h11.Request) -> bool:
    # h11 accepts no other coding.
    return any(name == b"transfer-encoding" for name, _ in request.headers)


def _request(event: h11.Request) -> Request:
    fields: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return Request(event.method.decode("ascii"), fields)


def _refuse_malformed(error: h11.RemoteProtocolError, http: h11.Connection, event: h11.Request | None) -> Response:
    """The answer to bytes that are no HTTP/1.1: to a request whose body went wrong, or to no request at all."""
    status = HTTPStatus(error.error_status_hint)
    if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE and event is None and b"\n" not in http.trailing_data[0]:
        status = HTTPStatus.REQUEST_URI_TOO_LONG
    return short(status, str(error), head=event is not None and event.method == b"HEAD", close=True)


def _log_refusal(peer: str, event: h11.Request | None, response: Response) -> None:
    what = f"{event.method.decode()} {event.target.decode('ascii', 'replace')}" if event else "a request"
    # Whatever a client sent could reach the log here: nothing that ends a line or moves a terminal gets through.
    text = f"{peer} {response.status.value} {what[:1024]}: {response.reason[:1024]}"
    log.info("%s", text.encode("unicode_escape").decode("ascii"))


def _address(peer: tuple[str, int]) -> str:
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
