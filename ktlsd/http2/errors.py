"""Error codes of HTTP/2, and the exception of a connection error (RFC 9113 sections 5.4 and 7): pure.

Strategy: a stream error is a RST_STREAM frame and needs no exception. A connection error ends parsing wherever it is
found, so it is an exception inside the engine; its caller gets it as an event.
"""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Exceeded(enum.Enum):
    """The limit that a peer exceeded, for metrics and the log; the value is its key in [limits]."""

    CONCURRENT_STREAMS = "http2_concurrent_streams"
    HEAD_TIME = "head_seconds"
    HEADER_LIST = "head_bytes"
    HEADER_BLOCK = "http2_header_block_bytes"
    CONTINUATIONS = "http2_continuations"
    RESETS = "http2_resets_per_second"
    OVERHEAD_FRAMES = "http2_overhead_frames_per_second"


class ConnectionFault(Exception):
    """A connection error; the text is the reason for the log."""

    def __init__(self, code: ErrorCode, reason: str, exceeded: Exceeded | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.exceeded = exceeded
