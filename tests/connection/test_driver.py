"""Connections without a task of trio's (ktlsd.connection.driver, ktlsd.connection.poller)."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any

import outcome
import pytest
import trio
import trio.testing

from ktlsd.connection import driver
from ktlsd.connection.driver import InlineTasks, Sleeper
from ktlsd.connection.poller import Batch, Poller
from ktlsd.connection.scheduler import ALONE_SECONDS, current_scheduler
from ktlsd.openssl.results import Wait


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


@contextlib.asynccontextmanager
async def inline() -> AsyncIterator[tuple[InlineTasks, trio.Nursery]]:
    poller = Poller()
    async with trio.open_nursery() as around:
        around.start_soon(poller.run)
        async with trio.open_nursery() as nursery:
            inline_tasks = InlineTasks(poller, nursery)
            around.start_soon(inline_tasks.enforce_time_limits)
            try:
                yield inline_tasks, nursery
                await inline_tasks.wait_until_all_end()
            finally:
                inline_tasks.close()
        around.cancel_scope.cancel()
    poller.close()


async def echo(sock: socket.socket, count: int) -> None:
    with sock:
        for _ in range(count):
            await driver.ready(sock, Wait.READABLE)
            sock.send(sock.recv(16))


async def read(sock: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(16)


async def test_one_that_waits_for_its_socket_alone_is_no_task(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    async with inline() as (inline_tasks, nursery):
        inline_tasks.start(far, echo(far, 2))
        for word in (b"one", b"two"):
            assert len(inline_tasks) == 1
            near.send(word)
            assert await read(near) == word
        assert not nursery.child_tasks
    assert near.recv(1) == b""
    assert len(inline_tasks) == 0


async def test_one_that_never_waits(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    async with inline() as (inline_tasks, _):
        inline_tasks.start(far, echo(far, 0))
        assert len(inline_tasks) == 0
    assert near.recv(1) == b""


async def test_one_that_waits_for_room(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    done = trio.Event()

    async def fill() -> None:
        with far:
            with contextlib.suppress(BlockingIOError):
                while True:
                    far.send(bytes(65536))
            await driver.ready(far, Wait.WRITABLE)
            done.set()

    async with inline() as (inline_tasks, _):
        inline_tasks.start(far, fill())
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        with contextlib.suppress(BlockingIOError):
            while True:
                near.recv(65536)
        await done.wait()


async def test_one_that_becomes_a_task_may_await_all_of_trio(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    steps: list[object] = []

    async def connection() -> None:
        with far:
            await driver.ready(far, Wait.READABLE)
            await driver.become_task()
            steps.append(trio.lowlevel.current_task().parent_nursery)
            await driver.become_task()
            with trio.move_on_after(0.01):
                await trio.sleep_forever()
            far.recv(16)
            await driver.ready(far, Wait.READABLE)
            steps.append(far.recv(16))
            await trio.sleep(1.1 * ALONE_SECONDS)
            await scheduler.next()
            steps.append(scheduler.alone())

    async with inline() as (inline_tasks, nursery):
        inline_tasks.start(far, connection())
        scheduler = current_scheduler()
        await scheduler.next()
        assert not scheduler.alone()
        near.send(b"begin")
        await trio.sleep(0.1)
        assert len(inline_tasks) == 0
        assert steps == [nursery]
        near.send(b"again")
        await trio.sleep(2 * ALONE_SECONDS)
        await scheduler.next()
        assert not scheduler.alone()
    assert steps == [nursery, b"again", True]


async def start_each(
    far: socket.socket,
    connection: Callable[[str, socket.socket, int], Coroutine[Any, Any, None]],
    each: Mapping[str, int],
    pause: float = 0,
) -> None:
    """Connections over copies of a socket, one after the other, until all have ended."""
    async with inline() as (inline_tasks, _):
        with contextlib.ExitStack() as stack:
            for name, number in each.items():
                sock = stack.enter_context(far.dup())
                inline_tasks.start(sock, connection(name, sock, number))
                await trio.sleep(pause)
            await inline_tasks.wait_until_all_end()


async def test_the_sooner_term_ends_first(
    ends: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    _, far = ends
    ended: list[tuple[str, float]] = []
    began = trio.current_time()

    async def connection(name: str, sock: socket.socket, seconds: int) -> None:
        with sock, contextlib.suppress(trio.TooSlowError), driver.within(seconds, began):
            await driver.ready(sock, Wait.READABLE)
        ended.append((name, trio.current_time() - began))

    await start_each(far, connection, {"slow": 10, "quick": 2, "other": 10})
    assert [name for name, _ in ended] == ["quick", "slow", "other"]
    assert [seconds for _, seconds in ended] == pytest.approx([2, 10, 10])


async def test_a_second_term_with_the_same_deadline_does_not_queue_behind_newer_ones(
    ends: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    _, far = ends
    ended: list[tuple[str, float]] = []
    first = trio.current_time()

    async def connection(name: str, sock: socket.socket, terms: int) -> None:
        began = trio.current_time()
        with sock:
            for _ in range(terms):
                with contextlib.suppress(trio.TooSlowError), driver.within(10, began):
                    await driver.ready(sock, Wait.READABLE)
        ended.append((name, trio.current_time() - first))

    await start_each(far, connection, {"twice": 2, "once": 1}, pause=5)
    assert [name for name, _ in ended] == ["twice", "once"]
    assert [seconds for _, seconds in ended] == pytest.approx([10, 15])


async def test_terms_that_are_over_are_forgotten(
    ends: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    near, far = ends

    async def connection() -> None:
        with far:
            for _ in range(5000):
                with driver.within(10, trio.current_time()):
                    pass
            with contextlib.suppress(trio.TooSlowError), driver.within(10, trio.current_time()):
                await driver.ready(far, Wait.READABLE)

    async with inline() as (inline_tasks, _):
        inline_tasks.start(far, connection())
        assert len(inline_tasks._time_limits) <= 1024
    assert near.recv(1) == b""


async def test_a_term_that_is_kept_ends_nothing(
    ends: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    near, far = ends

    async def connection() -> None:
        with far:
            with driver.within(1, trio.current_time()):
                await driver.ready(far, Wait.READABLE)
            far.recv(16)
            await driver.ready(far, Wait.READABLE)

    async with inline() as (inline_tasks, _):
        inline_tasks.start(far, connection())
        near.send(b"in time")
        await trio.sleep(60)
        assert len(inline_tasks) == 1
        near.send(b"late")


async def test_a_term_of_a_task_is_the_same(
    ends: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(trio.TooSlowError), driver.within(5, trio.current_time()):
        await driver.ready(ends[0], Wait.READABLE)


async def test_what_only_tasks_can_await_is_a_defect(ends: tuple[socket.socket, socket.socket]) -> None:
    found: list[RuntimeError] = []

    async def connection() -> None:
        with ends[1]:
            try:
                await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
            except RuntimeError as error:
                found.append(error)

    async with inline() as (inline_tasks, _):
        inline_tasks.start(ends[1], connection())
    assert str(found[0]) == "an inline task awaited a function of trio before become_task()"


async def test_close_ends_those_that_are_left(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    with trio.move_on_after(0.05) as scope:
        async with inline() as (inline_tasks, _):
            inline_tasks.start(far, echo(far, 1))
    assert scope.cancelled_caught
    assert near.recv(1) == b""
    assert len(inline_tasks) == 0


class _Word(Sleeper):
    """Sleeps until its socket has a word, or an error."""

    __slots__ = ("poller", "sock")
    low_priority = False

    def __init__(self, poller: Poller, sock: socket.socket) -> None:
        super().__init__()
        self.poller = poller
        self.sock = sock

    def ready(self, batch: Batch) -> None:
        word = self.sock.recv(16)
        if not self.inline_task:
            self.poller.remove(self.sock.fileno())
        self.wake(outcome.Value(word) if word else outcome.Error(EOFError()))


@pytest.mark.parametrize("as_task", [False, True])
async def test_a_sleeper_is_told_what_came(ends: tuple[socket.socket, socket.socket], as_task: bool) -> None:
    near, far = ends
    heard: list[bytes] = []
    async with inline() as (inline_tasks, _):

        async def connection() -> None:
            with far:
                if as_task:
                    await driver.become_task()
                with contextlib.suppress(EOFError):
                    while True:
                        word = _Word(inline_tasks.poller, far)
                        inline_tasks.poller.set(far.fileno(), word)
                        heard.append(await word.sleep(lambda: None))

        inline_tasks.start(far, connection())
        near.send(b"word")
        await trio.sleep(0.05)
        near.shutdown(socket.SHUT_WR)
        await trio.sleep(0.05)
    assert heard == [b"word"]


async def test_a_socket_that_is_paused_is_looked_at_again(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    looks: list[float] = []
    poller = Poller()

    class Pausing:
        low_priority = False

        def ready(self, batch: Batch) -> None:
            looks.append(trio.current_time())
            poller.pause(far.fileno())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poller.run)
        poller.set(far.fileno(), Pausing(), select.EPOLLIN)
        near.send(b"a part")
        await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
    poller.close()
    assert 2 <= len(looks) <= 12
