"""Empty lines before a request line, which a server ignores (RFC 9112 section 2.2): pure.

Strategy: some old clients send an extra CRLF after the body of a POST; h11 refuses it, so it is taken away before. A
bare line feed stays, and is refused: another reader of the same bytes may not take it for the end of a line.
"""

from __future__ import annotations

import re
from typing import Final, cast

HALF: Final = b"\r"
"""Half of an empty line."""

_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*+")


def from_request_line(received: bytes) -> bytes:
    """The bytes between two requests without empty lines; HALF if only the end of one is missing."""
    if not received.startswith(HALF):
        return received
    return received[cast(re.Match[bytes], _EMPTY_LINES.match(received)).end() :]


class EmptyLines:
    """The empty lines that come before the requests of one connection."""

    __slots__ = ("half",)

    def __init__(self) -> None:
        self.half = False
        """Whether the first half of an empty line was received, and nothing else of the next request."""

    def joined(self, received: bytes) -> bytes:
        """Received bytes behind those that without_them() kept back."""
        if self.half and received:
            self.half = False
            return HALF + received
        return received

    def without_them(self, received: bytes) -> bytes:
        """Received bytes from the request line on; half an empty line is kept back for joined()."""
        if not received.startswith(HALF):
            return received
        rest = from_request_line(received)
        if rest == HALF:
            self.half = True
            return b""
        return rest
