"""The pause before a worker that ended is replaced: pure.

Strategy: the first pause is short; each end of a worker that did not live long doubles it up to a cap, and one that
lived long makes it short again.
"""

from __future__ import annotations

from typing import Final

FIRST_SECONDS: Final = 0.1
LONGEST_SECONDS: Final = 30.0
LIVED_SECONDS: Final = 60.0
"""A worker that lived this long did not end by what made the ones before it end."""


class Backoff:
    """The pauses of one place for a worker."""

    def __init__(self) -> None:
        self._next = FIRST_SECONDS

    def pause(self, lived: float) -> float:
        """Seconds to wait after the end of a worker that lived for so many."""
        if lived >= LIVED_SECONDS:
            self._next = FIRST_SECONDS
        pause, self._next = self._next, min(2 * self._next, LONGEST_SECONDS)
        return pause
