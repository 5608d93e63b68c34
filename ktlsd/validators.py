"""Validators and the conditional request header fields (RFC 9110 sections 8.8 and 13): pure.

Strategy: the entity tag is made of what changes when a file does (nanosecond mtime, size, inode). A request's
preconditions are weighed in the order of RFC 9110 section 13.2.2 and come out as one Verdict.
"""

from __future__ import annotations

import calendar
import enum
import re
from collections.abc import Mapping
from email.utils import formatdate, parsedate
from typing import Final

_TAG: Final = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_LIST: Final = re.compile(rf"[ \t,]*{_TAG.pattern}[ \t]*(?:,[ \t,]*(?:{_TAG.pattern}[ \t]*)?)*")
_NANOSECONDS: Final = 1_000_000_000


class Verdict(enum.Enum):
    """What the preconditions say to do with a GET or HEAD."""

    PROCEED = enum.auto()
    NOT_MODIFIED = enum.auto()
    PRECONDITION_FAILED = enum.auto()


def entity_tag(mtime_ns: int, size: int, inode: int) -> str:
    """A strong entity tag that a rewrite within the same second, or a rename over the file, changes too."""
    return f'"{mtime_ns:x}-{size:x}-{inode:x}"'


def http_date(seconds: float) -> str:
    """IMF-fixdate (RFC 9110 section 5.6.7) of seconds since the epoch."""
    return formatdate(int(seconds), usegmt=True)


def parse_http_date(value: str) -> int | None:
    """Seconds since the epoch of a date in any of the three forms of RFC 9110 section 5.6.7; None when it is none."""
    parsed = parsedate(value)
    if parsed is None:
        return None
    try:
        return calendar.timegm(parsed)
    except (ValueError, OverflowError):
        return None


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
