"""A header block that comes in several frames (RFC 9113 section 4.3): pure.

Strategy: fragments are joined as they come; their number and size are bounded (CVE-2024-27316).
"""

from __future__ import annotations

from ktlsd.http2.errors import ConnectionFault, ErrorCode, Exceeded
from ktlsd.http2.limits import Http2Limits


class HeaderBlock:
    """A block whose end has not come."""

    __slots__ = ("_continuations", "_limits", "data", "flags", "self_dependent", "stream_id")

    def __init__(
        self, stream_id: int, flags: int, fragment: bytes, limits: Http2Limits, *, self_dependent: bool
    ) -> None:
        """`flags` are those of the HEADERS frame."""
        self.stream_id = stream_id
        self.flags = flags
        self.data = fragment
        self.self_dependent = self_dependent
        """Whether the stream depends on itself."""
        self._limits = limits
        self._continuations = 0

    def add(self, fragment: bytes) -> None:
        """Take the payload of a CONTINUATION frame. Raises ConnectionFault."""
        self._continuations += 1
        code, limits = ErrorCode.ENHANCE_YOUR_CALM, self._limits
        if self._continuations > limits.continuations:
            raise ConnectionFault(code, f"more than {limits.continuations} CONTINUATION frames", Exceeded.CONTINUATIONS)
        if len(self.data) + len(fragment) > limits.header_block_bytes:
            reason = f"a header block of more than {limits.header_block_bytes} bytes"
            raise ConnectionFault(code, reason, Exceeded.HEADER_BLOCK)
        self.data += fragment
