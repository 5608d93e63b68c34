"""Response header fields as a tuple of (name, value): replacing, dropping and merging them: pure.

Strategy: names are compared without case, order is kept, and a Vary is one field however many have a say in it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

Fields = tuple[tuple[str, str], ...]

_VARY: Final = "vary"


def without(fields: Fields, names: Collection[str]) -> Fields:
    """`fields` but for those of the given names, which are in lower case."""
    return tuple(field for field in fields if field[0].lower() not in names)


def merge(fields: Fields, news: Fields) -> Fields:
    """`fields` with all of `news`, which take the place of what had their names; a Vary is merged instead."""
    varies = [value for name, value in news if name.lower() == _VARY]
    others = tuple(field for field in news if field[0].lower() != _VARY)
    return add_vary(without(fields, {name.lower() for name, _ in others}) + others, *varies)


def add_vary(fields: Fields, *names: str) -> Fields:
    """`fields` with a single Vary that has what they had and `names` (RFC 9110 section 12.5.5).

    Each of `names` is a request field's name, a list of such, or "*", which covers all.
    """
    values = [value for name, value in fields if name.lower() == _VARY]
    members: dict[str, str] = {}
    for member in ",".join((*values, *names)).split(","):
        if stripped := member.strip():
            members.setdefault(stripped.lower(), stripped)
    if not members:
        return fields
    merged = ("Vary", "*" if "*" in members else ", ".join(members.values()))
    return fields if (*values,) == merged[1:] else (*without(fields, {_VARY}), merged)
