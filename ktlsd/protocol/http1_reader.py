"""The requests of one connection from bytes: sans-IO.

Strategy: a whole head of a request that is nothing more is read by HeadScanner. h11 parses everything else. Its
forgiveness is refused before, since a proxy in front may see other lines in the same bytes (RFC 9112 sections 2.2, 5.2
and 11.2); so are heads beyond the limit.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

import h11

from ktlsd.config.limits import Limit
from ktlsd.http.decide import Response, short
from ktlsd.http.empty_lines import EmptyLines
from ktlsd.http.head_scanner import HeadScanner
from ktlsd.http.request_head import RequestHead, head_of
from ktlsd.protocol.request_body import RequestBody
from ktlsd.site.error_page import accept_in, for_client

BLANK_LINE: Final = b"\r\n\r\n"

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
    """Received bytes in, requests out."""

    __slots__ = ("_ended", "_http", "_lines", "_looked_at", "_most_bytes", "_received", "_scanner", "body", "head")

    def __init__(self, most_bytes: int, lines: EmptyLines, scanner: HeadScanner) -> None:
        """`most_bytes` is the limit of a head."""
        self._most_bytes = most_bytes
        self._lines = lines
        self._scanner = scanner
        self._received = b""
        self._ended = False
        """Whether the client has sent all that it will."""
        self._http: h11.Connection | None = None
        """The parser of the current request, if it needs one; it has the received bytes then."""
        self.head = b""
        """The bytes of the request that next_request() gave last, or of what it could not read."""
        self.body: RequestBody | None = None
        """Of the request that next_request() gave last; None if that is nothing but its head."""
        self._looked_at = 0
        """The bytes of the current head that were looked at: one that comes byte by byte is read once."""

    @property
    def received(self) -> bytes:
        """The bytes that were received and not read yet."""
        return self._received if self._http is None else self._http.trailing_data[0]

    def receive(self, received: bytes) -> None:
        """Take bytes that the client sent; b"" is the end of the stream."""
        if self._http is None:
            self._received += received
        else:
            self._http.receive_data(received)
        self._ended = self._ended or not received

    def begins(self) -> bool:
        """Whether there are bytes of a next request, once the one before is answered and its body read; empty lines
        before it are removed, which h11 would refuse."""
        self._received = self._lines.without_them(self.received)
        self._http = self.body = None
        self._looked_at = 0
        return bool(self._received)

    def next_request(self) -> RequestHead | type[h11.NEED_DATA] | None:
        """The next request; None if the stream ended instead. Raises h11.RemoteProtocolError."""
        if self._http is None:
            size = self._received.find(BLANK_LINE) + len(BLANK_LINE)
            if len(BLANK_LINE) <= size <= self._most_bytes:
                self.head = self._received[:size]
                request = self._scanner.scan(self.head)
                if request is not None:
                    self._received = self._received[size:]
                    return request
            self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._most_bytes)
            if self._received:
                self._http.receive_data(self._received)
            if self._ended:
                self._http.receive_data(b"")
        return self._next_from(self._http)

    def _next_from(self, http: h11.Connection) -> RequestHead | type[h11.NEED_DATA] | None:
        received = http.trailing_data[0]
        # What is looked for is three bytes long at most.
        start = max(0, self._looked_at - 2)
        end = _HEAD_END.search(received, start)
        self.head = received[: end.end()] if end else received
        self._looked_at = len(self.head)
        if len(self.head) > self._most_bytes:
            problem = f"a head of at least {len(self.head)} bytes, more than head_bytes = {self._most_bytes}"
            raise h11.RemoteProtocolError(problem, error_status_hint=431)
        if _AMBIGUOUS.search(self.head, start):
            raise h11.RemoteProtocolError("a bare line feed or a folded line in the head", error_status_hint=400)
        event = http.next_event()
        if not isinstance(event, h11.Request):
            return h11.NEED_DATA if event is h11.NEED_DATA else None
        request = self._scanner.scan(self.head)
        if request is not None:
            # It came in pieces.
            self._received, self._http = http.trailing_data[0], None
            return request
        self.body = RequestBody(http, event)
        return head_of(event.method, event.target, event.http_version, list(event.headers))

    def refusal(self, error: h11.RemoteProtocolError, request: RequestHead | None) -> Response:
        """The response to bytes that are no HTTP/1.1: to a request with a malformed body, or to no request at all."""
        status = HTTPStatus(error.error_status_hint)
        too_large = status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE and request is None
        if too_large and b"\n" not in self.received:
            status = HTTPStatus.REQUEST_URI_TOO_LONG
        is_head = request is not None and request.method == b"HEAD"
        return for_client(short(status, str(error), close=True), accept_in(self.head), is_head=is_head)
