"""The Range and If-Range header fields (RFC 9110 section 14): pure.

Strategy: one range of bytes is understood. Anything else that the RFC lets a server ignore (another unit, a malformed
or multiple range) is ignored, and the whole representation goes out; a range that starts past the end is refused with
416.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_BYTES: Final = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
# Longer than any file: int() would refuse thousands of digits, and a request head has room for them.
_DIGITS: Final = 19


class Unsatisfiable(Exception):
    """No byte of the representation is in the range (416)."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`count` bytes from `offset`."""

    offset: int
    count: int

    def content_range(self, size: int) -> str:
        """The Content-Range of this part of `size` bytes (RFC 9110 section 14.4)."""
        return f"bytes {self.offset}-{self.offset + self.count - 1}/{size}"


def parse_range(value: str, size: int) -> ByteRange | None:
    """The part of `size` bytes that a Range field asks for; None when the field is to be ignored.

    Raises Unsatisfiable (RFC 9110 section 14.1.2).
    """
    match = _BYTES.fullmatch(value)
    if match is None:
        return None
    first, last = (_number(digits) for digits in match.groups())
    if first is None:
        if last is None:
            return None
        if last == 0:
            raise Unsatisfiable
        count = min(last, size)
        return ByteRange(size - count, count) if count else None
    if last is not None and last < first:
        return None
    if first >= size:
        raise Unsatisfiable
    end = size - 1 if last is None else min(last, size - 1)
    return ByteRange(first, end - first + 1)


def _number(digits: str) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0")
    return 10**_DIGITS if len(significant) > _DIGITS else int(significant or "0")
