"""Big sends stand in one line, and a pass of the event loop has time for few of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.connection.poller import Batch, Poller
from ktlsd.connection.scheduler import (
    ALONE_BYTES,
    ALONE_SECONDS,
    PASS_SECONDS,
    QUIET_SECONDS,
    SendScheduler,
    current_scheduler,
)
from ktlsd.connection.transport import FileShrank
from ktlsd.metrics.metrics import SENDFILE, SLOTS
from ktlsd.openssl.errors import ConnectionLost
from ktlsd.openssl.results import Wait
from ktlsd.tls.ktls_probe import loopback_pair
from tests.connection.test_plain_transport import reset

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
    scheduler = SendScheduler()
    order: list[tuple[int, int]] = []

    async def send(name: int) -> None:
        for _ in range(5):
            await scheduler.next()
            order.append((passes.number, name))
            work()

    async with trio.open_nursery() as nursery:
        for name in range(10):
            nursery.start_soon(send, name)
    assert len({number for number, _ in order}) == len(order) == 50
    rounds = [sorted(name for _, name in order[at : at + 10]) for at in range(0, 50, 10)]
    assert rounds == [list(range(10))] * 5


async def test_what_is_quick_goes_on_in_the_same_pass(passes: Passes) -> None:
    scheduler = SendScheduler()
    began, count = passes.number, 0
    until = time.perf_counter() + 20 * PASS_SECONDS
    while time.perf_counter() < until:
        await scheduler.next()
        count += 1
    assert 0 < passes.number - began < count / 2


@pytest.mark.parametrize("which", range(4))
async def test_who_gives_up_leaves_the_line(which: int) -> None:
    scheduler, done = SendScheduler(), []

    async def send(name: int, scope: trio.CancelScope) -> None:
        with scope:
            for _ in range(3):
                await scheduler.next()
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
        await scheduler.next()


async def test_an_event_loop_has_one_line() -> None:
    assert current_scheduler() is current_scheduler()


def test_each_event_loop_has_a_line_of_its_own() -> None:
    async def line() -> SendScheduler:
        return current_scheduler()

    assert trio.run(line) is not trio.run(line)


def test_the_kernel_gets_all_it_may_have_where_nobody_else_asks() -> None:
    scheduler = SendScheduler()
    assert scheduler.share(MOST) == MOST
    scheduler.asked()
    assert scheduler.share(MOST) == 131072
    for _ in range(30):
        scheduler.took(1_000_000, 0.001)
    assert scheduler.share(MOST) == pytest.approx(1e9 * PASS_SECONDS, rel=0.01)
    for _ in range(30):
        scheduler.took(100_000, 0.025)
        # What is as short as that says more of the call than of the sending.
        scheduler.took(1, 0.000_001)
    assert scheduler.share(MOST) == 131072
    for _ in range(30):
        scheduler.took(MOST, 0.0001)
    assert scheduler.share(MOST) == MOST
    scheduler = SendScheduler()
    scheduler.asked()
    time.sleep(1.1 * ALONE_SECONDS)
    assert scheduler.share(MOST) == MOST


@dataclass
class Asking:
    """A socket that shows something, and what comes of that."""

    near: socket.socket
    trouble: OSError | None = None
    asked: trio.Event = field(default_factory=trio.Event)
    low_priority = False

    def ready(self, batch: Batch) -> None:
        self.near.recv(1)
        self.asked.set()
        if self.trouble is not None:
            raise self.trouble


@contextlib.asynccontextmanager
async def asking(trouble: OSError | None = None) -> AsyncIterator[tuple[Asking, socket.socket]]:
    """A connection with a polled socket, and its other end."""
    near, far = socket.socketpair()
    watch = Poller()
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
        assert current_scheduler().share(MOST) == MOST
        far.send(b"x")
        await somebody.asked.wait()
        assert current_scheduler().share(MOST) < MOST


@pytest.mark.parametrize("trouble", [None, OSError("no memory for that")])
async def test_who_asks_is_looked_after_between_two_pieces(
    passes: Passes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: OSError | None
) -> None:
    monkeypatch.setattr("ktlsd.connection.scheduler.PASS_SECONDS", 60)
    async with asking(trouble) as (somebody, far):
        scheduler = current_scheduler()
        await scheduler.next()
        number = passes.number
        await scheduler.next()
        assert not somebody.asked.is_set()
        far.send(b"x")
        await scheduler.next()
        assert somebody.asked.is_set()
        assert scheduler.share(MOST) < MOST
        assert passes.number == number
    assert [record.getMessage() for record in caplog.records] == (
        [] if trouble is None else ["cannot poll connections, retrying: no memory for that"]
    )
    # No socket is polled any more.
    await scheduler.next()


async def test_who_is_alone_has_had_nobody_beside_it_for_a_while() -> None:
    scheduler = SendScheduler()
    assert not scheduler.alone()
    with scheduler.busy():
        assert scheduler.alone()
        with scheduler.busy():
            assert not scheduler.alone()
            with scheduler.busy(-1):
                assert scheduler.alone()
        scheduler.asked()
        assert not scheduler.alone()
        await trio.sleep(1.1 * QUIET_SECONDS)
        assert scheduler.alone()


def test_who_keeps_up_takes_a_tenth_of_what_the_kernel_could_give() -> None:
    scheduler = SendScheduler()
    # As long as the kernel's rate is unknown.
    assert not scheduler.is_fast_enough(1_000_000, 0.001)
    for _ in range(30):
        scheduler.took(1_000_000, 0.001)
    assert scheduler.is_fast_enough(1_000_000, 0.0099)
    assert not scheduler.is_fast_enough(1_000_000, 0.0101)
    assert not scheduler.is_fast_enough(0, 0.001)


async def test_a_thread_says_what_it_has_to_say() -> None:
    scheduler = SendScheduler()
    main = threading.get_ident()
    assert await scheduler.in_thread(lambda: threading.get_ident() != main)
    assert not await scheduler.in_thread(lambda: threading.get_ident() == main)

    def fail() -> bool:
        raise OSError("a disk that fails")

    with pytest.raises(OSError, match="a disk that fails"):
        await scheduler.in_thread(fail)


def test_a_system_without_more_threads_is_no_trouble() -> None:
    program = """
import re, resource, trio
from ktlsd.connection.scheduler import SendScheduler

async def main():
    size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    # There is no room for the stack of a thread.
    resource.setrlimit(resource.RLIMIT_AS, (size + 1_000_000, resource.RLIM_INFINITY))
    print(await SendScheduler().in_thread(lambda: True))

trio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)


class Seen(PlainTransport):
    """Knows where the kernel was given parts of files."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.in_loop = 0
        self.in_thread = 0
        self.was_in_thread = threading.Event()
        self._loop = threading.get_ident()

    def _sendfile(self, descriptor: int, offset: int, count: int) -> int | Wait:
        if threading.get_ident() == self._loop:
            self.in_loop += 1
        else:
            self.in_thread += 1
            self.was_in_thread.set()
        return super()._sendfile(descriptor, offset, count)


@dataclass
class Download:
    """A file on its way to a client that `read` is, in a thread of its own."""

    transport: Seen
    row: list[int]
    near: socket.socket
    descriptor: int
    received: bytearray = field(default_factory=bytearray)

    def read(self, until: int) -> None:
        while len(self.received) < until and (data := self.near.recv(1 << 20)):
            self.received.extend(data)

    def blocks(self) -> bool:
        return not fcntl.fcntl(self.transport.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = os.urandom(4 * ALONE_BYTES + 12345)
    (tmp_path / "file").write_bytes(data)
    return data


@pytest.fixture
def download(tmp_path: Path, content: bytes) -> Iterator[Download]:
    row = [0] * SLOTS
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    with loopback_pair() as (near, server):
        near.settimeout(30)
        transport = Seen(server, PageCache(), row)
        try:
            yield Download(transport, row, near, descriptor)
        finally:
            transport.close()
            os.close(descriptor)


@contextlib.asynccontextmanager
async def alone(tasks: int = 1) -> AsyncIterator[SendScheduler]:
    """No other connection has work, and the kernel was slow so far, so that every client keeps up."""
    scheduler = current_scheduler()
    with trio.fail_after(60), scheduler.busy(tasks):
        await trio.sleep(1.1 * QUIET_SECONDS)
        scheduler.took(1 << 20, 60.0)
        yield scheduler


@pytest.mark.parametrize("tasks", [1, 2])
async def test_who_sends_alone_does_so_in_a_thread(download: Download, content: bytes, tasks: int) -> None:
    reader = threading.Thread(target=download.read, args=[len(content) + 4])
    async with alone(tasks):
        reader.start()
        await download.transport.send_file(b"head", download.descriptor, 0, len(content))
        assert not download.blocks()
        await trio.to_thread.run_sync(reader.join)
    assert bytes(download.received) == b"head" + content
    assert download.row[SENDFILE] == len(content)
    assert download.transport.sent == len(content) + 4
    assert (download.transport.in_thread > 0) == (tasks == 1)


async def test_the_event_loop_goes_on_and_who_asks_ends_it(download: Download, content: bytes) -> None:
    async with asking() as (somebody, far), alone() as scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(download.transport.send_file, b"", download.descriptor, 0, len(content))
        await trio.to_thread.run_sync(download.transport.was_in_thread.wait, 30)
        far.send(b"x")
        await somebody.asked.wait()
        assert not scheduler.alone()
        await trio.to_thread.run_sync(download.read, len(content))
    assert not download.blocks()
    assert bytes(download.received) == content
    assert download.row[SENDFILE] == len(content)


async def test_a_client_that_falls_behind_is_waited_for_by_the_loop(download: Download, content: bytes) -> None:
    async with alone() as scheduler:
        # As fast as no client is.
        scheduler.took(1 << 50, 1.0)
        with trio.move_on_after(0.5) as scope:
            await download.transport.send_file(b"", download.descriptor, 0, len(content))
        assert scope.cancelled_caught
        # Once, since it might have kept up, and then never.
        assert download.transport.in_thread == 1
        assert download.transport.in_loop > 0
        assert download.row[SENDFILE] == download.transport.sent < len(content)


@pytest.mark.parametrize("event", ["shrinks", "reset", "cancelled"])
async def test_what_ends_a_download_ends_that_of_a_thread(download: Download, content: bytes, event: str) -> None:
    async with alone():

        async def intervene() -> None:
            await trio.to_thread.run_sync(download.transport.was_in_thread.wait, 30)
            if event == "shrinks":
                os.ftruncate(download.descriptor, 2 * ALONE_BYTES)
                await trio.to_thread.run_sync(download.read, 2 * ALONE_BYTES)
            elif event == "reset":
                reset(download.near)
            else:
                nursery.cancel_scope.cancel()

        expected = {"shrinks": FileShrank, "reset": ConnectionLost}.get(event)
        raised: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intervene)
            try:
                await download.transport.send_file(b"", download.descriptor, 0, len(content))
            except (FileShrank, ConnectionLost) as error:
                raised = error
        assert type(raised) is (expected or type(None))
        assert not download.blocks()
        assert download.row[SENDFILE] == download.transport.sent < len(content)
        assert content.startswith(download.received)
