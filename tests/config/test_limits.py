"""Who may come in, and how fast a response must be taken: decisions without sockets, by a clock of the test's own."""

from __future__ import annotations

import contextlib
from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.config import limits
from ktlsd.config.limits import (
    BURST_SECONDS,
    QUIET_SECONDS,
    ConnectionLimiter,
    Limit,
    LogThrottle,
    SendRateCheck,
    TokenBuckets,
    descriptors_for,
    most_connections,
)
from ktlsd.config.networks import Address, address_of
from ktlsd.config.options import LimitOptions, RateOptions

HERE, THERE = address_of("192.0.2.1"), address_of("192.0.2.2")
UNLIMITED = LimitOptions(client_connections=0, client_handshakes_per_second=0)


def network_of(text: str, prefixes: dict[str, int]) -> int:
    return limits.network_of(address_of(text), msgspec.structs.replace(LimitOptions(), **prefixes))


# --- networks


@pytest.mark.parametrize(
    ("one", "other", "prefixes", "same"),
    [
        ("192.0.2.1", "192.0.2.1", {}, True),
        ("192.0.2.1", "192.0.2.2", {}, False),
        ("192.0.2.1", "192.0.2.2", {"client_ipv4_prefix": 24}, True),
        ("192.0.2.1", "192.0.3.1", {"client_ipv4_prefix": 24}, False),
        ("::ffff:192.0.2.1", "192.0.2.1", {}, True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", {}, True),
        ("2001:db8::1", "2001:db8:0:1::1", {}, False),
        ("2001:db8::1", "2001:db8:0:1::1", {"client_ipv6_prefix": 48}, True),
        ("2001:db8::1", "2001:db8::2", {"client_ipv6_prefix": 128}, False),
        ("fe80::1%eth0", "fe80::2", {}, True),
        # As numbers they begin alike.
        ("::", "0.0.0.0", {}, False),
        ("::192.0.2.1", "192.0.2.1", {"client_ipv6_prefix": 128}, False),
    ],
)
def test_what_is_one_network(one: str, other: str, prefixes: dict[str, int], same: bool) -> None:
    assert (network_of(one, prefixes) == network_of(other, prefixes)) == same


@given(
    st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address),
    st.integers(1, 32),
    st.integers(1, 128),
)
def test_no_two_kinds_of_network_are_mixed_up(address: Address, ipv4: int, ipv6: int) -> None:
    found = limits.network_of(address, LimitOptions(client_ipv4_prefix=ipv4, client_ipv6_prefix=ipv6))
    assert (found >= 0) == (address.version == 4)


# --- connections


def test_all_connections_are_counted_and_given_back() -> None:
    limiter = ConnectionLimiter(UNLIMITED, 2)
    with limiter.permit() as first, limiter.permit() as second:
        assert (first.refused, second.refused, limiter.open) == (None, None, 2)
        with limiter.permit() as third:
            assert (third.refused, limiter.open) == (Limit.CONNECTIONS, 2)
        assert limiter.open == 2
    with contextlib.suppress(ValueError), limiter.permit() as again:
        assert again.refused is None
        assert again.is_of(HERE, 0.0, with_handshake=True) is None
        raise ValueError
    assert (limiter.open, limiter.remembered) == (0, 0)


def test_one_network_cannot_take_the_room_of_another() -> None:
    limiter = ConnectionLimiter(LimitOptions(client_connections=2, client_handshakes_per_second=0), 100)
    with contextlib.ExitStack() as stack:
        visits = [stack.enter_context(limiter.permit()) for _ in range(4)]
        refused = [permit.is_of(HERE, 0.0, with_handshake=False) for permit in visits]
        assert refused == [None, None, Limit.CLIENT_CONNECTIONS, Limit.CLIENT_CONNECTIONS]
        with limiter.permit() as other:
            assert other.is_of(THERE, 0.0, with_handshake=False) is None
    with limiter.permit() as later:
        assert later.is_of(HERE, 0.0, with_handshake=False) is None
    assert limiter.remembered == 0


def test_other_limits_hold_from_the_next_connection_on() -> None:
    limiter = ConnectionLimiter(UNLIMITED, 3)
    with limiter.permit() as one, limiter.permit() as two:
        assert one.is_of(HERE, 0.0, with_handshake=True) is two.is_of(HERE, 0.0, with_handshake=True) is None
        limiter.use(LimitOptions(client_connections=1), 2)
        with limiter.permit() as three:
            assert three.refused is Limit.CONNECTIONS
        limiter.use(LimitOptions(client_connections=1), 3)
        with limiter.permit() as three:
            assert three.is_of(HERE, 0.0, with_handshake=True) is Limit.CLIENT_CONNECTIONS
    assert limiter.open == 0


@pytest.mark.parametrize(("most", "crowded_from"), [(16, 16), (160, 151), (15, None), (1, None)])
def test_when_it_is_crowded(most: int, crowded_from: int | None) -> None:
    limiter = ConnectionLimiter(UNLIMITED, most)
    crowded = []
    with contextlib.ExitStack() as stack:
        for number in range(1, most + 1):
            stack.enter_context(limiter.permit())
            crowded += [number] * limiter.crowded
    assert crowded == ([] if crowded_from is None else list(range(crowded_from, most + 1)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=60), st.integers(1, 8), st.integers(0, 4))
def test_the_gate_counts_as_a_counter_does(steps: list[tuple[int, int]], most: int, each: int) -> None:
    """Each step is an address, and which of the visits there are ends before it comes."""
    limiter = ConnectionLimiter(LimitOptions(client_connections=each, client_handshakes_per_second=0), most)
    inside: list[tuple[int, contextlib.ExitStack]] = []
    for host, leaves in steps:
        if leaves < len(inside):
            inside.pop(leaves)[1].close()
        here = Counter(number for number, _ in inside)
        stack = contextlib.ExitStack()
        permit = stack.enter_context(limiter.permit())
        refused = permit.refused or permit.is_of(IPv4Address(host), 0.0, with_handshake=False)
        if len(inside) >= most:
            assert refused is Limit.CONNECTIONS
        elif each and here[host] >= each:
            assert refused is Limit.CLIENT_CONNECTIONS
        else:
            assert refused is None
        if refused:
            stack.close()
        else:
            inside.append((host, stack))
        assert limiter.open == len(inside)
        assert limiter.remembered == len({number for number, _ in inside})
    for _, stack in inside:
        stack.close()
    assert (limiter.open, limiter.remembered) == (0, 0)


# --- handshakes


def shake(limiter: ConnectionLimiter, now: float, address: Address = HERE) -> bool:
    with limiter.permit() as permit:
        return permit.is_of(address, now, with_handshake=True) is None


def test_a_burst_then_the_rate() -> None:
    limiter = ConnectionLimiter(LimitOptions(client_handshakes_per_second=4), 100)
    assert [shake(limiter, 1000.0) for _ in range(4 * BURST_SECONDS + 3)].count(True) == 4 * BURST_SECONDS
    assert shake(limiter, 1000.0, THERE)
    assert not shake(limiter, 1000.24)
    assert [shake(limiter, 1000.26) for _ in range(2)] == [True, False]
    assert [shake(limiter, 1001.26) for _ in range(9)].count(True) == 4
    later = 1001.26 + BURST_SECONDS
    assert [shake(limiter, later) for _ in range(4 * BURST_SECONDS + 3)].count(True) == 4 * BURST_SECONDS


def test_who_makes_no_handshake_needs_no_token() -> None:
    limiter = ConnectionLimiter(LimitOptions(client_handshakes_per_second=1), 1000)
    for _ in range(2 * BURST_SECONDS):
        with limiter.permit() as permit:
            assert permit.is_of(HERE, 0.0, with_handshake=False) is None


def test_a_connection_that_its_network_may_not_have_costs_no_token() -> None:
    limiter = ConnectionLimiter(LimitOptions(client_connections=1, client_handshakes_per_second=1), 1000)
    with limiter.permit() as permit:
        assert permit.is_of(HERE, 0.0, with_handshake=True) is None
        for _ in range(2 * BURST_SECONDS):
            with limiter.permit() as more:
                assert more.is_of(HERE, 0.0, with_handshake=True) is Limit.CLIENT_CONNECTIONS
    assert [shake(limiter, 0.0) for _ in range(BURST_SECONDS)].count(True) == BURST_SECONDS - 1


@given(st.lists(st.floats(0, 3), max_size=200), st.integers(1, 5))
def test_no_stretch_of_time_has_more_than_burst_and_rate(pauses: list[float], rate: int) -> None:
    limiter = ConnectionLimiter(LimitOptions(client_handshakes_per_second=rate), 1000)
    now = 0.0
    taken: list[float] = []
    for pause in pauses:
        now += pause
        if shake(limiter, now):
            taken.append(now)
        else:
            # Never in vain: a whole bucket was used up.
            assert len([at for at in taken if at > now - BURST_SECONDS]) > 0
    for first, at in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= rate * (BURST_SECONDS + taken[last] - at) + 1e-6


def test_memory_is_bounded_whatever_clients_do(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 300
    monkeypatch.setattr(limits, "MOST_NETWORKS", most)
    limiter = ConnectionLimiter(LimitOptions(client_handshakes_per_second=1), 10)
    for number in range(most + 500):
        assert shake(limiter, 0.0, IPv6Address(number << 64))
    assert limiter.remembered <= most + 1
    # Who was there last is still known, and all are forgotten in time.
    last = IPv6Address((most + 499) << 64)
    assert [shake(limiter, 0.0, last) for _ in range(BURST_SECONDS)].count(True) == BURST_SECONDS - 1
    for number in range(most):
        assert shake(limiter, 100.0 + number, HERE)
    assert limiter.remembered == 1


# --- pace


def rate_check(seconds: float = 10, least: int = 100) -> SendRateCheck:
    made = SendRateCheck(LimitOptions(send_seconds=seconds, send_bytes_per_second=least))
    assert made.begins
    made.begin(5000)
    assert not made.begins
    return made


@pytest.mark.parametrize(("taken", "kept"), [(0, False), (999, False), (1000, True), (10**12, True)])
def test_how_much_must_be_taken(taken: int, kept: bool) -> None:
    client = rate_check()
    assert client.waited(10.0)
    assert client.is_fast_enough(5000 + taken) == kept


def test_a_client_is_looked_at_after_each_stretch_of_waiting() -> None:
    client = rate_check()
    assert not client.waited(6.0)
    assert client.left == 4.0
    assert not client.waited(3.9)
    assert client.waited(0.2)
    assert client.is_fast_enough(6000)
    # What was taken before counts no more.
    assert client.left == 10.0
    assert client.waited(10.0)
    assert not client.is_fast_enough(6999)


def test_a_client_that_was_fast_has_no_credit_for_ever() -> None:
    client = rate_check()
    client.waited(10.0)
    assert client.is_fast_enough(10**9)
    client.waited(10.0)
    assert not client.is_fast_enough(10**9 + 10)


def test_some_byte_at_least_must_be_taken() -> None:
    client = rate_check(seconds=0.001, least=1)
    client.waited(1.0)
    assert not client.is_fast_enough(5000)


def test_a_modem_keeps_up_with_the_default() -> None:
    defaults = LimitOptions()
    client = SendRateCheck(defaults)
    client.begin(0)
    # 9600 bit/s, and half of the time nothing at all.
    for minute in range(1, 10):
        assert client.waited(defaults.send_seconds)
        assert client.is_fast_enough(minute * 30 * 9600 // 10)


# --- what is said


def test_a_line_now_and_then_for_each_limit() -> None:
    throttle = LogThrottle()
    assert [throttle.due(Limit.CONNECTIONS, at) for at in (-5.0, -5.0, 0.0)] == [0, None, None]
    assert throttle.due(Limit.DESCRIPTORS, 0.0) == 0
    assert [throttle.due(Limit.CONNECTIONS, QUIET_SECONDS + at) for at in (-5.0, -4.9, 0.0)] == [2, None, None]
    assert throttle.due(Limit.CONNECTIONS, 3 * QUIET_SECONDS) == 2


@pytest.mark.parametrize(
    ("wanted", "descriptors", "most"),
    [
        (16384, 1 << 30, 16384),
        (16384, 1024, 448),
        (100, 1024, 100),
        (16384, 128, 1),
        (16384, 1, 1),
    ],
)
def test_connections_leave_descriptors_for_files(wanted: int, descriptors: int, most: int) -> None:
    assert most_connections(wanted, descriptors) == most


@given(st.integers(1, 1 << 20))
def test_no_more_descriptors_are_asked_for_than_connections_need(connections: int) -> None:
    needed = descriptors_for(connections)
    assert most_connections(1 << 30, needed) == connections
    assert most_connections(connections, needed - 1) == max(1, connections - 1)


def test_limits_are_named_as_their_keys() -> None:
    keys = set(LimitOptions.__struct_fields__)
    without_key = {Limit.CROWDED, Limit.DESCRIPTORS, Limit.MEMORY}
    of_rates = {limit for limit in Limit if limit.value in RateOptions.__struct_fields__}
    assert {limit for limit in Limit if limit.value not in keys} == without_key | of_rates


# --- token buckets


def test_a_hundred_thousand_networks_stay_bounded_and_a_few_reset_nobodys_bucket() -> None:
    buckets = TokenBuckets(rate=0.001, most=2)
    for _ in range(2):
        assert buckets.wait(-1, 0.0) == 0
        buckets.take(-1, 0.0)
    for network in range(100_000):
        if network in (0, limits.MOST_NETWORKS - 2):
            assert buckets.wait(-1, 0.0) == pytest.approx(1000)
        buckets.take(network, 0.0)
    assert len(buckets) == limits.MOST_NETWORKS
    # Full buckets are forgotten by the way.
    for network in range(limits.MOST_NETWORKS):
        buckets.take(network, 1e6)
        assert buckets.wait(network, 1e6) == 0
    for network in range(limits.MOST_NETWORKS):
        buckets.take(network, 2e6 + 2000 * network)
    assert len(buckets) <= 2
