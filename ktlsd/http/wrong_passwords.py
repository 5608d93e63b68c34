"""Wrong passwords by client network: when another may be verified, and which network comes first in a queue. Pure.

Strategy: a password counts before it is verified, so that a burst counts too, and no longer if it was not wrong. The
rank of a network has a longer memory than its limit, and includes the wider network: one attacker may have all of that.
Callers pass times, in seconds of any clock.
"""

from __future__ import annotations

from typing import Final

from ktlsd.config.limits import TokenBuckets
from ktlsd.config.options import LimitOptions

FORGOTTEN_SECONDS: Final = 600.0
"""Time after which one wrong password of a network no longer counts for its rank."""
FORGOTTEN_AROUND_SECONDS: Final = 60.0
"""The same of a wider network."""

_MINUTE: Final = 60.0
_AROUND_IPV4: Final = 24
_AROUND_IPV6: Final = 48
"""Prefix lengths of wider networks."""
_MOST_COUNTED: Final = 100
"""Wrong passwords of one network, and of one wider network, that count for a rank."""


class WrongPasswords:
    """The counts of one process. A network is a number by limits.network_of()."""

    def __init__(self, limits: LimitOptions) -> None:
        most = limits.client_wrong_passwords_per_minute
        self._by_minute = TokenBuckets(most / _MINUTE, most) if most else None
        # Their size is of no account: only what was taken is asked for.
        self._lately = TokenBuckets(1 / FORGOTTEN_SECONDS)
        self._around = TokenBuckets(1 / FORGOTTEN_AROUND_SECONDS)
        self._wider_ipv4 = max(0, limits.client_ipv4_prefix - _AROUND_IPV4)
        self._wider_ipv6 = max(0, limits.client_ipv6_prefix - _AROUND_IPV6)

    def wait(self, network: int, now: float) -> float:
        """Seconds until another password of a network may be verified; 0 if it may be now."""
        return 0.0 if self._by_minute is None else self._by_minute.wait(network, now)

    def rank(self, network: int, now: float) -> float:
        """The place of a network among others: the fewer wrong passwords lately, the lower."""
        return self._lately.spent(network, now) + self._around.spent(self._wider(network), now)

    def count(self, network: int, now: float) -> None:
        """Count a password that is to be verified."""
        if self._by_minute is not None:
            self._by_minute.take(network, now)
        for buckets, place in ((self._lately, network), (self._around, self._wider(network))):
            if buckets.spent(place, now) < _MOST_COUNTED:
                buckets.take(place, now)

    def forgive(self, network: int) -> None:
        """Count one less: a password was not wrong, or was not verified."""
        if self._by_minute is not None:
            self._by_minute.put_back(network)
        self._lately.put_back(network)
        self._around.put_back(self._wider(network))

    def _wider(self, network: int) -> int:
        # Those of IPv6 are negative.
        return network >> (self._wider_ipv6 if network < 0 else self._wider_ipv4)
