"""Real mounts for tests, by root: overlayfs over folders, and file systems that live in memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ktlsd.system_calls import resident_until


@contextlib.contextmanager
def mount(kind: str, point: Path, options: str = "") -> Iterator[Path]:
    """Mount a file system of this kind, until the end."""
    point.mkdir()
    subprocess.run(["mount", "-t", kind, *(("-o", options) if options else ()), kind, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def known_to_the_kernel(kind: str) -> bool:
    """Whether the running kernel has this kind of file system (proc(5))."""
    return kind in Path("/proc/filesystems").read_text().split()


@contextlib.contextmanager
def overlay(place: Path, shown: Path) -> Iterator[Path]:
    """Show a folder through overlayfs; what is written there is in memory."""
    with mount("tmpfs", place / "above", "mode=755") as above:
        for name in ("upper", "work"):
            (above / name).mkdir()
        options = f"lowerdir={shown},upperdir={above / 'upper'},workdir={above / 'work'}"
        with mount("overlay", place / "overlay", options) as point:
            yield point


def evict(path: Path) -> None:
    """Have a file's bytes leave the page cache (posix_fadvise(2)), if no mapping keeps them. It is on a disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        # A read with RWF_NOWAIT would begin to fill it again.
        assert resident_until(descriptor, 0, os.fstat(descriptor).st_size) == 0
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def as_user(number: int) -> Iterator[None]:
    """Have no rights but those of a user, with no capabilities (seteuid(2)), until the end."""
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
