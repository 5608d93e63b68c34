"""How a server is measured under traffic: a new process, and what it costs at first and after a while.

Strategy: wrk fills in a prepared list (traffic.lua) and tells how many requests it asked at each moment; between the
same moments the server's processor time is read. The time of a small request is taken in a run of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench import wire
from bench.clients import MICRO, MOST_FAILED, ClientError, Target, beside, mismatch
from bench.metrics import Sample
from bench.servers import Server
from bench.site import SIZES, Site
from bench.traffic import RequestList, Tree, browsing, forwarded, scanning

SCRIPT: Final = Path(__file__).with_name("traffic.lua")
SMALL: Final = "/1k.html"
ASKED: Final = 100
"""Small requests a second, timed beside the traffic."""
NICE: Final = ("nice", "-n", "5")
"""For wrk, which shares its core with the client that takes times."""


class Work(Protocol):
    """Something that many clients ask for."""

    @property
    def name(self) -> str: ...

    @property
    def status(self) -> int:
        """The status of all responses."""

    def requests(self) -> RequestList: ...

    def prepare(self, site: Site) -> None:
        """Make the files, and what is needed to make them new."""

    def renew(self, site: Site) -> None:
        """Have the kernel forget the names that were looked up."""

    def trouble(self, server: Server) -> str:
        """Why this server cannot be measured; empty if it can."""


@dataclass(frozen=True)
class Browsing:
    """Visitors of a tree."""

    tree: Tree

    status = 200

    @property
    def name(self) -> str:
        return self.tree.name

    def requests(self) -> RequestList:
        return browsing(self.tree)

    def prepare(self, site: Site) -> None:
        if not (site.directory / self.tree.name).exists():
            self.tree.write(site.directory)
            self.renew(site)

    def renew(self, site: Site) -> None:
        self.tree.link(site.directory, site.root)

    def trouble(self, server: Server) -> str:
        return mismatch(server, self.tree.targets()[0], {}, self.status, self.tree.sizes()[0])


@dataclass(frozen=True)
class Scanning:
    """Scanners of paths that do not exist."""

    name = "scanning"
    status = 404

    def requests(self) -> RequestList:
        return scanning()

    def prepare(self, site: Site) -> None:
        pass

    def renew(self, site: Site) -> None:
        pass

    def trouble(self, server: Server) -> str:
        answered = wire.get(server.port, "/no-such-path", plain=server.plain).status
        return "" if answered == self.status else f"answers {answered} for a path that does not exist"


@dataclass(frozen=True)
class Forwarded:
    """A proxy that passes on requests for one file, from another client each time."""

    path: str

    name = "forwarded"
    status = 200

    def requests(self) -> RequestList:
        return forwarded([self.path])

    def prepare(self, site: Site) -> None:
        site.file(self.path)

    def renew(self, site: Site) -> None:
        pass

    def trouble(self, server: Server) -> str:
        return mismatch(server, self.path, {}, self.status, SIZES[self.path])


@dataclass(frozen=True)
class Traffic:
    """A list of requests on keep-alive connections to a new server."""

    work: Work
    connections: int = 32
    first_seconds: int = 3
    """How long everything counts as new."""
    later: int = 10
    """The second in which the other part of a sample begins."""
    timed: bool = True
    """True if the p99 of small requests is measured too."""
    hold: bool = False
    """True if the list begins once all connections are there: handshakes take an emulated machine seconds."""

    serial = False
    warms_up = False

    def prepare(self, site: Site) -> None:
        site.file(SMALL)
        self.work.prepare(site)
        lines = self._lines(site)
        if not lines.exists():
            lines.write_text(self.work.requests().lines())

    def _lines(self, site: Site) -> Path:
        return site.directory / f"{self.work.name}.requests"

    def check(self, server: Server, site: Site) -> str:
        return self.work.trouble(server) or mismatch(server, SMALL, {}, 200, SIZES[SMALL])

    def measure(self, target: Target) -> Sample:
        marks = (self.first_seconds, self.later, self.later + target.seconds)
        with self._new_server(target) as server:
            started = server.cpu_seconds()
            with self._asking(target, server, marks) as (wrk, began):
                if self.hold:
                    started = server.cpu_seconds()
                cpu = [_cpu_at(server, began + mark) - started for mark in marks]
                counts = self._counts(wrk, marks)
            memory = server.proportional_kib()
        later = counts[2] - counts[1]
        if counts[0] == 0 or later == 0:
            raise ClientError("no response arrived")
        return {
            "cpu per request at first": cpu[0] / counts[0] / MICRO,
            "cpu per request": (cpu[2] - cpu[1]) / later / MICRO,
            "requests": later / target.seconds,
            "server busy": (cpu[2] - cpu[1]) / target.seconds * 100,
            "memory": memory / 1024,
            **({"p99 at first": self._p99(target) * 1000} if self.timed else {}),
        }

    @contextlib.contextmanager
    def _new_server(self, target: Target) -> Iterator[Server]:
        """A new server that has answered one request for a file outside the tree and does nothing."""
        self.work.renew(target.site)
        with target.fresh() as server:
            wire.get(server.port, SMALL, plain=server.plain)
            server.wait_until_still()
            yield server

    @contextlib.contextmanager
    def _asking(
        self, target: Target, server: Server, marks: tuple[int, ...]
    ) -> Iterator[tuple[subprocess.Popen[str], float]]:
        """A wrk whose list has begun, and the time when it did."""
        hold = target.settle_seconds(self.connections) if self.hold else 0.0
        with tempfile.NamedTemporaryFile("w", prefix="ktlsd-bench-") as heads:
            heads.write(self.work.requests().http1_heads(f"127.0.0.1:{server.port}"))
            heads.flush()
            duration = f"-d{hold + marks[-1] + 1:.0f}s"
            command = [*NICE, "wrk", "-t1", f"-c{self.connections}", duration]
            command += ["--timeout", "60s", "-s", str(SCRIPT), server.url("/"), "--", str(hold)]
            command += [",".join(map(str, marks)), heads.name, str(self._lines(target.site))]
            with beside(command) as wrk:
                assert wrk.stdout is not None
                for line in wrk.stdout:
                    if line.startswith("START "):
                        yield wrk, float(line.split()[1])
                        return
                raise ClientError(f"wrk does not begin: {wrk.communicate()[1].strip()[-200:]}")

    def _counts(self, wrk: subprocess.Popen[str], marks: tuple[int, ...]) -> list[int]:
        # communicate() would lose what came together with the line that was read before.
        assert wrk.stdout is not None
        found = re.search(r"^RESULT (.*)$", wrk.stdout.read(), re.MULTILINE)
        if found is None:
            raise ClientError("wrk gave no result")
        result = json.loads(found[1])
        failed = result["lost"] + (
            abs(result["requests"] - result["status"]) if self.work.status >= 400 else result["status"]
        )
        if failed > MOST_FAILED * result["requests"] + self.connections:
            raise ClientError(f"{failed} requests failed")
        if len(result["counts"]) < len(marks):
            raise ClientError("the server answered no request at the end")
        counts: list[int] = result["counts"]
        return counts

    def _p99(self, target: Target) -> float:
        """Seconds that the slowest hundredth of small requests takes in the first seconds of a new server."""
        with self._new_server(target) as server, self._asking(target, server, (self.first_seconds,)):
            times = sorted(wire.paced(server.port, SMALL, ASKED, self.first_seconds))
        return times[len(times) * 99 // 100]


def _cpu_at(server: Server, moment: float) -> float:
    time.sleep(max(0.0, moment - time.monotonic()))
    return server.cpu_seconds()
