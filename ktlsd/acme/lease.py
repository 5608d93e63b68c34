"""One order at a time of all processes that share a state folder, also of several machines: a lock with a lease.

Strategy: a file names its holder, which touches it while it works. Another process takes it over if the holder is
known to be dead, or has not touched it for a lease. Its decision is made under a lock of fcntl(2), where there is one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

LEASE_SECONDS: Final = 120.0
_TOUCH_SECONDS: Final = 20.0
_GONE: Final = "ZX"
"""States of a process that has ended, but that its parent has not asked about."""


class _Holder(Struct, frozen=True):
    """A process: the boot of its machine, its namespace of process ids, and its id and start there."""

    boot: str
    namespace: str
    process: int
    started: str


class Busy(Exception):
    """Another process holds the lease."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lease. Raises Busy, OSError."""
    me = _me()
    _take(path, me)
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(path, ended), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with _locked(path) as file:
            if _holder(file) == me:
                os.ftruncate(file, 0)


def _take(path: Path, me: _Holder) -> None:
    with _locked(path) as file:
        holder = _holder(file)
        if holder is not None and not _is_dead(holder) and _age(path) < LEASE_SECONDS:
            raise Busy
        os.ftruncate(file, 0)
        os.pwrite(file, msgspec.json.encode(me), 0)


def _keep(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # A file system without locks leaves a gap of a millisecond.
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _holder(file: int) -> _Holder | None:
    try:
        return msgspec.json.decode(os.pread(file, 4096, 0), type=_Holder)
    except msgspec.DecodeError:
        return None


def _age(path: Path) -> float:
    """Seconds since the file was touched, both by the clock of its file system, which machines may share."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now-") as now:
        return os.stat(now.name).st_mtime - os.stat(path).st_mtime


def _is_dead(holder: _Holder) -> bool:
    """Whether a process of this machine is gone; False for one that cannot be looked for from here."""
    me = _me()
    if (holder.boot, holder.namespace) != (me.boot, me.namespace):
        return False
    return _started(holder.process) != holder.started


def _me() -> _Holder:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return _Holder(boot, os.readlink("/proc/self/ns/pid"), os.getpid(), _started(os.getpid()))


def _started(process: int) -> str:
    """The time at which a process started, in clock ticks since the boot (proc_pid_stat(5)); "" if it is gone."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text("latin-1").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in _GONE else fields[18]
