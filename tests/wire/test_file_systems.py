"""Files on file systems without RWF_NOWAIT: what is in memory is sent at once, by both protocols, and arrives as it is
there."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mounting import evict, mount, overlay
from tests.protocols import ask_by_both
from tests.serving import Running, exchange_plain, serving

SIZES = {"small.bin": 10_240, "middle.bin": 100_000, "big.bin": 3_000_000}
CONTENT = {name: os.urandom(size) for name, size in SIZES.items()}
LONG_AGO = 1_000_000_000
TIMES = 5

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


def fill(folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    # From then on, responses are remembered: ctime cannot be set.
    time.sleep(2.1)


def cold_reads(server: Running) -> int:
    line = server.wait_for_line("^metrics on ")
    data = exchange_plain(int(line.rpartition(":")[2]), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = re.search(r"^ktlsd_cold_reads_total ([\d.e+]+)\s*$", data.decode(), re.MULTILINE)
    assert found
    return int(float(found[1]))


@contextlib.contextmanager
def server_of(root: Path, state: Path, wrapper: Sequence[str] = ()) -> Iterator[Running]:
    with serving(root, "--metrics-listen", "127.0.0.1:0", state=state, wrapper=wrapper) as server:
        yield server


def check_all(server: Running) -> None:
    """Each file, again and again, whole and in part."""
    for _ in range(TIMES):
        for name, content in CONTENT.items():
            assert ask_by_both(server.port, f"/{name}").body == content
            assert ask_by_both(server.port, f"/{name}", "Range: bytes=5000-5999").body == content[5000:6000]


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_files_in_memory_need_no_thread(tmp_path: Path, kind: str) -> None:
    with mount(kind, tmp_path / "mount") as root:
        fill(root)
        with server_of(root, tmp_path / "state") as server:
            check_all(server)
            assert cold_reads(server) == 0


@pytest.mark.parametrize("owner", [0, 12345])
def test_files_of_an_overlay_need_a_thread_once(tmp_path: Path, owner: int) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    fill(shown)
    for name in CONTENT:
        evict(shown / name)
        os.chown(shown / name, owner, owner)
    # Without this capability, root does not count as the owner of a file of another.
    wrapper = ("setpriv", "--bounding-set=-fowner", "--inh-caps=-fowner")
    with overlay(tmp_path, shown) as root, server_of(root, tmp_path / "state", wrapper) as server:
        check_all(server)
        after_disk = cold_reads(server)
        assert after_disk >= 3
        check_all(server)
        assert cold_reads(server) == after_disk
        # A new version, in another layer.
        new = CONTENT["small.bin"][::-1]
        (root / "new").write_bytes(new)
        os.utime(root / "new", (LONG_AGO, LONG_AGO))
        os.chown(root / "new", owner, owner)
        (root / "new").rename(root / "small.bin")
        for _ in range(TIMES):
            assert ask_by_both(server.port, "/small.bin").body == new
        # The kernel tells its owner that what was just written is there.
        assert cold_reads(server) == after_disk + (owner != 0)
