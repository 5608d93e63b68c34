"""Linux system calls that Python's os module lacks: openat2, statx, statfs, mincore, prctl.

Strategy: cffi calls them in the C library that Python itself runs on, which needs no OpenSSL and loads nothing. Each
function makes one call and turns its errno into an OSError. The declarations are in c_declarations.py.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
from functools import cache
from typing import Any, Final, NamedTuple

from ktlsd._openssl import ffi

# One number on every architecture: openat2 came after Linux unified its system call table.
_SYS_openat2 = 437
_OPEN_HOW_SIZE = 24
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE_CACHED = 0x20
_STATFS_SIZE = 256
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_INO = 0x100
_STATX_MNT_ID = 0x1000
_STATX_SIZE = 256
# stx_attributes, and the attribute of a file whose content the kernel verifies and which nobody can write.
_STATX_ATTRIBUTES = struct.Struct("=8xQ240x")
_STATX_ATTR_VERITY = 0x100000
# stx_ino, stx_dev_major, stx_dev_minor, stx_mnt_id (Linux 5.8; 0 before) of struct statx, which is the same on every
# architecture.
_STATX_IDENTITY = struct.Struct("=32xQ96xIIQ")
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

# Socket options that the socket module lacks (linux/socket.h, linux/tcp.h, linux/tls.h).
SOL_TLS: Final = 282
TCP_ULP: Final = 31
TLS_TX_ZEROCOPY_RO: Final = 3

# Bytes of an address on 64-bit machines.
_WIDE = 8

_libc: Final[Any] = ffi.dlopen(None)
# openat2 is called for each request of a file: no look-up in the library, and no new struct, for each of them.
_syscall: Final[Any] = _libc.syscall
_MAP_FAILED: Final[Any] = ffi.cast("void *", -1)


class FolderIdentity(NamedTuple):
    """The identity of a folder, different even from one that it replaced (folder_identity())."""

    inode: int
    device_major: int
    device_minor: int
    mount: int


def openat2(directory: int, path: bytes, flags: int, *, cached: bool, links: bool = True, mounts: bool = True) -> int:
    """Open `path` below the directory descriptor, never outside it (openat2(2), RESOLVE_BENEATH); the new descriptor.

    With `cached`, fail with EAGAIN instead of waiting for a disk to resolve the path (RESOLVE_CACHED, Linux 5.12), and
    with EXDEV at another mount, whose file system may hold up even open(2) (RESOLVE_NO_XDEV). Without `links`, fail
    with ELOOP at a symbolic link (RESOLVE_NO_SYMLINKS). Without `mounts`, fail with EXDEV at another mount, too. Raises
    OSError.
    """
    return open_as(directory, path, open_how(flags, cached, links, mounts))


@cache
def open_how(flags: int, cached: bool, links: bool = True, mounts: bool = True) -> Any:
    """The struct open_how of these arguments of openat2(), for open_as()."""
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS
    if cached:
        resolve |= _RESOLVE_CACHED
    if cached or not mounts:
        resolve |= _RESOLVE_NO_XDEV
    if not links:
        resolve |= _RESOLVE_NO_SYMLINKS
    return ffi.new("struct open_how *", (flags | os.O_CLOEXEC, 0, resolve))


def open_as(directory: int, path: bytes, how: Any) -> int:
    """openat2() for a caller that opens many files in the same manner."""
    descriptor: int = _syscall(_SYS_openat2, directory, path, how, _OPEN_HOW_SIZE)
    if descriptor < 0:
        raise _error()
    return descriptor


def path_at(directory: int, path: bytes) -> int:
    """A descriptor of the file that openat2() would open, on any mount (O_PATH), only from the kernel's name cache.

    Raises OSError: EAGAIN if the kernel would have to ask a file system.
    """
    return _from_name_cache(directory, path, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)


def folder_at(path: bytes) -> int:
    """A descriptor of the folder that an absolute path leads to (O_PATH), only from the kernel's name cache.

    Raises OSError: EAGAIN if the kernel would have to ask a file system.
    """
    return _from_name_cache(_AT_FDCWD, path, os.O_DIRECTORY, 0)


def _from_name_cache(directory: int, path: bytes, flags: int, resolve: int) -> int:
    how = ffi.new("struct open_how *", (os.O_PATH | os.O_CLOEXEC | flags, 0, resolve | _RESOLVE_CACHED))
    descriptor: int = _syscall(_SYS_openat2, directory, path, how, _OPEN_HOW_SIZE)
    if descriptor < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno), os.fsdecode(path))
    return descriptor


def folder_identity(descriptor: int) -> FolderIdentity:
    """The identity of an open folder or file, and of its mount.

    Asks no file system (statx(2), AT_STATX_DONT_SYNC). Raises OSError.
    """
    mask = _STATX_INO | _STATX_MNT_ID
    statx = ffi.new("char[]", _STATX_SIZE)
    if _libc.statx(descriptor, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, mask, statx) < 0:
        raise _error()
    return FolderIdentity(*_STATX_IDENTITY.unpack_from(ffi.buffer(statx)))


def is_verified(descriptor: int) -> bool:
    """Whether an open file has fs-verity, so that its content never changes (Linux 5.4). Raises OSError."""
    statx = ffi.new("char[]", _STATX_SIZE)
    if _libc.statx(descriptor, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, 0, statx) < 0:
        raise _error()
    return bool(_STATX_ATTRIBUTES.unpack_from(ffi.buffer(statx))[0] & _STATX_ATTR_VERITY)


def file_system_type(descriptor: int) -> int:
    """The file system's magic number (statfs(2) f_type) under an open file. Raises OSError."""
    buffer = ffi.new("long[]", _STATFS_SIZE // ffi.sizeof("long"))
    if _libc.fstatfs(descriptor, buffer) < 0:
        raise _error()
    return int(buffer[0])


def resident_until(descriptor: int, offset: int, end: int) -> int:
    """Up to where a part of a file that is not empty is in the page cache (mincore(2) on a mapping that is not used).

    Linux tells the truth to the owner of the file only, or with CAP_FOWNER, or if the file may be written. Raises
    OSError.
    """
    if ffi.sizeof("void *") < _WIDE:
        # There, C libraries differ in the width of mmap's offset.
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    begin = offset - offset % mmap.PAGESIZE
    size = end - begin
    count = -(-size // mmap.PAGESIZE)
    pages = ffi.new("unsigned char[]", count)
    address = _libc.mmap(ffi.NULL, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, begin)
    if address == _MAP_FAILED:
        raise _error()
    try:
        if _libc.mincore(address, size, pages) < 0:
            raise _error()
    finally:
        _libc.munmap(address, size)
    missing = bytes(ffi.buffer(pages)).find(0)
    return end if missing < 0 else max(offset, begin + missing * mmap.PAGESIZE)


def effective_capabilities() -> int:
    """The capabilities in force (CapEff of proc(5)), one bit each by their number; 0 if that is not to be had."""
    try:
        with open("/proc/self/status", "rb") as status:
            return next((int(line.split()[1], 16) for line in status if line.startswith(b"CapEff:")), 0)
    except OSError:
        return 0


def forbid_new_privileges() -> None:
    """Let no program that this process starts have more rights than it (PR_SET_NO_NEW_PRIVS). Raises OSError."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _error()


def end_with_parent(parent: int) -> None:
    """Have this process get SIGTERM when its parent, whose number is given, ends however (PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _error() -> OSError:
    number = ffi.errno
    return OSError(number, os.strerror(number))
