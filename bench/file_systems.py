"""File systems beside the disk's, for the files of a run: tmpfs, overlayfs and FUSE, mounted below its folder.

Strategy: as root a run has a mount namespace of its own, so nothing else sees these mounts and none outlives it. A file
system that cannot be mounted here is missing, with the reason.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from bench.machine import CHECKOUT

CLONE_NEWNS: Final = 0x20000
MOUNT_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05


class FileSystem(StrEnum):
    TMPFS = "tmpfs"
    OVERLAYFS = "overlayfs"
    FUSE = "FUSE"


class MountError(Exception):
    """A file system that cannot be mounted."""


def own_mounts() -> None:
    """Give this process a mount namespace of its own (unshare(2)), if it may have one."""
    if os.geteuid() == 0 and ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0:
        _command("mount", "--make-rprivate", "/")


def mount(
    kind: FileSystem, folder: Path, files: Sequence[Path], cores: Sequence[int]
) -> subprocess.Popen[bytes] | None:
    """Mount a file system at `folder`, with copies of `files`; for FUSE, the process that serves it, on these cores.

    Raises MountError.
    """
    if os.geteuid() != 0:
        raise MountError("only root can mount it")
    lower, upper, work = (folder.with_name(f"{folder.name}.{layer}") for layer in ("lower", "upper", "work"))
    for one in (folder, lower, upper, work):
        one.mkdir(mode=0o755)
    if kind is FileSystem.TMPFS:
        _command("mount", "-t", "tmpfs", "-o", "mode=755", "ktlsd-bench", str(folder))
        _copy(files, folder)
        return None
    _copy(files, lower)
    if kind is FileSystem.FUSE:
        return _fuse(lower, folder, cores)
    # As in a container: the files are in the image's layer, and a layer that can be written lies over it.
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    _command("mount", "-t", "overlay", "-o", options, "ktlsd-bench", str(folder))
    return None


def unmount(folder: Path, daemon: subprocess.Popen[bytes] | None) -> None:
    subprocess.run(["umount", str(folder)], check=False, capture_output=True, timeout=MOUNT_SECONDS)
    if daemon is not None:
        daemon.terminate()
        daemon.communicate(timeout=MOUNT_SECONDS)


def _copy(files: Sequence[Path], folder: Path) -> None:
    for file in files:
        shutil.copy(file, folder / file.name)
    os.sync()


def _command(*command: str) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=MOUNT_SECONDS)
    except FileNotFoundError:
        raise MountError(f"no program {command[0]}") from None
    if done.returncode:
        raise MountError(done.stderr.strip() or f"{command[0]}: exit status {done.returncode}")


def _fuse(source: Path, folder: Path, cores: Sequence[int]) -> subprocess.Popen[bytes]:
    command = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", ",".join(map(str, cores)), sys.executable]
    daemon = subprocess.Popen(
        [*command, "-m", "bench.fuse_files", str(source), str(folder)],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + MOUNT_SECONDS
    while not os.path.ismount(folder):
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            last = daemon.communicate()[1].decode(errors="replace").strip().splitlines()[-1:]
            raise MountError("".join(last) or "the FUSE file system does not start")
        time.sleep(POLL_SECONDS)
    return daemon
