"""How many cores may be used: real texts of /proc and cgroups, and a real cgroup where one can be made."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.process.cores import Mount, folders, mounts, quota_v1, quota_v2, usable_cores

SYSTEMD = (
    "0::/system.slice/ktlsd.service\n",
    "26 28 0:24 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    "28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n",
)
# A container of Docker with a private cgroup namespace, and one without.
PRIVATE = ("0::/\n", "571 569 0:25 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw\n")
V1 = (
    "9:name=systemd:/docker/abc\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n",
    "600 590 0:27 /docker/abc /sys/fs/cgroup/cpuset ro,relatime master:9 - cgroup cgroup rw,cpuset\n"
    "601 590 0:28 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro,relatime master:10 - cgroup cgroup rw,cpu,cpuacct\n",
)
HYBRID = (
    "2:cpu:/\n1:name=systemd:/a\n0::/a\n",
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
)
SPACED = ("0::/a\n", "26 28 0:24 / /mnt/with\\040space rw shared:4 - cgroup2 cgroup2 rw\n")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (SYSTEMD, [Mount(2, "/sys/fs/cgroup", "/", "/system.slice/ktlsd.service")]),
        (PRIVATE, [Mount(2, "/sys/fs/cgroup", "/", "/")]),
        (V1, [Mount(1, "/sys/fs/cgroup/cpu,cpuacct", "/docker/abc", "/docker/abc")]),
        (HYBRID, [Mount(1, "/sys/fs/cgroup/cpu", "/", "/"), Mount(2, "/sys/fs/cgroup/unified", "/", "/a")]),
        (SPACED, [Mount(2, "/mnt/with space", "/", "/a")]),
        (("", ""), []),
    ],
)
def test_the_hierarchies_with_quotas_are_found(texts: tuple[str, str], expected: list[Mount]) -> None:
    assert mounts(*texts) == expected


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (Mount(2, "/m", "/", "/a/b"), ["/m", "/m/a", "/m/a/b"]),
        (Mount(2, "/m", "/", "/"), ["/m"]),
        (Mount(1, "/m", "/docker/abc", "/docker/abc"), ["/m"]),
        (Mount(1, "/m", "/docker/abc", "/docker/abc/d"), ["/m", "/m/d"]),
        (Mount(2, "/m", "/", "/../other"), ["/m"]),
        (Mount(2, "/m", "/a", "/b"), ["/m"]),
    ],
)
def test_quotas_above_a_group_count_too(mount: Mount, expected: list[str]) -> None:
    assert list(map(str, folders(mount))) == expected


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("50000 100000\n", 0.5), ("20000 10000\n", 2)]
)
def test_a_quota_of_version_2(text: str, cores: float | None) -> None:
    assert quota_v2(text) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1\n", None), ("250000\n", 2.5)])
def test_a_quota_of_version_1(quota: str, cores: float | None) -> None:
    assert quota_v1(quota, "100000\n") == cores


def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def cgroup_with_quota(cores: float) -> Iterator[Path]:
    """A group of this machine's own below the root of a hierarchy; skips where none can be made."""
    made = None
    quota = str(round(cores * 100_000))
    for mount in mounts(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()):
        folder = Path(mount.point) / "ktlsd-test"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if mount.version == 2:
                (folder / "cpu.max").write_text(f"{quota} 100000")
            else:
                (folder / "cpu.cfs_period_us").write_text("100000")
                (folder / "cpu.cfs_quota_us").write_text(quota)
        except OSError:
            folder.rmdir()
            continue
        made = folder
        break
    if made is None:
        pytest.skip("no cgroup with a CPU quota can be made here")
    try:
        yield made
    finally:
        made.rmdir()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core no quota makes a difference")
@pytest.mark.parametrize(("cores", "usable"), [(0.3, 1), (1.0, 1), (1.5, 2)])
def test_a_real_quota_counts_and_is_rounded_up(cores: float, usable: int) -> None:
    with cgroup_with_quota(cores) as folder:
        # A process of its own, which moves itself into the group first.
        program = (
            f"import os; open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "from ktlsd.process.cores import usable_cores; print(usable_cores())"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert int(ended.stdout) == usable
