"""Validators and the conditional request header fields (RFC 9110 sections 8.8 and 13): pure.

Strategy: an entity tag is made of what changes when a file does (its metadata, or a digest of it). A request's
preconditions are weighed in the order of RFC 9110 section 13.2.2 and come out as one Verdict. A date is given and taken
as a validator only where no second version of the file can have the same, and not at all if it is a placeholder.
"""

from __future__ import annotations

import datetime
import enum
import math
import re
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Final

_ENTITY_TAG: Final = r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")'
_TAG: Final = re.compile(_ENTITY_TAG)
# Possessive repeats: a list that is no list must not be tried in every possible way.
_LIST: Final = re.compile(rf"[ \t,]*+{_ENTITY_TAG}(?:[ \t]*+,[ \t,]*+{_ENTITY_TAG})*+[ \t,]*")
_NANOSECONDS: Final = 1_000_000_000
# Seconds: the clock that dates files lags behind the one that is read here by a timer tick, at most 10 ms.
_TICK: Final = 0.1

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
# Seconds since the epoch: Nix stores, reproducible images and archives give these to every file.
_PLACEHOLDERS: Final = (0, 1)
_YEAR_1: Final = -62_135_596_800


class Verdict(enum.Enum):
    """The outcome of the preconditions of a GET or HEAD."""

    PROCEED = enum.auto()
    NOT_MODIFIED = enum.auto()
    PRECONDITION_FAILED = enum.auto()


def entity_tag(mtime_ns: int, size: int, inode: int, ctime_ns: int) -> str:
    """A strong entity tag that every rewrite and every rename over the file changes.

    No program can set a ctime, and a freed inode number is given to the next file at once (inode(7)): if size and mtime
    are those of the former file too, only the ctime differs.
    """
    return f'"{mtime_ns:x}-{size:x}-{inode:x}-{ctime_ns:x}"'


def size_mtime_tag(mtime_ns: int, size: int) -> str:
    """A strong entity tag that copies with the same mtime share, such as those on several machines.

    Only for a mtime that is_dated() accepts: with a placeholder, versions would differ only in their size.
    """
    return f'"{mtime_ns:x}-{size:x}"'


def content_tag(digest: bytes) -> str:
    """A strong entity tag that changes only with the content, made from its cryptographic digest."""
    return f'"{digest.hex()}"'


def coded_tag(tag: str, coding: str) -> str:
    """The tag of a representation in this content coding: each has to have its own (RFC 9110 section 8.8.3.3)."""
    return f'{tag[:-1]}-{coding}"'


def is_dated(mtime_ns: int) -> bool:
    """True if this mtime, in nanoseconds since the epoch, is the time of a change.

    Second 0 and second 1 are placeholders. As a Last-Modified they would have caches keep the file for years (RFC 9111
    section 4.2.2).
    """
    return mtime_ns // _NANOSECONDS not in _PLACEHOLDERS


def http_date(seconds: float) -> str:
    """IMF-fixdate (RFC 9110 section 5.6.7) of seconds since the epoch, at least that of year 1."""
    return _http_date(max(_YEAR_1, int(seconds)))


# Many files have the same second, as those of one deployment.
@lru_cache(maxsize=1024)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def parse_http_date(value: str) -> int | None:
    """Seconds since the epoch of a date in any of the three forms of RFC 9110 section 5.6.7; None when it is none."""
    if not value:
        return None
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
    """Weigh the preconditions of a GET or HEAD for a representation (RFC 9110 section 13.2.2).

    `fields` has lower-case names, repeated fields joined with ", ". Without a date of the file, a condition on dates is
    ignored (sections 13.1.3 and 13.1.4).
    """
    dated, modified = is_dated(mtime_ns), mtime_ns // _NANOSECONDS
    if (wanted := fields.get("if-match")) is not None:
        if not _matches(wanted, tag, weak=False):
            return Verdict.PRECONDITION_FAILED
    elif dated and (since := parse_http_date(fields.get("if-unmodified-since", ""))) is not None and modified > since:
        return Verdict.PRECONDITION_FAILED
    if (known := fields.get("if-none-match")) is not None:
        return Verdict.NOT_MODIFIED if _matches(known, tag, weak=True) else Verdict.PROCEED
    if dated and (since := parse_http_date(fields.get("if-modified-since", ""))) is not None and modified <= since:
        return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def last_modified(mtime_ns: int, now: float) -> str | None:
    """The Last-Modified to send at `now`, in seconds since the epoch; None if the file has no date.

    It is no later than Date (RFC 9110 section 8.8.2.1): clocks and files can disagree.
    """
    second = mtime_ns // _NANOSECONDS
    if _PLACEHOLDERS[-1] < second <= now:
        return _http_date(second)
    return http_date(min(second, now)) if is_dated(mtime_ns) else None


def range_applies(if_range: str | None, tag: str, mtime_ns: int, now: float) -> bool:
    """Whether a Range may be honoured: If-Range names this very representation (RFC 9110 section 13.1.5).

    A weak tag never does. A date does when it is the Last-Modified, to the character, of a second that is over at
    `now`, in seconds since the epoch: only then is it a strong validator (section 8.8.2.2).
    """
    if if_range is None or if_range == tag:
        return True
    modified = mtime_ns // _NANOSECONDS
    return is_dated(mtime_ns) and modified <= _second_before(now) and if_range == http_date(modified)


def _second_before(now: float) -> int:
    """The last second that is over for files too."""
    return math.floor(now - _TICK) - 1


def _matches(value: str, tag: str, *, weak: bool) -> bool:
    if value.strip(" \t") == "*":
        return True
    if not _LIST.fullmatch(value):
        return False
    return any(opaque == tag and (weak or not weakness) for weakness, opaque in _TAG.findall(value))
