"""The number of cores that this process may use: by its affinity, and by the CPU quotas of its cgroup and those above.

Strategy: the files of both versions of cgroups are found by /proc/self/cgroup and /proc/self/mountinfo (cgroups(7));
pure functions parse them. A quota of one and a half cores can keep two busy, so it counts as two.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple

_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """The mount of a hierarchy of cgroups with CPU quotas, and this process's group in it."""

    version: int
    point: str
    root: str
    """The group that is seen at `point`."""
    group: str


def usable_cores() -> int:
    """The number of cores that this process can keep busy, 1 at least."""
    quotas = [math.ceil(quota) for mount in _own_mounts() for quota in _quotas(mount)]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def worker_count(workers: int | Literal["auto"]) -> int:
    """The number of worker processes by the option `workers`."""
    return usable_cores() if workers == "auto" else workers


def mounts(cgroup: str, mountinfo: str) -> list[Mount]:
    """The hierarchies that may limit a process's CPU time, from its /proc/PID/cgroup and /proc/PID/mountinfo."""
    found = []
    groups = {controllers: group for _, controllers, group in (line.split(":", 2) for line in cgroup.splitlines())}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = (_OCTAL.sub(lambda match: chr(int(match[1], 8)), part) for part in before.split()[3:5])
        kind, _, options = after.split()[:3]
        if kind == "cgroup2" and "" in groups:
            found.append(Mount(2, point, root, groups[""]))
        elif kind == "cgroup" and "cpu" in options.split(","):
            own = (group for controllers, group in groups.items() if "cpu" in controllers.split(","))
            found += (Mount(1, point, root, group) for group in own)
    return found


def folders(mount: Mount) -> Iterator[Path]:
    """The folders of a process's group and of those above it, as far as they can be seen."""
    group, root = PurePosixPath(mount.group), PurePosixPath(mount.root)
    # A namespace can show a group beside its root as "/..", and a container its own group as the root of the mount.
    below = group.relative_to(root) if group.is_relative_to(root) and ".." not in group.parts else PurePosixPath()
    folder = Path(mount.point)
    yield folder
    for name in below.parts:
        folder /= name
        yield folder


def quota_v2(cpu_max: str) -> float | None:
    """Cores by cpu.max: "MICROSECONDS PERIOD", or "max" for no limit."""
    quota, _, period = cpu_max.strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period or 100_000)


def quota_v1(quota: str, period: str) -> float | None:
    """Cores by cpu.cfs_quota_us, which is -1 for no limit, and cpu.cfs_period_us."""
    return None if int(quota) < 0 else int(quota) / int(period)


def _own_mounts() -> list[Mount]:
    try:
        return mounts(*(Path(f"/proc/self/{name}").read_text("utf-8", "replace") for name in ("cgroup", "mountinfo")))
    except (OSError, ValueError):
        return []


def _quotas(mount: Mount) -> Iterator[float]:
    names = ("cpu.max",) if mount.version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    read = quota_v2 if mount.version == 2 else quota_v1
    for folder in folders(mount):
        try:
            quota = read(*((folder / name).read_text("ascii") for name in names))
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if quota is not None:
            yield quota
