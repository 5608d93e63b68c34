"""A FUSE file system that shows a folder and holds up chosen calls: python -m tests.hanging_fs SHOWN MOUNT HELD

Strategy: each call looks into the file HELD for its own name, and waits for as long as it is there. Names stay in the
kernel's cache for an hour, so that the kernel resolves paths without asking, and attributes do not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mfusepy

WAIT_SECONDS = 60.0


class HangingFolder(mfusepy.Operations):  # type: ignore[misc]
    """The folder, read only."""

    use_ns = True

    def __init__(self, folder: str, held: str) -> None:
        self._folder = folder
        self._held = held

    def _path(self, call: str, path: str) -> str:
        while call in Path(self._held).read_text().split():
            time.sleep(0.02)
        return self._folder + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        try:
            status = os.lstat(self._path("getattr", path))
        except OSError as error:
            raise mfusepy.FuseOSError(error.errno) from error
        names = ("mode", "nlink", "size", "uid", "gid")
        times = ("atime", "mtime", "ctime")
        return {f"st_{name}": getattr(status, f"st_{name}") for name in names} | {
            f"st_{name}": getattr(status, f"st_{name}_ns") for name in times
        }

    def open(self, path: str, flags: int) -> int:
        return os.open(self._path("open", path), flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._path("read", path)
        return os.pread(fh, size, offset)

    def flush(self, path: str, fh: int) -> int:
        self._path("flush", path)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._path("readdir", path))]

    def readlink(self, path: str) -> str:
        return os.readlink(self._folder + path)

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self._path("statfs", path))
        return {name: getattr(status, name) for name in ("f_bsize", "f_frsize", "f_blocks", "f_namemax")}


class Mounted:
    """A folder below a mount, and the calls on it that are held up."""

    def __init__(self, path: Path, held: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self._held = held
        self.process = process

    def hold(self, *calls: str) -> None:
        """Hold up these calls and no others."""
        other = self._held.with_suffix(".new")
        other.write_text(" ".join(calls))
        other.rename(self._held)

    def stop(self) -> None:
        """Answer nothing at all, as a daemon that hangs."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def mounted(folder: Path, mount: Path, held: Path) -> Iterator[Mounted]:
    """Show the folder at a mount, until the end, whatever hangs."""
    mount.mkdir(exist_ok=True)
    held.write_text("")
    process = subprocess.Popen([sys.executable, "-m", "tests.hanging_fs", str(folder), str(mount), str(held)])
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not os.path.ismount(mount):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Mounted(mount, held, process)
    finally:
        # Without its daemon, the kernel fails all calls that wait.
        process.kill()
        process.wait()
        subprocess.run(["umount", "-l", mount], check=True)


def main(folder: str, mount: str, held: str) -> None:
    options: dict[str, Any] = {"entry_timeout": 3600, "negative_timeout": 3600, "attr_timeout": 0, "max_threads": 100}
    mfusepy.FUSE(HangingFolder(folder, held), mount, foreground=True, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
