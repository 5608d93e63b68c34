"""Big sends stand in one line, and a pass of the event loop has time for few of them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from ktlsd.ktls_probe import loopback_pair
from ktlsd.plain_transport import PlainTransport
from ktlsd.residency import Residency
from ktlsd.ssl_ffi import Library
from ktlsd.turns import ALONE_BYTES, ALONE_SECONDS, PASS_SECONDS, Turns, of_this_loop
from ktlsd.watch import Turn, Watch

MOST = 2 << 20


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


def test_the_kernel_gets_all_it_may_have_where_nobody_else_asks() -> None:
    turns = Turns()
    assert turns.share(MOST) == MOST
    turns.asked()
    assert turns.share(MOST) == 131072
    for _ in range(30):
        turns.took(1_000_000, 0.001)
    assert turns.share(MOST) == pytest.approx(1e9 * PASS_SECONDS, rel=0.01)
    for _ in range(30):
        turns.took(100_000, 0.025)
        # What is as short as that says more of the call than of the sending.
        turns.took(1, 0.000_001)
    assert turns.share(MOST) == 131072
    for _ in range(30):
        turns.took(MOST, 0.0001)
    assert turns.share(MOST) == MOST
    turns = Turns()
    turns.asked()
    time.sleep(1.1 * ALONE_SECONDS)
    assert turns.share(MOST) == MOST


@dataclass
class Asking:
    """A socket that shows something, and what comes of that."""

    near: socket.socket
    trouble: OSError | None = None
    asked: trio.Event = field(default_factory=trio.Event)
    patient = False

    def ready(self, turn: Turn) -> None:
        self.near.recv(1)
        self.asked.set()
        if self.trouble is not None:
            raise self.trouble


@contextlib.asynccontextmanager
async def asking(trouble: OSError | None = None) -> AsyncIterator[tuple[Asking, socket.socket]]:
    """Somebody whose socket is watched, and the other end of that."""
    near, far = socket.socketpair()
    watch = Watch()
    with near, far, contextlib.closing(watch), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            somebody = Asking(near, trouble)
            watch.set(near.fileno(), somebody)
            await trio.testing.wait_all_tasks_blocked()
            yield somebody, far
            nursery.cancel_scope.cancel()


async def test_who_asks_is_heard_of_by_those_who_send() -> None:
    async with asking() as (somebody, far):
        assert of_this_loop().share(MOST) == MOST
        far.send(b"x")
        await somebody.asked.wait()
        assert of_this_loop().share(MOST) < MOST


@pytest.mark.parametrize("trouble", [None, OSError("no memory for that")])
async def test_who_asks_is_looked_after_between_two_pieces(
    passes: Passes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: OSError | None
) -> None:
    monkeypatch.setattr("ktlsd.turns.PASS_SECONDS", 60)
    async with asking(trouble) as (somebody, far):
        turns = of_this_loop()
        await turns.next()
        number = passes.number
        await turns.next()
        assert not somebody.asked.is_set()
        far.send(b"x")
        await turns.next()
        assert somebody.asked.is_set()
        assert turns.share(MOST) < MOST
        assert passes.number == number
    assert [record.getMessage() for record in caplog.records] == (
        [] if trouble is None else ["connections have to wait: no memory for that"]
    )
    # Nobody is watched any more.
    await turns.next()


async def test_who_sends_alone_needs_no_pass_for_a_while(passes: Passes) -> None:
    turns = of_this_loop()
    await turns.next()
    assert not turns.alone()
    with turns.busy():
        number = passes.number
        assert turns.alone()
        turns.took(ALONE_BYTES, 1.0)
        assert not turns.alone()
        work()
        await turns.next()
        assert passes.number > number
        assert turns.alone()
        await trio.sleep(0.15)
        assert not turns.alone()
        await turns.next()
        with turns.busy():
            assert not turns.alone()
            with turns.busy(-1):
                assert turns.alone()
        turns.asked()
        assert not turns.alone()


def filled(sock: socket.socket) -> None:
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


async def test_who_sends_alone_waits_for_a_socket_and_for_those_who_ask(passes: Passes) -> None:
    server, client = socket.socketpair()
    turns = of_this_loop()
    with server, client, turns.busy():
        async with asking() as (somebody, far):
            await turns.next()
            number = passes.number
            assert turns.writable_alone(server.fileno())
            filled(server)
            assert not turns.writable_alone(server.fileno())
            reader = threading.Timer(0.002, client.recv, [1 << 20])
            reader.start()
            # One wait is shorter than what this machine may take to begin a thread.
            assert any(turns.alone() and turns.writable_alone(server.fileno()) for _ in range(9))
            reader.join()
            assert passes.number == number
            far.send(b"x")
            assert not turns.writable_alone(server.fileno())
            await somebody.asked.wait()
            assert not turns.alone()
            assert not turns.writable_alone(server.fileno())


async def sent_to_a_slow_reader(path: Path, content: bytes, far: socket.socket) -> bytes:
    """What arrives of a file, of which the socket takes little at once; after a part of it somebody asks."""
    received = bytearray()
    descriptor = os.open(path, os.O_RDONLY)
    with loopback_pair() as (near, server):
        near.settimeout(30)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)

        def read() -> None:
            while len(received) < len(content) and (data := near.recv(65536)):
                if len(received) < len(content) // 2 <= len(received) + len(data):
                    far.send(b"x")
                received.extend(data)
                time.sleep(0.0005)

        reader = threading.Thread(target=read)
        reader.start()
        transport = PlainTransport(server, Residency(Library().file_system_type))
        try:
            await transport.send_file(b"", descriptor, 0, len(content))
            await trio.to_thread.run_sync(reader.join)
        finally:
            transport.close()
            os.close(descriptor)
    return bytes(received)


async def test_who_sends_alone_sends_the_same_in_fewer_passes(passes: Passes, tmp_path: Path) -> None:
    content = os.urandom(6 << 20)
    (tmp_path / "file").write_bytes(content)
    numbers = []
    for tasks in (1, 2):
        async with asking() as (somebody, far):
            turns = of_this_loop()
            await trio.sleep(1.1 * ALONE_SECONDS)
            await turns.next()
            number = passes.number
            with turns.busy(tasks):
                received = await sent_to_a_slow_reader(tmp_path / "file", content, far)
            numbers.append(passes.number - number)
            assert received == content
            assert somebody.asked.is_set()
            assert not turns.alone()
    # The first half of the file needs a few where nobody asked before.
    assert numbers[0] < 0.8 * numbers[1]
