"""From a parsed target to an open regular file below the root, or the reason why there is none.

Strategy: one openat2(RESOLVE_BENEATH) against the root's descriptor, so that the kernel itself keeps every name, link
and race inside; first from the kernel's name cache alone, and in a thread where the disk has to be asked. What was
opened is looked at through its descriptor only.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from typing import Final

import trio

from ktlsd.content_types import content_type, suffixes_of
from ktlsd.decide import FileFacts, Miss, Moved
from ktlsd.request_target import Target
from ktlsd.ssl_ffi import Library

INDEX: Final = b"index.html"

# O_NONBLOCK: opening a FIFO must not wait for a writer.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
# EAGAIN: a rename elsewhere might have moved the walk outside (openat2(2)), or a lease is being broken (fcntl(2)).
_TRIES: Final = 16
_RETRY_SECONDS: Final = 0.01
_MISSES: Final = {
    errno.ENOENT: Miss.ABSENT,
    errno.ENOTDIR: Miss.ABSENT,
    errno.ENAMETOOLONG: Miss.ABSENT,
    errno.ELOOP: Miss.ABSENT,
    errno.EXDEV: Miss.OUTSIDE,
    errno.EACCES: Miss.FORBIDDEN,
    errno.EPERM: Miss.FORBIDDEN,
    errno.ENXIO: Miss.SPECIAL,
    errno.ENODEV: Miss.SPECIAL,
    errno.EAGAIN: Miss.BUSY,
    errno.EMFILE: Miss.EXHAUSTED,
    errno.ENFILE: Miss.EXHAUSTED,
    errno.ENOMEM: Miss.EXHAUSTED,
}


@dataclass(slots=True)
class OpenFile:
    """An open regular file; whoever holds it closes it."""

    descriptor: int
    facts: FileFacts

    def close(self) -> None:
        os.close(self.descriptor)


class Root:
    """The folder that is served."""

    def __init__(self, library: Library, path: str, *, dotfiles: bool = False) -> None:
        """Raises OSError when `path` is no readable folder, or the kernel has no openat2 (Linux 5.6)."""
        self._library = library
        self._dotfiles = dotfiles
        self._descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # RESOLVE_CACHED is newer than openat2; without it (EINVAL) every open goes to a thread.
        self._cached_opens = True
        try:
            os.close(library.openat2(self._descriptor, b".", os.O_PATH, cached=False))
            os.close(library.openat2(self._descriptor, b".", os.O_PATH, cached=True))
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._cached_opens = False
            elif error.errno != errno.EAGAIN:
                self.close()
                raise

    def close(self) -> None:
        os.close(self._descriptor)

    async def find(self, target: Target) -> OpenFile | Moved | Miss:
        """Open what the target names: a file, or a folder's index file."""
        if not self._dotfiles and target.hidden():
            return Miss.HIDDEN
        path = target.file_path()
        if target.directory:
            return await self._find_index(path)
        opened = await self._open(path, _FLAGS)
        if isinstance(opened, Miss):
            return opened
        return _examine(opened, path) or Moved(target.directory_location())

    async def _find_index(self, folder: bytes) -> OpenFile | Miss:
        path = folder + b"/" + INDEX
        opened = await self._open(path, _FLAGS)
        if opened is Miss.ABSENT:
            there = await self._open(folder, os.O_PATH | os.O_DIRECTORY)
            if isinstance(there, Miss):
                return there
            os.close(there)
            return Miss.NO_INDEX
        if isinstance(opened, Miss):
            return opened
        return _examine(opened, path) or Miss.NO_INDEX

    async def _open(self, path: bytes, flags: int) -> int | Miss:
        try:
            if self._cached_opens:
                try:
                    return self._library.openat2(self._descriptor, path, flags, cached=True)
                except BlockingIOError:
                    pass
            return await trio.to_thread.run_sync(self._open_from_disk, path, flags)
        except OSError as error:
            return _MISSES.get(error.errno or 0, Miss.FAILED)

    def _open_from_disk(self, path: bytes, flags: int) -> int:
        for _ in range(_TRIES):
            try:
                return self._library.openat2(self._descriptor, path, flags, cached=False)
            except BlockingIOError:
                time.sleep(_RETRY_SECONDS)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _examine(descriptor: int, path: bytes) -> OpenFile | Miss | None:
    """Take a new descriptor over: an OpenFile, None for a folder, a Miss for anything that is not to be read."""
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            kind = content_type(suffixes_of(path))
            return OpenFile(descriptor, FileFacts(status.st_size, status.st_mtime_ns, status.st_ino, kind))
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None if stat.S_ISDIR(status.st_mode) else Miss.SPECIAL
