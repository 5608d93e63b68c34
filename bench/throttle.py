"""A slow disk for one server: its reads from the disk that holds a file are held down by the kernel's block throttle.

Strategy: a cgroup of the run's own, in the version 1 blkio hierarchy or in version 2 (Documentation/admin-guide), that
the server's processes visit and leave again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.servers import Server

VERSION_1: Final = Path("/sys/fs/cgroup/blkio")
VERSION_2: Final = Path("/sys/fs/cgroup")


class ThrottleError(Exception):
    """This machine cannot slow a disk down."""


@dataclass(frozen=True)
class _Hierarchy:
    mount: Path
    limit: str
    line: str
    controller: str
    """The controllers in /proc/PID/cgroup; empty for version 2."""


@contextlib.contextmanager
def throttled(server: Server, file: Path, rate: int) -> Iterator[None]:
    """Let the server read no more than `rate` bytes a second from the disk of `file`. Raises ThrottleError."""
    hierarchy = _hierarchy()
    device = os.stat(file).st_dev
    group = hierarchy.mount / f"ktlsd-bench-{os.getpid()}"
    homes = {process: _home(process, hierarchy) for process in server.processes()}
    try:
        group.mkdir()
    except OSError as error:
        raise ThrottleError(f"no cgroup can be made: {error}") from None
    try:
        line = hierarchy.line.format(device=f"{os.major(device)}:{os.minor(device)}", rate=rate)
        try:
            (group / hierarchy.limit).write_text(line)
            for process in homes:
                (group / "cgroup.procs").write_text(str(process))
        except OSError as error:
            raise ThrottleError(f"the disk of {file} cannot be throttled: {error}") from None
        yield
    finally:
        for process, home in homes.items():
            with contextlib.suppress(OSError):  # it ended, or never left
                (home / "cgroup.procs").write_text(str(process))
        group.rmdir()


def _hierarchy() -> _Hierarchy:
    if (VERSION_1 / "blkio.throttle.read_bps_device").exists():
        return _Hierarchy(VERSION_1, "blkio.throttle.read_bps_device", "{device} {rate}", "blkio")
    with contextlib.suppress(OSError):
        if "io" in (VERSION_2 / "cgroup.controllers").read_text().split():
            (VERSION_2 / "cgroup.subtree_control").write_text("+io")
            return _Hierarchy(VERSION_2, "io.max", "{device} rbps={rate}", "")
    raise ThrottleError("no cgroup controller for disks that this user may use")


def _home(process: int, hierarchy: _Hierarchy) -> Path:
    for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if hierarchy.controller in controllers.split(","):
            return hierarchy.mount / path.removeprefix("/")
    return hierarchy.mount
