"""Which parts of files are in memory, on file systems without RWF_NOWAIT: tmpfs, overlayfs, vfat, ZFS and others.

Strategy: files of tmpfs always are in memory. Of others, a part that was read in the last seconds is taken to be in the
page cache, and mincore(2) tells about any other part, if Linux lets this process know. A slow read that came from a
disk shows that the kernel evicts files soon, and all parts count as evicted.
"""

from __future__ import annotations

import os
import resource
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from ktlsd.file_identity import FileIdentity
from ktlsd.system_calls import effective_capabilities, file_system_type, resident_until

GRANULE: Final = 65536
"""Bytes of a file that are remembered together: the kernel reads ahead and evicts in longer runs than this."""
RECENT_SECONDS: Final = 10.0
"""Time after a read for which a part is taken to be in the page cache."""
MOST_GRANULES: Final = 8192
"""Maximum number of remembered parts; together 512 MiB of files."""
LOOK_BYTES: Final = 4 << 20
"""Maximum bytes of a file for one look."""

SLOW_SECONDS: Final = 0.0005
"""Time of a read after which it may have waited for a disk. From the page cache it takes a tenth of that."""

# A device number can pass from one file system to another.
_KIND_SECONDS: Final = 10.0
# magic.h: TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC. None of them has RWF_NOWAIT (Linux 6.1, 6.12, 6.18).
_IN_MEMORY: Final = frozenset({0x01021994, 0x858458F6, 0x958458F6})
_CAP_FOWNER: Final = 1 << 3
# Owners that this user namespace does not know (/proc/sys/kernel/overflowuid).
_OVERFLOW_USER: Final = 65534


class Kind(NamedTuple):
    """A file system without RWF_NOWAIT."""

    in_memory: bool
    """True if its files need no disk."""
    until: float
    """The time (time.monotonic()) after which its device number may belong to another."""


class Residency:
    """One process's knowledge of files on file systems without RWF_NOWAIT."""

    def __init__(self, recent_seconds: float = RECENT_SECONDS, slow_seconds: float = SLOW_SECONDS) -> None:
        self._recent_seconds = recent_seconds
        self._slow_seconds = slow_seconds
        self._blocks = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
        """Blocks that the thread of the event loop had read from disks at the last look."""
        self._kinds: dict[int, Kind] = {}
        """By device."""
        self._recent: OrderedDict[tuple[FileIdentity, int], float] = OrderedDict()
        """The time until which a part is taken to be in the page cache, by version of a file and number of the part."""
        self._untold: set[int] = set()
        """Devices about which mincore(2) tells nothing."""
        self._owns_all: bool | None = None
        """True if the process counts as the owner of all files (capabilities(7), CAP_FOWNER); None before the first
        look."""

    def __len__(self) -> int:
        """The number of remembered parts."""
        return len(self._recent)

    def kind(self, device: int) -> Kind | None:
        """The kind of the file system with this device number; None if it has RWF_NOWAIT, or that is unknown."""
        kind = self._kinds.get(device)
        if kind is not None and kind.until < time.monotonic():
            del self._kinds[device]
            return None
        return kind

    def learn(self, device: int, descriptor: int) -> Kind:
        """The kind of a file system that refused RWF_NOWAIT. Raises OSError."""
        in_memory = file_system_type(descriptor) in _IN_MEMORY
        kind = self._kinds[device] = Kind(in_memory, time.monotonic() + _KIND_SECONDS)
        self._untold.discard(device)
        return kind

    def read(self, kind: Kind, descriptor: int, target: memoryview, offset: int, identity: FileIdentity) -> int:
        """Read what needs no disk; the number of bytes. Raises OSError."""
        if kind.in_memory:
            return os.preadv(descriptor, [target], offset)
        until = self.until(descriptor, offset, offset + len(target), identity)
        if until == offset:
            return 0
        began = time.monotonic()
        got = os.preadv(descriptor, [target[: until - offset]], offset)
        if time.monotonic() - began > self._slow_seconds and self._read_from_disk():
            self._recent.clear()
        else:
            self.note(identity, offset, until)
        return got

    def until(self, descriptor: int, offset: int, end: int, identity: FileIdentity) -> int:
        """Up to where a part of a file is in the page cache; at most LOOK_BYTES are looked at. Raises OSError."""
        recent, now = self._recent, time.monotonic()
        stop = min(end, identity[2], offset + LOOK_BYTES)
        position = offset
        while position < stop and recent.get((identity, position // GRANULE), now) > now:
            position = min((position // GRANULE + 1) * GRANULE, stop)
        if position >= stop or not self._may_ask(descriptor):
            return position
        try:
            told = resident_until(descriptor, position, stop)
        except OSError:
            # EPERM, EACCES: a filter of system calls or a security module forbids it. ENODEV: no mmap(2).
            self._untold.add(identity[0])
            return position
        if told > position:
            self.note(identity, position, told)
        return told

    def note(self, identity: FileIdentity, offset: int, end: int) -> None:
        """Remember that a part was read just now, or is in the page cache."""
        recent, until = self._recent, time.monotonic() + self._recent_seconds
        for number in range(offset // GRANULE, (end + GRANULE - 1) // GRANULE):
            key = identity, number
            recent[key] = until
            recent.move_to_end(key)
        while len(recent) > MOST_GRANULES:
            recent.popitem(last=False)

    def _read_from_disk(self) -> bool:
        """True if this thread has waited for a disk since the last look. Time alone does not tell: other processes and
        threads take some, too."""
        before, self._blocks = self._blocks, resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
        return self._blocks != before

    def _may_ask(self, descriptor: int) -> bool:
        """True if mincore(2) tells the truth: to the owner, and with CAP_FOWNER. Others hear, since Linux 5.2,
        that all is there (can_do_mincore() in mm/mincore.c)."""
        if self._owns_all is None:
            self._owns_all = bool(effective_capabilities() & _CAP_FOWNER)
        status = os.fstat(descriptor)
        if status.st_dev in self._untold:
            return False
        return status.st_uid != _OVERFLOW_USER if self._owns_all else status.st_uid == os.geteuid()
