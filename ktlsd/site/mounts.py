"""The mounts whose file system may hold up its callers, forever.

Strategy: the kernel's own table, /proc/self/mountinfo (proc(5)), asks no file system, as statfs(2) would. A local file
system waits for its disk at most; all that are not known to be local ask another process or another machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Iterable
from typing import Final, NamedTuple

from ktlsd.config.printable import printable
from ktlsd.system_calls import folder_identity, path_at

LOCAL: Final = frozenset(
    {
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs", "ramfs", "hugetlbfs"),
        *("overlay", "squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf", "vfat", "msdos", "exfat", "ntfs3"),
        *("jfs", "reiserfs", "nilfs2", "ubifs", "jffs2", "rootfs", "devtmpfs"),
    }
)
"""File systems whose open(2), read(2), fstat(2) and close(2) ask no other process and no other machine."""
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of the table."""

    number: int
    """The mount ID, as statx(2) has it."""
    point: bytes
    """The path of the mount point."""
    kind: str
    """The file system's type."""

    def __str__(self) -> str:
        return f"{printable(os.fsdecode(self.point))} ({self.kind})"

    @property
    def waits(self) -> bool:
        """Whether its file system may hold up its callers."""
        return self.kind not in LOCAL


def mounts() -> list[Mount]:
    """All mounts of this process. Raises OSError without /proc."""
    with open("/proc/self/mountinfo", "rb") as table:
        return [parse(line) for line in table]


def parse(line: bytes) -> Mount:
    """A line of mountinfo, whose optional fields end with a hyphen."""
    fields, _, rest = line.partition(b" - ")
    number, _, _, _, point, *_ = fields.split(b" ")
    unescaped = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), point)
    return Mount(int(number), unescaped, rest.split(b" ", 1)[0].decode("ascii", "replace"))


class MountChanges:
    """Whether anything was mounted or unmounted. For one process: one that is forked later must make its own."""

    def __init__(self) -> None:
        """Raises OSError without /proc."""
        self._table = open("/proc/self/mountinfo", "rb")  # noqa: SIM115 (open for as long as this is used)
        self._poll = select.poll()
        self._poll.register(self._table, select.POLLPRI)
        self._generation = 0

    def close(self) -> None:
        self._table.close()

    def generation(self) -> int:
        """A number that differs after each change (proc(5): mountinfo is readable by poll(2) then)."""
        if self._poll.poll(0):
            self._generation += 1
        return self._generation


class LocalMounts:
    """Mounts below a root that are known to be local, and what is on them, at once: valid until the next mount or
    unmount. The creator closes it."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._changes: MountChanges | None = None
        self._generation = 0

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()

    def open(self, root: int, path: bytes, flags: int) -> int | None:
        """A new descriptor of what is on such a mount, at once; None if a thread has to open it. The kernel gives the
        mount before any file system is asked."""
        if not self._numbers or not self.still_hold():
            return None
        try:
            found = path_at(root, path)
            try:
                if folder_identity(found).mount in self._numbers:
                    return os.open(b"/proc/self/fd/%d" % found, flags | os.O_CLOEXEC)
            finally:
                os.close(found)
        except OSError:
            # A thread finds out.
            pass
        return None

    def still_hold(self) -> bool:
        """Whether what is known of mounts still holds."""
        if self._changes is None:
            return False
        generation = self._changes.generation()
        if generation == self._generation:
            return True
        self._generation = generation
        self._numbers.clear()
        return False

    def note(self, number: int, own: int, *, known: bool) -> None:
        """Remember that a mount is local, as is the root's `own`, if nothing was mounted since before it was asked: so
        `known` says."""
        if self._changes is None:
            with contextlib.suppress(OSError):
                self._changes = MountChanges()
        elif known and self.still_hold():
            # A link may lead back.
            self._numbers.update((number, own))


def waits(number: int) -> bool:
    """True if the mount with this ID may have a file system that holds up its callers, or if it is unknown."""
    try:
        return next((mount.waits for mount in mounts() if mount.number == number), True)
    except OSError:
        return True


def waiting(number: int, folder: bytes, among: Iterable[Mount]) -> list[Mount]:
    """The mount with this ID, and those below an absolute path, if their file systems may hold up their callers."""
    top = folder.rstrip(b"/") + b"/"
    return [mount for mount in among if mount.waits and (mount.number == number or mount.point.startswith(top))]
