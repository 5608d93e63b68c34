"""Requests a second and responses in progress of a client network, by path (429 for more), and send rates. Pure.

Strategy: a check only looks (admits(), refusal()), since a request may be decided twice: first without a wait, then in
a task. begin() counts a request, once, when its response begins, and the result keeps it in progress until the response
ends. A refused request does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import Final, NamedTuple

from ktlsd.config.limits import BURST_SECONDS, MOST_NETWORKS, Limit, TokenBuckets
from ktlsd.config.options import RateOptions
from ktlsd.http.access import Check, Excess, Visitor
from ktlsd.http.byte_rate import ByteBucket, Pace
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.decide import Response, short
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import Origin
from ktlsd.http.protected_paths import GuardedPaths

_RETRY_SECONDS: Final = 1
"""For a client with too many responses in progress: when one of them ends is not known."""
_REASONS: Final = {
    Limit.CLIENT_REQUESTS: "requests a second from",
    Limit.CLIENT_RESPONSES: "responses in progress for",
}


_BYTE_RATES: Final = ("response_bytes_per_second", "connection_bytes_per_second", "client_bytes_per_second")
_OF_LIMITS: Final = (*("requests_per_second", "concurrent"), *_BYTE_RATES)


def check(rule: RateOptions) -> None:
    """Raises ValueError for a rule without effect."""
    given = {key for key in _OF_LIMITS if getattr(rule, key) is not None}
    if not given:
        raise ValueError(f"a rate without a limit: give {', '.join(_OF_LIMITS[:-1])} or {_OF_LIMITS[-1]}")
    if rule.burst is not None and rule.requests_per_second is None:
        raise ValueError("burst without requests_per_second: give both, or leave burst out")
    if rule.bytes_at_full_speed and given.isdisjoint(_BYTE_RATES):
        raise ValueError(f"bytes_at_full_speed without a send rate: give {' or '.join(_BYTE_RATES)}")


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
        self._byte_buckets: dict[int, ByteBucket] = {}

    @property
    def remembered(self) -> int:
        """The number of stored entries."""
        return len(self._in_progress) + len(self._byte_buckets) + len(self._buckets or ())

    def admits(self, visitor: Visitor) -> bool:
        """Whether the client network may have one more response."""
        return self.excess(visitor.origin) is None

    async def refusal(self, visitor: Visitor) -> Response | None:
        """429 for more than that."""
        return self.refused(visitor)

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        """A rate says nothing to caches."""
        return fields

    def refused(self, visitor: Visitor) -> Response | None:
        """The same, without a wait."""
        excess = self.excess(visitor.origin)
        if excess is None:
            return None
        visitor.excess = excess
        limit, head = excess.limit, visitor.method == b"HEAD"
        retry_after = ("Retry-After", str(excess.seconds))
        most = getattr(self._rule, limit.value)
        reason = f"more than {most:g} {_REASONS[limit]} the client's network"
        return short(HTTPStatus.TOO_MANY_REQUESTS, reason, head=head, extra=(retry_after,), limit=limit)

    def excess(self, origin: Origin) -> Excess | None:
        """The limit that forbids one more request from there."""
        network = self._networks.of(origin)
        if network is None:
            return None
        if self._buckets is not None and (seconds := self._buckets.wait(network, self._clock())):
            return Excess(self, Limit.CLIENT_REQUESTS, math.ceil(seconds))
        most = self._rule.concurrent
        if most is not None and self._in_progress.get(network, 0) >= most:
            return Excess(self, Limit.CLIENT_RESPONSES, _RETRY_SECONDS)
        return None

    def enter(self, origin: Origin, connection: ConnectionBuckets, entered: Entered) -> None:
        """Count a request whose response begins, and give it its buckets of bytes."""
        rule, now = self._rule, self._clock()
        if rule.response_bytes_per_second is not None:
            entered.buckets.append(ByteBucket(rule.response_bytes_per_second, rule.bytes_at_full_speed, now))
        if rule.connection_bytes_per_second is not None:
            bucket = connection.get(self)
            if bucket is None:
                bucket = ByteBucket(rule.connection_bytes_per_second, rule.bytes_at_full_speed, now)
                connection[self] = bucket
            bucket.users += 1
            entered.buckets.append(bucket)
            entered.ends.append(partial(_leave_bucket, bucket))
        network = self._networks.of(origin)
        if network is None:
            return
        if self._buckets is not None:
            self._buckets.take(network, now)
        if rule.client_bytes_per_second is not None:
            bucket = self._bucket_of(network, rule.client_bytes_per_second, now)
            bucket.users += 1
            entered.buckets.append(bucket)
            entered.ends.append(partial(_leave_bucket, bucket))
        if rule.concurrent is not None:
            self._in_progress[network] = self._in_progress.get(network, 0) + 1
            entered.ends.append(partial(self._leave, network))

    def _bucket_of(self, network: int, rate: float, now: float) -> ByteBucket:
        """The bucket of a client network, ordered by the last response."""
        buckets = self._byte_buckets
        bucket = buckets.pop(network, None) or ByteBucket(rate, self._rule.bytes_at_full_speed, now)
        buckets[network] = bucket
        # Two for each that is added, as in TokenBuckets; those in use are bounded by the limit on connections.
        for oldest in list(islice(buckets, 2)):
            if oldest != network and not buckets[oldest].users:
                if now - buckets[oldest].free_at >= bucket.burst_seconds or len(buckets) > MOST_NETWORKS:
                    del buckets[oldest]
            else:
                buckets[oldest] = buckets.pop(oldest)
        return bucket

    def _leave(self, network: int) -> None:
        """A response to this client network has ended."""
        left = self._in_progress[network] - 1
        if left:
            self._in_progress[network] = left
        else:
            del self._in_progress[network]


def _leave_bucket(bucket: ByteBucket) -> None:
    bucket.users -= 1


class Entered(NamedTuple):
    """What rates have of one response."""

    buckets: list[ByteBucket]
    ends: list[Callable[[], None]]
    """To be called at its end."""


class InProgress:
    """One response, as the rates count it until its end."""

    __slots__ = ("_ends", "pace")

    def __init__(self, entered: Entered) -> None:
        self._ends = entered.ends
        self.pace = Pace(entered.buckets) if entered.buckets else None
        """None if it is sent at full speed."""

    def end(self) -> None:
        """The response has ended, however it did."""
        while self._ends:
            self._ends.pop()()


def begin(checks: Iterable[Check], origin: Origin, connection: ConnectionBuckets) -> InProgress | None:
    """Count a request from there that has passed these checks, and whose response begins; None if its end does not
    matter. `connection` are the connection's buckets."""
    entered = Entered([], [])
    for check in checks:
        if isinstance(check, RateCheck):
            check.enter(origin, connection, entered)
    return InProgress(entered) if entered.buckets or entered.ends else None


def refused_by_now(visitor: Visitor) -> Response | None:
    """The refusal of a visitor that has passed all checks, if others were faster since then."""
    for check in visitor.passed:
        if isinstance(check, RateCheck) and (refusal := check.refused(visitor)) is not None:
            return refusal
    return None


ConnectionBuckets = dict[RateCheck, ByteBucket]
"""The buckets of one connection, by the rates that have one for each connection."""
