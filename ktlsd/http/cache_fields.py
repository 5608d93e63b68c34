"""Fields for caches of responses that not everybody may see (RFC 9111). Pure.

Strategy: what the site's rules say about caches stays, but for permissions to shared caches.
"""

from __future__ import annotations

from typing import Final

from ktlsd.http.fields import Fields, without
from ktlsd.http.request_fields import members

_CONTROL: Final = "cache-control"
_SHARED: Final = frozenset({"public", "s-maxage", "private"})
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
    targeted = {name.lower() for name, _ in fields if name.lower().endswith(_TARGETED)}
    return with_control(without(fields, targeted), ["private", *kept])


def never_stored(fields: Fields) -> Fields:
    """Fields that forbid all caches to keep the response."""
    targeted = {name.lower() for name, _ in fields if name.lower().endswith(_TARGETED)}
    return with_control(without(fields, targeted | {"expires"}), ["no-store"])
