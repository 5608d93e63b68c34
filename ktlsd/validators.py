"""Validators and the conditional request header fields (RFC 9110 sections 8.8 and 13): pure.

Strategy: the entity tag is made of what changes when a file does (nanosecond mtime, size, inode). A request's
preconditions are weighed in the order of RFC 9110 section 13.2.2 and come out as one Verdict.
"""

from __future__ import annotations

import datetime
import enum
import re
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final

_ENTITY_TAG: Final = r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")'
_TAG: Final = re.compile(_ENTITY_TAG)
# Possessive repeats: a list that is no list must not be tried in every possible way.
_LIST: Final = re.compile(rf"[ \t,]*+{_ENTITY_TAG}(?:[ \t]*+,[ \t,]*+{_ENTITY_TAG})*+[ \t,]*")
_NANOSECONDS: Final = 1_000_000_000

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
# IMF-fixdate, and the obsolete forms of RFC 850 and asctime.
_DATES: Final = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)
_LEAP_SECOND: Final = 60
_YEAR_1: Final = -62_135_596_800


class Verdict(enum.Enum):
    """What the preconditions say to do with a GET or HEAD."""

    PROCEED = enum.auto()
    NOT_MODIFIED = enum.auto()
    PRECONDITION_FAILED = enum.auto()


def entity_tag(mtime_ns: int, size: int, inode: int) -> str:
    """A strong entity tag that a rewrite within the same second, or a rename over the file, changes too."""
    return f'"{mtime_ns:x}-{size:x}-{inode:x}"'


def http_date(seconds: float) -> str:
    """IMF-fixdate (RFC 9110 section 5.6.7) of seconds since the epoch; what is older than year 1 is of year 1."""
    return formatdate(max(_YEAR_1, int(seconds)), usegmt=True)


def parse_http_date(value: str) -> int | None:
    """Seconds since the epoch of a date in any of the three forms of RFC 9110 section 5.6.7; None when it is none."""
    for form in _DATES:
        if match := form.fullmatch(value):
            break
    else:
        return None
    day, year, hour, minute, second = (int(match[name]) for name in ("day", "year", "hour", "minute", "second"))
    if len(match["year"]) == 2:
        year = _full_year(year)
    month = _MONTHS.index(match["month"]) + 1
    try:
        to_the_minute = datetime.datetime(year, month, day, hour, minute, tzinfo=datetime.UTC)
    except ValueError:
        return None
    return int(to_the_minute.timestamp()) + second if second <= _LEAP_SECOND else None


def _full_year(two_digits: int) -> int:
    """The year that ends in these digits and is at most 50 years ahead (RFC 9110 section 5.6.7)."""
    this_year = datetime.datetime.now(datetime.UTC).year
    year = this_year - this_year % 100 + two_digits
    return year - 100 if year > this_year + 50 else year


def verdict(fields: Mapping[str, str], tag: str, mtime_ns: int) -> Verdict:
    """Weigh the preconditions in `fields` (lower-case names) for a representation (RFC 9110 section 13.2.2)."""
    modified = mtime_ns // _NANOSECONDS
    if (wanted := fields.get("if-match")) is not None:
        if not _matches(wanted, tag, weak=False):
            return Verdict.PRECONDITION_FAILED
    elif (since := parse_http_date(fields.get("if-unmodified-since", ""))) is not None and modified > since:
        return Verdict.PRECONDITION_FAILED
    if (known := fields.get("if-none-match")) is not None:
        return Verdict.NOT_MODIFIED if _matches(known, tag, weak=True) else Verdict.PROCEED
    if (since := parse_http_date(fields.get("if-modified-since", ""))) is not None and modified <= since:
        return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def range_applies(if_range: str | None, tag: str, last_modified: str) -> bool:
    """Whether a Range may be honoured: If-Range names this very representation (RFC 9110 section 13.1.5).

    A date counts only when it is the Last-Modified that was sent: the comparison is exact.
    """
    return if_range is None or if_range in (tag, last_modified)


def _matches(value: str, tag: str, *, weak: bool) -> bool:
    if value.strip() == "*":
        return True
    if not _LIST.fullmatch(value):
        return False
    return any(opaque == tag and (weak or not weakness) for weakness, opaque in _TAG.findall(value))
