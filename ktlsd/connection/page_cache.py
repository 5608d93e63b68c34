"""Keeping a disk's slowness off the event loop: is a part of a file in the page cache, and how to get it there.

Strategy: read one byte in every STRIDE, or fewer where much was found, with RWF_NOWAIT, which fails where the kernel
would have to wait for a disk; what comes before such a byte is sent, and then a thread reads the next part for real.
What is encrypted in user space is read with RWF_NOWAIT itself, into memory that all share.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from functools import partial
from typing import Final

from ktlsd.file_threads import FileThreads
from ktlsd.metrics.metrics import COLD_READS, UNCOUNTED, Row
from ktlsd.system_calls import file_system_type

STRIDE: Final = 65536
"""Bytes between two probes at first. A hole in the page cache between them costs the event loop one read of a page; the
kernel reads ahead and evicts in longer runs than this."""
_MOST_STRIDE: Final = 1 << 20
"""The same where all that was looked at before was there. Linux takes files out of the page cache in runs of megabytes,
but for islands that were asked for by themselves, and a file of islands never gets here."""

FROM_DISK: Final = 524288
"""Bytes that are waited for before the first of them is sent."""

PIECE: Final = 262144
"""Bytes of memory for what is read to be encrypted in user space, of all connections in turn."""

_HUGE_PAGE: Final = 2 << 20
_SCRATCH_SIZE: Final = 262144
_LOOKED_AT: Final = 4 << 20
# Longer than this after a look, and pages that were in the page cache may have left it.
_RESIDENT_SECONDS: Final = 0.1
# Files of these live in memory (magic.h): nothing to wait for, and tmpfs has no RWF_NOWAIT (Linux 6.1, 6.12, 6.18).
_IN_MEMORY: Final = frozenset({0x01021994, 0x858458F6})  # TMPFS_MAGIC, RAMFS_MAGIC
# A disk that has not answered for so long does not answer.
_DISK_SECONDS: Final = 60.0


class PageCache:
    """One process's knowledge of which files are warm."""

    def __init__(self, row: Row = UNCOUNTED) -> None:
        """`row` counts the parts that a thread had to read from a disk (or could not be told not to need it)."""
        self._row = row
        self._threads: dict[int, FileThreads] = {}
        """By device, so that one that hangs takes no other's."""
        self._probe = bytearray(1)
        self._memory = _memory()
        self.loads = 0
        """How often load() has used its memory."""

    def _is_in_memory(self, error: OSError, descriptor: int) -> bool:
        """Whether a read with RWF_NOWAIT failed because all of the file system is in memory, and not because it would
        wait for a disk. Raises what says something else.
        """
        if isinstance(error, BlockingIOError):
            return False
        if error.errno != errno.EOPNOTSUPP:
            raise error
        return file_system_type(descriptor) in _IN_MEMORY

    def read_after(self, head: bytes, descriptor: int, offset: int, count: int) -> bytearray | None:
        """`head` and a small part of a file in one piece of memory; None where that would wait for a disk."""
        data = bytearray(len(head) + count)
        data[: len(head)] = head
        try:
            got = os.preadv(descriptor, [memoryview(data)[len(head) :]], offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return data if got == count else None

    def look(self, descriptor: int, offset: int, end: int, stride: int = STRIDE) -> tuple[int, int]:
        """Up to where a part of the file that is not empty can be sent without waiting for a disk, and the stride for
        the next look, 0 where none is needed because there is no disk. Raises OSError.
        """
        stop = min(offset + _LOOKED_AT, end)
        probes = [self._probe]
        try:
            for position in (*range(offset, stop, stride), stop - 1):
                os.preadv(descriptor, probes, position, os.RWF_NOWAIT)
        except OSError as error:
            if self._is_in_memory(error, descriptor):
                return end, 0
            return self.look(descriptor, offset, end) if stride > STRIDE else (position, STRIDE)
        return stop, min(2 * stride, _MOST_STRIDE)

    async def read_in(self, descriptor: int, offset: int, end: int) -> int:
        """Have a thread read the next part of a file that waits for a disk; up to where. Raises OSError."""
        self._row[COLD_READS] += 1
        resident = min(offset + FROM_DISK, end)
        await self._threads_for(descriptor).run_on(descriptor, partial(_read_through, offset, resident - offset))
        return resident

    def _threads_for(self, descriptor: int) -> FileThreads:
        device = os.fstat(descriptor).st_dev
        threads = self._threads.get(device)
        if threads is None:
            threads = self._threads[device] = FileThreads(
                f"device {os.major(device)}:{os.minor(device)}", _DISK_SECONDS
            )
        return threads

    def load(self, head: bytes, descriptor: int, offset: int, count: int) -> memoryview | None:
        """`head` and of a part of a file what can be had without waiting for a disk, in memory that the next load()
        uses again; None where that is nothing. Together they are up to PIECE bytes. Raises OSError.
        """
        self.loads += 1
        begin = len(head)
        memory = self._memory
        memory[:begin] = head
        target = [memory[begin : min(begin + count, PIECE)]]
        try:
            got = os.preadv(descriptor, target, offset, os.RWF_NOWAIT)
        except OSError as error:
            if not self._is_in_memory(error, descriptor):
                return None
            got = os.preadv(descriptor, target, offset)
        return memory[: begin + got] if got else None

    async def read(self, head: bytes, descriptor: int, offset: int, count: int) -> memoryview:
        """`head` and a part of a file, up to its end, in memory of their own. Raises OSError."""
        self._row[COLD_READS] += 1
        memory = memoryview(bytearray(len(head) + count))
        memory[: len(head)] = head
        target = memory[len(head) :]
        got = await self._threads_for(descriptor).run_on(descriptor, partial(_read_all, target, offset))
        return memory[: len(head) + got]


class Window:
    """What is known of one file, up to some `end`: the part that was in the page cache at the last look."""

    def __init__(self, page_cache: PageCache, descriptor: int, end: int) -> None:
        self._page_cache = page_cache
        self._descriptor = descriptor
        self._end = end
        self._until = 0
        self._stride = STRIDE
        self._looked = 0.0

    def size(self, offset: int) -> int:
        """How many bytes, from before the end on, can be sent without waiting for a disk. Raises OSError."""
        if offset >= self._until or (self._stride and time.perf_counter() - self._looked > _RESIDENT_SECONDS):
            self._until, self._stride = self._page_cache.look(self._descriptor, offset, self._end, self._stride)
            self._looked = time.perf_counter()
        return self._until - offset

    async def read_in(self, offset: int) -> None:
        """Return once the size is not 0. Raises OSError."""
        self._until = await self._page_cache.read_in(self._descriptor, offset, self._end)
        self._looked = time.perf_counter()


def _memory() -> memoryview:
    """PIECE bytes whose places in the processor's caches do not coincide, as they do in pages from anywhere."""
    memory = mmap.mmap(-1, 3 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    # Wherever it begins, the huge pages that this is in are in it, too.
    return memoryview(memory)[_HUGE_PAGE : _HUGE_PAGE + PIECE]


def _read_all(buffer: memoryview, offset: int, descriptor: int) -> int:
    filled = 0
    while filled < len(buffer) and (got := os.preadv(descriptor, [buffer[filled:]], offset + filled)):
        filled += got
    return filled


def _read_through(offset: int, count: int, descriptor: int) -> None:
    scratch = memoryview(bytearray(min(count, _SCRATCH_SIZE)))
    end = offset + count
    while offset < end:
        # The file may have shrunk: the sender finds out for itself.
        got = os.preadv(descriptor, [scratch[: end - offset]], offset)
        if got == 0:
            return
        offset += got
