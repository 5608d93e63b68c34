"""What becomes of each request, told to the access log as it happens.

Strategy: a RequestLog accompanies a connection; the protocol says when a request begins, what it asks for and what is
answered, and a line follows at the end, however that comes. What a head says is put into words once and can be kept
with a remembered response.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import h11

from ktlsd.access_log import Asked, Format, Fragment, Outcome, Peer
from ktlsd.gathered_lines import GatheredLines
from ktlsd.pacing import PacedTransport

LONGEST_RECEIVED: Final = 1024
"""Bytes that are logged of what is no request."""

_ID_SIZE: Final = 16
_IDS_AT_ONCE: Final = 256
_FIELDS: Final = {b"host": "host", b"referer": "referer", b"user-agent": "user_agent"}


class Noted(NamedTuple):
    """What is logged of a request and its response before anything is sent."""

    asked: Fragment
    status: int | None


class AccessLog:
    """One process's access log."""

    def __init__(self, form: Format, lines: GatheredLines) -> None:
        self.form = form
        self.lines = lines
        self.ids = _request_ids()
        self.nothing = Noted(form.of_request(Asked()), None)

    def of_connection(self, peer: Peer, transport: PacedTransport) -> RequestLog:
        return RequestLog(self, self.form.of_peer(peer), transport)


class RequestLog:
    """The requests of one connection, one after the other."""

    __slots__ = ("_began", "_head_size", "_log", "_peer", "_sent", "_transport", "noted", "request_id")

    def __init__(self, log: AccessLog, peer: Fragment, transport: PacedTransport) -> None:
        self._log = log
        self._peer = peer
        self._transport = transport

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """A request that has begun to arrive, and its response; no line when the client leaves instead of asking."""
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
        self.request_id = next(self._log.ids)
        self.noted = self._log.nothing

    def asked(self, request: h11.Request) -> None:
        """This is the request."""
        fields = {_FIELDS[name]: value for name, value in request.headers if name in _FIELDS}
        asked = Asked(request.method, request.target, request.http_version, **fields)
        self.noted = Noted(self._log.form.of_request(asked), None)

    def received(self, head: bytes) -> None:
        """What was received is no request."""
        line = head.partition(b"\n")[0].removesuffix(b"\r")[:LONGEST_RECEIVED]
        self.noted = Noted(self._log.form.of_request(Asked(received=line)), None)

    def answered(self, status: int, head_size: int) -> None:
        """This is the response; `head_size` is that of its head in bytes."""
        self.noted = self.noted._replace(status=status)
        self._head_size = head_size

    def repeated(self, noted: Noted, head_size: int) -> None:
        """Request and response are those that were `noted` before."""
        self.noted = noted
        self._head_size = head_size

    def end(self, *, complete: bool) -> None:
        """Nothing more will be sent for this request; `complete` says whether the whole response was."""
        seconds = time.monotonic() - self._began
        sent = max(0, self._transport.sent - self._sent - self._head_size)
        asked, status = self.noted
        outcome = Outcome(time.time() - seconds, self.request_id, status, sent, seconds, complete)
        self._log.lines.add(self._log.form.line(self._peer, asked, outcome))
        self.noted = self._log.nothing


def _request_ids() -> Iterator[str]:
    """Random numbers of 128 bits in hexadecimal, from the kernel many at a time."""
    while True:
        digits = os.urandom(_ID_SIZE * _IDS_AT_ONCE).hex()
        for start in range(0, len(digits), 2 * _ID_SIZE):
            yield digits[start : start + 2 * _ID_SIZE]
