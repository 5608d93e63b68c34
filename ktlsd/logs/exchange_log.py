"""Each request's progress, recorded for the access log.

Strategy: a RequestLog accompanies a connection or a stream; the protocol says when a request begins, what it asks for
and what is answered. That is only noted, and a line is made of it at the end, however that comes. What the lines of a
connection have in common is made once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from ktlsd.config.values import Listen
from ktlsd.http.forwarded import Origin
from ktlsd.http.request_head import RequestHead
from ktlsd.logs.access_log import Asked, Channel, Format, Outcome
from ktlsd.logs.batch import LogBatch

LONGEST_RECEIVED: Final = 1024
"""Bytes that are logged of what is no request."""

_ID_SIZE: Final = 16
_IDS_AT_ONCE: Final = 256


class Sending(Protocol):
    """A transport, as far as its requests are logged."""

    sent: int
    """Bytes so far."""


class AccessLog:
    """One process's access log, in one format. Logs of several formats may share their lines."""

    def __init__(self, form: Format, lines: LogBatch) -> None:
        self.form = form
        self.add = lines.add
        self.new_id: Callable[[], bytes] = _request_ids().__next__

    def of_connection(self, channel: Channel) -> ConnectionLog:
        return ConnectionLog(self, channel)


class ConnectionLog:
    """What all lines of a connection have in common."""

    def __init__(self, log: AccessLog, channel: Channel) -> None:
        self.log = log
        self.client = log.form.of_client(channel.address)
        self.channel = log.form.of_channel(channel)
        self._facts = channel
        self._here: str | None = None
        self._behind = b""
        """The channel of requests that a proxy passes on."""

    def of_requests(self, sending: Sending) -> RequestLog:
        """The log of requests that come one after the other."""
        return RequestLog(self, sending)

    def of_origin(self, address: str) -> tuple[bytes, bytes]:
        """Client and channel of a request that came from there, as a trusted proxy says."""
        facts = self._facts
        if self._here is None:
            self._here = str(Listen(facts.address, facts.port)) if facts.port is not None else facts.address
            self._behind = self.log.form.of_channel(facts._replace(port=None, via=self._here))
        if address == self._here:
            return self.client, self.channel
        return self.log.form.of_client(address), self._behind


class RequestLog:
    """Requests that come one after the other."""

    __slots__ = (
        *("_asked", "_began", "_channel", "_client", "_connection", "_id", "_log"),
        *("_sent", "_status", "_transport", "_user"),
    )

    def __init__(self, connection: ConnectionLog, transport: Sending) -> None:
        self._connection = connection
        self._log = connection.log
        self._transport = transport
        self._asked: Asked = None

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """A request that has begun to arrive, and its response; no line if the client disconnects instead."""
        self.begin()
        try:
            yield
        finally:
            if self._asked is not None:
                self.end(complete=False)

    def begin(self, request: RequestHead | None = None) -> None:
        """A request has begun to arrive."""
        connection = self._connection
        self._began = time.monotonic()
        self._asked, self._client, self._channel = request, connection.client, connection.channel
        self._id: bytes | None = None
        self._status: int | None = None
        self._user: bytes | None = None
        self._sent = self._transport.sent

    def asked(self, request: RequestHead) -> None:
        """This is the request."""
        self._asked = request

    def forget(self) -> None:
        """The request that has begun is answered elsewhere, from its beginning."""
        self._asked = None

    def came_from(self, origin: Origin) -> None:
        """The origin of this request, from a trusted proxy."""
        self._id = None if origin.request_id is None else origin.request_id.encode("ascii")
        self._client, self._channel = self._connection.of_origin(origin.address)

    def request_id(self) -> str:
        """The id that the line of this request will have."""
        if self._id is None:
            self._id = self._log.new_id()
        return self._id.decode("ascii")

    def came_as(self, user: bytes | None) -> None:
        """The name that came with a password."""
        self._user = user

    def received(self, head: bytes) -> None:
        """The received bytes are no request."""
        self._asked = head.partition(b"\n")[0].removesuffix(b"\r")[:LONGEST_RECEIVED]

    def answered(self, status: int, head_size: int) -> None:
        """This is the response; `head_size` is that of its head in bytes."""
        self._status = status
        self._sent += head_size

    def end(self, *, complete: bool) -> None:
        """Nothing more will be sent for this request; `complete` if the whole response was."""
        log, seconds = self._log, time.monotonic() - self._began
        sent, id_ = self._transport.sent - self._sent, self._id or log.new_id()
        at = time.time() - seconds
        outcome = Outcome(at, id_, self._status, sent if sent > 0 else 0, seconds, complete, self._user)
        log.add(log.form.line(self._client, self._channel, self._asked, outcome))
        self._asked = None


def _request_ids() -> Iterator[bytes]:
    """Random numbers of 128 bits in hexadecimal, from the kernel many at a time."""
    while True:
        digits = os.urandom(_ID_SIZE * _IDS_AT_ONCE).hex().encode()
        for start in range(0, len(digits), 2 * _ID_SIZE):
            yield digits[start : start + 2 * _ID_SIZE]
