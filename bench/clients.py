"""How a server is measured: wrk, h2load, curl, openssl s_time, and what the benchmark's own client does.

Strategy: each client is a record of parameters with three methods: prepare its files, check that a server does what the
row asks (a server that does not is named, not measured), and take one sample.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench import http2_wire, wire
from bench.machine import CHECKOUT
from bench.metrics import Sample
from bench.servers import POLL_SECONDS, START_SECONDS, Server, ServerError
from bench.site import MANY_SIZE, SIZES, Site, evict
from bench.throttle import ThrottleError, throttled

WRK_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
GRACE_SECONDS: Final = 90.0
"""How much longer than told a client may take: an emulated machine needs long for 32 handshakes."""
DRAIN_SECONDS: Final = 600
SETTLE_LINES: Final = 3
Request = tuple[str, dict[str, str]]
"""A target and its fields."""
GIGA: Final = 1e9
MEGA: Final = 1e6
MICRO: Final = 1e-6
HANDSHAKE_CLIENTS: Final = 3
"""s_time waits for each handshake, so several at a time keep the server busy."""
BROWSER: Final = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142 Safari/537",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-US,en;q=0.9",
    "Cookie": "visit={number}",
}
"""What Chromium says; wrk.lua puts another number into each request."""
WARM_CONNECTIONS: Final = 50
RANGES: Final = 1000
PASS_SECONDS: Final = 20
MOST_PASSES: Final = 10
CHECKED_BYTES: Final = 1_100_000
"""How much of a body is read before a row; a whole big file would take an emulated machine minutes."""
MOST_FAILED: Final = 0.001
MOST_OF_DISK: Final = 3
"""The throttle lets a first burst through."""


class ClientError(Exception):
    """A sample that could not be taken."""


@dataclass(frozen=True)
class Target:
    """The server of a sample. `server` runs already; fresh() starts another of its kind, with a root if given."""

    server: Server
    fresh: Callable[..., AbstractContextManager[Server]]
    site: Site
    seconds: int
    handshakes: int
    """How many handshakes a second the slowest server does here at least."""

    def settle_seconds(self, connections: int) -> float:
        return 1 + connections / self.handshakes


class Client(Protocol):
    @property
    def serial(self) -> bool:
        """True if a server that serves one response on one connection at a time can be measured."""

    @property
    def warms_up(self) -> bool:
        """True if an uncounted first sample makes the others more accurate."""

    def prepare(self, site: Site) -> None:
        """Make the files."""

    def check(self, server: Server, site: Site) -> str:
        """Why this server cannot be measured so; empty if it can."""

    def measure(self, target: Target) -> Sample:
        """One sample. Raises ClientError, ServerError, wire.WireError, ThrottleError, OSError."""


@dataclass(frozen=True)
class _OneFile:
    """A client of a single file that every server has to send with 200."""

    path: str

    serial = False
    warms_up = True

    def prepare(self, site: Site) -> None:
        site.file(self.path)

    def check(self, server: Server, site: Site) -> str:
        return mismatch(server, self.path, {}, 200, SIZES[self.path])


def mismatch(server: Server, path: str, fields: dict[str, str], status: int, length: int) -> str:
    """How this server's answer differs from the one that a row is about; empty if it does not."""
    try:
        answer = wire.get(server.port, path, fields, CHECKED_BYTES, plain=server.plain)
    except (wire.WireError, OSError) as error:
        return f"{path}: {type(error).__name__} {error}"
    is_long = min(answer.length, length) > CHECKED_BYTES
    if answer.status != status or (answer.length != length and not is_long):
        return f"answers {answer.status} with {answer.length} bytes where {status} with {length} is asked for"
    return "" if server.plain or answer.cipher == wire.CIPHER else f"negotiates {answer.cipher}"


def _run(command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + GRACE_SECONDS,
        )
    except FileNotFoundError:
        raise ClientError(f"no program {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise ClientError(f"{command[0]} did not end") from None
    if done.returncode:
        raise ClientError(f"{command[0]}: exit status {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


def _wrk(target: Target, connections: int, requests: list[Request]) -> tuple[float, float, float]:
    """Responses a second once all connections are there, and for each the server's user and system time in seconds.

    Raises ClientError where nothing arrived or more than MOST_FAILED of the requests failed.
    """
    first = math.ceil(time.time() + target.settle_seconds(connections))
    last = first + target.seconds
    with _asking(target.server, connections, requests, first, last) as wrk:
        time.sleep(max(0.0, first - time.time()))
        before = target.server.cpu_times()
        time.sleep(max(0.0, last - time.time()))
        user, system = map(operator.sub, target.server.cpu_times(), before)
        result = _result(wrk)
    if result["failed"] > MOST_FAILED * result["requests"] + connections:
        raise ClientError(f"{result['failed']} requests failed")
    if result["counted"] == 0:
        raise ClientError("no response arrived")
    return result["counted"] / target.seconds, user / result["counted"], system / result["counted"]


def _ask_for_all(server: Server, connections: int, requests: list[Request]) -> None:
    """Have each request answered once or more, so that no sample is only of first requests. Raises ClientError."""
    for _ in range(MOST_PASSES):
        first = math.ceil(time.time())
        with _asking(server, connections, requests, first, first + PASS_SECONDS) as wrk:
            if _result(wrk)["requests"] >= len(requests):
                return
    raise ClientError(f"{len(requests)} requests take too long")


@contextlib.contextmanager
def _asking(
    server: Server, connections: int, requests: list[Request], first: int, last: int
) -> Iterator[subprocess.Popen[str]]:
    """A wrk that counts from the `first` second to the `last`."""
    duration = math.ceil(last - time.time()) + 1
    with tempfile.NamedTemporaryFile("w", prefix="ktlsd-bench-") as listing:
        for path, fields in requests:
            listing.write("\t".join([path, *(f"{name}: {value}" for name, value in fields.items())]) + "\n")
        listing.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "60s", "-s", str(WRK_SCRIPT)]
        command += [server.url("/"), "--", str(first), str(last), listing.name]
        with beside(command) as wrk:
            yield wrk


def _result(wrk: subprocess.Popen[str]) -> dict[str, int]:
    text, _ = wrk.communicate(timeout=PASS_SECONDS + GRACE_SECONDS)
    found = re.search(r"^RESULT (.*)$", text, re.MULTILINE)
    if found is None:
        raise ClientError(f"wrk gave no result: {text[-200:]}")
    result: dict[str, int] = json.loads(found[1])
    return result


@dataclass(frozen=True)
class Wrk:
    """wrk with one thread on keep-alive connections."""

    path: str
    connections: int
    status: int = 200
    files: int = 0
    """How many different files below `path` are asked for in turn."""
    conditional: bool = False
    """True if the requests carry the validators of an earlier response."""
    range_length: int = 0
    """The length of the ranges that are asked for, at random places."""
    new_heads: bool = False
    """True if each request has a browser's fields and a different cookie."""
    apart: bool = False
    """True if the server's time in user space and in the kernel are figures of their own."""

    serial = False
    warms_up = True

    def prepare(self, site: Site) -> None:
        site.targets(self.path, self.files)

    def _requests(self, server: Server, site: Site) -> list[Request]:
        targets = site.targets(self.path, self.files)
        if self.conditional:
            fields = wire.get(server.port, self.path).fields
            names = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}
            return [(self.path, {asked: fields[name] for name, asked in names.items() if name in fields})]
        if self.range_length:
            source = random.Random(self.path)
            starts = [source.randrange(SIZES[self.path] - self.range_length) for _ in range(RANGES)]
            return [(self.path, {"Range": f"bytes={start}-{start + self.range_length - 1}"}) for start in starts]
        return [(target, BROWSER if self.new_heads else {}) for target in targets]

    def check(self, server: Server, site: Site) -> str:
        requests = self._requests(server, site)
        if len(requests) > 1:
            try:
                _ask_for_all(server, self.connections, requests)
            except (ClientError, subprocess.TimeoutExpired) as error:
                return str(error)
        path, fields = requests[0]
        whole = MANY_SIZE if self.files else SIZES[self.path]
        return mismatch(server, path, fields, self.status, {200: whole, 206: self.range_length}.get(self.status, 0))

    def measure(self, target: Target) -> Sample:
        rate, user, system = _wrk(target, self.connections, self._requests(target.server, target.site))
        sample = {"requests": rate, "cpu per request": (user + system) / MICRO}
        apart = {"user per request": user / MICRO, "system per request": system / MICRO}
        return {**sample, **(apart if self.apart else {})}


@dataclass(frozen=True)
class Bulk(_OneFile):
    """Downloads of one file on some connections by the benchmark's own client (drain.py), which does not decrypt."""

    connections: int

    def measure(self, target: Target) -> Sample:
        with _drain(target.server.port, self.path, self.connections, 0) as drain:
            for _ in range(SETTLE_LINES):
                started, before = _progress(drain)
            cpu_before = target.server.cpu_seconds()
            ended = started
            while ended - started < target.seconds:
                ended, after = _progress(drain)
            cpu = target.server.cpu_seconds() - cpu_before
        if after == before:
            raise ClientError("no byte arrived")
        received = after - before
        return {"throughput": received / (ended - started) / MEGA, "cpu per byte": cpu / received * GIGA}


@contextlib.contextmanager
def _drain(port: int, path: str, connections: int, rate: int) -> Iterator[subprocess.Popen[str]]:
    """Downloads that have begun."""
    command = [sys.executable, "-m", "bench.drain", str(port), path, str(SIZES[path]), str(connections), str(rate)]
    with beside([*command, str(DRAIN_SECONDS)]) as drain:
        assert drain.stdout is not None
        if drain.stdout.readline().strip() != "ready":
            raise ClientError(f"the downloads do not start: {drain.communicate()[1].strip()[-200:]}")
        yield drain


def _progress(drain: subprocess.Popen[str]) -> tuple[float, int]:
    """The next line of a drain: the time and the bytes so far."""
    assert drain.stdout is not None
    words = drain.stdout.readline().split()
    if not words:
        raise ClientError("the downloads ended")
    return float(words[0]), int(words[1])


@dataclass(frozen=True)
class H2load(_OneFile):
    """h2load over HTTP/1.1 with one thread; for few connections, since with thousands it may never end."""

    connections: int

    def measure(self, target: Target) -> Sample:
        settle = math.ceil(target.settle_seconds(self.connections))
        command = ["h2load", "--h1", "-t1", f"-c{self.connections}", "-D", str(target.seconds)]
        text = _run([*command, "--warm-up-time", str(settle), target.server.url(self.path)], settle + target.seconds)
        rate = re.search(r"^finished in .*?, ([\d.]+) req/s", text, re.MULTILINE)
        counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
        if rate is None or counts is None:
            raise ClientError(f"h2load gave no result: {text[-200:]}")
        done, succeeded, failed, *lost = map(int, counts.groups())
        # It hears of the status with the reason phrase, which hypercorn leaves empty (RFC 9112 section 4 allows that).
        unheard = failed == done and not any(lost) and "codes: 0 2xx, 0 3xx, 0 4xx, 0 5xx" in text
        if failed > MOST_FAILED * succeeded + self.connections and not unheard:
            raise ClientError(f"{failed} requests failed")
        return {"requests": float(rate[1])}


@dataclass(frozen=True)
class Curl(_OneFile):
    """curl, the same file some times one after the other, on one connection where the server keeps it."""

    times: int

    serial = True

    def measure(self, target: Target) -> Sample:
        transfer = f'url = "{target.server.url(self.path)}"\noutput = /dev/null\n'
        with tempfile.NamedTemporaryFile("w", prefix="ktlsd-bench-") as config:
            config.write(transfer * self.times)
            config.flush()
            command = ["curl", "-ksS", "--http1.1", "-K", config.name, "-w", "%{size_download} %{time_total}\n"]
            before = target.server.cpu_seconds()
            text = _run([*command, "--max-time", "300"], GRACE_SECONDS)
            cpu = target.server.cpu_seconds() - before
        received, seconds = (sum(map(float, column)) for column in zip(*map(str.split, text.splitlines()), strict=True))
        if received != SIZES[self.path] * self.times:
            raise ClientError(f"{received:.0f} of {SIZES[self.path] * self.times} bytes arrived")
        return {"throughput": received / seconds / MEGA, "cpu per byte": cpu / received * GIGA}


@dataclass(frozen=True)
class Handshakes(_OneFile):
    """openssl s_time, some at a time: a handshake, a request, the answer, the end."""

    resumed: bool

    def measure(self, target: Target) -> Sample:
        kind = "-reuse" if self.resumed else "-new"
        command = ["openssl", "s_time", "-connect", f"127.0.0.1:{target.server.port}", kind, "-www", self.path]
        command += ["-time", str(target.seconds)]
        before, started = target.server.cpu_seconds(), time.monotonic()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(beside(command)) for _ in range(HANDSHAKE_CLIENTS)]
            texts = [client.communicate(timeout=target.seconds + GRACE_SECONDS)[0] for client in clients]
        seconds, cpu = time.monotonic() - started, target.server.cpu_seconds() - before
        count = sum(self._count(text) for text in texts)
        return {"handshakes": count / seconds, "cpu per handshake": cpu / count / MICRO}

    def _count(self, text: str) -> int:
        found = re.search(r"(\d+) connections in \d+ real seconds, (\d+) bytes read per connection", text)
        if found is None or int(found[1]) == 0 or int(found[2]) < SIZES[self.path]:
            raise ClientError(f"s_time: {text[-200:]}")
        # It writes a character for each connection: r for a resumed one.
        resumed = text.count("r", 0, found.start()) / int(found[1])
        if self.resumed and resumed < 0.9:
            raise ClientError("sessions are not resumed")
        return int(found[1])


@contextlib.contextmanager
def beside(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A client beside others, ended at the end in any case."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class IdleMemory(_OneFile):
    """Resident memory of a new server for each of many idle connections that have had one response."""

    connections: int

    warms_up = False

    def measure(self, target: Target) -> Sample:
        with target.fresh() as server:
            held = http2_wire.idle_connections if server.http2 else wire.idle_connections
            with held(server.port, self.path, WARM_CONNECTIONS):
                pass
            before = server.resident_kib()
            with held(server.port, self.path, self.connections):
                return {"memory per connection": (server.resident_kib() - before) / self.connections}


@dataclass(frozen=True)
class Latency(_OneFile):
    """The p99 of requests that come at a fixed rate, without and with downloads beside them.

    A request's time begins when it was due, so that a server that stands still is charged for all that waited. (wrk
    would ask less while it waits, and its p99 would not show it.)
    """

    requests: int
    """How many are due in a second."""
    big: str
    downloads: int
    rate: int
    """Bytes a second for each download; 0 for as fast as it comes."""
    disk_rate: int = 0
    """Bytes a second that the disk gives, for a big file that is not in the page cache; 0 for one that is."""

    def prepare(self, site: Site) -> None:
        site.file(self.path)
        site.file(self.big)

    def check(self, server: Server, site: Site) -> str:
        if self.disk_rate:
            try:
                with throttled(server, site.file(self.big), self.disk_rate):
                    pass
            except ThrottleError as error:
                return str(error)
        return super().check(server, site)

    def measure(self, target: Target) -> Sample:
        server, big = target.server, target.site.file(self.big)
        idle = self._p99(server, target.seconds)
        with contextlib.ExitStack() as stack:
            if self.disk_rate:
                stack.enter_context(throttled(server, big, self.disk_rate))
                if left := evict(big):
                    raise ClientError(f"{left} bytes of {self.big} stay in the page cache")
            drain = stack.enter_context(_drain(server.port, self.big, self.downloads, self.rate))
            loaded = self._p99(server, target.seconds)
            drain.send_signal(signal.SIGTERM)
            assert drain.stdout is not None
            assert drain.stderr is not None
            # communicate() would lose what came together with the line that was read before.
            lines, trouble = [line.split() for line in drain.stdout], drain.stderr.read()
        if len(lines) < 2:
            raise ClientError(f"the downloads failed: {len(lines)} lines, {trouble.strip()[-200:]}")
        (started, before), *_, (ended, after) = lines
        traffic = (int(after) - int(before)) / (float(ended) - float(started))
        if self.disk_rate and traffic > MOST_OF_DISK * self.disk_rate:
            raise ClientError(f"the disk was not slow: {traffic / MEGA:.1f} MB/s")
        return {
            "p99 idle": idle * 1000,
            "p99 loaded": loaded * 1000,
            "p99 growth": loaded / idle,
            "other traffic": traffic / MEGA,
        }

    def _p99(self, server: Server, seconds: int) -> float:
        times = sorted(wire.paced(server.port, self.path, self.requests, seconds))
        return times[len(times) * 99 // 100]


@dataclass(frozen=True)
class SharedLatency(_OneFile):
    """The same on one connection of HTTP/2, which the downloads share; their windows let them go at a pace."""

    requests: int
    """How many are due in a second."""
    big: str
    downloads: int
    rate: int
    """Bytes a second for each download."""

    def prepare(self, site: Site) -> None:
        site.file(self.path)
        site.file(self.big)

    def measure(self, target: Target) -> Sample:
        idle, _ = self._p99(target, 0)
        loaded, traffic = self._p99(target, self.downloads)
        return {
            "p99 idle": idle * 1000,
            "p99 loaded": loaded * 1000,
            "p99 growth": loaded / idle,
            "other traffic": traffic / MEGA,
        }

    def _p99(self, target: Target, downloads: int) -> tuple[float, float]:
        port, seconds = target.server.port, target.seconds
        times, traffic = http2_wire.paced(port, self.path, self.requests, seconds, self.big, downloads, self.rate)
        return sorted(times)[len(times) * 99 // 100], traffic


@dataclass(frozen=True)
class Connections(_OneFile):
    """How much of the requests/s at the smallest number of connections is left at the worst of the others."""

    counts: tuple[int, ...]

    def measure(self, target: Target) -> Sample:
        rates = [_wrk(target, count, [(self.path, {})])[0] for count in self.counts]
        return {"requests": rates[0], "rate kept": min(rates[1:]) / rates[0]}


@dataclass(frozen=True)
class Start(_OneFile):
    """From starting the process to the last byte of the first response."""

    def measure(self, target: Target) -> Sample:
        with target.fresh() as server:
            while True:
                try:
                    answer = wire.get(server.port, self.path)
                except (OSError, wire.WireError):
                    if time.monotonic() - server.started > START_SECONDS or server.process.poll() is not None:
                        raise ServerError(f"does not answer: {server.last_words()}") from None
                    time.sleep(POLL_SECONDS)
                    continue
                seconds = time.monotonic() - server.started
                if answer.status != 200:
                    raise ClientError(f"answers {answer.status}")
                return {"start": seconds}
