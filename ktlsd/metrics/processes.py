"""What the processes of the service use, by the names that client libraries give a process's figures (process_*).

Strategy: any worker reads /proc for all of them: their processor time, memory and descriptors are sums. The first
process counts the time of workers that ended, so that the sum never falls.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
# Places in /proc/PID/stat behind the name of the program (proc_pid_stat(5), where the first of them is field 3).
_USER_TICKS: Final = 11
_SYSTEM_TICKS: Final = 12
_CHILDREN_USER_TICKS: Final = 13
_CHILDREN_SYSTEM_TICKS: Final = 14
_VIRTUAL_BYTES: Final = 20
_RESIDENT_PAGES: Final = 21


class ProcessFigures(NamedTuple):
    """Of one process, or the sums of several."""

    cpu_seconds: float
    resident_bytes: int
    virtual_bytes: int
    open_files: int | None
    """None if the kernel does not tell: it hides the descriptors of other processes after a change of user."""
    most_files: int | None
    """None without a limit."""


def figures_of_all(first: int, workers: Iterable[int]) -> ProcessFigures:
    """The sums over the first process of the service and its workers, by their process identifiers. Processes that
    have ended count for nothing."""
    found = [_figures(pid, with_children=pid == first) for pid in {first, *workers}]
    known = [figures for figures in found if figures is not None]
    opened = [figures.open_files for figures in known if figures.open_files is not None]
    limits = [figures.most_files for figures in known if figures.most_files is not None]
    return ProcessFigures(
        sum(figures.cpu_seconds for figures in known),
        sum(figures.resident_bytes for figures in known),
        sum(figures.virtual_bytes for figures in known),
        sum(opened) if len(opened) == len(known) else None,
        sum(limits) if len(limits) == len(known) else None,
    )


def _figures(pid: int, *, with_children: bool) -> ProcessFigures | None:
    folder = _PROC / str(pid)
    try:
        # The name of a program may have spaces and parentheses.
        fields = (folder / "stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return None
    ticks = int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
    if with_children:
        ticks += int(fields[_CHILDREN_USER_TICKS]) + int(fields[_CHILDREN_SYSTEM_TICKS])
    # Workers have the limits of their parent.
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessFigures(
        ticks / os.sysconf("SC_CLK_TCK"),
        int(fields[_RESIDENT_PAGES]) * resource.getpagesize(),
        int(fields[_VIRTUAL_BYTES]),
        _open_files(folder / "fd"),
        None if most == resource.RLIM_INFINITY else most,
    )


def _open_files(folder: Path) -> int | None:
    try:
        # Linux 6.2 and later count them here.
        return folder.stat().st_size or len(os.listdir(folder))
    except OSError:
        return None
