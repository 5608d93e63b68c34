"""The run: servers side by side, rows one after the other, and in each row the servers in turn, A B A B.

Strategy: all servers of a number of workers are started once and stay, idle but for their turns; any server that cannot
be measured is written down with its reason where the figure would be.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench import machine, wire
from bench.clients import ClientError, Target
from bench.metrics import Sample
from bench.peers import OTHER, PEERS, Place, Programs
from bench.ports import free_port
from bench.rows import Row
from bench.servers import Server, ServerError, running
from bench.site import Site
from bench.throttle import ThrottleError

TROUBLE: Final = (ClientError, ServerError, wire.WireError, ThrottleError, OSError, subprocess.TimeoutExpired)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    rows: Sequence[Row]
    peers: Sequence[str]
    """Those to compare with, of the ones that a row has; all of these for none."""
    workers: Sequence[int]
    rounds: int
    seconds: int
    """Duration of a sample."""
    warm_up_seconds: int
    handshakes: int
    """How many handshakes a second the slowest server does here at least."""
    programs: Programs
    scratch: Path
    """Where the run may make its folder."""

    def peers_of(self, row: Row) -> list[str]:
        other = (row.subject + OTHER,) if self.programs.other else ()
        return [row.subject, *other, *(name for name in row.peers if not self.peers or name in self.peers)]


@dataclass
class RowResult:
    """`samples` by peer; `missing` has the reason for each peer without."""

    row: Row
    workers: int
    load: float
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    machine: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Servers that could not be run at all."""
    rows: list[RowResult] = field(default_factory=list)


def cores(workers: int) -> tuple[list[int], list[int]]:
    """The cores of the servers and those of the clients: apart for one worker, the same ones for more."""
    every = sorted(os.sched_getaffinity(0))
    return (every[:1], every[1:] or every) if workers == 1 else (every, every)


@contextlib.contextmanager
def pinned(to: Sequence[int]) -> Iterator[None]:
    """Keep this process, and the clients that it starts, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(plan: Plan, say: Say) -> Result:
    """Measure everything that the plan has. One server's trouble is noted and does not end the run."""
    result = Result(machine.describe())
    with tempfile.TemporaryDirectory(prefix="ktlsd-bench-", dir=plan.scratch) as directory:
        site = Site(Path(directory), tuple(cores(1)[1]))
        with site.mounts:
            site.prepare()
            for row in plan.rows:
                row.client.prepare(site)
            for workers in plan.workers:
                rows = [row for row in plan.rows if workers in row.workers]
                if rows:
                    _run_rows(plan, rows, workers, site, result, say)
    return result


def _run_rows(plan: Plan, rows: Sequence[Row], workers: int, site: Site, result: Result, say: Say) -> None:
    serving, asking = cores(workers)

    def start(name: str, root: Path = site.root) -> contextlib.AbstractContextManager[Server]:
        scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=site.directory))
        scratch.chmod(0o755)
        place = Place(root, site.certificate, site.key, free_port(), workers, scratch)
        peer = PEERS[name]
        launch = peer.launch(place, plan.programs)
        return running(name, launch, place.port, serving, plain=peer.plain, http2=peer.http2)

    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name in dict.fromkeys(name for row in rows for name in plan.peers_of(row)):
            if name in result.missing:
                continue
            try:
                servers[name] = _started(name, plan.programs, start, stack)
            except ServerError as error:
                result.missing[name] = str(error)
                say(f"{name} is missing: {error}")
            else:
                result.versions.setdefault(name, PEERS[name].version(plan.programs))
        stack.enter_context(pinned(asking))
        for row in rows:
            say(f"{row.name}, {workers} worker{'s' * (workers > 1)}")
            result.rows.append(_run_row(plan, row, workers, servers, start, site, say))


def _started(
    name: str,
    programs: Programs,
    start: Callable[..., contextlib.AbstractContextManager[Server]],
    stack: contextlib.ExitStack,
) -> Server:
    """A server that answers, on the path to the kernel that its name promises. Raises ServerError."""
    if reason := PEERS[name].why_missing(programs):
        raise ServerError(reason)
    with contextlib.ExitStack() as trial:
        server = trial.enter_context(start(name))
        server.wait_until_listening()
        before = machine.ktls_sends()
        try:
            wire.get(server.port, "/", plain=server.plain)
        except (wire.WireError, OSError) as error:
            raise ServerError(f"does not answer: {error}; {server.last_words()}") from None
        if PEERS[name].ktls and machine.ktls_sends() == before:
            raise ServerError("told to use kTLS, and the kernel counts no connection")
        stack.push(trial.pop_all())
    return server


def _run_row(
    plan: Plan,
    row: Row,
    workers: int,
    servers: dict[str, Server],
    start: Callable[..., contextlib.AbstractContextManager[Server]],
    site: Site,
    say: Say,
) -> RowResult:
    outcome = RowResult(row, workers, machine.load())

    def fail(name: str, reason: str) -> None:
        outcome.missing[name] = reason
        targets.pop(name, None)
        say(f"  {name} is missing: {reason}")

    @contextlib.contextmanager
    def fresh(name: str, *root: Path) -> Iterator[Server]:
        with start(name, *root) as server:
            server.wait_until_listening()
            yield server

    targets: dict[str, Target] = {}
    for name in plan.peers_of(row):
        if name not in servers:
            continue
        if PEERS[name].serial and not row.client.serial:
            fail(name, "serves one connection at a time")
        elif reason := row.client.check(servers[name], site):
            fail(name, reason)
        else:
            targets[name] = Target(servers[name], functools.partial(fresh, name), site, plan.seconds, plan.handshakes)
    for number in range(-1 if row.client.warms_up else 0, plan.rounds):
        for name, target in list(targets.items()):
            is_warm_up = number < 0
            try:
                sample = row.client.measure(replace(target, seconds=plan.warm_up_seconds) if is_warm_up else target)
            except TROUBLE as error:
                fail(name, f"{type(error).__name__}: {error}")
                outcome.samples.pop(name, None)
                continue
            finally:
                target.server.wait_until_still()
            if not is_warm_up:
                outcome.samples.setdefault(name, []).append(sample)
            figures = ", ".join(f"{metric} {value:.4g}" for metric, value in sample.items())
            say(f"  {'warm-up' if is_warm_up else f'round {number + 1}'}: {name}: {figures}")
    return outcome
