"""The session ticket keys in force at a time, and the time for a new one: pure.

Strategy: each key makes tickets for PERIOD_SECONDS from its own start on, and reads them until the last of them has
expired. It is made before it starts, so that all workers know it by then, and by the clock agree on which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from ktlsd.openssl.algorithms import TICKET_KEY_BYTES

SESSION_SECONDS: Final = 7200
"""Lifetime of a session: OpenSSL's own choice, and the one of RFC 8446 section 4.6.1 in spirit, 7 days at
most."""
PERIOD_SECONDS: Final = 8 * 3600
"""Period in which one key makes tickets; RFC 9325 section 3.4 wants keys to change daily at least."""
LEAD_SECONDS: Final = 900
"""Time before its start at which a key is made; every worker looks for one more often."""
_NAME_BYTES: Final = 16


class TicketKey(Struct, frozen=True):
    """A key and the time from which tickets are made with it (seconds since the epoch)."""

    start: int
    key: bytes

    def ends(self) -> int:
        """When the last ticket that was made with it has expired."""
        return self.start + PERIOD_SECONDS + SESSION_SECONDS


class Ring(NamedTuple):
    """The keys at one time."""

    current: bytes
    """Makes tickets."""
    others: Mapping[bytes, bytes]
    """Keys that other tickets may have been made with, by their names."""


def rotated(keys: Iterable[TicketKey], now: float, make: Callable[[int], bytes]) -> tuple[TicketKey, ...]:
    """The keys to keep, oldest first, with a new one from `make`, which is given a number of bytes, where one is due.

    There is always one that has started. Keys from a future beyond LEAD_SECONDS, which a clock that was set back leaves
    behind, are dropped.
    """
    usable = (
        key for key in keys if key.start <= now + LEAD_SECONDS and now < key.ends() and len(key.key) == TICKET_KEY_BYTES
    )
    kept = sorted(usable, key=lambda key: key.start)
    if not kept or kept[0].start > now:
        kept.insert(0, TicketKey(int(now), make(TICKET_KEY_BYTES)))
    due = kept[-1].start + PERIOD_SECONDS
    if due - LEAD_SECONDS <= now:
        kept.append(TicketKey(max(due, int(now)), make(TICKET_KEY_BYTES)))
    return tuple(kept)


def ring(keys: Iterable[TicketKey], now: float) -> Ring:
    """The result of rotated() at the time `now`."""
    keys = tuple(keys)
    current = max((key for key in keys if key.start <= now), key=lambda key: key.start)
    return Ring(current.key, {key.key[:_NAME_BYTES]: key.key for key in keys if key is not current})
