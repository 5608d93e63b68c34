"""The measure against overhead frames: rapid reset, MadeYouReset, floods of PING, SETTINGS, empty DATA: pure.

Strategy: two token buckets for each connection, each stored as one number (GCRA, ITU-T I.371): one for frames that
carry nothing forward, one for streams that are reset. A stream that the client makes the server reset costs more than
one that it resets itself (CVE-2023-44487, CVE-2025-8671). Responses that were sent to their end give something back, so
that a client with many requests can have many such frames.
"""

from __future__ import annotations

from typing import Final

from ktlsd.http2.errors import ConnectionFault, ErrorCode, Exceeded
from ktlsd.http2.limits import BURST_SECONDS, Http2Limits

FRAME: Final = 1.0
"""The price of an overhead frame."""
USEFUL_FRAME: Final = 0.05
"""The price of a frame that has a use, but that a client could send without end."""
SETTING: Final = 0.1
"""The price of each entry in a SETTINGS frame."""
LARGE_HEAD: Final = 10.0
"""The price of a head beyond its limit, in overhead frames."""

RESET: Final = 1.0
"""The price of a stream that the client resets."""
REFUSAL: Final = 2.0
"""The price of a request beyond the limit of concurrent streams: a client may not know the limit yet."""
STREAM_ERROR: Final = 4.0
"""The price of a stream that the server has to reset, in resets."""

RESPONSE: Final = 1.0
"""Overhead frames and resets that a whole response allows."""

SMALL_DATA: Final = 256
"""Bytes: a DATA frame with less that is not the last is overhead."""
SMALL_INCREMENT: Final = 1024
"""Bytes: a WINDOW_UPDATE by less is overhead."""
_SENT_BYTE: Final = 2 * USEFUL_FRAME / SMALL_INCREMENT
"""Overhead frames that each byte of a response allows: a WINDOW_UPDATE for the stream, and one for the connection."""


class Credit:
    """One connection's."""

    __slots__ = ("_frames_full_at", "_limits", "_resets_full_at", "now", "responses")

    def __init__(self, limits: Http2Limits, now: float) -> None:
        self._limits = limits
        # The times at which the buckets are full again.
        self._frames_full_at = self._resets_full_at = now
        self.now = now
        """Seconds on any clock that never goes back: when the frames came that are being read."""
        self.responses = 0
        """Responses that were sent to their end and have given nothing back yet: the sender counts them."""

    def spend(self, price: float, reason: str) -> None:
        """Pay for an overhead frame; `reason` names the kind. Raises ConnectionFault."""
        self._earn()
        full_at = max(self._frames_full_at, self.now) + price / self._limits.overhead_frames_per_second
        if full_at - self.now > BURST_SECONDS:
            raise _fault(f"too many overhead frames, the last of them: {reason}", Exceeded.OVERHEAD_FRAMES)
        self._frames_full_at = full_at

    def spend_reset(self, price: float, reason: str) -> None:
        """Pay for a stream that is reset. Raises ConnectionFault."""
        self._earn()
        full_at = max(self._resets_full_at, self.now) + price / self._limits.resets_per_second
        if full_at - self.now > BURST_SECONDS:
            raise _fault(f"too many resets of streams, the last of them: {reason}", Exceeded.RESETS)
        self._resets_full_at = full_at

    def _earn(self) -> None:
        """Give back for the responses."""
        self._frames_full_at -= self.responses * RESPONSE / self._limits.overhead_frames_per_second
        self._resets_full_at -= self.responses * RESPONSE / self._limits.resets_per_second
        self.responses = 0

    def earn_bytes(self, count: int) -> None:
        """Bytes of a response were sent: the client has to renew its windows."""
        self._frames_full_at -= count * _SENT_BYTE / self._limits.overhead_frames_per_second


def _fault(reason: str, exceeded: Exceeded) -> ConnectionFault:
    return ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, reason, exceeded)
