"""From a parsed target to an open regular file below the root, or the reason why there is none.

Strategy: one openat2(RESOLVE_BENEATH) against the root's descriptor, so that the kernel itself keeps every name, link
and race inside; first from the kernel's name cache alone, and in a thread where the disk has to be asked. What was
opened is looked at through its descriptor only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Sequence
from typing import Final

import trio
from msgspec import Struct

from ktlsd.decide import Miss, Moved
from ktlsd.request_target import Target
from ktlsd.ssl_ffi import Library

INDEX: Final = b"index.html"

Identity = tuple[int, int, int, int, int]

_NONE: Final[frozenset[bytes]] = frozenset()
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


def miss_of(error: OSError) -> Miss:
    """What it means for a request that a file, or a folder, cannot be opened or read."""
    return _MISSES.get(error.errno or 0, Miss.FAILED)


def identify(status: os.stat_result) -> Identity:
    """What tells one version of a file from another."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class OpenFile(Struct):
    """An open regular file and what fstat(2) says of it; whoever holds it closes it."""

    descriptor: int
    root: int
    """The descriptor of the folder that `path` is below."""
    path: bytes
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    original: OpenFile | None = None
    """The file, closed by now, that this one is a precompressed sibling of."""

    def identity(self) -> Identity:
        """What tells one version of a file from another."""
        return self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns

    def close(self) -> None:
        os.close(self.descriptor)


class Folder(Struct):
    """An open folder that has no index file; whoever holds it closes it."""

    descriptor: int
    path: bytes

    def close(self) -> None:
        os.close(self.descriptor)


class Root:
    """The folder that is served."""

    def __init__(
        self, library: Library, path: str, *, dotfiles: bool = False, hidden: frozenset[bytes] = _NONE
    ) -> None:
        """`hidden` has paths below the root that are not served.

        Raises OSError when `path` is no readable folder, or the kernel has no openat2 (Linux 5.6).
        """
        self._library = library
        self.dotfiles = dotfiles
        self.hidden = hidden
        self.descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # RESOLVE_CACHED is newer than openat2; without it (EINVAL) every open goes to a thread.
        self._cached_opens = True
        try:
            os.close(library.openat2(self.descriptor, b".", os.O_PATH, cached=False))
            os.close(library.openat2(self.descriptor, b".", os.O_PATH, cached=True))
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._cached_opens = False
            elif error.errno != errno.EAGAIN:
                self.close()
                raise

    def close(self) -> None:
        os.close(self.descriptor)

    async def find(self, target: Target, index: Sequence[bytes] = (INDEX,)) -> OpenFile | Folder | Moved | Miss:
        """Open what the target names: a file, or a folder's index file, else the folder."""
        if not self.dotfiles and target.hidden():
            return Miss.HIDDEN
        path = target.file_path()
        if target.directory:
            return await self._find_index(path, index)
        found = await self.open_file(path)
        return found or Moved(target.directory_location())

    async def open_file(self, path: bytes, others: Sequence[bytes] = ()) -> OpenFile | Miss | None:
        """Open a file by its path below the root; None when it is a folder.

        Where the disk has to be asked, the kernel gets to know of `others` in the same go: a thread costs more than
        the look at a name.
        """
        return Miss.HIDDEN if path in self.hidden else await self.open_hidden(path, others)

    async def open_hidden(self, path: bytes, others: Sequence[bytes] = ()) -> OpenFile | Miss | None:
        """Open a file that may be one of those that are not served."""
        opened = await self._open(path, _FLAGS, others)
        return opened if isinstance(opened, Miss) else _examine(opened, self.descriptor, path)

    async def _find_index(self, folder: bytes, index: Sequence[bytes]) -> OpenFile | Folder | Miss:
        for name in index:
            found = await self.open_file(name if folder == b"." else folder + b"/" + name)
            if found is not None and found not in (Miss.ABSENT, Miss.HIDDEN):
                return found
        opened = await self._open(folder, os.O_RDONLY | os.O_DIRECTORY)
        return opened if isinstance(opened, Miss) else Folder(opened, folder)

    async def _open(self, path: bytes, flags: int, others: Sequence[bytes] = ()) -> int | Miss:
        try:
            if self._cached_opens:
                try:
                    return self._library.openat2(self.descriptor, path, flags, cached=True)
                except BlockingIOError:
                    pass
            return await trio.to_thread.run_sync(self._open_from_disk, path, flags, others)
        except OSError as error:
            return miss_of(error)

    def _open_from_disk(self, path: bytes, flags: int, others: Sequence[bytes]) -> int:
        for other in others:
            with contextlib.suppress(OSError):
                os.close(self._library.openat2(self.descriptor, other, os.O_PATH, cached=False))
        for _ in range(_TRIES):
            try:
                return self._library.openat2(self.descriptor, path, flags, cached=False)
            except BlockingIOError:
                time.sleep(_RETRY_SECONDS)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _examine(descriptor: int, root: int, path: bytes) -> OpenFile | Miss | None:
    """Take a new descriptor over: an OpenFile, None for a folder, a Miss for anything that is not to be read."""
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return OpenFile(
                descriptor,
                root,
                path,
                status.st_dev,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None if stat.S_ISDIR(status.st_mode) else Miss.SPECIAL
