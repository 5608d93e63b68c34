"""Clients of HTTP/1.1 and HTTP/2 with one interface: tests of content and sites take `protocol` and run over both.

Strategy: a conversation is one connection, over which one request after the other is sent. Fields are lines as in
HTTP/1.1, and a target may be a URL, whose host goes before the given one: in HTTP/2 it becomes :authority.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final

from tests.http2_client import HeaderField, Http2Client
from tests.serving import WAIT_SECONDS, Answer, client_context, connect_plain, get, parse

HTTP_1: Final = "HTTP/1.1"
HTTP_2: Final = "HTTP/2.0"
"""As the access log has them."""
PROTOCOLS: Final = (HTTP_1, HTTP_2)


class BrokenError(Exception):
    """The response ended before its end, and the client knows it."""


class Download(ABC):
    """A response that has begun."""

    @abstractmethod
    def read(self, count: int) -> bytes:
        """Wait until this many bytes of the body have come, at least; all that came so far, chunks still framed."""

    @abstractmethod
    def answer(self) -> Answer:
        """The whole response. Raises BrokenError."""


class Conversation(ABC):
    """One connection."""

    socket: socket.socket

    @abstractmethod
    def begin(
        self, target: str, *fields: str, method: str = "GET", host: str = "localhost", body: bytes = b""
    ) -> Download:
        """Send a request; a body has a Content-Length."""

    @property
    @abstractmethod
    def received_bytes(self) -> int:
        """All that the server sent so far, without TLS."""

    @abstractmethod
    def is_ended(self) -> bool:
        """Wait for the server, which is to send no more responses; whether it ended the connection in order."""

    def get(self, target: str, *fields: str, method: str = "GET", host: str = "localhost", body: bytes = b"") -> Answer:
        """A request and its whole response. Raises BrokenError."""
        return self.begin(target, *fields, method=method, host=host, body=body).answer()


class _Http1(Conversation):
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.received = bytearray()
        self._taken = 0

    @property
    def received_bytes(self) -> int:
        return self._taken + len(self.received)

    def take(self, count: int) -> None:
        """A response of this size is done with."""
        del self.received[:count]
        self._taken += count

    def begin(
        self, target: str, *fields: str, method: str = "GET", host: str = "localhost", body: bytes = b""
    ) -> Download:
        length = [f"Content-Length: {len(body)}"] if body else []
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, *length, "", ""]
        self.socket.sendall("\r\n".join(lines).encode("latin-1") + body)
        return _Http1Download(self, method)

    def is_ended(self) -> bool:
        return not self.received and self.socket.recv(1) == b""

    def receive(self) -> None:
        try:
            data = self.socket.recv(65536)
        except (ssl.SSLEOFError, ConnectionError) as error:
            raise BrokenError from error
        if not data:
            raise BrokenError
        self.received += data


class _Http1Download(Download):
    def __init__(self, connection: _Http1, method: str) -> None:
        self._connection = connection
        self._method = method

    def _head_bytes(self) -> int:
        """The size of the head, once it is there."""
        while (end := self._connection.received.find(b"\r\n\r\n")) < 0:
            self._connection.receive()
        return end + 4

    def read(self, count: int) -> bytes:
        begin = self._head_bytes()
        while len(self._connection.received) < begin + count:
            self._connection.receive()
        return bytes(self._connection.received[begin:])

    def answer(self) -> Answer:
        begin = self._head_bytes()
        received = self._connection.received
        head, _ = parse(bytes(received[:begin]), head_only=True)
        if self._method != "HEAD" and head.status not in (204, 304):
            if "content-length" in head.fields:
                end = begin + int(head.fields["content-length"])
                while len(received) < end:
                    self._connection.receive()
            else:
                assert head.fields["transfer-encoding"] == "chunked"
                while not received.endswith(b"\r\n0\r\n\r\n", begin - 2):
                    self._connection.receive()
        answer, rest = parse(bytes(received), head_only=self._method == "HEAD")
        self._connection.take(len(received) - len(rest))
        return answer


class _Http2(Conversation):
    def __init__(self, connection: socket.socket, scheme: str) -> None:
        self.socket = connection
        # As browsers: a large one needs fewer round trips.
        self.client = Http2Client(connection, scheme=scheme, renewed=1 << 20)

    @property
    def received_bytes(self) -> int:
        return self.client.received_bytes

    def begin(
        self, target: str, *fields: str, method: str = "GET", host: str = "localhost", body: bytes = b""
    ) -> Download:
        if target.startswith(("https://", "http://")):
            host, slash, path = target.partition("://")[2].partition("/")
            target = slash + path or "/"
        encoded: list[HeaderField] = []
        for line in fields:
            name, _, value = line.encode("latin-1").partition(b":")
            encoded.append((name.lower(), value.strip(b" \t")))
        if body:
            encoded.append((b"content-length", b"%d" % len(body)))
        stream_id = self.client.ask(target.encode("latin-1"), *encoded, method=method, host=host, end=not body)
        while body:
            count = min(len(body), self.client.http.local_flow_control_window(stream_id), 16_384)
            if count:
                self.client.http.send_data(stream_id, body[:count], end_stream=count == len(body))
                self.client.flush()
                body = body[count:]
            else:
                assert self.client.receive(), "the connection ended"
        return _Http2Download(self.client, stream_id)

    def is_ended(self) -> bool:
        self.client.read_to_end()
        return self.client.error == 0


class _Http2Download(Download):
    def __init__(self, client: Http2Client, stream_id: int) -> None:
        self._client = client
        self._stream = client.streams[stream_id]

    def _receive(self) -> None:
        try:
            if not self._client.receive():
                raise BrokenError
        except (ssl.SSLEOFError, ConnectionError) as error:
            raise BrokenError from error
        if self._stream.reset is not None:
            raise BrokenError

    def read(self, count: int) -> bytes:
        while len(self._stream.body) < count:
            self._receive()
        return bytes(self._stream.body)

    def answer(self) -> Answer:
        while not self._stream.ended:
            self._receive()
        return self._stream.answer()


@contextlib.contextmanager
def conversation(
    port: int,
    protocol: str,
    *,
    context: ssl.SSLContext | None = None,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
    before: bytes = b"",
) -> Iterator[Conversation]:
    """A TLS connection that speaks this protocol; `name` is the server's in the handshake, `before` a PROXY header.

    A context of the caller offers nothing but this protocol from now on.
    """
    raw = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    raw.sendall(before)
    with secured(raw, protocol, context, name=name, session=session) as client:
        yield client


@contextlib.contextmanager
def secured(
    raw: socket.socket,
    protocol: str,
    context: ssl.SSLContext | None = None,
    *,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> Iterator[Conversation]:
    """The same over a connection that is there."""
    context = context or client_context()
    if protocol == HTTP_2:
        context.set_alpn_protocols(["h2"])
    with context.wrap_socket(raw, suppress_ragged_eofs=False, session=session, server_hostname=name) as connection:
        assert connection.selected_alpn_protocol() == ("h2" if protocol == HTTP_2 else None)
        yield _Http2(connection, "https") if protocol == HTTP_2 else _Http1(connection)


@contextlib.contextmanager
def plain_conversation(place: int | str, protocol: str, *, before: bytes = b"") -> Iterator[Conversation]:
    """A connection without TLS, to a port or a Unix socket; `before` is a PROXY header."""
    with connect_plain(place) as connection:
        connection.sendall(before)
        yield _Http2(connection, "http") if protocol == HTTP_2 else _Http1(connection)


def ask(
    port: int,
    target: str,
    *fields: str,
    protocol: str,
    method: str = "GET",
    host: str = "localhost",
    context: ssl.SSLContext | None = None,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> Answer:
    """One request on a connection of its own, which is the last in HTTP/1.1."""
    if protocol == HTTP_1:
        return get(port, target, *fields, method=method, context=context, host=host, name=name, session=session)
    with conversation(port, protocol, context=context, name=name, session=session) as connection:
        return connection.get(target, *fields, method=method, host=host)


OF_CONNECTIONS: Final = frozenset(("connection", "date", "transfer-encoding"))
"""Fields that differ between protocols, or from one second to the next."""


def assert_alike(one: Answer, other: Answer) -> None:
    """Fail unless responses of two protocols are the same, their fields in the same order."""
    kept = [
        {name: value for name, value in answer.fields.items() if name not in OF_CONNECTIONS} for answer in (one, other)
    ]
    dates = [answer.fields.get("date") for answer in (one, other)]
    if any(date and fields.get("last-modified") == date for date, fields in zip(dates, kept, strict=True)):
        # A date in the future becomes that of the response (RFC 9110 section 8.8.2.1), or is past by then.
        for fields in kept:
            fields.update({"last-modified": "now"} if "last-modified" in fields else {})
    assert (one.status, list(kept[0].items()), one.body) == (other.status, list(kept[1].items()), other.body)


def ask_by_both(port: int, target: str, *fields: str, host: str = "localhost", name: str | None = None) -> Answer:
    """The same response by both protocols, for tests that wait too long to be run twice."""
    one, other = (ask(port, target, *fields, protocol=each, host=host, name=name) for each in PROTOCOLS)
    assert_alike(one, other)
    return one
