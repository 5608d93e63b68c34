"""Requests a second and responses in progress of client networks: who is refused, by a clock of the test's own."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from ktlsd.config.limits import MOST_NETWORKS
from ktlsd.config.options import LimitOptions, RateOptions
from ktlsd.config.values import Network
from ktlsd.http.access import Visitor
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.decide import Response
from ktlsd.http.forwarded import Origin
from ktlsd.http.protected_paths import GuardedPaths
from ktlsd.http.rate_check import ConnectionBuckets, RateCheck, begin, check, refused_by_now

LIMITS = LimitOptions(client_ipv4_prefix=24, exempt_clients=(Network("203.0.113.0/24"),))
PROXY = "198.51.100.1"


class Clock:
    def __init__(self) -> None:
        self.now = 50_000.123

    def __call__(self) -> float:
        return self.now


def rate(clock: Clock, **limits: float) -> RateCheck:
    return RateCheck(
        GuardedPaths(["**"]),
        RateOptions(path="**", **limits),  # type: ignore[arg-type]
        ClientNetworks(LIMITS, [PROXY]),
        clock,
    )


def visitor(address: str = "192.0.2.1", method: bytes = b"GET") -> Visitor:
    return Visitor(method, b"/", {}, Origin(address, https=True))


def asked(limited: RateCheck, address: str = "192.0.2.1") -> Response | None:
    """The refusal of a request; one that is not refused is answered at once."""
    refused = limited.refused(visitor(address))
    assert (refused is None) == limited.admits(visitor(address))
    if refused is None and (in_progress := begin([limited], Origin(address, https=True), {})) is not None:
        in_progress.end()
    return refused


def test_a_burst_and_then_a_rate() -> None:
    clock = Clock()
    limited = rate(clock, requests_per_second=2, burst=3)
    assert [asked(limited) is None for _ in range(5)] == [True, True, True, False, False]
    clock.now += 0.5
    assert [asked(limited) is None for _ in range(2)] == [True, False]
    clock.now += 100
    assert [asked(limited) is None for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("requests_per_second", [0.001, 0.3, 1, 7, 1e6])
def test_a_burst_of_one_lets_one_through_at_any_rate(requests_per_second: float) -> None:
    clock = Clock()
    limited = rate(clock, requests_per_second=requests_per_second, burst=1)
    for _ in range(20):
        assert asked(limited) is None
        assert asked(limited) is not None
        clock.now += 1 / requests_per_second


def test_without_a_burst_ten_seconds_worth_may_come_at_once() -> None:
    limited = rate(Clock(), requests_per_second=2)
    assert [asked(limited) is None for _ in range(21)] == [True] * 20 + [False]
    assert asked(rate(Clock(), requests_per_second=0.01)) is None


def test_the_answer_says_when_to_come_back() -> None:
    limited = rate(Clock(), requests_per_second=0.1, burst=1)
    assert asked(limited) is None
    for method, body in ((b"GET", b"429 Too Many Requests\n"), (b"HEAD", b"")):
        refused = limited.refused(visitor(method=method))
        assert refused is not None
        assert (refused.status, refused.body) == (HTTPStatus.TOO_MANY_REQUESTS, body)
        assert dict(refused.fields)["Retry-After"] == "10"


def test_a_refusal_is_that_of_others_at_the_same_limit_for_the_same_time() -> None:
    clock = Clock()
    limited = rate(clock, requests_per_second=0.1, burst=1)
    here, there = (Origin(address, https=True) for address in ("192.0.2.1", "192.0.3.1"))
    begin([limited], here, {})
    first = limited.excess(here)
    assert first is not None
    assert first.is_that_of(here)
    assert not first.is_that_of(there)
    clock.now += 5
    assert not first.is_that_of(here)
    begin([limited], there, {})
    assert first.is_that_of(there)


def test_networks_are_those_of_the_limits() -> None:
    limited = rate(Clock(), requests_per_second=1, burst=1)
    assert asked(limited, "192.0.2.1") is None
    assert asked(limited, "192.0.2.255") is not None
    assert asked(limited, "192.0.3.1") is None
    assert asked(limited, "2001:db8::1") is None
    assert asked(limited, "2001:db8::2") is not None
    for exempt in ("203.0.113.7", PROXY, "unix"):
        assert all(asked(limited, exempt) is None for _ in range(3))
    assert limited.remembered == 3


def test_responses_in_progress_are_counted_until_they_end() -> None:
    limited = rate(Clock(), concurrent=2)
    here = Origin("192.0.2.1", https=True)
    first, second = begin([limited], here, {}), begin([limited], here, {})
    assert first is not None
    assert second is not None
    refused = limited.refused(visitor())
    assert refused is not None
    assert "2 responses in progress" in refused.reason
    assert limited.admits(visitor("192.0.3.1"))
    first.end()
    first.end()
    assert limited.admits(visitor())
    second.end()
    assert limited.remembered == 0


def test_one_that_waited_for_a_disk_is_refused_if_others_were_faster() -> None:
    limited = rate(Clock(), concurrent=1)
    late = visitor()
    late.passed.append(limited)
    assert refused_by_now(late) is None
    assert begin([limited], late.origin, {}) is not None
    assert refused_by_now(late) is not None


def test_buckets_of_bytes_are_of_a_response_a_connection_and_a_network() -> None:
    clock = Clock()
    limited = rate(
        *(clock,), response_bytes_per_second=1000, connection_bytes_per_second=1000, client_bytes_per_second=1000
    )
    here, there = Origin("192.0.2.1", https=True), Origin("192.0.3.1", https=True)
    one: ConnectionBuckets = {}
    another: ConnectionBuckets = {}

    def wait(origin: Origin, connection: ConnectionBuckets) -> float:
        """Seconds until the second turn of 4096 bytes."""
        in_progress = begin([limited], origin, connection)
        assert in_progress is not None
        assert in_progress.pace is not None
        in_progress.pace.next_turn(4096, clock.now)
        at = in_progress.pace.next_turn(4096, clock.now)[1]
        in_progress.end()
        return at - clock.now

    assert wait(here, one) == pytest.approx(4.096)
    assert wait(here, one) == pytest.approx(4.096 * 3)
    assert wait(here, another) == pytest.approx(4.096 * 5)
    assert wait(there, {}) == pytest.approx(4.096)
    # Those of a response and a connection are not of a client network.
    assert wait(Origin("unix", https=True), {}) == pytest.approx(4.096)
    assert limited.remembered == 2
    clock.now += 100
    assert wait(there, {}) == pytest.approx(4.096)
    assert limited.remembered == 1


def test_the_buckets_of_bytes_are_bounded() -> None:
    clock = Clock()
    limited = rate(clock, client_bytes_per_second=1)
    kept = begin([limited], Origin("9.9.9.9", https=True), {})
    assert kept is not None
    for number in range(MOST_NETWORKS + 100):
        in_progress = begin([limited], Origin(f"10.{number >> 8}.{number & 255}.1", https=True), {})
        assert in_progress is not None
        assert in_progress.pace is not None
        in_progress.pace.next_turn(100, clock.now)
        in_progress.end()
    assert limited.remembered <= MOST_NETWORKS + 1


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (RateOptions(path="**"), "without a limit"),
        (RateOptions(path="**", burst=3), "without a limit"),
        (RateOptions(path="**", burst=3, concurrent=3), "burst without"),
        (RateOptions(path="**", bytes_at_full_speed=3, concurrent=3), "bytes_at_full_speed without"),
    ],
)
def test_a_rule_without_effect_is_refused(rule: RateOptions, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(rule)
    check(RateOptions(path="**", burst=3, requests_per_second=0.5))
