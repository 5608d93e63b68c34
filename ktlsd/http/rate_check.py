"""Requests a second and responses in progress of a client network, by path: 429 for more. Pure.

Strategy: a check only looks (admits(), refusal()), since a request may be decided twice: first without a wait, then in
a task. begin() counts a request, once, when its response begins, and the result keeps it in progress until the response
ends. A refused request does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final

from ktlsd.config.limits import BURST_SECONDS, Limit, TokenBuckets
from ktlsd.config.options import RateOptions
from ktlsd.http.access import Check, Visitor
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.decide import Response, short
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import Origin
from ktlsd.http.protected_paths import GuardedPaths

_RETRY_SECONDS: Final = 1.0
"""For a client with too many responses in progress: nobody knows when one of them ends."""
_REASONS: Final = {
    Limit.CLIENT_REQUESTS: "requests a second from",
    Limit.CLIENT_RESPONSES: "responses in progress for",
}


def check(rule: RateOptions) -> None:
    """Raises ValueError for a rule without effect."""
    if rule.requests_per_second is None and rule.concurrent is None:
        raise ValueError("a rate without a limit: give requests_per_second or concurrent")
    if rule.burst is not None and rule.requests_per_second is None:
        raise ValueError("burst without requests_per_second: give both, or leave burst out")


class RateCheck:
    """One [[rate]] of a site, for the clients of one process."""

    def __init__(
        self, paths: GuardedPaths, rule: RateOptions, networks: ClientNetworks, clock: Callable[[], float]
    ) -> None:
        """`clock` gives seconds that never go back."""
        self.paths = paths
        self._rule = rule
        self._networks = networks
        self._clock = clock
        rate = rule.requests_per_second
        self._buckets = None if rate is None else TokenBuckets(rate, rule.burst or max(1.0, rate * BURST_SECONDS))
        self._in_progress: dict[int, int] = {}
        """Responses by client network, where there are any."""

    @property
    def remembered(self) -> int:
        """The number of stored entries."""
        return len(self._in_progress) + len(self._buckets or ())

    def admits(self, visitor: Visitor) -> bool:
        """Whether the client network may have one more response."""
        return self._excess(visitor.origin) is None

    async def refusal(self, visitor: Visitor) -> Response | None:
        """429 for more than that."""
        return self.refused(visitor)

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        """A rate says nothing to caches."""
        return fields

    def refused(self, visitor: Visitor) -> Response | None:
        """The same, without a wait."""
        excess = self._excess(visitor.origin)
        if excess is None:
            return None
        limit, seconds = excess
        retry_after = ("Retry-After", str(math.ceil(seconds)))
        head = visitor.method == b"HEAD"
        most = getattr(self._rule, limit.value)
        reason = f"more than {most:g} {_REASONS[limit]} the client's network"
        return short(HTTPStatus.TOO_MANY_REQUESTS, reason, head=head, extra=(retry_after,), limit=limit)

    def _excess(self, origin: Origin) -> tuple[Limit, float] | None:
        """The limit that forbids one more request from there, and the seconds until it may be allowed."""
        network = self._networks.of(origin)
        if network is None:
            return None
        if self._buckets is not None and (seconds := self._buckets.wait(network, self._clock())):
            return Limit.CLIENT_REQUESTS, seconds
        most = self._rule.concurrent
        if most is not None and self._in_progress.get(network, 0) >= most:
            return Limit.CLIENT_RESPONSES, _RETRY_SECONDS
        return None

    def enter(self, origin: Origin) -> int | None:
        """Count a request whose response begins; its client network, if leave() is to be told its end."""
        network = self._networks.of(origin)
        if network is None:
            return None
        if self._buckets is not None:
            self._buckets.take(network, self._clock())
        if self._rule.concurrent is None:
            return None
        self._in_progress[network] = self._in_progress.get(network, 0) + 1
        return network

    def leave(self, network: int) -> None:
        """A response to this client network has ended."""
        left = self._in_progress[network] - 1
        if left:
            self._in_progress[network] = left
        else:
            del self._in_progress[network]


class InProgress:
    """One response, as the rates count it until its end."""

    __slots__ = ("_entered",)

    def __init__(self, entered: list[tuple[RateCheck, int]]) -> None:
        self._entered = entered

    def end(self) -> None:
        """The response has ended, however it did."""
        while self._entered:
            check, network = self._entered.pop()
            check.leave(network)


def begin(checks: Iterable[Check], origin: Origin) -> InProgress | None:
    """Count a request from there that has passed these checks, and whose response begins; None if its end does not
    matter."""
    entered = []
    for check in checks:
        if isinstance(check, RateCheck):
            network = check.enter(origin)
            if network is not None:
                entered.append((check, network))
    return InProgress(entered) if entered else None


def refused_by_now(visitor: Visitor) -> Response | None:
    """The refusal of a visitor that has passed all checks, if others were faster since then."""
    for check in visitor.passed:
        if isinstance(check, RateCheck) and (refusal := check.refused(visitor)) is not None:
            return refusal
    return None
