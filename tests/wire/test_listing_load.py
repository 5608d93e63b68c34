"""A folder of a hundred thousand files is listed whole, while other connections get their turns and memory stays.

Over both protocols: listings are made while they are sent, as chunks or frames.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

import pytest

from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS, conversation
from tests.serving import WAIT_SECONDS, Running, eventually, serving

MANY: Final = 100_000
SUFFIXES: Final = (".txt", ".png", ".tar.gz", "", " & 'ü'.html")
LONG_NAMES: Final = 20_000
STALLED: Final = 4
# One listing needs many times that while it is made.
MOST_GROWTH_KIB: Final = 8 * 1024


def make(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)


@pytest.fixture(scope="module")
def many() -> list[str]:
    """Names in the order of a listing: their numbers are wide enough that all have the same length."""
    return [f"{number:06}{SUFFIXES[number % len(SUFFIXES)]}" for number in range(MANY)]


@pytest.fixture(scope="module")
def server(many: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("load")
    make(base / "root/many", many)
    # In the page each of these bytes takes three, and once more what it is.
    make(base / "root/long", [f"{number:05}" + "名" * 80 for number in range(LONG_NAMES)])
    (base / "root/small.txt").write_text("small")
    with serving(base / "root", "--listing", "--log-level", "warning", state=base / "state") as running:
        yield running
    shutil.rmtree(base)


@dataclass
class Download:
    """A listing as it came, and when."""

    body: bytes
    asked: float
    first_byte: float
    done: float


def download(port: int, path: str, accept: str, protocol: str) -> Download:
    with conversation(port, protocol) as client:
        asked = time.monotonic()
        response = client.begin(path, f"Accept: {accept}")
        response.read(1)
        first_byte = time.monotonic()
        answer = response.answer()
    assert answer.status == 200
    assert "content-length" not in answer.fields
    return Download(answer.body, asked, first_byte, time.monotonic())


@dataclass
class Visitor:
    """Asks for a small file again and again on one connection, and notes when each request began and ended."""

    port: int
    protocol: str
    turns: list[tuple[float, float]] = field(default_factory=list)
    _enough: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Visitor:
        self._thread = threading.Thread(target=self._visit)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _visit(self) -> None:
        with conversation(self.port, self.protocol) as client:
            while not self._enough.is_set():
                began = time.monotonic()
                assert client.get("/small.txt").body == b"small"
                self.turns.append((began, time.monotonic()))
                # Not more than a connection may ask for in all (requests_per_connection).
                self._enough.wait(0.001)

    def waits(self, since: float, until: float) -> list[float]:
        """Seconds that each request took that was under way between these moments."""
        return [ended - began for began, ended in self.turns if ended > since and began < until]


def names_of(body: bytes, accept: str) -> list[str]:
    if accept == "application/json":
        rows = json.loads(body)
        assert [row["href"] for row in rows[:2]] == ["./000000.txt", "./000001.png"]
        return [row["name"] for row in rows]
    hrefs = re.findall(rb'<tr><td><a href="\./([^"/]+)"[^>]*>.*?<bdi>(.*?)</bdi></a>', body)
    shown = [unescape(name.decode()) for _, name in hrefs]
    assert [unquote_to_bytes(href).decode() for href, _ in hrefs] == shown
    assert body.endswith(b"</html>\n")
    return shown


@pytest.mark.parametrize(("accept", "protocol"), [("text/html", HTTP_2), ("application/json", HTTP_1)])
def test_others_are_served_while_a_long_listing_is_made(
    server: Running, many: list[str], accept: str, protocol: str
) -> None:
    with Visitor(server.port, protocol) as visitor:
        listing = download(server.port, "/many/", accept, protocol)
    waits = visitor.waits(listing.asked, listing.done)
    total, first, longest = listing.done - listing.asked, listing.first_byte - listing.asked, max(waits)
    median = statistics.median(waits)
    print(
        f"{accept}: {len(listing.body) / 1e6:.1f} MB in {total:.2f} s, first byte after {first:.2f} s; {len(waits)}"
        f" other requests: median {median * 1000:.1f} ms, longest {longest * 1000:.0f} ms"
    )
    assert names_of(listing.body, accept) == many
    assert len(waits) > 100
    assert median < total / 50
    assert longest < total / 4


def test_listings_leave_no_memory_behind(server: Running) -> None:
    for protocol in PROTOCOLS:
        download(server.port, "/many/", "text/html", protocol)
    before, files = server.resident_kib(), server.open_files()
    for protocol in PROTOCOLS:
        download(server.port, "/many/", "text/html", protocol)
    grown = server.resident_kib() - before
    print(f"{len(PROTOCOLS)} listings: RssAnon from {before} by {grown} KiB")
    assert grown < MOST_GROWTH_KIB
    assert eventually(lambda: server.open_files() <= files)


def cpu_ticks(pid: int) -> int:
    """User and system time of a process (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until_it_rests(pid: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    before = -1
    while (now := cpu_ticks(pid)) != before:
        assert time.monotonic() < deadline, "the server does not come to rest"
        before = now
        time.sleep(0.5)


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_a_reader_that_stops_does_not_have_the_page_kept_for_it(server: Running, accept: str) -> None:
    page = len(download(server.port, "/long/", accept, HTTP_1).body)
    wait_until_it_rests(server.process.pid)
    before = server.resident_kib()
    with contextlib.ExitStack() as stopped:
        for protocol in PROTOCOLS * (STALLED // 2):
            client = stopped.enter_context(conversation(server.port, protocol))
            client.begin("/long/", f"Accept: {accept}").read(1)
        wait_until_it_rests(server.process.pid)
        grown = (server.resident_kib() - before) * 1024
        print(f"{accept}: {STALLED} stopped readers of {page} bytes: RssAnon grew by {grown}")
        # The entries are kept, and they are smaller than half a page.
        assert grown < STALLED * page * 3 / 4
