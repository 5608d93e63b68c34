"""Limits of one HTTP/2 connection: pure.

Strategy: numbers with defaults that every browser, curl and h2load stay far below.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

BURST_SECONDS: Final = 20
"""Size of the token buckets, in seconds' worth of frames."""


class Http2Limits(Struct, frozen=True):
    """Limits of each connection."""

    concurrent_streams: int = 128
    """Requests at one time: SETTINGS_MAX_CONCURRENT_STREAMS. A request beyond it is refused."""
    header_list_bytes: int = 65536
    """Of a request's fields, each with 32 bytes more: SETTINGS_MAX_HEADER_LIST_SIZE. Beyond it is a HeadTooLarge."""
    header_block_bytes: int = 65536
    """Of a request's fields as they come, in several frames. Beyond it the connection ends."""
    continuations: int = 8
    """CONTINUATION frames of one header block."""
    resets_per_second: float = 20
    """Streams that a client may reset, or make the server reset; BURST_SECONDS' worth at once (credit.py)."""
    overhead_frames_per_second: float = 40
    """Frames that carry nothing forward; BURST_SECONDS' worth at once (credit.py)."""
