"""Each request's progress, recorded for the access log.

Strategy: a RequestLog accompanies a connection; the protocol says when a request begins, what it asks for and what is
answered, and a line follows at the end, however that comes. What a head says is put into words once and can be kept
with a remembered response.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Final, Protocol

from ktlsd.config.values import Listen
from ktlsd.http.forwarded import Origin
from ktlsd.http.request_head import RequestHead
from ktlsd.http.signed_links import without_signatures
from ktlsd.logs.access_log import Asked, Channel, Format, Fragment, Outcome
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
        self.lines = lines
        self._ids = _request_ids()
        self.nothing = self.note(Asked())

    def note(self, asked: Asked) -> Fragment:
        """The part of a line that is known before anything is sent."""
        return self.form.of_request(asked)

    def new_id(self) -> str:
        """The id of a request whose response shows it."""
        return next(self._ids)

    def of_connection(self, channel: Channel, transport: Sending) -> RequestLog:
        return RequestLog(self, channel, transport)


class RequestLog:
    """The requests of one connection, one after the other."""

    __slots__ = (
        *("_began", "_channel", "_form", "_fragment", "_head_size", "_id", "_log", "_own", "_sent"),
        *("_status", "_transport", "_user", "noted"),
    )

    def __init__(self, log: AccessLog, channel: Channel, transport: Sending) -> None:
        self._log = log
        self._form = form = log.form
        self._channel = channel
        self._own = self._fragment = form.of_channel(channel)
        self._id: str | None = None
        self._transport = transport

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """A request that has begun to arrive, and its response; no line if the client disconnects instead."""
        self.begin()
        try:
            yield
        finally:
            if self.noted is not self._log.nothing:
                self.end(complete=False)

    def begin(self) -> None:
        """A request has begun to arrive."""
        self._began = time.monotonic()
        self._sent = self._transport.sent
        self._head_size = 0
        self._status: int | None = None
        self._fragment, self._id = self._own, None
        self._user: bytes | None = None
        self.noted = self._log.nothing

    def asked(self, request: RequestHead) -> None:
        """This is the request."""
        noted = request.noted
        if noted is None or request.noted_by is not self._form:
            get = request.of_fields.values.get
            target, referer = without_signatures(request.target), get(b"referer")
            host, agent, referer = get(b"host"), get(b"user-agent"), referer and without_signatures(referer)
            noted = self._log.note(Asked(request.method, target, request.http_version, host, referer, agent))
            request.noted, request.noted_by = noted, self._form
        self.noted = noted

    def forget(self) -> None:
        """The request that has begun is answered elsewhere, from its beginning."""
        self.noted = self._log.nothing

    def came_from(self, origin: Origin) -> None:
        """The origin of this request, from a trusted proxy."""
        self._id = origin.request_id
        channel = self._channel
        here = str(Listen(channel.address, channel.port)) if channel.port is not None else channel.address
        if origin.address != here:
            self._fragment = self._form.of_channel(channel._replace(address=origin.address, port=None, via=here))

    def request_id(self) -> str:
        """The id that the line of this request will have."""
        if self._id is None:
            self._id = self._log.new_id()
        return self._id

    def came_as(self, user: bytes | None) -> None:
        """The name that came with a password."""
        self._user = user

    def received(self, head: bytes) -> None:
        """The received bytes are no request."""
        line = head.partition(b"\n")[0].removesuffix(b"\r")[:LONGEST_RECEIVED]
        self.noted = self._log.note(Asked(received=line))

    def answered(self, status: int, head_size: int) -> None:
        """This is the response; `head_size` is that of its head in bytes."""
        self._status = status
        self._head_size = head_size

    def end(self, *, complete: bool) -> None:
        """Nothing more will be sent for this request; `complete` if the whole response was."""
        log, ended = self._log, time.monotonic()
        sent, seconds = self._transport.sent - self._sent - self._head_size, ended - self._began
        at = time.time() - seconds
        outcome = Outcome(
            at, self._id or log.new_id(), self._status, sent if sent > 0 else 0, seconds, complete, self._user
        )
        log.lines.add(self._form.line(self._fragment, self.noted, outcome))
        self.noted = log.nothing


def _request_ids() -> Iterator[str]:
    """Random numbers of 128 bits in hexadecimal, from the kernel many at a time."""
    while True:
        digits = os.urandom(_ID_SIZE * _IDS_AT_ONCE).hex()
        for start in range(0, len(digits), 2 * _ID_SIZE):
            yield digits[start : start + 2 * _ID_SIZE]
