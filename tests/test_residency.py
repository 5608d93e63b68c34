"""What is in the page cache is known, and what is not gets there without holding up the event loop."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ktlsd.metrics import COLD_READS, SLOTS
from ktlsd.residency import Residency
from ktlsd.ssl_ffi import Library
from tests.test_cold_files import drop_page_cache
from tests.vm.machine import SLOW_BYTES_PER_SECOND
from tests.vm.plugin import SlowDisk

PART = 300_000
# Bytes that the slow disk needs a second for, in a part of the file that no test looks at.
DEBT = SLOW_BYTES_PER_SECOND
DEBT_OFFSET = 2 * DEBT


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def cold(slow_disk: SlowDisk) -> Iterator[int]:
    """A file that is not in the page cache, on a disk that will not answer for the next second."""
    descriptor = os.open(slow_disk.path / "cold.bin", os.O_RDONLY)
    other = os.open(slow_disk.path / "cold.bin", os.O_RDONLY | os.O_DIRECT)
    try:
        drop_page_cache()
        # The disk takes this read at once and pays for it afterwards. Without that it could answer so soon that even a
        # read that must not wait gets its byte.
        with mmap.mmap(-1, DEBT) as buffer:
            assert os.preadv(other, [buffer], DEBT_OFFSET) == DEBT
        yield descriptor
    finally:
        os.close(descriptor)
        os.close(other)


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[int]:
    """A file of PART bytes that was written just now."""
    path = tmp_path / "warm.bin"
    path.write_bytes(bytes(PART))
    with path.open("rb") as file:
        yield file.fileno()


@pytest.mark.ktls
async def test_a_cold_part_is_seen_and_made_resident(cold: int, library: Library) -> None:
    row = [0] * SLOTS
    residency = Residency(library.file_system_type, row)
    assert not residency.is_resident(cold, 0, PART)
    await residency.make_resident(cold, 0, PART)
    assert residency.is_resident(cold, 0, PART)
    await residency.make_resident(cold, 0, PART)
    assert row[COLD_READS] == 1


@pytest.mark.ktls
async def test_a_cold_part_is_read_in_a_thread(cold: int, library: Library) -> None:
    row = [0] * SLOTS
    residency = Residency(library.file_system_type, row)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    # Far from what is read ahead for another test: drop_page_cache() leaves what is still on its way.
    buffer = memoryview(bytearray(100_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        got = await residency.read_into(cold, buffer, 5_000_000)
        nursery.cancel_scope.cancel()
    assert buffer[:got] == os.pread(cold, got, 5_000_000)
    assert row[COLD_READS] == 1
    assert turns > 0
    assert await residency.read_into(cold, buffer, 5_000_000) > 0
    assert row[COLD_READS] == 1


async def test_the_end_of_a_file_is_the_end(warm: int, library: Library) -> None:
    residency = Residency(library.file_system_type)
    buffer = memoryview(bytearray(1000))
    assert await residency.read_into(warm, buffer, PART - 10) == 10
    assert await residency.read_into(warm, buffer, PART) == 0
    await residency.make_resident(warm, PART - 10, 100_000)
