"""What is in the page cache is known, and what is not gets there without holding up the event loop."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from ktlsd.connection.page_cache import FROM_DISK, PIECE, STRIDE, PageCache, Window
from ktlsd.file_identity import FileIdentity
from ktlsd.metrics.metrics import COLD_READS, SLOTS
from ktlsd.system_calls import file_system_type
from tests.vm.machine import SLOW_BYTES_PER_SECOND
from tests.vm.plugin import SlowDisk, drop_page_cache

PART = 300_000
# Bytes that the slow disk needs four seconds for.
DEBT = 4 * SLOW_BYTES_PER_SECOND
# More than the kernel reads ahead before a test that is held up looks again.
BEGINNING = 12 * FROM_DISK


@pytest.fixture
def cold(slow_disk: SlowDisk) -> Iterator[int]:
    """A file on the slow disk that is not in the page cache."""
    descriptor = os.open(slow_disk.path / "cold.bin", os.O_RDONLY)
    try:
        drop_page_cache()
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def occupy(slow_disk: SlowDisk) -> Iterator[Callable[[], None]]:
    """Keep the slow disk from answering for the next four seconds.

    It takes a large read at once and pays for it afterwards. Without that it could answer so soon that even a read
    that must not wait gets its byte.
    """
    other = os.open(slow_disk.path / "second.bin", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, DEBT) as buffer:

            def read() -> None:
                assert os.preadv(other, [buffer], 0) == DEBT

            yield read
    finally:
        os.close(other)


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[int]:
    """A file of PART bytes that was written just now."""
    path = tmp_path / "warm.bin"
    path.write_bytes(bytes(PART))
    with path.open("rb") as file:
        yield file.fileno()


def loaded(page_cache: PageCache, head: bytes, descriptor: int, offset: int, count: int) -> bytes | None:
    piece = page_cache.load(head, descriptor, offset, count)
    return None if piece is None else bytes(piece)


@pytest.mark.ktls
async def test_a_cold_part_is_seen_and_read_in(cold: int, occupy: Callable[[], None]) -> None:
    row = [0] * SLOTS
    page_cache = PageCache(row)
    occupy()
    assert page_cache.look(cold, 0, BEGINNING, 4 * STRIDE) == (0, STRIDE)
    window = Window(page_cache, cold, BEGINNING)
    assert window.size(0) == 0
    assert row[COLD_READS] == 0
    await window.read_in(0)
    assert window.size(0) == FROM_DISK
    assert window.size(10) == FROM_DISK - 10
    assert row[COLD_READS] == 1
    # Now it can be sent up to where it is cold, and no connection waits for that yet.
    until, stride = page_cache.look(cold, 0, BEGINNING, 4 * STRIDE)
    assert FROM_DISK <= until < BEGINNING
    assert stride == STRIDE
    assert Window(page_cache, cold, BEGINNING).size(0) == until
    assert row[COLD_READS] == 1


@pytest.mark.ktls
async def test_what_lives_in_memory_is_asked_for_once_where_the_kernel_cannot_tell() -> None:
    row = [0] * SLOTS
    page_cache = PageCache(row)
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        assert file_system_type(file.fileno()) == 0x01021994, "TMPFS_MAGIC of magic.h"
        file.write(bytes(PART))
        file.flush()
        with pytest.raises(OSError, match="not supported"):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        # All of it at once, however much more that is than the part that is checked.
        assert page_cache.look(file.fileno(), 0, 1 << 40) == (1 << 40, 0)
        window = Window(page_cache, file.fileno(), 1 << 40)
        assert [window.size(offset) for offset in (0, 1 << 30)] == [1 << 40, (1 << 40) - (1 << 30)]
        assert loaded(page_cache, b"", file.fileno(), 0, 1000) == bytes(1000)
    assert row[COLD_READS] == 0


@pytest.mark.ktls
async def test_a_cold_part_is_read_in_a_thread(cold: int, occupy: Callable[[], None]) -> None:
    row = [0] * SLOTS
    page_cache = PageCache(row)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    # Far from what is read ahead for another test: drop_page_cache() leaves what is still on its way.
    offset, count = 5_000_000, 100_000
    occupy()
    assert page_cache.load(b"", cold, offset, count) is None
    assert row[COLD_READS] == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        got = await page_cache.read(b"head", cold, offset, count)
        nursery.cancel_scope.cancel()
    assert bytes(got) == b"head" + os.pread(cold, count, offset)
    assert row[COLD_READS] == 1
    assert turns > 0
    assert loaded(page_cache, b"head", cold, offset, count) == bytes(got)
    assert row[COLD_READS] == 1


async def test_the_end_of_a_file_is_the_end(warm: int) -> None:
    page_cache = PageCache()
    assert loaded(page_cache, b"", warm, PART - 10, 1000) == bytes(10)
    assert page_cache.load(b"head", warm, PART, 1000) is None
    assert bytes(await page_cache.read(b"head", warm, PART - 10, 1000)) == b"head" + bytes(10)
    assert bytes(await page_cache.read(b"head", warm, PART, 1000)) == b"head"
    assert page_cache.look(warm, PART - 10, PART + 100_000) == (PART + 100_000, 2 * STRIDE)


def test_what_is_warm_needs_no_wait(warm: int) -> None:
    row = [0] * SLOTS
    page_cache = PageCache(row)
    # What was there makes the next look a quicker one, up to some distance.
    stride = STRIDE
    for factor in (2, 4, 8, 16, 16):
        until, stride = page_cache.look(warm, 0, PART, stride)
        assert (until, stride) == (PART, factor * STRIDE)
    assert page_cache.look(warm, 5, 6) == (6, 2 * STRIDE)
    assert row[COLD_READS] == 0


async def test_what_was_seen_is_looked_at_again_after_a_while(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10 << 20))
    calls = []

    class Counting(PageCache):
        def look(
            self, descriptor: int, offset: int, end: int, stride: int = STRIDE, identity: FileIdentity | None = None
        ) -> tuple[int, int]:
            calls.append((offset, stride))
            return super().look(descriptor, offset, end, stride, identity)

    with path.open("rb") as file:
        window = Window(Counting(), file.fileno(), 10 << 20)
        assert window.size(0) == 4 << 20
        assert window.size(1 << 20) == 3 << 20
        assert calls == [(0, STRIDE)]
        assert window.size(4 << 20) == 4 << 20
        await trio.sleep(0.11)
        # From where it is now.
        assert window.size(5 << 20) == 4 << 20
        assert window.size(9 << 20) == 1 << 20
    assert calls == [(0, STRIDE), (4 << 20, 2 * STRIDE), (5 << 20, 4 * STRIDE), (9 << 20, 8 * STRIDE)]


def test_all_use_the_same_memory_and_can_tell(warm: int) -> None:
    page_cache = PageCache()
    first = page_cache.load(b"head", warm, 0, 2 * PIECE)
    assert first is not None
    assert bytes(first) == b"head" + bytes(PIECE - 4)
    loads = page_cache.loads
    assert loaded(page_cache, b"other", warm, 0, 10) == b"other" + bytes(10)
    assert page_cache.loads > loads
    assert bytes(first[:5]) == b"other"
