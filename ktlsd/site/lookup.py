"""From a parsed target to an open regular file below the root, or the reason why there is none.

Strategy: one openat2(RESOLVE_BENEATH) against the root's descriptor, so that the kernel itself keeps every name, link
and race inside. On the event loop only from the kernel's name cache, on the root's own mount, and if its file system
is known to be a local one; everything else belongs in a thread, but for names that are surely absent
(folder_names.py). An opened file is checked through its descriptor only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from msgspec import Struct

from ktlsd.config.values import EntityTagRecipe
from ktlsd.file_identity import FileIdentity, identify, identity_of
from ktlsd.file_threads import DEFAULT_SECONDS, FileThreads, Stalled
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Miss, Moved
from ktlsd.http.hidden_paths import HiddenPaths
from ktlsd.http.multipart import Multipart
from ktlsd.http.request_target import Target
from ktlsd.http.validators import entity_tag, is_dated, size_mtime_tag
from ktlsd.site import exact_names, mounts
from ktlsd.site.beneath import open_beneath, paths_below
from ktlsd.site.folder_names import FolderNames, Unread, Verdict
from ktlsd.system_calls import FolderIdentity, folder_at, folder_identity, open_as, open_how, openat2

T = TypeVar("T")

INDEX: Final = b"index.html"
PIECE: Final = 262144
"""Bytes of a file that `waits` that are read at a time, and kept in memory until the client has taken them."""

NO_NAMES: Final[frozenset[bytes]] = frozenset()
# O_NONBLOCK: opening a FIFO must not wait for a writer.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_AT_ONCE: Final = open_how(_FLAGS, cached=True)
_WITHOUT_LINKS: Final = open_how(_FLAGS, cached=True, links=False)
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
    errno.ETIMEDOUT: Miss.STALLED,
}


class Unusable(OSError):
    """The root is not to be used any more, or there is none."""

    def __init__(self, miss: Miss) -> None:
        super().__init__(errno.ESTALE, os.strerror(errno.ESTALE))
        self.miss = miss


def miss_of(error: OSError) -> Miss:
    """The outcome for a request if a file, or a folder, cannot be opened or read."""
    if isinstance(error, Unusable):
        return error.miss
    return _MISSES.get(error.errno or 0, Miss.FAILED)


class OpenFile(Struct):
    """An open regular file and its fstat(2) data; the holder closes it."""

    descriptor: int
    root: Root
    """The folder that `path` is below."""
    path: bytes
    identity: FileIdentity
    """Of this version of the file."""
    reopens: bool = False
    """Whether it can be opened again on the event loop (Root.open_now)."""
    waits: bool = False
    """Whether its file system may hold up every call on it, close(2) too: they belong in the root's threads."""
    crosses: bool = False
    """Whether it is on another mount than its root."""
    direct: bool = False
    """Whether it surely was opened without a link on the way, on the root's own mount."""
    passes_link: bool = False
    """Whether a link that leads nowhere would be preferred to it if it led to a file."""
    original: OpenFile | None = None
    """The file, closed by now, that this one is a precompressed sibling of."""
    first: tuple[int, bytes] | None = None
    """If it `waits`, an offset and the bytes that were read from there on before the response began."""
    unchanged: bool = False
    """Whether the file still was the same one after that read."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity[2]

    @property
    def mtime_ns(self) -> int:
        """Of the data."""
        return self.identity[3]

    @property
    def ctime_ns(self) -> int:
        """Of data and inode."""
        return self.identity[4]

    def tag(self, recipe: EntityTagRecipe) -> str | None:
        """The entity tag by this recipe; None if only the content can give it."""
        _, inode, size, mtime_ns, ctime_ns = self.identity
        if recipe == "strong":
            return entity_tag(mtime_ns, size, inode, ctime_ns)
        if recipe == "size-mtime" and is_dated(mtime_ns):
            return size_mtime_tag(mtime_ns, size)
        return None

    async def read_first(self, body: object) -> None:
        """If the file `waits`, read the beginning of what a response has of it, so that one that cannot be read gets an
        error instead of half a response. Raises OSError."""
        if not self.waits:
            return
        if isinstance(body, Multipart):
            body = body.parts[0][1]
        if isinstance(body, ByteRange) and body.count:
            offset, size = body.offset, min(body.count, PIECE)
            data, self.unchanged = await self.run(lambda descriptor: self._read_and_compare(descriptor, offset, size))
            self.first = (offset, data)

    def _read_and_compare(self, descriptor: int, offset: int, size: int) -> tuple[bytes, bool]:
        data = os.pread(descriptor, size, offset)
        return data, identify(descriptor) == self.identity

    async def read_piece(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset` on of a file that `waits`; b"" at its end. Raises OSError."""
        if self.first is not None and self.first[0] == offset:
            (_, data), self.first = self.first, None
            return data[:count]
        return await self._read(offset, count)

    async def _read(self, offset: int, count: int) -> bytes:
        size = min(count, PIECE)
        return await self.run(lambda descriptor: os.pread(descriptor, size, offset))

    async def run(self, call: Callable[[int], T]) -> T:
        """The result of a call on the file in a thread of the root's. Raises OSError."""
        return await self.root.threads.run_on(self.descriptor, call, waits=self.waits)

    def close(self) -> None:
        _close(self.descriptor, self.root.threads, waits=self.waits)


class FilePart(Struct, frozen=True):
    """A part of an open file, which its maker closes."""

    file: OpenFile
    part: ByteRange


class Folder(Struct):
    """An open folder that has no index file; the holder closes it."""

    descriptor: int
    path: bytes
    root: Root
    waits: bool = False
    """Whether its file system may hold up every call on it."""
    direct: bool = False
    """As that of an OpenFile."""

    def close(self) -> None:
        _close(self.descriptor, self.root.threads, waits=self.waits)


class Root:
    """One version of the folder that is served: a path may lead to another one later (followed_root.py)."""

    def __init__(
        self,
        path: str | None,
        *,
        dotfiles: bool = False,
        hidden: frozenset[bytes] = NO_NAMES,
        hide: HiddenPaths | None = None,
        notes_links: bool = False,
        seconds: float = DEFAULT_SECONDS,
        why: Miss = Miss.ABSENT,
    ) -> None:
        """`hidden` has paths below the root that are not served, `hide` patterns for such; with
        `notes_links`, most of what is opened is found to be `direct`; `seconds` is the time that one call on a file may
        take. Without a path there is no folder, and every request gets `why`.

        Waits for the file system. Raises OSError when `path` is no readable folder, or the kernel has no openat2 (Linux
        5.6).
        """
        self.dotfiles = dotfiles
        # In lower case: there are file systems without the difference.
        self._hidden = frozenset(map(bytes.lower, hidden))
        self.hide = hide
        self._notes_links = notes_links
        self.why = why
        """The answer once the root is closed."""
        self.threads = FileThreads(path or "", seconds)
        self._users = 0
        self.descriptor = self._descriptor = -1
        """Of the folder, for openat2(2); -1 once it is not to be used any more."""
        self.closed = False
        """Whether another folder has taken its place."""
        self.identity: FolderIdentity | None = None
        self.waits = True
        """Whether its file system may hold up every call on it."""
        self._opens_now = False
        self._local_mounts = mounts.LocalMounts()
        self._names = FolderNames()
        if path is not None:
            self.descriptor = self._descriptor = _open_folder(path)
            try:
                self._examine()
            except BaseException:
                self.close()
                raise

    def _examine(self) -> None:
        descriptor = self._descriptor
        os.close(openat2(descriptor, b".", os.O_PATH, cached=False))
        self.identity = folder_identity(descriptor)
        self.waits = mounts.waits(self.identity.mount)
        self._opens_now = not self.waits and _resolves_from_cache(descriptor)

    def __enter__(self) -> int:
        """Use the root for as long as this lasts: its descriptor, which close() leaves open until then.

        Raises Unusable if it is closed.
        """
        if self._descriptor < 0:
            raise Unusable(self.why)
        self._users += 1
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if self.descriptor < 0:
            self._close_unused()

    def close(self) -> None:
        """Open nothing more; the descriptor is closed by its last user."""
        self.closed = True
        self.descriptor = -1
        self._close_unused()

    def _close_unused(self) -> None:
        if not self._users and self._descriptor >= 0:
            # O_PATH: close(2) asks no file system.
            os.close(self._descriptor)
            self._descriptor = -1
            self._local_mounts.close()

    def waiting_mounts(self) -> list[mounts.Mount]:
        """The root's mount, and those below it, whose file systems may hold up their callers. Raises OSError."""
        if self.identity is None:
            return []
        folder = os.readlink(b"/proc/self/fd/%d" % self._descriptor)
        return mounts.waiting(self.identity.mount, folder, mounts.mounts())

    async def find(self, target: Target, index: Sequence[bytes] = (INDEX,)) -> OpenFile | Folder | Moved | Miss:
        """Open what the target names: a file, or a folder's index file, else the folder.

        Raises Unusable if the root is closed, Stalled if its file system does not answer.
        """
        if not self.dotfiles and target.hidden():
            return Miss.HIDDEN
        path = target.file_path()
        with self:
            if target.directory:
                return await self._find_index(path, index)
            if self.hide is not None or path.lower() in self._hidden:
                found = await self._open_shown(path)
            else:
                found = await self._open(path, _FLAGS)
            if not isinstance(found, Folder):
                return found
            found.close()
            return Moved(target.directory_location())

    async def open_file(self, path: bytes, others: Sequence[bytes] = ()) -> OpenFile | Miss | None:
        """Open a file by its path below the root; None when it is a folder.

        Where the disk has to be asked, the kernel gets to know of `others` in the same go: a thread costs more than
        the look at a name.
        """
        if self.hide is not None or path.lower() in self._hidden:
            return self._file_of(await self._open_shown(path, others))
        return self._file_of(await self._open(path, _FLAGS, others))

    def open_file_now(self, path: bytes) -> OpenFile | None:
        """The same for a plain_path() of a file that can be opened at once; None for all else, and with `notes_links`
        for one behind a link. Patterns that hide files are not looked at."""
        if not self._opens_now or path.lower() in self._hidden:
            return None
        try:
            descriptor = open_as(self.descriptor, path, _WITHOUT_LINKS if self._notes_links else _AT_ONCE)
            opened = self._examined(descriptor, path, reopens=True, direct=self._notes_links)
        except OSError:
            return None
        if isinstance(opened, OpenFile):
            return opened
        if isinstance(opened, Folder):
            opened.close()
        return None

    def lacks_siblings(self, path: bytes) -> bool:
        """Whether the folder of a path surely had no precompressed siblings folder_names.LATELY_SECONDS ago."""
        if not self._opens_now:
            return False
        lack = self._names.lack_siblings(self.descriptor, path.rpartition(b"/")[0] or b".")
        if lack is None and self._names.ahead_is_due(waits=False):
            self._read_ahead_soon(self.descriptor)
        return lack is True

    def possible_siblings(self, paths: Sequence[bytes]) -> Sequence[bytes]:
        """The paths, all in one folder, without those that were surely absent folder_names.LATELY_SECONDS ago."""
        with self as root:
            return self._names.possible_siblings(root, paths) if self._opens_now else paths

    async def open_hidden(self, path: bytes, others: Sequence[bytes] = ()) -> OpenFile | Miss | None:
        """Open a file that may be one of those that are not served."""
        return self._file_of(await self._open(path, _FLAGS, others))

    def _file_of(self, opened: OpenFile | Folder | Miss) -> OpenFile | Miss | None:
        if not isinstance(opened, Folder):
            return opened
        opened.close()
        return None

    async def _open_shown(self, path: bytes, others: Sequence[bytes] = ()) -> OpenFile | Folder | Miss:
        """Open what may be served: neither its name nor the place where links led to is hidden."""
        if path.lower() in self._hidden:
            return Miss.HIDDEN
        if self.hide is not None and self.hide.cover(path):
            return Miss.CONCEALED
        return self._shown(await self._open(path, _FLAGS, others))

    def _shown(self, opened: OpenFile | Folder | Miss) -> OpenFile | Folder | Miss:
        """What was opened, unless a pattern hides it by its name or by the place where links led to."""
        if self.hide is None or isinstance(opened, Miss):
            return opened
        try:
            with self as root:
                paths = paths_below(root, opened.path, opened.descriptor)
        except OSError:
            paths = ()
        if paths and not any(self.hide.cover(path, folder=isinstance(opened, Folder)) for path in paths):
            return opened
        opened.close()
        return Miss.CONCEALED

    async def _find_index(self, folder: bytes, index: Sequence[bytes]) -> OpenFile | Folder | Miss:
        if self.hide is not None and self.hide.cover(folder, folder=True):
            return Miss.CONCEALED
        passes_link = False
        for name in index:
            found = await self.open_file(name if folder == b"." else folder + b"/" + name)
            if isinstance(found, OpenFile):
                found.passes_link = passes_link
            if found is not None and found not in (Miss.ABSENT, Miss.DANGLING, Miss.HIDDEN, Miss.CONCEALED):
                return found
            passes_link = passes_link or found is Miss.DANGLING
        opened = self._shown(await self._open(folder, os.O_RDONLY | os.O_DIRECTORY))
        return Miss.SPECIAL if isinstance(opened, OpenFile) else opened

    def lacks(self, name: bytes) -> bool:
        """Whether there surely is no such name at the top, as far as that is known without asking a disk."""
        if not self._opens_now or self.closed:
            return False
        verdict = self._names.judge(self.descriptor, name)
        if isinstance(verdict, Unread):
            self._read_soon(self.descriptor, verdict)
        return verdict is Verdict.ABSENT

    def open_now(self, path: bytes) -> int:
        """A new descriptor of a file that `reopens`. Raises OSError, at once, if that is no longer so."""
        try:
            return open_as(self.descriptor, path, _AT_ONCE)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            descriptor = self._local_mounts.open(self.descriptor, path, _FLAGS)
            if descriptor is None:
                raise
        return descriptor

    def identity_now(self, path: bytes) -> FileIdentity:
        """The identity of a version of a folder, or file, on the root's own mount. Raises OSError, at once,
        if the kernel would have to ask a disk, or another file system."""
        descriptor = openat2(self.descriptor, path, os.O_PATH, cached=True)
        try:
            return identify(descriptor)
        finally:
            os.close(descriptor)

    async def _open(self, path: bytes, flags: int, others: Sequence[bytes] = ()) -> OpenFile | Folder | Miss:
        unread: Unread | None = None
        try:
            with self as root:
                direct = self._notes_links
                listed = self._surely_listed(root, path)
                reopens = self._opens_now and listed
                if reopens:
                    try:
                        try:
                            descriptor = openat2(root, path, flags, cached=True, links=not direct)
                        except OSError as error:
                            if not direct or error.errno != errno.ELOOP:
                                raise
                            direct = False
                            descriptor = openat2(root, path, flags, cached=True)
                    except OSError as error:
                        # EAGAIN: the disk has to be asked, or another mount. EXDEV: an absolute link.
                        if error.errno not in (errno.EAGAIN, errno.EXDEV):
                            raise
                        reopens = error.errno == errno.EAGAIN
                        if reopens:
                            if (across := self._local_mounts.open(root, path, flags)) is not None:
                                return self._examined(across, path, reopens=True, crosses=True)
                            verdict = self._names.judge(root, path)
                            if verdict is Verdict.ABSENT:
                                return Miss.ABSENT
                            if isinstance(verdict, Unread):
                                unread = self._to_read(root, verdict)
                    else:
                        return self._examined(descriptor, path, reopens=True, direct=direct)
                known = self._local_mounts.still_hold()
                opening = partial(self._open_from_disk, root, path, flags, others, unread, listed=listed)
                opened, mount = await self.threads.run(opening, _close_late)
                if isinstance(opened, Miss) or self.identity is None:
                    return opened
                if mount != self.identity.mount and not opened.waits:
                    self._local_mounts.note(mount, self.identity.mount, known=known)
                if isinstance(opened, OpenFile):
                    opened.reopens = reopens and not opened.waits
                return opened
        except Stalled:
            # No other name is tried: each would take as long again.
            raise
        except OSError as error:
            miss = miss_of(error)
            return Miss.DANGLING if miss is Miss.ABSENT and flags == _FLAGS and self._is_link(path) else miss

    def _surely_listed(self, root: int, path: bytes) -> bool:
        """Whether names of a path surely are those of their folders, told without a wait."""
        return not exact_names.may_differ(path) or (self._opens_now and exact_names.surely_listed(root, path))

    def _is_link(self, path: bytes) -> bool:
        """Whether a name is that of a link, if the kernel knows it. Asks no file system."""
        try:
            descriptor = openat2(self._descriptor, path, os.O_PATH | os.O_NOFOLLOW, cached=True)
        except OSError:
            return False
        try:
            return stat.S_ISLNK(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)

    def _to_read(self, root: int, unread: Unread) -> Unread | None:
        """The folder for the thread that is needed anyway to read; a large folder gets a thread of its own."""
        if unread.large:
            self._read_soon(root, unread)
            return None
        if self._names.ahead_is_due():
            self._read_ahead_soon(root)
        return unread

    def _read_ahead_soon(self, root: int) -> None:
        self._run_soon(root, lambda copy: self._names.read_ahead(copy, lambda: self.closed))

    def _read_soon(self, root: int, unread: Unread) -> None:
        self._run_soon(root, lambda copy: self._names.read(copy, unread.folder, large=unread.large))

    def _run_soon(self, root: int, call: Callable[[int], object]) -> None:
        """Have a thread make a call with a descriptor of its own of the root."""
        with contextlib.suppress(OSError):
            copy = os.dup(root)

            def run() -> None:
                try:
                    call(copy)
                finally:
                    os.close(copy)

            if not self.threads.run_soon(run):
                os.close(copy)

    def _open_from_disk(
        self, root: int, path: bytes, flags: int, others: Sequence[bytes], unread: Unread | None, *, listed: bool
    ) -> tuple[OpenFile | Folder | Miss, int]:
        """The same for a thread, which may wait; and the mount ID. Unless they are surely `listed`, names that the
        folders do not list are absent."""
        try:
            descriptor, direct = self._open_beneath(root, path, flags)
        except FileNotFoundError:
            if unread is not None and self._names.read(root, unread.folder):
                raise
            self._look_at(root, others)
            raise
        self._look_at(root, others)
        try:
            if not listed and not exact_names.listed(root, path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            mount = folder_identity(descriptor).mount
            crosses = self.identity is not None and mount != self.identity.mount
            waits = mounts.waits(mount) if crosses else self.waits
        except BaseException:
            os.close(descriptor)
            raise
        direct = direct and not crosses
        return self._examined(descriptor, path, waits=waits, crosses=crosses, direct=direct), mount

    def _open_beneath(self, root: int, path: bytes, flags: int) -> tuple[int, bool]:
        """A new descriptor; and whether there surely was no link on the way."""
        if self._notes_links:
            try:
                return open_beneath(root, path, flags, links=False), True
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
        return open_beneath(root, path, flags), False

    def _look_at(self, root: int, paths: Sequence[bytes]) -> None:
        """Get the kernel to know whether these are there."""
        for path in paths:
            with contextlib.suppress(OSError):
                os.close(openat2(root, path, os.O_PATH, cached=False))

    def _examined(
        self,
        descriptor: int,
        path: bytes,
        *,
        reopens: bool = False,
        waits: bool = False,
        crosses: bool = False,
        direct: bool = False,
    ) -> OpenFile | Folder | Miss:
        """Take a new descriptor over: a Miss for anything that is not to be read. Raises OSError."""
        try:
            status = os.fstat(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if stat.S_ISREG(status.st_mode):
            return OpenFile(descriptor, self, path, identity_of(status), reopens, waits, crosses, direct)
        if stat.S_ISDIR(status.st_mode):
            return Folder(descriptor, path, self, waits, direct)
        _close(descriptor, self.threads, waits=waits)
        return Miss.SPECIAL


def _close_late(opened: tuple[OpenFile | Folder | Miss, int]) -> None:
    if not isinstance(opened[0], Miss):
        os.close(opened[0].descriptor)


def _close(descriptor: int, threads: FileThreads, *, waits: bool) -> None:
    if waits:
        # FUSE sends FLUSH, and waits for the answer (fuse_flush() in fs/fuse/file.c, Linux 6.18).
        threads.discard(partial(os.close, descriptor))
    else:
        os.close(descriptor)


def _open_folder(path: str) -> int:
    try:
        return folder_at(os.fsencode(path))
    except OSError as error:
        # EAGAIN: the disk has to be asked. EINVAL: the kernel has no RESOLVE_CACHED.
        if error.errno not in (errno.EAGAIN, errno.EINVAL):
            raise
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _resolves_from_cache(descriptor: int) -> bool:
    """Whether the kernel knows RESOLVE_CACHED, which is newer than openat2."""
    try:
        os.close(openat2(descriptor, b".", os.O_PATH, cached=True))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno != errno.EAGAIN:
            raise
    return True
