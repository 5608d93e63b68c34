"""A server under mixed load for as long as wanted: `python -m tests.soak --minutes 60`.

Strategy: clients in threads download, ask for parts, break off, read slowly, resume sessions and come with noise, over
HTTP/1.1 and in streams of HTTP/2, while the configuration is reloaded again and again; memory and descriptors are read
twice a second. At the end everything is let go, and what is left is compared with the beginning.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.downloads import REQUEST, Outcome, download_side_by_side, judge, make_files, read_all
from tests.http2_client import http2
from tests.protocols import HTTP_2, BrokenError, conversation
from tests.serving import Running, client_context, connect, eventually, serving

SIZES: Final = {"small.bin": 10_000, "medium.bin": 1_000_001, "large.bin": 8 << 20}
CLIENTS: Final = 6
RELOAD_SECONDS: Final = 3.0
SAMPLE_SECONDS: Final = 0.5
MOST_GROWTH_KIB: Final = 4096
"""Of the median of the last third over that of the middle one: the allocator's own steps."""
_GAUGE = re.compile(r"^(ktlsd_(?:open_\w+|requests_in_flight))(?:\{[^}]*\})? (\d+)", re.MULTILINE)


@dataclass
class Report:
    """What was seen."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """RssAnon in KiB, from one sample to the next."""
    files: list[int] = field(default_factory=list)
    reloads: int = 0
    left_files: int = 0
    """Descriptors at the end beyond those before the load."""
    gauges: dict[str, int] = field(default_factory=dict)
    """The server's own, once the load is over; all are to be 0."""

    @property
    def growth(self) -> int:
        """Of memory, in KiB, from the middle third of the time to the last."""
        third = len(self.memory) // 3
        return round(statistics.median(self.memory[-third:]) - statistics.median(self.memory[third : 2 * third]))

    def lines(self) -> list[str]:
        return [
            f"{sum(self.done.values())} exchanges: "
            + ", ".join(f"{n} {kind}" for kind, n in sorted(self.done.items())),
            f"{self.reloads} reloads; RssAnon {self.memory[0]} KiB at first, {max(self.memory)} at most, grown by"
            f" {self.growth} KiB from the middle third to the last; at most {max(self.files)} descriptors,"
            f" {self.left_files} left over; gauges at the end {self.gauges}",
            *self.wrong,
        ]

    @property
    def good(self) -> bool:
        return (
            not self.wrong and not self.left_files and not any(self.gauges.values()) and self.growth < MOST_GROWTH_KIB
        )


class _Client:
    """One thread's clients, one after the other."""

    def __init__(self, port: int, contents: dict[str, bytes], seed: int) -> None:
        self._port, self._contents, self._random = port, contents, random.Random(seed)
        versions = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
        self._contexts = [client_context(newest=version) for version in versions]
        self._sessions: dict[ssl.SSLContext, ssl.SSLSession | None] = {}

    def whole(self) -> None:
        self._whole(b"")

    def _whole(self, fields: bytes, *, pause: float = 0.0, resume: bool = False) -> None:
        name = self._random.choice(list(self._contents))
        context = self._random.choice(self._contexts)
        with connect(self._port, context, self._sessions.get(context) if resume else None) as connection:
            connection.sendall(REQUEST % (name.encode(), fields))
            time.sleep(pause)
            data, in_order = read_all(connection)
            self._sessions[context] = connection.session
        assert judge(data, in_order, self._contents[name]) is Outcome.WHOLE

    def slow(self) -> None:
        self._whole(b"", pause=1.0)

    def resumed(self) -> None:
        self._whole(b"", resume=True)

    def part(self) -> None:
        with connect(self._port, self._random.choice(self._contexts)) as connection:
            connection.sendall(REQUEST % (b"medium.bin", b"Range: bytes=5000-60000, 70000-80000\r\n"))
            data, in_order = read_all(connection)
        assert in_order
        assert self._contents["medium.bin"][5000:60001] in data

    def kept(self) -> None:
        with connect(self._port, self._random.choice(self._contexts)) as connection:
            connection.sendall(b"HEAD /small.bin HTTP/1.1\r\nHost: a\r\n\r\n" * 50 + REQUEST % (b"none", b""))
            data, in_order = read_all(connection)
        assert in_order
        assert (data.count(b"HTTP/1.1 200 "), data.count(b"HTTP/1.1 404 ")) == (50, 1)

    def broken_off(self) -> None:
        with connect(self._port, self._random.choice(self._contexts)) as connection:
            connection.sendall(REQUEST % (b"large.bin", b""))
            connection.recv(self._random.randrange(1, 100_000))
            if self._random.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def streams(self) -> None:
        outcomes = download_side_by_side(self._port, self._contents, patience=60)
        assert outcomes == [Outcome.WHOLE] * len(self._contents)

    def kept_streams(self) -> None:
        with conversation(self._port, HTTP_2) as client:
            parts = [client.begin("/medium.bin", f"Range: bytes={place}-{place + 60_000}") for place in range(50)]
            absent = client.begin("/none")
            for place, part in enumerate(parts):
                assert part.answer().body == self._contents["medium.bin"][place : place + 60_001]
            assert absent.answer().status == 404

    def streams_broken_off(self) -> None:
        with http2(self._port, window=self._random.choice((None, 100_000))) as client:
            asked = [client.ask(f"/{name}") for name in self._contents]
            while len(client.streams[asked[-1]].body) < 50_000:
                client.receive()
            for stream_id in asked:
                if client.streams[stream_id].reset is None and not client.streams[stream_id].ended:
                    client.http.reset_stream(stream_id, error_code=8)
            client.flush()
            if self._random.random() < 0.5:
                assert client.get("/small.bin").body == self._contents["small.bin"]

    def noise(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
            connection.sendall(self._random.randbytes(self._random.randrange(1, 300)))

    def plain(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_all(connection)[0].startswith(b"HTTP/1.1 400 ")

    def run(self, stop: threading.Event, report: Report) -> None:
        kinds: list[Callable[[], None]] = [
            *(self.whole, self.slow, self.resumed, self.part, self.kept, self.broken_off, self.noise, self.plain),
            *(self.streams, self.kept_streams, self.streams_broken_off),
        ]
        while not stop.is_set():
            kind = self._random.choice(kinds)
            try:
                kind()
            except (OSError, AssertionError, BrokenError) as error:
                report.wrong.append(f"{kind.__name__}: {error!r}")
            report.done[kind.__name__] += 1


def gauges(server: Running) -> dict[str, int]:
    """What the server says is open and under way."""
    url = server.wait_for_line("metrics on ").removeprefix("metrics on ")
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    sums: Counter[str] = Counter()
    for name, value in _GAUGE.findall(text):
        sums[name] += int(value)
    return dict(sums)


def soak(folder: Path, seconds: float, *options: str) -> Report:
    """Put a server with these options under load."""
    report, stop = Report(), threading.Event()
    contents = make_files(folder / "root", SIZES)
    options = ("--metrics-listen", "127.0.0.1:0", "--log-level", "warning", *options)
    with serving(folder / "root", *options, state=folder / "state") as server:
        _Client(server.port, contents, 0).whole()
        gauges(server)
        files = server.open_files()
        threads = [
            threading.Thread(target=_Client(server.port, contents, seed).run, args=(stop, report))
            for seed in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + seconds
            reload_at = time.monotonic() + RELOAD_SECONDS
            while time.monotonic() < end:
                time.sleep(SAMPLE_SECONDS)
                report.memory.append(server.resident_kib())
                report.files.append(server.open_files())
                if time.monotonic() >= reload_at:
                    server.process.send_signal(signal.SIGHUP)
                    report.reloads += 1
                    reload_at += RELOAD_SECONDS
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        eventually(lambda: server.open_files() <= files and not any(gauges(server).values()))
        report.gauges = gauges(server)
        eventually(lambda: server.open_files() <= files)
        report.left_files = max(0, server.open_files() - files)
        report.wrong += [line for line in server.log if re.search("defect|Traceback", line)]
        if server.stop() != 0:
            report.wrong.append("the server did not end in order")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ktls", choices=("auto", "require", "off"), default="auto")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ktlsd-soak-") as folder:
        report = soak(Path(folder), given.minutes * 60, "--ktls", given.ktls)
    print(*report.lines(), sep="\n")
    return 0 if report.good else 1


if __name__ == "__main__":
    with contextlib.suppress(AttributeError):
        os.nice(5)
    sys.exit(main())
