"""Plain HTTP for metrics, health and the status page, on sockets of its own: one request on each connection.

Strategy: trio accepts, h11 reads a bounded head and writes the response; a cancel scope holds the whole exchange. It
ends with the server, so that it still answers while connections drain.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import trio

from ktlsd.connection.listener import MetricsSockets
from ktlsd.connection.scheduler import current_scheduler
from ktlsd.http.empty_lines import HALF, from_request_line
from ktlsd.http.validators import http_date
from ktlsd.metrics.metrics import MetricsStore
from ktlsd.service import Service
from ktlsd.status.metrics_page import Asked, Reply, answer, short
from ktlsd.status.status_page import View

if TYPE_CHECKING:
    from ktlsd.acme.plan import Record

log = logging.getLogger("ktlsd")

EXCHANGE_SECONDS: Final = 20.0
"""For a whole request and its response."""
LONGEST_HEAD: Final = 16384
"""Bytes of a request line and its header fields."""
MOST_CONNECTIONS: Final = 64
"""Most connections at once; one more is closed unanswered."""

_READ_SIZE: Final = 16384
_EXHAUSTED_PAUSE_SECONDS: Final = 0.1


class MetricsListener:
    """The listener of a process."""

    def __init__(self, sockets: MetricsSockets, store: MetricsStore) -> None:
        self._accepting = trio.CancelScope()
        self._own_name = sockets.listen.host or "localhost"
        self._sockets = sockets.sockets
        self._store = store
        self._open = 0

    def stop(self) -> None:
        """Close the sockets, and let serve() return once all that came are answered."""
        self._accepting.cancel()

    async def serve(self, service: Callable[[], Service], ready: Callable[[], bool]) -> None:
        """Answer until stop(), with figures of `service()`; `ready()` is True while the server accepts connections."""

        def view() -> View:
            orders: list[tuple[str, Record]] = []
            if (folder := service().acme) is not None:
                # A page without them is better than none.
                with contextlib.suppress(OSError):
                    orders = folder.records()
            openssl = ".".join(map(str, service().library.version))
            return View(self._store, service().validities, ready(), service().faults, orders, openssl)

        async with trio.open_nursery() as exchanges:
            with self._accepting:
                async with trio.open_nursery() as acceptors:
                    for sock in self._sockets:
                        loopback = ipaddress.ip_address(sock.getsockname()[0]).is_loopback
                        handler = partial(self._serve_connection, self._own_name if loopback else None, view)
                        acceptors.start_soon(_accept, sock, exchanges, handler)

    async def _serve_connection(
        self, own_name: str | None, view: Callable[[], View], stream: trio.SocketStream
    ) -> None:
        self._open += 1
        try:
            async with stream:
                if self._open <= MOST_CONNECTIONS:
                    with current_scheduler().busy(), trio.move_on_after(EXCHANGE_SECONDS):
                        await self._exchange(stream, own_name, view)
        except (trio.BrokenResourceError, OSError) as error:
            log.debug("a client of the metrics disconnected: %s", error)
        except Exception:
            # A defect here must not end the server.
            log.exception("a defect in ktlsd's metrics, please report it")
        finally:
            self._open -= 1

    async def _exchange(self, stream: trio.SocketStream, own_name: str | None, view: Callable[[], View]) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        method = "GET"
        received = b""
        while received in (b"", HALF):
            some = await stream.receive_some(_READ_SIZE)
            if not some:
                return
            received = from_request_line(received + some)
        http.receive_data(received)
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await stream.receive_some(_READ_SIZE))
            if not isinstance(event, h11.Request):
                return
            asked = _asked(event)
            method = asked.method
            reply = answer(asked, view(), own_name)
        except h11.RemoteProtocolError as error:
            reply = short(HTTPStatus(error.error_status_hint), str(error))
        await stream.send_all(_written(http, method, reply))
        await stream.send_eof()
        # Closing a socket with unread data resets the connection and can destroy the response (RFC 9112 section 9.6).
        while await stream.receive_some(_READ_SIZE):
            pass


async def _accept(
    sock: socket.socket, nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]]
) -> None:
    """Have all clients of a listening socket served in the nursery until cancelled, those too that are queued then;
    close it."""
    try:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                _accept_queued(sock, nursery, handler)
            except OSError as error:
                log.error("accepting clients of the metrics pauses: %s", error.strerror)
                await trio.sleep(_EXHAUSTED_PAUSE_SECONDS)
    finally:
        with contextlib.suppress(OSError):
            _accept_queued(sock, nursery, handler)
        sock.close()


def _accept_queued(
    sock: socket.socket, nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]]
) -> None:
    """Raises OSError if there can be no more sockets."""
    with contextlib.suppress(BlockingIOError, ConnectionError):
        for _ in range(MOST_CONNECTIONS):
            client, _ = sock.accept()
            nursery.start_soon(handler, trio.SocketStream(trio.socket.from_stdlib_socket(client)))


def _asked(event: h11.Request) -> Asked:
    fields = {name: value.decode("latin-1") for name, value in event.headers}
    method, target = event.method.decode("ascii"), event.target.decode("ascii", "replace")
    return Asked(method, target, fields.get(b"host", ""), fields.get(b"accept", ""))


def _written(http: h11.Connection, method: str, reply: Reply) -> bytes:
    fields = [("Date", http_date(time.time())), *reply.fields(), ("Connection", "close")]
    head = h11.Response(status_code=reply.status.value, headers=fields, reason=reply.status.phrase.encode())
    body = b"" if method == "HEAD" else reply.body
    events: tuple[h11.Event, ...] = (head, h11.Data(data=body), h11.EndOfMessage())
    return b"".join(http.send(event) or b"" for event in events)
