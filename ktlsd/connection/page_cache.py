"""Keeping a disk's slowness off the event loop: is a part of a file in the page cache, and how to get it there.

Strategy: read one byte in every STRIDE, or fewer where much was found, with RWF_NOWAIT, which fails where the kernel
would have to wait for a disk; what comes before such a byte is sent, and then a thread reads the next part for real.
Bytes to be encrypted in user space are read with RWF_NOWAIT, into memory that all share. residency.py does the same
for file systems that have no RWF_NOWAIT.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Final, cast

from ktlsd.connection.residency import LOOK_BYTES, Kind, Residency
from ktlsd.file_identity import FileIdentity, identify
from ktlsd.file_threads import FileThreads
from ktlsd.metrics.metrics import COLD_READS, UNCOUNTED, Row

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

_MOST_SPARE: Final = 4
_MOST_KEPT: Final = 16
"""Connections that may keep PIECE bytes while they wait for their clients."""
_CROWDED: Final = 65536
"""Bytes that each of the others may have."""
_HUGE_PAGE: Final = 2 << 20
_SCRATCH_SIZE: Final = 262144
# Longer than this after a look, and pages that were in the page cache may have left it.
_RESIDENT_SECONDS: Final = 0.1
# A disk that has not answered for so long does not answer.
_DISK_SECONDS: Final = 60.0


class PageCache:
    """One process's knowledge of which files are warm."""

    def __init__(self, row: Row = UNCOUNTED) -> None:
        """`row` counts the parts that a thread had to read from a disk (or may have)."""
        self._row = row
        self._threads: dict[int, FileThreads] = {}
        """By device, so that one that hangs takes no other's."""
        self._residency = Residency()
        self._probe = bytearray(1)
        self._memory = _memory()
        self._spare: list[memoryview] = []
        self._kept = 0
        self.loads = 0
        """Number of times that load() has used its memory."""

    def _silent(self, descriptor: int, identity: FileIdentity) -> Kind:
        """The kind of a file system that has just refused RWF_NOWAIT. Raises OSError."""
        return self._residency.kind(identity[0]) or self._residency.learn(identity[0], descriptor)

    def _read_now(self, descriptor: int, target: memoryview, offset: int, identity: FileIdentity | None) -> int | None:
        """Read what needs no disk; the number of bytes, None if a disk has to be waited for. Raises OSError."""
        kind = None if identity is None else self._residency.kind(identity[0])
        if kind is None:
            try:
                return os.preadv(descriptor, [target], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
            identity = identity or identify(descriptor)
            kind = self._silent(descriptor, identity)
        return self._residency.read(kind, descriptor, target, offset, cast(FileIdentity, identity))

    def read_after(
        self, head: bytes, descriptor: int, offset: int, count: int, identity: FileIdentity | None = None
    ) -> bytearray | None:
        """`head` and a small part of a file in one piece of memory; None where that would wait for a disk.

        The identity of the open file, if it is known, saves questions.
        """
        begin = len(head)
        data = bytearray(begin + count)
        target = memoryview(data)
        if begin:
            data[:begin] = head
            target = target[begin:]
        try:
            got = self._read_now(descriptor, target, offset, identity)
        except OSError:
            return None
        return data if got == count else None

    def look(
        self, descriptor: int, offset: int, end: int, stride: int = STRIDE, identity: FileIdentity | None = None
    ) -> tuple[int, int]:
        """Up to where a part of the file that is not empty can be sent without waiting for a disk, and the stride for
        the next look, 0 where none is needed because there is no disk. Raises OSError.
        """
        kind = None if identity is None else self._residency.kind(identity[0])
        stop = min(offset + LOOK_BYTES, end)
        if kind is None:
            probes = [self._probe]
            try:
                for position in (*range(offset, stop, stride), stop - 1):
                    os.preadv(descriptor, probes, position, os.RWF_NOWAIT)
            except BlockingIOError:
                return self.look(descriptor, offset, end) if stride > STRIDE else (position, STRIDE)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
            else:
                return stop, min(2 * stride, _MOST_STRIDE)
            identity = identity or identify(descriptor)
            kind = self._silent(descriptor, identity)
        if kind.in_memory:
            return end, 0
        return self._residency.until(descriptor, offset, stop, cast(FileIdentity, identity)), STRIDE

    async def read_in(self, descriptor: int, offset: int, end: int) -> int:
        """Have a thread read the next part of a file that waits for a disk; up to where. Raises OSError."""
        self._row[COLD_READS] += 1
        resident = min(offset + FROM_DISK, end)
        identity = identify(descriptor)
        await self._threads_for(identity).run_on(descriptor, partial(_read_through, offset, resident - offset))
        self._note(identity, offset, resident)
        return resident

    def _note(self, identity: FileIdentity, offset: int, end: int) -> None:
        """Remember that a thread read a part, if the file system does not show it."""
        kind = self._residency.kind(identity[0])
        if kind is not None and not kind.in_memory:
            self._residency.note(identity, offset, end)

    def _threads_for(self, identity: FileIdentity) -> FileThreads:
        device = identity[0]
        threads = self._threads.get(device)
        if threads is None:
            threads = self._threads[device] = FileThreads(
                f"device {os.major(device)}:{os.minor(device)}", _DISK_SECONDS
            )
        return threads

    def load(
        self, head: bytes, descriptor: int, offset: int, count: int, identity: FileIdentity | None = None
    ) -> memoryview | None:
        """`head` and of a part of a file what can be had without waiting for a disk, in memory that the next load()
        uses again; None where that is nothing. Together they are up to PIECE bytes. Raises OSError.
        """
        self.loads += 1
        begin = len(head)
        memory = self._memory
        memory[:begin] = head
        got = self._read_now(descriptor, memory[begin : min(begin + count, PIECE)], offset, identity)
        return memory[: begin + got] if got else None

    def frames(self) -> memoryview:
        """The memory of load(), PIECE bytes, for parts of files between other bytes: fill()."""
        self.loads += 1
        return self._memory

    @property
    def room(self) -> int:
        """Bytes of the memory of frames() to use. It is less than PIECE while many connections keep theirs, since their
        clients are slow: others are to copy what the socket does not take."""
        return PIECE if self._kept < _MOST_KEPT else _CROWDED

    def keep(self) -> None:
        """Have the memory of frames() stay as it is, until give_back(): others get another one."""
        self._kept += 1
        self._memory = self._spare.pop() if self._spare else memoryview(bytearray(PIECE))

    def give_back(self, memory: memoryview) -> None:
        """Take back the memory of frames() that was kept: the next load() uses it."""
        self._kept -= 1
        if len(self._spare) < _MOST_SPARE:
            self._spare.append(self._memory)
        self._memory = memory

    def fill(
        self, places: Sequence[memoryview], descriptor: int, offset: int, identity: FileIdentity | None = None
    ) -> bool:
        """Read a part of a file into several places; False if that would wait for a disk, or the file ends before.

        Raises OSError.
        """
        kind = None if identity is None else self._residency.kind(identity[0])
        if kind is None:
            try:
                return os.preadv(descriptor, places, offset, os.RWF_NOWAIT) == sum(map(len, places))
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        for place in places:
            if self._read_now(descriptor, place, offset, identity) != len(place):
                return False
            offset += len(place)
        return True

    async def read(self, head: bytes, descriptor: int, offset: int, count: int) -> memoryview:
        """`head` and a part of a file, up to its end, in memory of their own. Raises OSError."""
        self._row[COLD_READS] += 1
        memory = memoryview(bytearray(len(head) + count))
        memory[: len(head)] = head
        target = memory[len(head) :]
        identity = identify(descriptor)
        got = await self._threads_for(identity).run_on(descriptor, partial(_read_all, target, offset))
        self._note(identity, offset, offset + got)
        return memory[: len(head) + got]


class Window:
    """The knowledge of one file, up to some `end`: the part that was in the page cache at the last look."""

    def __init__(self, page_cache: PageCache, descriptor: int, end: int) -> None:
        self._page_cache = page_cache
        self._descriptor = descriptor
        self._end = end
        self._until = 0
        self._stride = STRIDE
        self._looked = 0.0

    def size(self, offset: int) -> int:
        """The number of bytes, from before the end on, that can be sent without waiting for a disk. Raises OSError."""
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
