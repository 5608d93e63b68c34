"""Threads for calls that may hang: bounds, deadlines, and who closes what comes too late."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from ktlsd.file_threads import FileThreads, Stalled, within
from tests.files import nothing_stays_open
from tests.serving import eventually

SECONDS = 0.2


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs until it is set; at the end nothing does."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_call_gives_its_result_or_its_error() -> None:
    threads = FileThreads("here")
    assert await threads.run(lambda: 1) == 1
    with pytest.raises(FileNotFoundError):
        await threads.run(lambda: os.stat("/nowhere"))
    with pytest.raises(RuntimeError, match="not ours"):
        await threads.run(lambda: _raise(RuntimeError("not ours")))


def _raise(error: Exception) -> None:
    raise error


async def test_a_result_that_comes_too_late_is_discarded(gate: threading.Event) -> None:
    threads, discarded = FileThreads("here", SECONDS), list[str]()

    def call() -> str:
        gate.wait()
        return "late"

    with pytest.raises(Stalled):
        await threads.run(call, discarded.append)
    assert discarded == []
    gate.set()
    assert eventually(lambda: discarded == ["late"])


async def test_a_call_that_is_cancelled_gives_its_result_to_discard(gate: threading.Event) -> None:
    threads, discarded = FileThreads("here"), list[str]()

    def call() -> str:
        gate.wait()
        return "late"

    with trio.move_on_after(SECONDS):
        await threads.run(call, discarded.append)
    gate.set()
    assert eventually(lambda: discarded == ["late"])


async def test_calls_that_hang_make_others_fail_at_once_until_they_end(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    threads = FileThreads("/srv/slow", SECONDS, threads=2)
    failed = 0

    async def hang() -> None:
        nonlocal failed
        with pytest.raises(Stalled):
            await threads.run(gate.wait)
        failed += 1

    async with trio.open_nursery() as nursery:
        # Two have threads, and three more wait for one.
        for _ in range(5):
            nursery.start_soon(hang)
    assert failed == 5
    with pytest.raises(Stalled):
        await threads.run(lambda: None)
    assert caplog.messages == [f"/srv/slow: the file system did not answer within {SECONDS:g} s"]
    gate.set()
    with trio.fail_after(30):
        while True:
            try:
                assert await threads.run(lambda: 2) == 2
                break
            except Stalled:
                await trio.sleep(0.01)


async def test_calls_wait_for_their_turn_as_long_as_others_get_theirs() -> None:
    """A slow disk is no disk that hangs: each call is quick enough, all together take longer than one may."""
    threads, done = FileThreads("here", SECONDS, threads=1), list[int]()

    def call(number: int) -> None:
        time.sleep(SECONDS / 4)
        done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(threads.run, partial(call, number))
    assert sorted(done) == list(range(12))


async def test_time_in_which_the_event_loop_cannot_run_does_not_count(gate: threading.Event) -> None:
    threads = FileThreads("here", SECONDS)

    async def hold_up() -> None:
        await trio.sleep(SECONDS / 40)
        gate.set()
        time.sleep(3 * SECONDS)  # noqa: ASYNC251 (that is the fault)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_up)
        assert await threads.run(gate.wait)


async def test_a_call_on_a_file_has_a_descriptor_of_its_own(tmp_path: Path, gate: threading.Event) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with nothing_stays_open():
        threads = FileThreads("here", SECONDS)
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
        read = list[bytes]()

        def call(own: int) -> None:
            gate.wait()
            read.append(os.pread(own, 10, 0))

        with pytest.raises(Stalled):
            await threads.run_on(descriptor, call)
        os.close(descriptor)
        gate.set()
        assert eventually(lambda: read == [b"content"])
        for waits in (False, True):
            descriptor = os.open(tmp_path / "file", os.O_RDONLY)
            assert await threads.run_on(descriptor, lambda own: os.pread(own, 3, 0), waits=waits) == b"con"
            os.close(descriptor)


def test_a_call_without_an_event_loop_has_a_deadline_too(gate: threading.Event) -> None:
    discarded = list[str]()

    def call() -> str:
        gate.wait()
        return "late"

    assert within(60, lambda: 1) == 1
    with pytest.raises(FileNotFoundError):
        within(60, lambda: os.stat("/nowhere"))
    with pytest.raises(Stalled):
        within(SECONDS, call, discarded.append)
    gate.set()
    assert eventually(lambda: discarded == ["late"])
