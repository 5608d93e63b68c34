"""The order of responses (RFC 9218 section 10)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http2.priority import Priority
from ktlsd.http2.scheduler import LARGEST_IN_LINE, Scheduler
from ktlsd.http2.streams import Stream


def stream(stream_id: int, urgency: int = 3, *, incremental: bool = False, offered: int = 1000) -> Stream:
    return Stream(stream_id, 65535, Priority(urgency, incremental), False, began=True, offered=offered)


def order(scheduler: Scheduler, count: int) -> list[int]:
    found = []
    for _ in range(count):
        one = scheduler.next()
        assert one is not None
        found.append(one[0].stream_id)
    return found


def scheduler_of(*streams: Stream) -> Scheduler:
    scheduler = Scheduler()
    for one in streams:
        scheduler.add(one)
    return scheduler


def test_nothing_to_send() -> None:
    scheduler = Scheduler()
    assert not scheduler.levels
    assert scheduler.next() is None
    assert not scheduler.more_urgent_than(7)


def test_the_most_urgent_first() -> None:
    first, second = stream(5, 1), stream(1, 4, incremental=True)
    scheduler = scheduler_of(second, first)
    assert order(scheduler, 3) == [5, 5, 5]
    scheduler.remove(first)
    assert order(scheduler, 2) == [1, 1]
    assert scheduler.more_urgent_than(5)
    assert not scheduler.more_urgent_than(4)
    scheduler.remove(second)
    assert not scheduler.levels


def test_incremental_ones_take_turns() -> None:
    assert order(scheduler_of(*(stream(one, incremental=True) for one in (5, 1, 3))), 7) == [5, 1, 3, 5, 1, 3, 5]


def test_others_go_in_the_order_of_requests() -> None:
    one, two, three = stream(1), stream(3), stream(5)
    scheduler = scheduler_of(three, one, two)
    assert order(scheduler, 2) == [1, 1]
    scheduler.remove(one)
    assert order(scheduler, 2) == [3, 3]
    scheduler.remove(three)
    assert order(scheduler, 1) == [3]


def test_a_line_is_one_of_those_that_take_turns() -> None:
    scheduler = scheduler_of(stream(1), stream(3), stream(5, incremental=True), stream(7, incremental=True))
    assert order(scheduler, 6) == [1, 5, 1, 7, 1, 5]


def test_large_ones_take_turns() -> None:
    scheduler = scheduler_of(stream(1, offered=LARGEST_IN_LINE + 1), stream(3, offered=LARGEST_IN_LINE + 1))
    assert order(scheduler, 4) == [1, 3, 1, 3]
    scheduler.add(stream(5, offered=LARGEST_IN_LINE))
    assert 5 in order(scheduler, 2)


def test_alone() -> None:
    scheduler = scheduler_of(stream(1), stream(3), stream(5, 5, incremental=True))
    # The rest of the line waits for the first, so it takes turns with nobody.
    assert scheduler.next() is not None
    one = scheduler.next()
    assert one is not None
    assert one[1]
    scheduler.add(stream(7, incremental=True))
    assert [one[1] for one in (scheduler.next(), scheduler.next()) if one is not None] == [False, False]
    alone = scheduler_of(stream(1, incremental=True)).next()
    assert alone is not None
    assert alone[1]


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.sampled_from([1, 1 << 21])), max_size=12), st.data())
def test_everyone_of_the_most_urgent_is_served(kinds: list[tuple[int, bool, int]], data: st.DataObject) -> None:
    streams = [
        stream(2 * index + 1, urgency, incremental=incremental, offered=offered)
        for index, (urgency, incremental, offered) in enumerate(kinds)
    ]
    scheduler = scheduler_of(*data.draw(st.permutations(streams)))
    left = list(streams)
    while left:
        most_urgent = min(one.priority.urgency for one in left)
        served = set(order(scheduler, 2 * len(streams)))
        level = [one for one in left if one.priority.urgency == most_urgent]
        line = [one.stream_id for one in level if not one.in_turns]
        assert served == {one.stream_id for one in level if one.in_turns} | set(line[:1])
        gone = data.draw(st.sampled_from(left))
        left.remove(gone)
        scheduler.remove(gone)
        assert not gone.waiting
    assert not scheduler.levels
