"""The benchmark's own TLS client, for what no tool measures: whole answers, idle connections, dropped ciphertext.

Strategy: the TLS engine works in memory over a plain socket, so that a connection can be kept without its engine and
its bytes can be counted without being decrypted. OPENSSL_CONF gives the cipher (client.cnf).
"""

from __future__ import annotations

import contextlib
import gc
import math
import select
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

CIPHER: Final = "TLS_AES_128_GCM_SHA256"
"""The one TLS 1.3 cipher that RFC 8446 section 9.1 requires of all; client.cnf offers no other."""
WAIT_SECONDS: Final = 60.0
READ_BYTES: Final = 262144


class WireError(Exception):
    """A server that does not answer as HTTP/1.x over TLS does."""


@dataclass(frozen=True)
class Answer:
    """`fields` by lower-case name; `length` is that of the body as far as it was read; `cipher` the negotiated one."""

    status: int
    fields: dict[str, str]
    length: int
    cipher: str


def context() -> ssl.SSLContext:
    """A context without verification, as the tools are configured."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


class Connection:
    """A TLS connection to a port of 127.0.0.1 whose socket stays with the caller: close() it."""

    def __init__(self, port: int, using: ssl.SSLContext, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        try:
            self.socket.settimeout(WAIT_SECONDS)
            if receive_buffer:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.connect(("127.0.0.1", port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._engine = using.wrap_bio(self._incoming, self._outgoing)
            self._handshake()
        except BaseException:
            self.socket.close()
            raise

    def _handshake(self) -> None:
        while True:
            try:
                self._engine.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())

    def _fill(self) -> None:
        if data := self.socket.recv(READ_BYTES):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    @property
    def cipher(self) -> str:
        negotiated = self._engine.cipher()
        return negotiated[0] if negotiated else ""

    def send(self, data: bytes) -> None:
        self._engine.write(data)
        self._flush()

    def receive(self) -> bytes:
        """Some decrypted bytes; b"" at the end, with close_notify or without."""
        while True:
            try:
                return self._engine.read(READ_BYTES)
            except ssl.SSLWantReadError:
                self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def has_input(self, seconds: float) -> bool:
        """Whether there is something to receive within that time; a part of a record counts."""
        return bool(self._incoming.pending or select.select([self.socket], [], [], seconds)[0])

    def close(self) -> None:
        self.socket.close()


class PlainConnection:
    """A connection to a port of 127.0.0.1 without TLS."""

    cipher = ""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> bytes:
        """Some bytes; b"" at the end."""
        return self.socket.recv(READ_BYTES)

    def close(self) -> None:
        self.socket.close()


AnyConnection = Connection | PlainConnection


def request(path: str, fields: Mapping[str, str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def exchange(connection: AnyConnection, path: str, fields: Mapping[str, str], most: float = math.inf) -> Answer:
    """One request and its answer; a body without Content-Length goes to the connection's end.

    Of a body longer than `most` bytes only the beginning is read, and the connection is of no further use.

    Raises WireError.
    """
    connection.send(request(path, fields))
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.receive()
        if not more:
            raise WireError("the connection ended before a response head")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    answered = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(status_line.split()[1])
    if answered.get("transfer-encoding") == "chunked":
        return Answer(status, answered, _chunked_length(connection, body, most), connection.cipher)
    length, expected = len(body), 0 if status == 304 else int(answered.get("content-length", -1))
    while length != expected and length <= most and (more := connection.receive()):
        length += len(more)
    if 0 <= expected != length <= most:
        raise WireError(f"{length} of {expected} bytes arrived")
    return Answer(status, answered, length, connection.cipher)


def _chunked_length(connection: AnyConnection, data: bytes, most: float) -> int:
    """The length of a chunked body (RFC 9112 section 7.1) without trailers whose first bytes are `data`."""
    total = 0
    while True:
        line, found, rest = data.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16) if found else 0
        if found and len(rest) >= size + 2:
            total, data = total + size, rest[size + 2 :]
            if size == 0 or total > most:
                return total
        elif more := connection.receive():
            data += more
        else:
            raise WireError("the connection ended in a chunked body")


def get(
    port: int, path: str, fields: Mapping[str, str] | None = None, most: float = math.inf, plain: bool = False
) -> Answer:
    """One request on a connection of its own. Raises WireError, OSError (ssl.SSLError among them)."""
    connection = PlainConnection(port) if plain else Connection(port, context())
    try:
        return exchange(connection, path, fields or {}, most)
    finally:
        connection.close()


@contextlib.contextmanager
def idle_connections(port: int, path: str, count: int) -> Iterator[None]:
    """Hold keep-alive connections that have had one response each. Raises WireError, OSError."""
    using, held = context(), []
    try:
        for _ in range(count):
            connection = Connection(port, using)
            held.append(connection.socket)  # the engine is let go: this process needs no memory for it
            exchange(connection, path, {})
        yield
    finally:
        for one in held:
            one.close()


def paced(port: int, path: str, rate: int, seconds: int) -> list[float]:
    """The seconds that each of rate * seconds requests on one connection took from the moment when it was due.

    It gives up after three times the given seconds; what was still to come is then late by as much as it is.
    Raises WireError, OSError.
    """
    connection, due = Connection(port, context()), [number / rate for number in range(rate * seconds)]
    gc.disable()
    try:
        exchange(connection, path, {})
        times: list[float] = []
        started = time.monotonic()
        for moment in due:
            if (early := started + moment - time.monotonic()) > 0:
                time.sleep(early)
            elif early < -2 * seconds:
                now = time.monotonic() - started
                return times + [now - rest for rest in due[len(times) :] if rest < now]
            exchange(connection, path, {})
            times.append(time.monotonic() - started - moment)
        return times
    finally:
        gc.enable()
        connection.close()
