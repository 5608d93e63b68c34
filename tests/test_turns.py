"""Big sends stand in one line, and a pass of the event loop has time for few of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import trio

from ktlsd.turns import PASS_SECONDS, Turns, of_this_loop


class Passes(trio.abc.Instrument):
    """Counts the passes of the event loop."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:
        self.number += 1


@pytest.fixture
async def passes() -> AsyncIterator[Passes]:
    counter = Passes()
    trio.lowlevel.add_instrument(counter)
    yield counter
    trio.lowlevel.remove_instrument(counter)


def work() -> None:
    """A piece of sending that takes all the time of a pass."""
    until = time.perf_counter() + PASS_SECONDS
    while time.perf_counter() < until:
        pass


async def test_each_pass_has_one_sender_and_all_have_their_turn(passes: Passes) -> None:
    turns = Turns()
    order: list[tuple[int, int]] = []

    async def send(name: int) -> None:
        for _ in range(5):
            await turns.next()
            order.append((passes.number, name))
            work()

    async with trio.open_nursery() as nursery:
        for name in range(10):
            nursery.start_soon(send, name)
    assert len({number for number, _ in order}) == len(order) == 50
    rounds = [sorted(name for _, name in order[at : at + 10]) for at in range(0, 50, 10)]
    assert rounds == [list(range(10))] * 5


async def test_what_is_quick_goes_on_in_the_same_pass(passes: Passes) -> None:
    turns = Turns()
    began, count = passes.number, 0
    until = time.perf_counter() + 20 * PASS_SECONDS
    while time.perf_counter() < until:
        await turns.next()
        count += 1
    assert 0 < passes.number - began < count / 2


@pytest.mark.parametrize("which", range(4))
async def test_who_gives_up_leaves_the_line(which: int) -> None:
    turns, done = Turns(), []

    async def send(name: int, scope: trio.CancelScope) -> None:
        with scope:
            for _ in range(3):
                await turns.next()
                work()
            done.append(name)

    scopes = [trio.CancelScope() for _ in range(4)]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for name, scope in enumerate(scopes):
                nursery.start_soon(send, name, scope)
            await trio.lowlevel.checkpoint()
            scopes[which].cancel()
    assert sorted(done) == [name for name in range(4) if name != which]
    with trio.fail_after(10):
        work()
        await turns.next()


async def test_an_event_loop_has_one_line() -> None:
    assert of_this_loop() is of_this_loop()


def test_each_event_loop_has_a_line_of_its_own() -> None:
    async def line() -> Turns:
        return of_this_loop()

    assert trio.run(line) is not trio.run(line)
