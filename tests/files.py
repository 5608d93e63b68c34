"""Files for tests, as old as those of a site in use."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.serving import eventually

DAY_NS: Final = 86_400_000_000_000


def write(path: Path, content: bytes | str, age_ns: int = DAY_NS) -> None:
    """A file that was last written so long ago, by default so that its responses are remembered."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    set_age(path, age_ns)


def set_age(path: Path, age_ns: int) -> None:
    """Last written so long ago."""
    moment = time.time_ns() - age_ns
    os.utime(path, ns=(moment, moment))


def write_all(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """These files, by their names below a folder."""
    for name, content in files.items():
        write(folder / name, content)


@contextlib.contextmanager
def nothing_stays_open() -> Iterator[None]:
    """Whether all that is opened meanwhile is closed. Threads of an earlier test may close what they had open."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
