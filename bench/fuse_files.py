"""A FUSE file system that answers at once: `python -m bench.fuse_files SOURCE MOUNTPOINT` serves SOURCE from memory.

Strategy: all files are read at the start, so each answer is a look-up; auto_cache keeps the kernel's pages.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import mfusepy as fuse


class Files(fuse.Operations):  # type: ignore[misc]
    use_ns = True

    def __init__(self, source: Path) -> None:
        self._data = {f"/{file.name}": file.read_bytes() for file in source.iterdir()}
        self._times = {f"/{file.name}": file.stat().st_mtime_ns for file in source.iterdir()}

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path not in self._data:
            raise fuse.FuseOSError(fuse.errno.ENOENT)
        time = self._times[path]
        size = len(self._data[path])
        return {
            "st_mode": stat.S_IFREG | 0o644,
            "st_nlink": 1,
            "st_size": size,
            "st_mtime": time,
            "st_ctime": time,
            "st_atime": time,
        }

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._data[path][offset : offset + size]

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(name[1:] for name in self._data)]


if __name__ == "__main__":
    fuse.FUSE(Files(Path(sys.argv[1])), sys.argv[2], foreground=True, nothreads=True, allow_other=True, auto_cache=True)
    os._exit(0)
