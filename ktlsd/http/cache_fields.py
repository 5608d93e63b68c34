"""Fields for caches of responses with restricted access (RFC 9111). Pure.

Strategy: the directives of the site's rules stay, but for permissions to shared caches.
"""

from __future__ import annotations

import re
from typing import Final

from ktlsd.http.fields import Fields, without
from ktlsd.http.request_fields import members
from ktlsd.http.validators import http_date, parse_http_date

_CONTROL: Final = "cache-control"
_SHARED: Final = frozenset({"public", "s-maxage", "private"})
_OF_TIME: Final = frozenset({"max-age", "immutable", "stale-while-revalidate", "stale-if-error", "no-cache"})
_EXPIRES: Final = "expires"
_SECONDS: Final = re.compile('"?([0-9]{1,10})"?')
# Shared caches obey these rather than Cache-Control (RFC 9213).
_TARGETED: Final = ("cdn-cache-control", "surrogate-control")


def directives(fields: Fields) -> list[str]:
    """The directives of Cache-Control."""
    return [member for name, value in fields if name.lower() == _CONTROL for member in members(value)]


def name_of(directive: str) -> str:
    """The name of a directive, in lower case."""
    return directive.partition("=")[0].strip().lower()


def with_control(fields: Fields, control: list[str]) -> Fields:
    """Fields with this Cache-Control."""
    return (*without(fields, {_CONTROL}), ("Cache-Control", ", ".join(control)))


def private(fields: Fields) -> Fields:
    """Fields that forbid shared caches to keep the response (sections 3.5 and 5.2.2.7)."""
    kept = [directive for directive in directives(fields) if name_of(directive) not in _SHARED]
    return with_control(without(fields, _targeted(fields)), ["private", *kept])


def never_stored(fields: Fields) -> Fields:
    """Fields that forbid all caches to keep the response."""
    return with_control(without(fields, _targeted(fields) | {_EXPIRES}), ["no-store"])


def _targeted(fields: Fields) -> set[str]:
    """The lower-case names of fields for shared caches only."""
    return {name.lower() for name, _ in fields if name.lower().endswith(_TARGETED)}


def ending(fields: Fields, now: float, end: float) -> Fields:
    """The same, for a response that no cache may use after `end`, in seconds since the epoch, without a question.

    The time is a date, since a remembered response is sent again later. Without a lifetime of the rules there is none.
    """
    fields = private(fields)
    until = end
    found = False
    for directive in directives(fields):
        if name_of(directive) == "max-age" and (seconds := _SECONDS.fullmatch(directive.partition("=")[2].strip())):
            until, found = min(until, now + int(seconds[1])), True
    for name, value in fields:
        if not found and name.lower() == _EXPIRES and (date := parse_http_date(value)) is not None:
            until, found = min(until, date), True
    asks = any(name_of(directive) == "no-cache" for directive in directives(fields)) or not found
    kept = [directive for directive in directives(fields) if name_of(directive) not in _OF_TIME]
    fields = with_control(without(fields, {_EXPIRES}), [*kept, *(["no-cache"] if asks else [])])
    return fields if asks else (*fields, ("Expires", http_date(until)))
