"""Preconditions: the verdict is the one of a second reading of RFC 9110 section 13.2.2.

Strategy: an input is a line with the entity tag and the time of the file, and lines of fields. Dates are read by their
columns, lists of tags one character at a time.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from typing import Final

from ktlsd.http.validators import Verdict, http_date, last_modified, parse_http_date, range_applies, verdict

TOKENS: Final = (
    b"if-match: ",
    b"if-none-match: ",
    b"if-modified-since: ",
    b"if-unmodified-since: ",
    b"if-range: ",
    b'"a"',
    b'W/"a"',
    b"*",
    b", ",
    b"Sun, 06 Nov 1994 08:49:37 GMT",
    b"Sunday, 06-Nov-94 08:49:37 GMT",
    b"Sun Nov  6 08:49:37 1994",
    b":60",
    b"29 Feb",
    b"0000",
)

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SHORT_DAYS: Final = tuple(day[:3] for day in _DAYS)
_ETAGC: Final = frozenset(chr(code) for code in range(0x21, 0x100) if code not in (0x22, 0x7F))
_NANOSECONDS: Final = 1_000_000_000


def fields_of(text: str) -> dict[str, str]:
    """Lines of `name: value` as decide() takes them: names in lower case, what is repeated joined."""
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.lower(), value.strip(" \t")
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def check(data: bytes) -> None:
    first, _, rest = data.decode("latin-1").partition("\n")
    tag, _, seconds = first.partition(" ")
    if not seconds.isascii() or not seconds.isdigit() or len(seconds) > 11 or not is_strong(tag):
        return
    mtime_ns = int(seconds) * _NANOSECONDS + 123_456_789
    if int(seconds) > 250_000_000_000:
        return
    fields = fields_of(rest)
    assert verdict(fields, tag, mtime_ns) is expected(fields, tag, mtime_ns)
    now = int(seconds) + 10.5
    assert parse_http_date(http_date(now)) == int(now)
    # Second 0 and second 1 are placeholders.
    date = http_date(int(seconds)) if int(seconds) > 1 else None
    assert last_modified(mtime_ns, now) == date
    if_range = fields.get("if-range")
    applies = range_applies(if_range, tag, mtime_ns, now)
    assert applies == (if_range in (None, tag, date))
    # A date of a second that goes on may be that of two versions.
    young = range_applies(if_range, tag, mtime_ns, int(seconds) + 0.9)
    assert young == (if_range in (None, tag))
    for value in fields.values():
        assert parse_http_date(value) == seconds_of(value)


def is_strong(tag: str) -> bool:
    return len(tag) > 1 and tag[0] == tag[-1] == '"' and _ETAGC.issuperset(tag[1:-1])


def expected(fields: Mapping[str, str], tag: str, mtime_ns: int) -> Verdict:
    """RFC 9110 section 13.2.2, in its own order."""
    modified = mtime_ns // _NANOSECONDS
    dates = set() if modified in (0, 1) else {"if-unmodified-since", "if-modified-since"} & fields.keys()
    step = 1
    if "if-match" in fields:
        if not _names(fields["if-match"], tag, weak=False):
            return Verdict.PRECONDITION_FAILED
        step = 3
    if step == 1 and "if-unmodified-since" in dates:
        date = seconds_of(fields["if-unmodified-since"])
        if date is not None and modified > date:
            return Verdict.PRECONDITION_FAILED
    if "if-none-match" in fields:
        return Verdict.NOT_MODIFIED if _names(fields["if-none-match"], tag, weak=True) else Verdict.PROCEED
    if "if-modified-since" in dates:
        date = seconds_of(fields["if-modified-since"])
        if date is not None and modified <= date:
            return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def _names(value: str, tag: str, *, weak: bool) -> bool:
    """Whether a field names this tag (RFC 9110 sections 5.6.1 and 8.8.3)."""
    if value.strip(" \t") == "*":
        return True
    tags: list[tuple[bool, str]] = []
    position, after_comma = 0, True
    while position < len(value):
        character = value[position]
        if character in " \t":
            position += 1
        elif character == ",":
            after_comma = True
            position += 1
        else:
            weakness = value.startswith("W/", position)
            position += 2 * weakness
            end = value.find('"', position + 1)
            if not after_comma or not value.startswith('"', position) or end < 0:
                return False
            if not _ETAGC.issuperset(value[position + 1 : end]):
                return False
            tags.append((weakness, value[position : end + 1]))
            position, after_comma = end + 1, False
    return any(text == tag and (weak or not weakness) for weakness, text in tags)


def seconds_of(value: str) -> int | None:
    """A date in one of the three forms of RFC 9110 section 5.6.7, by its columns."""
    day_name, comma, rest = value.partition(",")
    if comma and len(value) == 29 and day_name in _SHORT_DAYS and value[3:5] == ", " and value.endswith(" GMT"):
        if value[7] + value[11] + value[16] != "   ":
            return None
        return _seconds(value[5:7], value[8:11], value[12:16], value[17:25])
    if comma and len(rest) == 23 and day_name in _DAYS and rest[0] == " " and rest.endswith(" GMT"):
        if rest[3] + rest[7] + rest[10] != "-- " or not _is_number(rest[8:10]):
            return None
        this_year = time.gmtime().tm_year
        year = next(year for year in range(this_year + 50, this_year - 51, -1) if year % 100 == int(rest[8:10]))
        return _seconds(rest[1:3], rest[4:7], f"{year:04}", rest[11:19])
    if len(value) == 24 and value[:3] in _SHORT_DAYS and value[3] + value[7] + value[10] + value[19] == "    ":
        day = value[8:10]
        return _seconds("0" + day[1] if day[0] == " " else day, value[4:7], value[20:24], value[11:19])
    return None


def _seconds(day: str, month: str, year: str, clock: str) -> int | None:
    if clock[2] + clock[5] != "::" or month not in _MONTHS:
        return None
    texts = (day, year, clock[:2], clock[3:5], clock[6:])
    if not all(map(_is_number, texts)):
        return None
    number, full_year, hour, minute, second = map(int, texts)
    in_year = _MONTHS.index(month) + 1
    if full_year == 0 or not 1 <= number <= calendar.monthrange(full_year, in_year)[1]:
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    return calendar.timegm((full_year, in_year, number, hour, minute, second))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
