"""The request heads of one connection, through h11: sans-IO.

Strategy: h11 parses. Its forgiveness is refused before, since a proxy in front may see other lines in the same bytes
(RFC 9112 sections 2.2, 5.2 and 11.2); so are heads beyond the limit.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

import h11

from ktlsd.config.limits import Limit
from ktlsd.http.decide import Response, short
from ktlsd.http.empty_lines import EmptyLines

_HEAD_END: Final = re.compile(rb"\n\r?\n")
"""The end of a head, as h11 takes it."""
_AMBIGUOUS: Final = re.compile(rb"\n(?:(?<!\r\n)|[ \t])")
LIMIT_OF: Final = {
    HTTPStatus.REQUEST_TIMEOUT: Limit.HEAD,
    HTTPStatus.REQUEST_URI_TOO_LONG: Limit.HEAD_BYTES,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: Limit.HEAD_BYTES,
}
"""The limit that a head was beyond which could not be read, by the status of the response."""


class HeadReader:
    """Received bytes in, h11's requests out."""

    __slots__ = ("_http", "_lines", "_looked_at", "_most_bytes", "head")

    def __init__(self, most_bytes: int, lines: EmptyLines) -> None:
        """`most_bytes` is the limit of a head."""
        self._most_bytes = most_bytes
        self._lines = lines
        self._http: h11.Connection | None = None
        self.head = b""
        """The bytes of the request that next_event() gave last, or of what it could not read."""
        self._looked_at = 0
        """The bytes of the current head that were looked at: one that comes byte by byte is read once."""

    @property
    def http(self) -> h11.Connection:
        # Many connections never need it.
        if self._http is None:
            self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._most_bytes)
        return self._http

    def receive(self, received: bytes) -> None:
        """Take bytes that the client sent; b"" is the end of the stream."""
        self.http.receive_data(received)

    def begins(self) -> bool:
        """Whether there are bytes of a next request; empty lines before it are removed, which h11 would refuse."""
        received = self.http.trailing_data[0]
        rest = self._lines.without_them(received)
        if len(rest) != len(received):
            # Between two requests another one of h11's connections is as good.
            self._http = None
            if rest:
                self.receive(rest)
        self._looked_at = 0
        return bool(rest)

    def next_request(self) -> h11.Request | type[h11.NEED_DATA] | None:
        """The next request; None if the stream ended instead. Raises h11.RemoteProtocolError."""
        received = self.http.trailing_data[0]
        # What is looked for is three bytes long at most.
        start = max(0, self._looked_at - 2)
        end = _HEAD_END.search(received, start)
        self.head = received[: end.end()] if end else received
        self._looked_at = len(self.head)
        if len(self.head) > self._most_bytes:
            raise h11.RemoteProtocolError(f"a head of {len(self.head)} bytes or more", error_status_hint=431)
        if _AMBIGUOUS.search(self.head, start):
            raise h11.RemoteProtocolError("a bare line feed or a folded line in the head", error_status_hint=400)
        event = self.http.next_event()
        return event if isinstance(event, h11.Request) or event is h11.NEED_DATA else None

    def refusal(self, error: h11.RemoteProtocolError, request: h11.Request | None) -> Response:
        """The response to bytes that are no HTTP/1.1: to a request with a malformed body, or to no request at all."""
        status = HTTPStatus(error.error_status_hint)
        too_large = status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE and request is None
        if too_large and b"\n" not in self.http.trailing_data[0]:
            status = HTTPStatus.REQUEST_URI_TOO_LONG
        return short(status, str(error), head=request is not None and request.method == b"HEAD", close=True)
