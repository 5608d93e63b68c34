"""The body of a request, which is read to be thrown away: sans-IO, over h11.

Strategy: h11 finds the end of the body. What it forgives in chunks is looked for once all of the body is there, since a
proxy in front may see another end (RFC 9112 sections 7.1 and 11.2). A body that is too large, or that the client keeps
back until 100 (Continue), is never read to its end: its connection must close.
"""

from __future__ import annotations

from typing import Final

import h11

LARGEST: Final = 65536
"""Bytes of a request body that are thrown away so that the connection can be kept."""

_BLANK_LINE: Final = b"\r\n\r\n"


class TooLarge(Exception):
    """The body is larger than what is thrown away; the text says so for the log."""


class RequestBody:
    """The events of h11 between a request's head and the next head."""

    def __init__(self, http: h11.Connection, request: h11.Request) -> None:
        """`request` is the event that h11 gave last."""
        self._http = http
        self._chunked, length = _framing(request)
        # Of any other body h11 overlooks nothing.
        self._seen = bytearray(http.trailing_data[0] if self._chunked else b"")
        # All received bytes count, not only the content: chunks can be nearly all framing.
        self._left = LARGEST
        self.unwanted = length > LARGEST or (http.they_are_waiting_for_100_continue and (self._chunked or length > 0))
        """True if it is not to be read: too large, or kept back until 100 (Continue)."""
        self.whole = False
        """Whether its end was found."""

    def look(self) -> None:
        """Read what h11 has of it. Raises h11.RemoteProtocolError, TooLarge."""
        while not self.whole:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._left < 0:
                    raise TooLarge(f"more than {LARGEST} bytes")
                return
            if isinstance(event, h11.EndOfMessage):
                self.whole = True
        if self._chunked:
            rest = len(self._http.trailing_data[0])
            if _is_ambiguous(self._seen[: len(self._seen) - rest]):
                raise h11.RemoteProtocolError("a bare line end around a chunk", error_status_hint=400)

    def receive(self, data: bytes) -> None:
        """Read more of it; b"" is the end of the stream. Raises h11.RemoteProtocolError, TooLarge."""
        self._left -= len(data)
        if self._chunked:
            self._seen += data
        self._http.receive_data(data)
        self.look()


def _framing(request: h11.Request) -> tuple[bool, int]:
    """Whether a body comes in chunks, as h11 accepts no other coding; and its length, where that is known."""
    length = 0
    for name, value in request.headers:
        if name == b"transfer-encoding":
            return True, 0
        if name == b"content-length":
            # h11 leaves one number of 20 digits at most.
            length = int(value)
    return False, length


def _is_ambiguous(chunked: bytes | bytearray) -> bool:
    """Whether a whole chunked body, as h11 takes it, has lines that another reader may see otherwise: h11 forgives bare
    carriage returns in chunk extensions and trailers, and bare line feeds in the trailer section."""
    position, size = 0, 1
    while size:
        end = chunked.index(b"\r\n", position)
        line = chunked[position:end]
        if b"\r" in line:
            return True
        size = int(line.partition(b";")[0], base=16)
        position = end + size + 4
    trailers = chunked[end:]
    return not trailers.endswith(_BLANK_LINE) or b"\r" in trailers.replace(b"\r\n", b"")
