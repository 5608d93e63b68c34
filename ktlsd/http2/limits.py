"""Limits of one HTTP/2 connection: pure.

Strategy: numbers with defaults that every browser, curl and h2load stay far below.
"""

from __future__ import annotations

from msgspec import Struct


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
    credit: float = 1000
    """Frames without use (credit.py) that may come at once."""
    credit_per_second: float = 50
    """Frames without use that may come all the time."""
