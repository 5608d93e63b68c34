"""Work that concurrent requests share: one of them does it, the others wait for its end and look for the result.

Strategy: a key is in progress while the context of doing() is open. Results are the caller's to keep: a failure leaves
none, and one of the waiting requests tries again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)


class SharedWork(Generic[K]):
    """The work in progress, by key."""

    def __init__(self) -> None:
        self._ends: dict[K, trio.Event] = {}

    def __len__(self) -> int:
        return len(self._ends)

    async def ended_elsewhere(self, key: K) -> bool:
        """Wait until another request has ended the work for a key; False if none does it."""
        end = self._ends.get(key)
        if end is None:
            return False
        await end.wait()
        return True

    @contextlib.contextmanager
    def doing(self, key: K) -> Iterator[None]:
        """Have others wait for the work of this context."""
        end = self._ends[key] = trio.Event()
        try:
            yield
        finally:
            del self._ends[key]
            end.set()
