"""The queue of password verifications: order, bounds, and turns that nobody is left without."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ktlsd.site.verification_queue import LONGEST_SECONDS, MOST_WAITING, VerificationQueue


async def enter(queue: VerificationQueue, order: list[tuple[str, bool]], name: str, rank: float) -> None:
    async with queue.turn(rank) as admitted:
        order.append((name, admitted))
        await trio.lowlevel.checkpoint()


async def enter_within(
    scope: trio.CancelScope, queue: VerificationQueue, order: list[tuple[str, bool]], name: str
) -> None:
    with scope:
        await enter(queue, order, name, 0)


async def test_the_lowest_rank_is_first_and_the_newest_among_equals() -> None:
    queue, order = VerificationQueue(1), list[tuple[str, bool]]()
    async with trio.open_nursery() as nursery:
        async with queue.turn(0):
            for name, rank in (("a", 1), ("b", 2), ("c", 1), ("d", 0), ("e", 0.5)):
                nursery.start_soon(enter, queue, order, name, rank)
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
    assert order == [(name, True) for name in "decab"]
    async with queue.turn(5) as admitted:
        assert admitted


async def test_a_full_queue_refuses_its_worst_and_oldest() -> None:
    queue, order = VerificationQueue(1), list[tuple[str, bool]]()
    async with trio.open_nursery() as nursery, queue.turn(0):
        for number in range(MOST_WAITING):
            nursery.start_soon(enter, queue, order, f"{number}", number % 2)
            await wait_all_tasks_blocked()
        for name, rank in (("x", 1), ("y", 0), ("z", 7)):
            nursery.start_soon(enter, queue, order, name, rank)
            await wait_all_tasks_blocked()
        assert order == [("1", False), ("3", False), ("z", False)]
    assert sum(admitted for _, admitted in order) == MOST_WAITING


async def test_a_wait_ends(autojump_clock: MockClock) -> None:
    queue, order = VerificationQueue(2), list[tuple[str, bool]]()
    began = trio.current_time()
    async with queue.turn(0), queue.turn(0):
        await enter(queue, order, "late", 0)
    assert order == [("late", False)]
    assert trio.current_time() - began == LONGEST_SECONDS


async def test_a_turn_of_a_request_that_is_given_up_goes_to_the_next() -> None:
    queue, order = VerificationQueue(1), list[tuple[str, bool]]()
    async with trio.open_nursery() as nursery:
        waiting, ready = trio.CancelScope(), trio.CancelScope()
        async with queue.turn(0):
            nursery.start_soon(enter, queue, order, "next", 1)
            for scope, name in ((ready, "ready"), (waiting, "waiting")):
                nursery.start_soon(enter_within, scope, queue, order, name)
            await wait_all_tasks_blocked()
            waiting.cancel()
            await wait_all_tasks_blocked()
            # The turn is given to it, which has not noticed yet.
            ready.cancel()
    assert order == [("next", True)]
    assert not queue._waiting
    assert queue._free == 1
