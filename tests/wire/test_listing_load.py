"""A folder of a hundred thousand files is listed whole, while other connections get their turns and memory stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
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

from tests.serving import WAIT_SECONDS, Running, connect, parse, serving

MANY: Final = 100_000
SUFFIXES: Final = (".txt", ".png", ".tar.gz", "", " & 'ü'.html")
LONG_NAMES: Final = 20_000
STALLED: Final = 4
LISTINGS: Final = 3
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


def request(path: str, accept: str = "text/html", *, close: bool = True) -> bytes:
    connection = "close" if close else "keep-alive"
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: {connection}\r\n\r\n".encode()


@dataclass
class Download:
    """A listing as it came, and when."""

    body: bytes
    asked: float
    first_byte: float
    done: float


def download(port: int, path: str, accept: str) -> Download:
    with connect(port) as connection:
        asked = time.monotonic()
        connection.sendall(request(path, accept))
        received = bytearray(connection.recv(65536))
        first_byte = time.monotonic()
        while chunk := connection.recv(65536):
            received += chunk
    done = time.monotonic()
    head, _, chunked = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"\r\ntransfer-encoding: chunked" in head.lower()
    return Download(unchunked(chunked), asked, first_byte, done)


def unchunked(data: bytes) -> bytes:
    """The content of a chunked body that must be whole (RFC 9112 section 7.1)."""
    parts: list[bytes] = []
    place = 0
    while True:
        end = data.index(b"\r\n", place)
        size = int(data[place:end], 16)
        if size == 0:
            assert data[end:] == b"\r\n\r\n"
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        assert data[end + 2 + size : end + 4 + size] == b"\r\n"
        place = end + 4 + size


@dataclass
class Visitor:
    """Asks for a small file again and again on one connection, and notes when each request began and ended."""

    port: int
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
        with connect(self.port) as connection:
            while not self._enough.is_set():
                began = time.monotonic()
                connection.sendall(request("/small.txt", close=False))
                answer, rest = parse(connection.recv(65536))
                assert (answer.body, rest) == (b"small", b"")
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
    hrefs = re.findall(rb'<tr><td><a href="\./([^"/]+)">.*?<bdi>(.*?)</bdi></a>', body)
    shown = [unescape(name.decode()) for _, name in hrefs]
    assert [unquote_to_bytes(href).decode() for href, _ in hrefs] == shown
    assert body.endswith(b"</html>\n")
    return shown


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_others_are_served_while_a_long_listing_is_made(server: Running, many: list[str], accept: str) -> None:
    with Visitor(server.port) as visitor:
        listing = download(server.port, "/many/", accept)
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
    download(server.port, "/many/", "text/html")
    before, files = server.resident_kib(), server.open_files()
    for _ in range(LISTINGS):
        download(server.port, "/many/", "text/html")
    grown = server.resident_kib() - before
    print(f"{LISTINGS} listings: RssAnon from {before} by {grown} KiB")
    assert grown < MOST_GROWTH_KIB
    assert server.open_files() <= files


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
    page = len(download(server.port, "/long/", accept).body)
    wait_until_it_rests(server.process.pid)
    before = server.resident_kib()
    stopped: list[ssl.SSLSocket] = []
    try:
        for _ in range(STALLED):
            connection = connect(server.port)
            stopped.append(connection)
            connection.sendall(request("/long/", accept))
            assert connection.recv(1).startswith(b"H")
        wait_until_it_rests(server.process.pid)
        grown = (server.resident_kib() - before) * 1024
        print(f"{accept}: {STALLED} stopped readers of {page} bytes: RssAnon grew by {grown}")
        # The entries are kept, and they are smaller than half a page.
        assert grown < STALLED * page * 3 / 4
    finally:
        for connection in stopped:
            connection.close()
