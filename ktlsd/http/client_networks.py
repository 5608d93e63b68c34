"""The client network of a request, by which the rates of paths count: pure.

Strategy: the address is the client's, by what trusted proxies report (forwarded.py); its prefix is that of [limits].
"""

from __future__ import annotations

from collections.abc import Iterable

from ktlsd.config.limits import network_of
from ktlsd.config.networks import Networks
from ktlsd.config.options import LimitOptions
from ktlsd.http.forwarded import Origin, address_of_origin


class ClientNetworks:
    """The client networks of one service."""

    def __init__(self, limits: LimitOptions, proxies: Iterable[str] = ()) -> None:
        """`proxies` are trusted ones, which are exempt. Raises ValueError."""
        self._limits = limits
        self._exempt = Networks((*limits.exempt_clients, *proxies))

    def of(self, origin: Origin) -> int | None:
        """The client network of a request; None if its client is exempt."""
        address = address_of_origin(origin)
        return None if address is None or self._exempt.holds(address) else network_of(address, self._limits)
