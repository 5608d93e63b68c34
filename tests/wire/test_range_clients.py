"""Programs that fetch what changed of a file, or the rest of it, by ranges: zsync, zchunk's zckdl, apt."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serving import WAIT_SECONDS, Running, eventually, serving

CHUNK = 4096
CHUNKS = 2000
CHANGED = range(3, CHUNKS, 9)
"""Far enough from each other that each is a range of its own: 222."""


PACKAGES = 2000
"""Of which every fourth changed: 500 ranges."""


@dataclass
class Mirror:
    """What is served, and what a client has of it."""

    server: Running
    root: Path
    old: Path
    log: Path

    def plain_url(self, name: str) -> str:
        """By the plain-text listener for proxies: zsync 0.6.2 has no TLS."""
        return f"{self.server.backends[0]}/{name}"

    def answers(self, name: str) -> list[tuple[int, int]]:
        """Status and bytes of the answers for a file so far, from the log."""
        line = re.compile(rf'"GET /{re.escape(name)} HTTP/1.1" (\d+) (\d+) ')
        return [(int(match[1]), int(match[2])) for match in line.finditer(self.log.read_text())]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    base = tmp_path_factory.mktemp("mirror")
    root, old, log = base / "root", base / "old", base / "access.log"
    root.mkdir()
    old.mkdir()
    chance = random.Random(1)
    chunks = [chance.randbytes(CHUNK) for _ in range(CHUNKS)]
    (old / "data.bin").write_bytes(b"".join(chunks))
    for number in CHANGED:
        chunks[number] = chance.randbytes(CHUNK)
    (root / "data.bin").write_bytes(b"".join(chunks))
    os.utime(root / "data.bin", (1_700_000_000,) * 2)
    (root / "undated.bin").write_bytes(b"".join(chunks))
    os.utime(root / "undated.bin", (1, 1))
    run("zsyncmake", "-b", "2048", "-u", "data.bin", "-o", "data.bin.zsync", "data.bin", folder=root)
    packages = ["<package>" + chance.randbytes(700).hex() for _ in range(PACKAGES)]
    for folder in (old, root):
        (folder / "data.xml").write_text("\n".join(packages))
        # As repositories of packages are cut.
        run("zck", "-m", "-s", "<package>", "-o", "data.zck", "data.xml", folder=folder)
        for number in range(1, PACKAGES, 4):
            packages[number] = "<package>" + chance.randbytes(700).hex()
    with serving(root, "--access-log", str(log), state=base / "state", backend_listen=("127.0.0.1:0",)) as server:
        yield Mirror(server, root, old, log)


def run(*words: str | Path, folder: Path) -> str:
    ended = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_zsync_fetches_only_what_changed(mirror: Mirror, tmp_path: Path) -> None:
    run("zsync", "-i", mirror.old / "data.bin", mirror.plain_url("data.bin.zsync"), folder=tmp_path)
    assert digest(tmp_path / "data.bin") == digest(mirror.root / "data.bin")
    # The log is written behind the answers.
    eventually(lambda: sum(size for _, size in mirror.answers("data.bin")) >= len(CHANGED) * CHUNK)
    answers = mirror.answers("data.bin")
    assert {status for status, _ in answers} == {206}
    # It asks for 15 or so parts at a time, and fetches no part twice.
    assert len(answers) <= len(CHANGED) // 5
    assert sum(size for _, size in answers) < 2 * len(CHANGED) * CHUNK


def test_zckdl_gets_all_ranges_that_it_asks_for_at_once(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.plain_url("data.zck")
    run("zckdl", "--fail-no-ranges", "-s", mirror.old / "data.zck", url, folder=tmp_path)
    assert digest(tmp_path / "data.zck") == digest(mirror.root / "data.zck")
    size = (mirror.root / "data.zck").stat().st_size
    eventually(lambda: len(mirror.answers("data.zck")) >= 4)
    answers = mirror.answers("data.zck")
    # Two for the header and one for each 255 ranges: no attempt was answered with the whole file.
    assert {status for status, _ in answers} == {206}
    assert len(answers) == 4
    assert sum(sent for _, sent in answers) < size // 2


@pytest.mark.parametrize(("name", "status"), [("data.bin", 206), ("undated.bin", 200)])
def test_apt_goes_on_with_a_file_of_the_same_date(mirror: Mirror, tmp_path: Path, name: str, status: int) -> None:
    """It sends the mtime of what it has in If-Range. A file without a date is fetched again, never joined."""
    whole = (mirror.root / name).read_bytes()
    have = tmp_path / name
    have.write_bytes(whole[:1_000_000])
    os.utime(have, (mirror.root / name).stat()[7:9])
    words = (
        *("-o", f"Acquire::https::CaInfo={mirror.server.certificate}", "-o", "APT::Sandbox::User="),
        *("-o", "Acquire::https::Proxy=DIRECT", "download-file", f"https://localhost:{mirror.server.port}/{name}"),
    )
    before = len(mirror.answers(name))
    run("/usr/lib/apt/apt-helper", *words, have, f"SHA256:{hashlib.sha256(whole).hexdigest()}", folder=tmp_path)
    assert have.read_bytes() == whole
    eventually(lambda: len(mirror.answers(name)) > before)
    sent = len(whole) - 1_000_000 if status == 206 else len(whole)
    assert mirror.answers(name)[before:] == [(status, sent)]
