"""Where to cut an input in two, to see that what is read of its beginning is never wrong: pure.

Strategy: all places of a short input; of a long one its first, some that are spread, and those around its joints.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_ALL: Final = 48
_SPREAD: Final = 24


def cuts(length: int, *more: int) -> Iterable[int]:
    """Lengths of beginnings in rising order: all of a short input, some of a long one, and those around `more`."""
    ends = set(range(min(length, _ALL)))
    ends.update(range(_ALL, length, max(1, length // _SPREAD)))
    for place in more:
        ends.update((place - 1, place, place + 1))
    return sorted(end for end in ends if 0 <= end <= length)
