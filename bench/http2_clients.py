"""How a server is measured over HTTP/2: h2load with a number of requests, never a duration, with which it may hang.

Strategy: a first run tells how many requests fill the time of a sample. A server that does not speak HTTP/2 is asked
over HTTP/1.1 by the same program, so that the two protocols of one server can be compared.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import wire
from bench.clients import (
    CHECKED_BYTES,
    GIGA,
    GRACE_SECONDS,
    MEGA,
    MICRO,
    MOST_FAILED,
    ClientError,
    Target,
    beside,
    mismatch,
)
from bench.metrics import Sample
from bench.servers import Server
from bench.site import MANY_SIZE, SIZES, Site
from bench.traffic import Fields, Request, RequestList
from bench.traffic_client import SMALL, Browsing

_FINISHED: Final = re.compile(r"^finished in ([\d.]+)(us|ms|s)\b", re.MULTILINE)
_COUNTS: Final = re.compile(r"(\d+) done, (\d+) succeeded, (\d+) failed")
_DATA: Final = re.compile(r"\((\d+)\) data$", re.MULTILINE)
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FEWEST: Final = 40
"""Requests of a first run, for each stream."""


@dataclass(frozen=True)
class _Run:
    """What h2load told at its end."""

    seconds: float
    data: int
    """Bytes of bodies."""
    text: str


def _h2load(server: Server, options: Sequence[str], count: int, seconds: float) -> _Run:
    """Have `count` requests answered. Raises ClientError if more than a few are not."""
    with _asking(server, options, count) as asked:
        return _result(asked.communicate(timeout=seconds + GRACE_SECONDS)[0], count)


@contextlib.contextmanager
def _asking(server: Server, options: Sequence[str], count: int) -> Iterator[subprocess.Popen[str]]:
    protocol = () if server.http2 else ("--h1",)
    with beside(["h2load", "-t1", *protocol, "-n", str(count), *options]) as process:
        yield process


def _result(text: str, count: int) -> _Run:
    finished, counts, data = _FINISHED.search(text), _COUNTS.search(text), _DATA.search(text)
    if finished is None or counts is None or data is None:
        raise ClientError(f"h2load gave no result: {text[-200:]}")
    _, succeeded, _ = map(int, counts.groups())
    if count - succeeded > MOST_FAILED * count:
        raise ClientError(f"{count - succeeded} of {count} requests failed")
    return _Run(float(finished[1]) * _UNITS[finished[2]], int(data[1]), text)


def _trouble(server: Server, path: str, length: int) -> str:
    """Why a server cannot be asked for this file by h2load; empty if it can."""
    if not server.http2:
        return mismatch(server, path, {}, 200, length)
    try:
        found = _h2load(server, ["-c1", server.url(path)], 1, 0)
    except (ClientError, OSError) as error:
        return str(error)
    if "Application protocol: h2\n" not in found.text:
        return "does not negotiate HTTP/2"
    if f"Cipher: {wire.CIPHER}\n" not in found.text:
        return f"does not negotiate {wire.CIPHER}"
    return "" if found.data == length else f"sends {found.data} bytes where {length} are asked for"


@dataclass(frozen=True)
class _Load:
    """Connections with streams side by side. `files` is the number of different files below `path`; 0 for one file."""

    path: str
    connections: int
    streams: int = 1
    files: int = 0

    serial = False
    warms_up = True

    def prepare(self, site: Site) -> None:
        site.file(SMALL)
        site.targets(self.path, self.files)

    def check(self, server: Server, site: Site) -> str:
        path = site.targets(self.path, self.files)[0]
        if self._size <= CHECKED_BYTES:
            return _trouble(server, path, self._size)
        # h2load would read all of it, for minutes in an emulated machine.
        return mismatch(server, path, {}, 200, self._size) or _trouble(server, SMALL, SIZES[SMALL])

    @property
    def _size(self) -> int:
        return MANY_SIZE if self.files else SIZES[self.path]

    def _options(self, target: Target) -> list[str]:
        urls = [target.server.url(path) for path in target.site.targets(self.path, self.files)]
        return [f"-c{self.connections}", f"-m{self.streams}", *urls]

    def _sample(self, target: Target, count: int) -> tuple[_Run, float]:
        """What came, and the processor time that the server took for it, in seconds."""
        before = target.server.cpu_seconds()
        found = _h2load(target.server, self._options(target), count, GRACE_SECONDS)
        return found, target.server.cpu_seconds() - before


@dataclass(frozen=True)
class Streams(_Load):
    """Small files: requests a second, and the server's processor time for each."""

    def measure(self, target: Target) -> Sample:
        fewest = _FEWEST * self.connections * self.streams
        first = _h2load(target.server, self._options(target), fewest, GRACE_SECONDS)
        # The handshakes of the first run make this too few, never too many.
        count = max(fewest, math.ceil(fewest / first.seconds * target.seconds))
        found, cpu = self._sample(target, count)
        return {"requests": count / found.seconds, "cpu per request": cpu / count / MICRO}


@dataclass(frozen=True)
class Downloads(_Load):
    """A large file, `times` on each connection, one after the other."""

    times: int = 1

    def measure(self, target: Target) -> Sample:
        found, cpu = self._sample(target, self.times * self.connections)
        return {"throughput": found.data / found.seconds / MEGA, "cpu per byte": cpu / found.data * GIGA}


@dataclass(frozen=True)
class Http2Traffic:
    """The requests of a browsing() list to a new server: an h2load for each connection, with a part of the list and a
    browser's fields of its own, which h2load cannot change between requests.
    """

    work: Browsing
    connections: int = 8
    streams: int = 10
    first: int = 4_000
    """Requests of each connection while everything is new."""
    between: int = 8_000
    """Requests that are not counted."""
    later: int = 8_000

    serial = False
    warms_up = False

    def prepare(self, site: Site) -> None:
        site.file(SMALL)
        self.work.prepare(site)

    def check(self, server: Server, site: Site) -> str:
        return self.work.trouble(server) or _trouble(server, SMALL, SIZES[SMALL])

    def measure(self, target: Target) -> Sample:
        self.work.renew(target.site)
        listed = self.work.requests()
        with target.fresh() as server:
            wire.get(server.port, SMALL, plain=server.plain)
            server.wait_until_still()
            first, _ = self._phase(server, listed, 0, self.first)
            self._phase(server, listed, self.first, self.between)
            cpu, seconds = self._phase(server, listed, self.first + self.between, self.later)
            memory = server.proportional_kib()
        later = self.connections * self.later
        return {
            "cpu per request at first": first / (self.connections * self.first) / MICRO,
            "cpu per request": cpu / later / MICRO,
            "requests": later / seconds,
            "server busy": cpu / seconds * 100,
            "memory": memory / 1024,
        }

    def _phase(self, server: Server, listed: RequestList, start: int, count: int) -> tuple[float, float]:
        """Have each connection ask for the next `count` of its part; processor time of the server, and time, in
        seconds."""
        with tempfile.TemporaryDirectory(prefix="ktlsd-bench-") as folder, contextlib.ExitStack() as stack:
            commands = []
            for number in range(self.connections):
                uris = Path(folder, str(number))
                begin = number * len(listed.requests) // self.connections + start
                uris.write_text(listed.uris(server.url(""), begin, count))
                fields = _fields(listed.heads[number % len(listed.heads)], listed.requests[begin])
                headers = [word for name, value in fields for word in ("-H", f"{name}: {value}")]
                commands.append(["-c1", f"-m{self.streams}", *headers, "-i", str(uris)])
            before, began = server.cpu_seconds(), time.monotonic()
            running = [stack.enter_context(_asking(server, command, count)) for command in commands]
            for one in running:
                _result(one.communicate(timeout=10 * GRACE_SECONDS)[0], count)
            return server.cpu_seconds() - before, time.monotonic() - began


def _fields(head: Fields, request: Request) -> Iterator[tuple[str, str]]:
    """The fields of a connection as HTTP/2 has them (RFC 9113 section 8.2.2)."""
    for name, value in head:
        if name != "Connection":
            yield name.lower(), value.format(referer=request.referer, number=request.head)
