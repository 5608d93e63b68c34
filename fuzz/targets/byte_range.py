"""Range fields: the parts are what a walk over every single byte says they must be.

Strategy: an input is a size, a line feed and the field. Positions are marked one by one, in the order of the ranges.
"""

from __future__ import annotations

from typing import Final

from ktlsd.http.byte_range import MOST_RANGES, PART_OVERHEAD, ByteRange, Unsatisfiable, parse_range

TOKENS: Final = (
    b"bytes=",
    b"BYTES=",
    b"0-",
    b"-1",
    b"-0",
    b"0-0",
    b"100-",
    b",",
    b", ",
    b"\t",
    b"00000000000000000000",
    b"999",
)

LARGEST: Final = 4000
"""Bytes of a representation whose bytes are marked."""

_DIGITS: Final = frozenset("0123456789")
_HUGE: Final = 10**30


def check(data: bytes) -> None:
    first, _, value = data.decode("latin-1").partition("\n")
    number = _number(first)
    if number is None or number > 2**63:
        return
    try:
        parts: tuple[ByteRange, ...] | None = parse_range(value, number)
    except Unsatisfiable:
        parts = None
    end = 0
    for part in sorted(parts or (), key=lambda part: part.offset):
        assert part.count > 0
        assert not end or part.offset - end >= PART_OVERHEAD
        end = part.end
        assert end <= number
    if number <= LARGEST:
        assert parts == expected(value, number)


def expected(value: str, size: int) -> tuple[ByteRange, ...] | None:
    """What a Range field means (RFC 9110 section 14): parts, none for the whole representation, None for 416."""
    if size == 0:
        return ()
    unit, equals, ranges = value.partition("=")
    if unit.lower() != "bytes" or not equals:
        return ()
    members = [member.strip(" \t") for member in ranges.split(",")]
    members = [member for member in members if member]
    if not members or len(members) > MOST_RANGES:
        return ()
    # Which member asked for a byte first; a byte that only fills a gap belongs to nobody.
    asker: list[int | None] = [None] * size
    for place, member in enumerate(members):
        first_text, dash, last_text = member.partition("-")
        first, last = _number(first_text), _number(last_text)
        if not dash or (first_text and first is None) or (last_text and last is None):
            return ()
        if first is None:
            if last is None:
                return ()
            start, end = max(0, size - last), size
        else:
            if last is not None and _is_less(last_text, first_text):
                return ()
            start, end = first, size if last is None else min(size, last + 1)
        for position in range(start, end):
            if asker[position] is None:
                asker[position] = place
    if all(place is None for place in asker):
        return None
    return _parts(asker)


def _parts(asker: list[int | None]) -> tuple[ByteRange, ...]:
    runs: list[tuple[int, int, int]] = []
    for position, place in enumerate(asker):
        if place is None:
            continue
        if runs and position - runs[-1][2] < PART_OVERHEAD:
            before, start, _ = runs[-1]
            runs[-1] = (min(before, place), start, position + 1)
        else:
            runs.append((place, position, position + 1))
    # One member's bytes are in one run: no two runs have the same first asker.
    return tuple(ByteRange(start, end - start) for _, start, end in sorted(runs))


def _is_less(one: str, other: str) -> bool:
    """Whether a number, of any length, is less than another."""
    one, other = one.lstrip("0"), other.lstrip("0")
    return len(one) < len(other) or (len(one) == len(other) and one < other)


def _number(text: str) -> int | None:
    if not text or not _DIGITS.issuperset(text):
        return None
    significant = text.lstrip("0") or "0"
    return _HUGE if len(significant) > 25 else int(significant)
