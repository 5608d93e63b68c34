"""What is in the page cache is known, and what is not gets there without holding up the event loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ktlsd.metrics import COLD_READS, SLOTS
from ktlsd.residency import Residency
from ktlsd.ssl_ffi import Library

SIZE = 1_000_001
TMPFS_MAGIC = 0x01021994


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def cold(tmp_path: Path, library: Library) -> Iterator[int]:
    """A file on a disk, and not in the page cache."""
    path = tmp_path / "cold.bin"
    path.write_bytes(os.urandom(SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if library.file_system_type(descriptor) == TMPFS_MAGIC:
            pytest.skip("the temporary folder has no disk: set TMPDIR to one that has")
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield descriptor
    finally:
        os.close(descriptor)


async def test_a_cold_part_is_seen_and_made_resident(cold: int, library: Library) -> None:
    row = [0] * SLOTS
    residency = Residency(library.file_system_type, row)
    assert not residency.is_resident(cold, 0, SIZE)
    await residency.make_resident(cold, 0, SIZE)
    assert residency.is_resident(cold, 0, SIZE)
    await residency.make_resident(cold, 0, SIZE)
    assert row[COLD_READS] == 1


async def test_a_cold_part_is_read_in_a_thread(cold: int, library: Library) -> None:
    row = [0] * SLOTS
    residency = Residency(library.file_system_type, row)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    buffer = memoryview(bytearray(100_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        got = await residency.read_into(cold, buffer, 500_000)
        nursery.cancel_scope.cancel()
    assert buffer[:got] == os.pread(cold, got, 500_000)
    assert row[COLD_READS] == 1
    assert turns > 0
    assert await residency.read_into(cold, buffer, 500_000) > 0
    assert row[COLD_READS] == 1


async def test_the_end_of_a_file_is_the_end(cold: int, library: Library) -> None:
    residency = Residency(library.file_system_type)
    buffer = memoryview(bytearray(1000))
    assert await residency.read_into(cold, buffer, SIZE - 10) == 10
    assert await residency.read_into(cold, buffer, SIZE) == 0
    await residency.make_resident(cold, SIZE - 10, 100_000)
