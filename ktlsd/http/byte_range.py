"""The Range header field (RFC 9110 section 14): pure.

Strategy: a set of byte ranges becomes the parts to send, in the order asked, none overlapping and none so near the next
that its own header would cost more than the gap. What the RFC lets a server ignore (another unit, a malformed or a very
long set; any set for an empty representation) is ignored, and the whole representation goes out; a set without any byte
of it is refused with 416.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

MOST_RANGES: Final = 256
"""A set of more is ignored (RFC 9110 section 17.15). zchunk's zckdl asks for 255, dnf for 127."""
PART_OVERHEAD: Final = 100
"""Bytes that a part costs beside its content: a smaller gap is sent along (RFC 9110 section 15.3.7.2)."""

_UNIT: Final = "bytes="
_RANGE: Final = re.compile(r"([0-9]*)-([0-9]*)")
# A number with more is beyond any file.
_DIGITS: Final = 19


class Unsatisfiable(Exception):
    """No byte of the representation is in the set (416)."""


class ByteRange(Struct, frozen=True):
    """`count` bytes from `offset`."""

    offset: int
    count: int

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return self.offset + self.count

    def content_range(self, size: int) -> str:
        """The Content-Range of this part of `size` bytes (RFC 9110 section 14.4)."""
        return f"bytes {self.offset}-{self.end - 1}/{size}"


def parse_range(value: str, size: int) -> tuple[ByteRange, ...]:
    """The parts of `size` bytes that a Range field asks for, in its order; empty when the field is to be ignored.

    No two parts overlap, so that together they are never more than `size`. Raises Unsatisfiable when the set is valid
    and no range of it is satisfiable (RFC 9110 sections 14.1.2 and 14.2).
    """
    # No Content-Range can describe a part of nothing, and for a cache in front that fetches slices a 416 would be the
    # answer to a client that asked for no range.
    if size == 0 or value[: len(_UNIT)].lower() != _UNIT:
        return ()
    members = [member for text in value[len(_UNIT) :].split(",") if (member := text.strip(" \t"))]
    if not 0 < len(members) <= MOST_RANGES:
        return ()
    ranges = []
    for member in members:
        part = _parse_member(member, size)
        if part is None:
            return ()
        ranges.append(part)
    satisfiable = [part for part in ranges if part.count]
    if satisfiable:
        return _coalesce(satisfiable)
    raise Unsatisfiable


def _parse_member(member: str, size: int) -> ByteRange | None:
    """One range-spec (RFC 9110 section 14.1.1), without a byte when it is not satisfiable; None for what is none."""
    match = _RANGE.fullmatch(member)
    if match is None:
        return None
    first, last = (_number(digits) for digits in match.groups())
    if first is None:
        if last is None:
            return None
        count = min(last, size)
        return ByteRange(size - count, count)
    if last is not None and last < first:
        return None
    if first >= size:
        return ByteRange(size, 0)
    end = size if last is None else min(last + 1, size)
    return ByteRange(first, end - first)


def _number(digits: str) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0") or "0"
    # int() refuses thousands of decimal digits, for which a request head has room. Beyond any file only the order of
    # numbers counts, and base 16 keeps it.
    return int(significant, 10 if len(significant) <= _DIGITS else 16)


def _coalesce(ranges: Iterable[ByteRange]) -> tuple[ByteRange, ...]:
    """Join what overlaps or nearly touches; a joined range stands where the first of its members stood."""
    joined: list[tuple[int, ByteRange]] = []
    for place, part in sorted(enumerate(ranges), key=lambda item: item[1].offset):
        if joined and part.offset - joined[-1][1].end < PART_OVERHEAD:
            first_place, before = joined[-1]
            end = max(before.end, part.end)
            joined[-1] = (min(first_place, place), ByteRange(before.offset, end - before.offset))
        else:
            joined.append((place, part))
    return tuple(part for _, part in sorted(joined, key=lambda item: item[0]))
