"""Which names are surely absent below a root, without a thread: what folders hold, read once.

Strategy: a thread reads a folder's names, and keeps a hash of each under the folder's device, inode, mtime and ctime.
The event loop asks for these of the folder of that moment, from the kernel's name cache: if they are the same, a name
without a hash is absent. Any other name, and a folder whose file system may match names otherwise than byte for byte,
says nothing: then openat2(2) decides.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
import time
from array import array
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import islice
from typing import Final, NamedTuple

from msgspec import Struct

from ktlsd.http.accept_encoding import SUFFIXES
from ktlsd.system_calls import file_system_type, openat2

MOST_BYTES: Final = 8_388_608
"""Approximate memory for the names below one root: about a million names."""
MOST_AT_ONCE: Final = 2_000
"""Names of a folder that are read while a request waits: about 2 ms."""
MOST_NAMES: Final = 100_000
"""Names of a folder that is kept."""
WAITS: Final = 8
"""Unknown folders, the first one and then those that requests wait for, before a thread reads all others again. Then
the number doubles."""
MOST_AHEAD: Final = 4096
"""Names of a folder among which folders to be read ahead are looked for."""
AHEAD_SECONDS: Final = 5.0
"""Time after which no further folder is read ahead."""
STEP_SECONDS: Final = 0.002
"""Time for which folders are read ahead before a rest of the same length."""
LATELY_SECONDS: Final = 1.0
"""How long a folder need not be looked at again for names that may appear a little later, such as siblings."""

# At the end of names that NUL separates.
_ENDINGS: Final = tuple(f"{os.fsdecode(suffix)}\0" for suffix in SUFFIXES.values())
# A folder that has changed lately can change again without a change of its times: their clock has ticks.
_SETTLED_NS: Final = 2_000_000_000
# A folder that changes again and again is read for at most a fiftieth of the time.
_PAUSES: Final = 50
_FOLDER_BYTES: Final = 512
_BUCKET: Final = 1024
# Links to a folder without folders, which have a link to it each; file systems that do not count them say 1.
_LEAF: Final = 2
_MOST_LEVELS: Final = 32

# Magic numbers (statfs(2)) of file systems without names of their own making. Of xfs and overlayfs, only a trial says
# whether they match upper with lower case.
_TRIED: Final = frozenset({0x58465342, 0x794C7630})  # xfs, overlayfs
_TRUSTED: Final = _TRIED | {
    0xEF53,  # ext2, ext3, ext4
    0x9123683E,  # btrfs
    0xF2F52010,  # f2fs
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0x73717368,  # squashfs
    0xE0F5E1E2,  # erofs
}
# ioctl_iflags(2). The direction of data is encoded otherwise on a few architectures (asm/ioctl.h).
_READ: Final = 0x40000000 if os.uname().machine.startswith(("alpha", "mips", "ppc", "sparc")) else 0x80000000
_FS_IOC_GETFLAGS: Final = _READ | struct.calcsize("l") << 16 | ord("f") << 8 | 1
_FS_ENCRYPT_FL: Final = 0x800  # Without their key, names are listed in another form than with it.
_FS_CASEFOLD_FL: Final = 0x40000000


class Verdict(Enum):
    """The result of a look-up of a name."""

    ABSENT = "no such name"
    LISTED = "there was such a name"
    UNKNOWN = "nothing, and reading its folder would not help at the moment"


class Unread(NamedTuple):
    """Nothing is known of a name before a thread has read the names of a folder on its way."""

    folder: bytes
    large: bool
    """True if the folder has more than MOST_AT_ONCE names: no request should wait for them."""


Names = tuple["array[int]", ...]
_Version = tuple[int, int]


class _Known(Struct, frozen=True, gc=False):
    version: _Version
    """mtime and ctime in ns, unchanged while the folder was read."""
    names: Names | None
    """None if they say nothing, or are too many."""
    large: bool
    """True if they are too many for MOST_AT_ONCE, and were not read to their end."""
    packed: bool
    """True if any name has the suffix of a precompressed sibling."""
    again: float
    """Before this time of the monotonic clock, another version is not read."""

    def size(self) -> int:
        """Approximate bytes of memory."""
        return _FOLDER_BYTES + 8 * sum(map(len, self.names or ()))


class FolderNames:
    """The known folders below one root, on the root's own mount."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._folders: OrderedDict[tuple[int, int], _Known] = OrderedDict()
        """By device and inode; the least recently asked for comes first."""
        self._reading: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        """For all of the above, between the event loop and threads."""
        self._waits = 0
        """Number of folders that requests waited for."""
        self._reads_ahead = False
        self._lately: dict[bytes, _Known] = {}
        self._lately_until = 0.0

    def possible_siblings(self, root: int, paths: Sequence[bytes]) -> Sequence[bytes]:
        """Relative paths of precompressed siblings in one folder without those that are surely absent; up to
        LATELY_SECONDS old."""
        known = self._known_lately(root, paths[0].rpartition(b"/")[0] or b".")
        if known is None:
            return paths
        if not known.packed:
            return ()
        return [path for path in paths if _find(known, path.rpartition(b"/")[2]) is not Verdict.ABSENT]

    def lack_siblings(self, root: int, folder: bytes) -> bool | None:
        """Whether a folder surely had no precompressed sibling of any file, up to LATELY_SECONDS ago; None if its names
        are unknown."""
        known = self._known_lately(root, folder)
        return None if known is None else not known.packed

    def _known_lately(self, root: int, folder: bytes) -> _Known | None:
        """A folder whose names are known, as it was up to LATELY_SECONDS ago."""
        if (now := time.monotonic()) >= self._lately_until:
            self._lately.clear()
            self._lately_until = now + LATELY_SECONDS
        if (known := self._lately.get(folder)) is None:
            try:
                status = _status(root, folder)
            except OSError:
                return None
            known, _ = self._look_up(status)
            if known is None or known.names is None or known.version != (status.st_mtime_ns, status.st_ctime_ns):
                return None
            self._lately[folder] = known
        return known

    def judge(self, root: int, path: bytes) -> Verdict | Unread:
        """The verdict of this moment on a relative path below the root's descriptor; asks the kernel's name cache
        only."""
        folder, _, name = path.rpartition(b"/")
        folder = folder or b"."
        try:
            status = _status(root, folder)
        except BlockingIOError:
            return self._judge_from_top(root, path)
        except (FileNotFoundError, NotADirectoryError):
            return Verdict.ABSENT
        except OSError:
            return Verdict.UNKNOWN
        return self._judge_in(folder, status, name)

    def _judge_from_top(self, root: int, path: bytes) -> Verdict | Unread:
        """The first name that is absent decides. The kernel has none for the folder itself."""
        folder = b"."
        for name in path.split(b"/", _MOST_LEVELS)[:_MOST_LEVELS]:
            try:
                status = _status(root, folder)
            except BlockingIOError:
                return Unread(folder, large=False)
            except (FileNotFoundError, NotADirectoryError):
                return Verdict.ABSENT
            except OSError:
                return Verdict.UNKNOWN
            verdict = self._judge_in(folder, status, name)
            if verdict is not Verdict.LISTED:
                return verdict
            folder = name if folder == b"." else folder + b"/" + name
        return Verdict.UNKNOWN

    def _look_up(self, status: os.stat_result) -> tuple[_Known | None, bool]:
        """The known folder with this status, if any; and whether it is being read."""
        key = status.st_dev, status.st_ino
        with self._lock:
            known = self._folders.get(key)
            if known is not None:
                self._folders.move_to_end(key)
            return known, key in self._reading

    def _judge_in(self, folder: bytes, status: os.stat_result, name: bytes) -> Verdict | Unread:
        (known, reading), version = self._look_up(status), (status.st_mtime_ns, status.st_ctime_ns)
        if known is not None and known.version == version:
            if known.names is not None:
                return _find(known, name)
            return Unread(folder, large=True) if known.large and not reading else Verdict.UNKNOWN
        if reading or not _is_settled(version) or (known is not None and time.monotonic() < known.again):
            return Verdict.UNKNOWN
        return Unread(folder, large=False)

    def read(self, root: int, folder: bytes, *, large: bool = False) -> bool:
        """Read a folder's names, in a thread; `large`: more than MOST_AT_ONCE. True if the names are known now."""
        try:
            # With O_DIRECTORY, the kernel would mount what is to be mounted there by autofs(5).
            descriptor = openat2(root, folder, os.O_PATH, cached=False, mounts=False)
        except OSError:
            return False
        try:
            status = os.fstat(descriptor)
            key, version = (status.st_dev, status.st_ino), (status.st_mtime_ns, status.st_ctime_ns)
            if not _is_settled(version) or not self._claim(key, version, large=large):
                return False
            try:
                known = _read(descriptor, version, MOST_NAMES if large else MOST_AT_ONCE, large=large)
                self._keep(key, known)
            finally:
                self._reading.discard(key)
            return known.names is not None
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def ahead_is_due(self, *, waits: bool = True) -> bool:
        """Note that a request has met a folder whose names are unknown, and that it `waits` for them. True if
        read_ahead() is due: at the first one, and later again at some that wait, since folders may have changed."""
        if self._waits and not waits:
            return False
        self._waits += 1
        return not self._reads_ahead and (self._waits == 1 or (self._waits >= WAITS and self._waits.bit_count() == 1))

    def read_ahead(self, root: int, stop: Callable[[], bool]) -> None:
        """Read the folders on the root's own mount, those at the top first, in a thread, until `stop`; hidden ones are
        left out. It rests for half of the time, since the event loop needs the interpreter, and leaves half of the
        memory to folders that requests ask for. Raises OSError."""
        self._reads_ahead = True
        try:
            began = time.monotonic()
            until, folders = began + AHEAD_SECONDS, deque([b"."])
            while folders:
                now = time.monotonic()
                if stop() or now > until or self._bytes > self._most_bytes // 2:
                    return
                if now - began > STEP_SECONDS:
                    time.sleep(now - began)
                    began = time.monotonic()
                folder = folders.popleft()
                self.read(root, folder)
                folders.extend(name if folder == b"." else folder + b"/" + name for name in _folders_in(root, folder))
        finally:
            self._reads_ahead = False

    def _claim(self, key: tuple[int, int], version: _Version, *, large: bool) -> bool:
        """Whether this thread is to read the folder: no other does, or has."""
        with self._lock:
            known = self._folders.get(key)
            if key in self._reading or (known is not None and known.version == version and not (large and known.large)):
                return False
            self._reading.add(key)
            return True

    def _keep(self, key: tuple[int, int], known: _Known) -> None:
        with self._lock:
            self._drop(self._folders.pop(key, None))
            self._folders[key] = known
            self._bytes += known.size()
            while self._bytes > self._most_bytes and self._folders:
                self._drop(self._folders.popitem(last=False)[1])

    def _drop(self, known: _Known | None) -> None:
        if known is not None:
            self._bytes -= known.size()


def _folders_in(root: int, folder: bytes) -> list[bytes]:
    """Names of the folders in a folder, but for hidden ones; none if it is on another mount, or not to be read. Raises
    OSError."""
    try:
        descriptor = openat2(root, folder, os.O_RDONLY | os.O_DIRECTORY, cached=True)
    except OSError:
        return []
    try:
        if os.fstat(descriptor).st_nlink == _LEAF:
            return []
        with os.scandir(descriptor) as scan:
            found = [
                os.fsencode(entry.name) for entry in islice(scan, MOST_AHEAD) if entry.is_dir(follow_symlinks=False)
            ]
    finally:
        os.close(descriptor)
    return [name for name in found if not name.startswith(b".")]


def _status(root: int, folder: bytes) -> os.stat_result:
    """Of a folder on the root's own mount. Raises OSError: BlockingIOError if a disk, or another mount, has to be
    asked."""
    if folder == b".":
        return os.fstat(root)
    descriptor = openat2(root, folder, os.O_PATH | os.O_DIRECTORY, cached=True)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _is_settled(version: _Version) -> bool:
    # Each change sets the ctime; the mtime may be any.
    return version[1] < time.time_ns() - _SETTLED_NS


def _find(known: _Known, name: bytes) -> Verdict:
    if name in (b"", b".", b".."):
        return Verdict.UNKNOWN
    return Verdict.LISTED if holds(known.names or (), os.fsdecode(name)) else Verdict.ABSENT


def pack(hashes: Sequence[int]) -> Names:
    """The hashes of names, sorted in short runs: one long sort would hold the interpreter up."""
    if len(hashes) <= _BUCKET:
        return (array("q", sorted(hashes)),)
    buckets = [array("q") for _ in range(len(hashes) // _BUCKET + 1)]
    for number in hashes:
        buckets[number % len(buckets)].append(number)
    return tuple(array("q", sorted(bucket)) for bucket in buckets)


def holds(names: Names, name: str) -> bool:
    """Whether a name is among them; also for another one with the same hash, which does no harm."""
    wanted = hash(name)
    bucket = names[wanted % len(names)]
    place = bisect_left(bucket, wanted)
    return place < len(bucket) and bucket[place] == wanted


def _read(folder: int, version: _Version, most: int, *, large: bool) -> _Known:
    """Up to `most` names of a folder that was opened with O_PATH. Raises OSError."""
    began = time.monotonic()
    names: Names | None = None
    too_many = packed = False
    try:
        # "." asks for the right to search the folder, too: without it there is another error than ENOENT.
        descriptor = openat2(folder, b".", os.O_RDONLY | os.O_DIRECTORY, cached=False)
    except PermissionError:
        pass
    else:
        try:
            hashes: list[int] = []
            sample = None
            with os.scandir(descriptor) as scan:
                while len(hashes) <= most and (piece := [found.name for found in islice(scan, _BUCKET)]):
                    hashes.extend(map(hash, piece))
                    sample = sample or next(filter(_swapped, piece), None)
                    text = "\0".join((*piece, ""))
                    packed = packed or any(ending in text for ending in _ENDINGS)
            too_many = len(hashes) > most
            if not too_many and _matches_bytes(descriptor, sample, hashes):
                names = pack(hashes)
            status = os.fstat(descriptor)
            if (status.st_mtime_ns, status.st_ctime_ns) != version:
                # Kept under the former version, which is gone: for the pause.
                names = None
        finally:
            os.close(descriptor)
    ended = time.monotonic()
    return _Known(version, names, too_many and not large, packed, ended + _PAUSES * (ended - began))


def _swapped(name: str) -> str | None:
    """The name with upper and lower case swapped, in ASCII only; None if that is the same."""
    original = os.fsencode(name)
    swapped = original.swapcase()
    return os.fsdecode(swapped) if swapped != original else None


def is_bytewise(folder: int) -> bool:
    """Whether a name is found in an open folder under its own bytes only, but for upper and lower case of ASCII
    letters. Raises OSError."""
    return _trusted_kind(folder) != 0


def _trusted_kind(folder: int) -> int:
    """The type of an open folder's file system if is_bytewise(); else 0. Raises OSError."""
    kind = file_system_type(folder) & 0xFFFFFFFF
    return kind if kind in _TRUSTED and not _flags(folder) & (_FS_CASEFOLD_FL | _FS_ENCRYPT_FL) else 0


def _matches_bytes(folder: int, sample: str | None, hashes: Sequence[int]) -> bool:
    """Whether a name is found in an open folder under its own bytes only; `sample` is one that has letters. Raises
    OSError."""
    kind = _trusted_kind(folder)
    if not kind:
        return False
    swapped = _swapped(sample) if sample is not None else None
    if swapped is None:
        return kind not in _TRIED
    if hash(swapped) in hashes:
        return True
    try:
        os.stat(swapped, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


def _flags(folder: int) -> int:
    """Of an open folder (ioctl_iflags(2)); 0 if its file system has none. Raises OSError."""
    flags = bytearray(struct.calcsize("l"))
    try:
        fcntl.ioctl(folder, _FS_IOC_GETFLAGS, flags)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return 0
    # An int, whatever the ioctl's name says.
    return int.from_bytes(flags[:4], sys.byteorder)
