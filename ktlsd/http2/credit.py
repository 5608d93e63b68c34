"""The measure against frames without use: rapid reset, MadeYouReset, floods of PING, SETTINGS, empty DATA: pure.

Strategy: a token bucket for each connection. A frame that carries nothing forward has a price; a stream that the client
makes the server reset has ten times that (CVE-2023-44487, CVE-2025-8671). Responses that were sent to their end give
something back, so that a client with many requests can have many such frames.
"""

from __future__ import annotations

from typing import Final

from ktlsd.http2.errors import ConnectionFault, ErrorCode, Exceeded
from ktlsd.http2.limits import Http2Limits

FRAME: Final = 1.0
"""The price of a frame without use."""
USEFUL_FRAME: Final = 0.05
"""The price of a frame that has a use, but that a client could send without end."""
SETTING: Final = 0.1
"""The price of each entry in a SETTINGS frame."""
REFUSAL: Final = 5.0
"""The price of a request beyond the limit of concurrent streams: a client may not know the limit yet."""
STREAM_ERROR: Final = 10.0
"""The price of a stream that this server has to reset, and of a head beyond its limit."""
RESPONSE: Final = 1.0
"""Credit for a whole response."""

SMALL_DATA: Final = 256
"""Bytes: a DATA frame with less that is not the last is without use."""
SMALL_INCREMENT: Final = 1024
"""Bytes: a WINDOW_UPDATE by less is without use."""


class Credit:
    """One connection's."""

    __slots__ = ("_at", "_most", "_per_second", "left", "now")

    def __init__(self, limits: Http2Limits, now: float) -> None:
        self._most = self.left = limits.credit
        self._per_second = limits.credit_per_second
        self._at = now
        self.now = now
        """Seconds on any clock that never goes back: when the frames came that are being read."""

    def spend(self, price: float, reason: str) -> None:
        """Pay for a frame; `reason` names the kind. Raises ConnectionFault."""
        left = min(self._most, self.left + (self.now - self._at) * self._per_second) - price
        self._at = self.now
        if left < 0:
            fault = f"too many frames without use, the last of them: {reason}"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, fault, Exceeded.CREDIT)
        self.left = left

    def earn(self) -> None:
        """A response was sent to its end."""
        self.left = min(self._most, self.left + RESPONSE)
