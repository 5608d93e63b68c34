"""How long a cache may keep a file: times such as "7d", from the response or from the file's last change on. Pure.

Strategy: a lifetime from the response on is a max-age, one from the last change on a date (Expires). Neither changes
while the file does not, so that a response may be remembered.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MOST_SECONDS: Final = (1 << 31) - 1
"""What every cache can count (RFC 9111 section 1.2.2)."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_PART: Final = re.compile("([0-9]+)([smhdwy])")
_AFTER_CHANGE: Final = "modified+"


class Lifetime(NamedTuple):
    """A lifetime of a file in caches."""

    seconds: int
    after_change: bool
    """Whether it counts from the file's last change on, not from the response on."""


def parse_lifetime(text: str) -> Lifetime:
    """Read a Lifetime of values.py. Raises ValueError if it is too long."""
    seconds = seconds_of(text.removeprefix(_AFTER_CHANGE))
    if seconds > MOST_SECONDS:
        raise ValueError(f"{text} is more than {MOST_SECONDS} seconds")
    return Lifetime(seconds, text.startswith(_AFTER_CHANGE))


def seconds_of(text: str) -> int:
    """The seconds of a time such as "7d" or "1h30m"."""
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
