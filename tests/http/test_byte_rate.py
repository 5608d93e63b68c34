"""The pace of responses: how many bytes in a turn, and when, by a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.byte_rate import ByteBucket, Pace

START = 1000.0


def run(pace: Pace, size: int, now: float = START, late: float = 0.0) -> list[tuple[float, int]]:
    """The turns of a response that is sent at once at each turn, or a bit late: when and how much."""
    turns = []
    while size:
        count, at = pace.next_turn(size, now)
        assert 0 < count <= size
        size -= count
        now = max(now, at) + late
        turns.append((now - START, count))
    return turns


@given(st.integers(1000, 10**9), st.integers(1, 200))
def test_a_rate_is_kept_within_five_percent(rate: int, seconds: int) -> None:
    turns = run(Pace([ByteBucket(rate, 0, START)]), rate * seconds)
    sent = 0
    for at, count in turns:
        # At the first turn of 4096 bytes nothing is due yet; each turn ends with the time that it takes.
        assert sent <= rate * at * 1.0001 + 1
        sent += count
        assert sent <= rate * max(at, 0) * 1.05 + max(rate / 8, 4096) + 1
    assert len(turns) <= 8 * 10 + 2 * seconds


def test_late_turns_are_made_up_for() -> None:
    turns = run(Pace([ByteBucket(100_000, 0, START)]), 1_000_000, late=0.02)
    assert turns[-1][0] == pytest.approx(10, rel=0.06)


def test_a_burst_comes_at_once() -> None:
    turns = run(Pace([ByteBucket(1000, 50_000, START)]), 60_000)
    assert sum(count for at, count in turns if at == 0) in range(50_000, 50_000 + 4097)
    assert turns[-1][0] >= 6


def test_a_slow_client_gets_no_more_than_a_burst_later() -> None:
    bucket = ByteBucket(1000, 10_000, START)
    pace = Pace([bucket])
    assert pace.next_turn(10_000, START)[0] == 10_000
    count, at = pace.next_turn(10**6, START + 10_000)
    assert count == 10_000
    assert at <= START + 10_000
    assert pace.next_turn(10**6, START + 10_000)[1] >= START + 10_000


def test_responses_share_a_bucket() -> None:
    bucket = ByteBucket(1_000_000, 0, START)
    bucket.users = 100
    paces = [Pace([bucket]) for _ in range(100)]
    sent = 0
    for _ in range(10):
        turns = [pace.next_turn(10**9, START) for pace in paces]
        assert {count for count, _ in turns} == {4096}
        sent += 100 * 4096
    assert bucket.free_at == pytest.approx(START + sent / 1_000_000)


def test_the_slowest_bucket_counts() -> None:
    turns = run(Pace([ByteBucket(1_000_000, 0, START), ByteBucket(100_000, 0, START)]), 1_000_000)
    assert turns[-1][0] == pytest.approx(10, rel=0.06)
