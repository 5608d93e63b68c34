"""How a server is measured: wrk, h2load, curl, openssl s_time, and what the benchmark's own client does.

Strategy: each client is a record of parameters with three methods: prepare its files, check that a server does what the
row asks (a server that does not is named, not measured), and take one sample.
"""

from __future__ import annotations

import contextlib
import json
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

from bench import wire
from bench.machine import CHECKOUT
from bench.metrics import Sample
from bench.servers import POLL_SECONDS, START_SECONDS, Server, ServerError
from bench.site import MANY_SIZE, SIZES, Site, evict
from bench.throttle import ThrottleError, throttled

WRK_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
GRACE_SECONDS: Final = 90.0
"""How much longer than told a client may take: an emulated machine needs long for 32 handshakes."""
BULK_BYTES: Final = 10_000_000
"""From this size on bytes are counted, below it requests."""
GIGA: Final = 1e9
MEGA: Final = 1e6
MICRO: Final = 1e-6
HANDSHAKE_CLIENTS: Final = 3
"""s_time waits for each handshake, so several at a time keep the server busy."""
WARM_CONNECTIONS: Final = 50
RANGES: Final = 1000
MOST_FAILED: Final = 0.001
MOST_OF_DISK: Final = 3
"""The throttle lets a first burst through."""


class ClientError(Exception):
    """A sample that could not be taken."""


@dataclass(frozen=True)
class Target:
    """What a sample is taken of. `server` runs already; fresh() starts another one of its kind."""

    server: Server
    fresh: Callable[[], AbstractContextManager[Server]]
    site: Site
    seconds: int


class Client(Protocol):
    @property
    def serial(self) -> bool:
        """Whether a server that serves one connection at a time, for one response, can be measured."""

    @property
    def warms_up(self) -> bool:
        """Whether a first sample, which is not counted, makes the others truer."""

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
        return _check(server, self.path, {}, 200, SIZES[self.path])


def _check(server: Server, path: str, fields: dict[str, str], status: int, length: int) -> str:
    try:
        answer = wire.get(server.port, path, fields)
    except (wire.WireError, OSError) as error:
        return f"{path}: {type(error).__name__} {error}"
    if (answer.status, answer.length) != (status, length):
        return f"answers {answer.status} with {answer.length} bytes where {status} with {length} is asked for"
    return "" if answer.cipher == wire.CIPHER else f"negotiates {answer.cipher}"


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


def _sample(size: int, requests: float, received: float, seconds: float, cpu: float) -> Sample:
    """The figures of `requests` responses (or `received` bytes) in `seconds` that cost the server `cpu` seconds."""
    if size >= BULK_BYTES:
        if not received:
            raise ClientError("no byte arrived")
        return {"throughput": received / seconds / MEGA, "cpu per byte": cpu / received * GIGA}
    if not requests:
        raise ClientError("no response arrived")
    return {"requests": requests / seconds, "cpu per request": cpu / requests / MICRO}


def _wrk(url: str, connections: int, seconds: int, requests: Path | None = None) -> dict[str, float]:
    """wrk's own result (wrk.lua); raises ClientError where more than MOST_FAILED of the requests failed."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(WRK_SCRIPT), url]
    text = _run([*command, "--", *([str(requests)] if requests else [])], seconds)
    found = re.search(r"^RESULT (.*)$", text, re.MULTILINE)
    if found is None:
        raise ClientError(f"wrk gave no result: {text[-200:]}")
    result: dict[str, float] = json.loads(found[1])
    if result["failed"] > MOST_FAILED * result["requests"] + connections:
        raise ClientError(f"{result['failed']:.0f} requests failed")
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
    """Whether the requests carry the validators of an answer before them."""
    range_length: int = 0
    """The length of the ranges that are asked for, at random places."""

    serial = False
    warms_up = True

    def prepare(self, site: Site) -> None:
        self._targets(site)

    def _targets(self, site: Site) -> list[str]:
        if self.files:
            return site.many(self.path, self.files)
        site.file(self.path)
        return [self.path]

    def _requests(self, server: Server, site: Site) -> list[tuple[str, dict[str, str]]]:
        targets = self._targets(site)
        if self.conditional:
            fields = wire.get(server.port, self.path).fields
            names = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}
            return [(self.path, {asked: fields[name] for name, asked in names.items() if name in fields})]
        if self.range_length:
            source = random.Random(self.path)
            starts = [source.randrange(SIZES[self.path] - self.range_length) for _ in range(RANGES)]
            return [(self.path, {"Range": f"bytes={start}-{start + self.range_length - 1}"}) for start in starts]
        return [(target, {}) for target in targets]

    def check(self, server: Server, site: Site) -> str:
        path, fields = self._requests(server, site)[0]
        whole = MANY_SIZE if self.files else SIZES[self.path]
        return _check(server, path, fields, self.status, {200: whole, 206: self.range_length}.get(self.status, 0))

    def measure(self, target: Target) -> Sample:
        server = target.server
        with tempfile.NamedTemporaryFile("w", prefix="ktlsd-bench-") as list_of_requests:
            requests = self._requests(server, target.site)
            for path, fields in requests:
                line = "\t".join([path, *(f"{name}: {value}" for name, value in fields.items())])
                list_of_requests.write(f"{line}\n")
            list_of_requests.flush()
            varied = Path(list_of_requests.name) if requests != [(self.path, {})] else None
            before = server.cpu_seconds()
            result = _wrk(server.url(self.path), self.connections, target.seconds, varied)
            cpu = server.cpu_seconds() - before
        seconds = result["microseconds"] * MICRO
        return _sample(SIZES.get(self.path, 0), result["requests"], result["bytes"], seconds, cpu)


@dataclass(frozen=True)
class H2load(_OneFile):
    """h2load over HTTP/1.1 with one thread, which starts to count when all connections are there."""

    connections: int

    def measure(self, target: Target) -> Sample:
        before = target.server.cpu_seconds()
        warm_up = 1
        requests = h2load(target.server.url(self.path), self.connections, target.seconds, warm_up)
        cpu = target.server.cpu_seconds() - before
        # CPU is also used in the warm-up, at the same rate.
        return _sample(SIZES[self.path], requests * (target.seconds + warm_up), 0, target.seconds + warm_up, cpu)


def h2load(url: str, connections: int, seconds: int, warm_up: int) -> float:
    """Responses a second. Raises ClientError."""
    command = ["h2load", "--h1", "-t1", f"-c{connections}", "-D", str(seconds), "--warm-up-time", str(warm_up), url]
    text = _run(command, seconds + warm_up)
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", text, re.MULTILINE)
    counts = re.search(r"(\d+) succeeded, (\d+) failed", text)
    if rate is None or counts is None:
        raise ClientError(f"h2load gave no result: {text[-200:]}")
    if int(counts[2]) > MOST_FAILED * int(counts[1]) + connections:
        raise ClientError(f"{counts[2]} requests failed")
    return float(rate[1])


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
        return _sample(SIZES[self.path], self.times, received, seconds, cpu)


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
            clients = [stack.enter_context(_process(command, stdout=subprocess.PIPE)) for _ in range(HANDSHAKE_CLIENTS)]
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
def _process(command: list[str], stdout: int) -> Iterator[subprocess.Popen[str]]:
    """A client beside others, ended at the end in any case."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
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
            with wire.idle_connections(server.port, self.path, WARM_CONNECTIONS):
                pass
            before = server.resident_kib()
            with wire.idle_connections(server.port, self.path, self.connections):
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
            drain = stack.enter_context(self._drain(server.port, target.seconds))
            started = time.monotonic()
            loaded = self._p99(server, target.seconds)
            elapsed = time.monotonic() - started
            drain.send_signal(signal.SIGTERM)
            received, _ = drain.communicate(timeout=GRACE_SECONDS)
        if not received.strip():
            raise ClientError("the downloads failed")
        traffic = int(received) / elapsed
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

    @contextlib.contextmanager
    def _drain(self, port: int, seconds: int) -> Iterator[subprocess.Popen[str]]:
        numbers = [SIZES[self.big], self.downloads, self.rate, int(seconds + GRACE_SECONDS)]
        command = [sys.executable, "-m", "bench.drain", str(port), self.big, *map(str, numbers)]
        with _process(command, stdout=subprocess.PIPE) as drain:
            assert drain.stdout is not None
            if drain.stdout.readline().strip() != "ready":
                raise ClientError("the downloads do not start")
            yield drain


@dataclass(frozen=True)
class Connections(_OneFile):
    """How much of the requests/s at the smallest number of connections is left at the worst of the others."""

    counts: tuple[int, ...]

    def measure(self, target: Target) -> Sample:
        # Connections are made before the count starts: some hundred handshakes a second even of a slow server.
        rates = [h2load(target.server.url(self.path), n, target.seconds, 2 + n // 400) for n in self.counts]
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
