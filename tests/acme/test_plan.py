"""When certificates are ordered: the clock and the dice are those of the test."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.acme import plan, words
from ktlsd.acme.plan import DAY, MINUTE, Record, Terms

TERMS = Terms(("www.example.test",), "https://ca.test/dir", "p256")
BEGINS, LIFE = 1_800_000_000.0, 90 * DAY


def issued(dice: float = 0.0, life: float = LIFE) -> Record:
    return plan.issued(TERMS, BEGINS, BEGINS + life, BEGINS, lambda: dice)


def test_a_certificate_that_is_not_there_is_ordered_at_once() -> None:
    assert plan.reason(Record(), TERMS, BEGINS)
    assert plan.next_step(Record(), TERMS, BEGINS) <= BEGINS


@pytest.mark.parametrize("days", [6, 90, 398])
def test_a_renewal_is_due_after_two_thirds_and_by_chance_a_little_later(days: int) -> None:
    life = days * DAY
    earliest, latest = issued(0.0, life).renew_at - BEGINS, issued(0.999, life).renew_at - BEGINS
    assert earliest == pytest.approx(life * 2 / 3)
    assert life * 2 / 3 < latest < life * 0.71
    record = plan.suggested(issued(0.0, life), None, None)
    assert plan.next_step(record, TERMS, BEGINS + DAY) == record.renew_at
    assert not plan.reason(record, TERMS, record.renew_at - 1)
    assert plan.reason(record, TERMS, record.renew_at)


def test_the_authority_suggests_a_time_and_is_asked_again() -> None:
    record = plan.suggested(issued(), BEGINS + 5 * DAY, BEGINS + DAY)
    assert plan.next_step(record, TERMS, BEGINS) == BEGINS + DAY
    assert plan.reason(record, TERMS, BEGINS + 5 * DAY) == "the authority suggests to renew it"
    assert plan.next_step(plan.suggested(record, BEGINS + DAY / 2, BEGINS + DAY), TERMS, BEGINS) == BEGINS + DAY / 2
    earlier = plan.suggested(record, BEGINS, BEGINS + 2 * DAY)
    assert plan.reason(earlier, TERMS, BEGINS + DAY)
    # An authority that does not answer changes nothing.
    assert plan.suggested(record, None, BEGINS + 2 * DAY).renew_at == record.renew_at


def test_an_authority_that_always_suggests_a_renewal_gets_one_an_hour() -> None:
    record, now, orders = plan.suggested(issued(), 0.0, BEGINS + 60), BEGINS, 0
    while now < BEGINS + DAY:
        if plan.reason(record, TERMS, now):
            orders += 1
            record = plan.issued(TERMS, now, now + LIFE, now, lambda: 0.0)
        record = plan.suggested(record, 0.0, now + 60)
        now = plan.next_step(record, TERMS, now)
    assert 23 <= orders <= 24


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", ("www.example.test", "example.test")),
        ("directory", "https://other.test/dir"),
        ("key_type", "rsa2048"),
        ("profile", "shortlived"),
        ("chain", "Root X2"),
    ],
)
def test_other_terms_are_a_reason_for_an_order(key: str, value: object) -> None:
    assert plan.reason(issued(), TERMS, BEGINS + DAY) == ""
    assert plan.reason(issued(), msgspec.structs.replace(TERMS, **{key: value}), BEGINS + DAY)


def test_another_order_of_the_names_is_none() -> None:
    two, turned = (Terms(names, "d") for names in (("a.test", "b.test"), ("b.test", "a.test")))
    assert plan.reason(plan.issued(two, BEGINS, BEGINS + LIFE, BEGINS, lambda: 0.0), turned, BEGINS) == ""


def test_the_certificate_of_another_client_is_kept_for_its_time() -> None:
    record = plan.issued(Terms(("www.example.test",)), BEGINS, BEGINS + LIFE, BEGINS, lambda: 0.0)
    assert plan.reason(record, TERMS, BEGINS + DAY) == ""
    assert plan.reason(record, TERMS, BEGINS + 61 * DAY)
    assert plan.reason(record, msgspec.structs.replace(TERMS, names=("other.test",)), BEGINS)


def test_pauses_grow_from_a_minute_to_a_day() -> None:
    record, now, pauses = Record(), BEGINS, []
    for _ in range(16):
        record = plan.failed(record, TERMS.directory, "no", now, lambda: 0.0)
        pauses.append(record.try_at - now)
        now = record.try_at
    assert pauses[0] == MINUTE
    assert all(later == min(2 * earlier, DAY) for earlier, later in itertools.pairwise(pauses))
    assert pauses[-1] == DAY
    assert record.failures == 16


def test_an_hour_without_the_authority_costs_few_tries() -> None:
    """And one more is enough when it is back."""
    record, now, tries = Record(), BEGINS, 0
    while now < BEGINS + 3600:
        tries += 1
        record = plan.failed(record, TERMS.directory, "cannot be reached", now, random.random)
        now = plan.next_step(record, TERMS, now)
    assert 3 <= tries <= 7
    assert plan.may_try(record, TERMS.directory, now)
    assert plan.reason(plan.issued(TERMS, now, now + LIFE, now, random.random), TERMS, now + DAY) == ""


def test_a_pause_is_no_large_part_of_the_time_that_is_left() -> None:
    """A certificate of six days that cannot be renewed is tried again until it ends."""
    record = plan.suggested(issued(0.0, 6 * DAY), None, None)
    now, tries = record.renew_at, 0
    while now < record.ends:
        assert plan.may_try(record, TERMS.directory, now)
        record = plan.failed(record, TERMS.directory, "no", now, lambda: 0.0)
        now = plan.next_step(record, TERMS, now)
        tries += 1
    assert tries > 14


def test_a_reload_tries_again_but_not_before_the_authority_allows_it() -> None:
    record = plan.failed(Record(failures=9), TERMS.directory, "no", BEGINS, lambda: 0.5)
    assert not plan.may_try(record, TERMS.directory, BEGINS + 1)
    assert plan.may_try(record, TERMS.directory, BEGINS + 1, forced=True)
    limited = plan.failed(Record(), TERMS.directory, "rateLimited", BEGINS, lambda: 0.0, retry_after=BEGINS + 3 * DAY)
    assert not plan.may_try(limited, TERMS.directory, BEGINS + 2 * DAY, forced=True)
    assert plan.next_step(limited, TERMS, BEGINS) == BEGINS + 3 * DAY
    assert plan.may_try(limited, TERMS.directory, BEGINS + 3 * DAY)


def test_a_failure_belongs_to_its_authority() -> None:
    """Another one, or the same whose name was mistyped, is tried at once, and has pauses of its own."""
    other = msgspec.structs.replace(TERMS, directory="https://other.test/dir")
    record = plan.failed(Record(failures=9), TERMS.directory, "no", BEGINS, lambda: 0.0, retry_after=BEGINS + 3 * DAY)
    assert not plan.may_try(record, TERMS.directory, BEGINS + 1, forced=True)
    assert plan.may_try(record, other.directory, BEGINS + 1)
    assert plan.next_step(record, other, BEGINS + 1) == BEGINS + 1
    there = plan.failed(record, other.directory, "no", BEGINS + 1, lambda: 0.0)
    assert (there.failures, there.try_at, there.retry_after) == (1, BEGINS + 1 + MINUTE, 0.0)
    assert not plan.may_try(there, other.directory, BEGINS + 2)


def test_a_failure_of_an_earlier_version_is_that_of_any_authority() -> None:
    record = Record(failures=1, try_at=BEGINS + MINUTE)
    assert not plan.may_try(record, TERMS.directory, BEGINS)
    assert plan.next_step(record, TERMS, BEGINS) == BEGINS + MINUTE


@pytest.mark.parametrize(
    ("ends", "retry_after", "said"),
    [
        (
            *(0.0, 0.0),
            "there is none yet (no); a self-signed one is served; next try 2027-01-15 08:01 UTC, or at once on SIGHUP",
        ),
        (
            *(0.0, BEGINS + DAY),
            "there is none yet (no); a self-signed one is served; next try 2027-01-16 08:00 UTC",
        ),
        (
            *(BEGINS + DAY, 0.0),
            "it is not renewed (no); the one that is served ends 2027-01-16 08:00 UTC, soon;"
            " next try 2027-01-15 08:01 UTC, or at once on SIGHUP",
        ),
    ],
)
def test_a_pause_in_words(ends: float, retry_after: float, said: str) -> None:
    record = plan.failed(Record(ends=ends), TERMS.directory, "no", BEGINS, lambda: 0.0, retry_after)
    assert words.waiting(record, BEGINS) == said


@given(failures=st.integers(0, 10_000), dice=st.floats(0, 1, exclude_max=True), left=st.floats(-LIFE, LIFE))
def test_a_pause_is_always_between_a_minute_and_a_day(failures: int, dice: float, left: float) -> None:
    record = plan.failed(Record(ends=BEGINS + left, failures=failures), TERMS.directory, "no", BEGINS, lambda: dice)
    assert MINUTE <= record.try_at - BEGINS <= DAY


def test_a_problem_is_kept_short() -> None:
    assert len(plan.failed(Record(), TERMS.directory, "x" * 100_000, BEGINS, lambda: 0.0).problem) <= 1000
