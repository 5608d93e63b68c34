"""The sites that metrics have a label for, and their numbers: a bounded table in memory that all workers share.

Strategy: the first process gives a name the next free number before workers use it, and a name keeps its number for as
long as the service lives: counts never move to another site. So no process needs a lock.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

MOST_SITES: Final = 64
"""Sites with numbers of their own; all others have theirs together."""
OTHER: Final = "other"
"""The value of a label for unexpected values."""
NO_SITE: Final = 0
"""The number of requests that no site answers: malformed ones, and those redirected to HTTPS."""
OTHER_SITE: Final = MOST_SITES + 1
"""The number of all sites beyond the most."""
NONE: Final = "none"
_BYTES: Final = 256


class SiteNames:
    """The names so far, in memory that processes forked later share."""

    def __init__(self) -> None:
        self._first_process = os.getpid()
        self._memory = mmap.mmap(-1, MOST_SITES * _BYTES)

    def number(self, name: str) -> int:
        """The number of a site; only the first process gives a name a new one."""
        data = name.encode()
        known = self._names()
        if data in known:
            return known.index(data) + 1
        if len(known) >= MOST_SITES or len(data) >= _BYTES or os.getpid() != self._first_process:
            return OTHER_SITE
        begin = len(known) * _BYTES
        self._memory[begin : begin + len(data)] = data
        return len(known) + 1

    def labels(self) -> dict[int, str]:
        """The label of each number that is in use."""
        names = [NONE, *(name.decode() for name in self._names())]
        return {**dict(enumerate(names)), OTHER_SITE: OTHER}

    def _names(self) -> list[bytes]:
        places = range(0, MOST_SITES * _BYTES, _BYTES)
        return [name for begin in places if (name := self._memory[begin : begin + _BYTES].rstrip(b"\0"))]
