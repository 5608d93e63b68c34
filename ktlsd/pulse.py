"""Is every process of this service alive, and what does it serve? The answer to systemd's watchdog and STATUS.

Strategy: each event loop reports a few counters at every beat; a loop that is stuck misses it. The process that systemd
started answers for itself; workers report to it, and it kills one that falls silent, which is then replaced: a stuck
worker does not end the downloads of the others.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from ktlsd.notify import Notifier

log = logging.getLogger("ktlsd")

STATUS_SECONDS: Final = 5.0
"""Between two beats, and so between two STATUS lines; less where the watchdog is stricter."""
_BEATS_IN_TIME: Final = 3
_REPORT: Final = struct.Struct("=4q")


class Report(NamedTuple):
    """What one process serves: TLS and plain connections now, and its handshakes so far with those that got kTLS TX."""

    connections: int = 0
    handshakes: int = 0
    offloaded: int = 0


@dataclass(slots=True)
class Tally:
    """A process's own counters, which its connections move."""

    connections: int = 0
    handshakes: int = 0
    offloaded: int = 0

    def report(self) -> Report:
        return Report(self.connections, self.handshakes, self.offloaded)


class Beat(NamedTuple):
    """Where an event loop reports, and how often."""

    send: Callable[[Report], None]
    stopping: Callable[[], None]
    """What to call when the end begins."""
    seconds: float

    async def keep(self, tally: Tally) -> None:
        """Report until cancelled."""
        while True:
            self.send(tally.report())
            await trio.sleep(self.seconds)


class Pulse:
    """The counters of all processes, in the one that systemd knows."""

    def __init__(self, notifier: Notifier) -> None:
        self.notifier = notifier
        self._limit = notifier.watchdog_seconds
        self.seconds = STATUS_SECONDS if self._limit is None else min(STATUS_SECONDS, self._limit / _BEATS_IN_TIME)
        """Between two beats."""
        self._status = ""
        self._past = Report()
        self._seen: dict[int, float] = {}
        self._reports: dict[int, Report] = {}
        # Datagrams are whole or not at all, and the sockets outlive any worker.
        self._inbox, self._outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.setblocking(False)
        self._outbox.setblocking(False)

    def close(self) -> None:
        self._inbox.close()
        self._outbox.close()

    def own_beat(self) -> Beat | None:
        """For the only process; None where nobody listens."""
        return Beat(self._from_this_process, self.notifier.stopping, self.seconds) if self.notifier.heard else None

    def worker_beat(self) -> Beat | None:
        """For a worker, which reports to its parent; None where nobody listens."""
        return Beat(self._from_worker, lambda: None, self.seconds) if self.notifier.heard else None

    def check(self, workers: Collection[int]) -> None:
        """In the parent, every `seconds`: kill the workers that fell silent, and tell systemd how the rest does."""
        self._take_in()
        now = time.monotonic()
        for gone in self._seen.keys() - set(workers):
            del self._seen[gone]
            left = self._reports.pop(gone, Report())
            self._past = total((self._past, left._replace(connections=0)))
        for worker in workers:
            silent = now - self._seen.setdefault(worker, now)
            if self._limit is not None and silent > self._limit:
                log.error("worker %d is stuck: nothing from it for %.0f s", worker, silent)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        self._tell()

    def take(self, process: int, report: Report) -> None:
        """Note the report of a process."""
        self._seen[process] = time.monotonic()
        self._reports[process] = report

    def _take_in(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                worker, *counters = _REPORT.unpack(self._inbox.recv(_REPORT.size))
                self.take(worker, Report(*counters))

    def _from_worker(self, report: Report) -> None:
        # A parent that does not read has its own watchdog to fear.
        with contextlib.suppress(BlockingIOError):
            self._outbox.send(_REPORT.pack(os.getpid(), *report))

    def _from_this_process(self, report: Report) -> None:
        self.take(os.getpid(), report)
        self._tell()

    def _tell(self) -> None:
        if self._limit is not None:
            self.notifier.alive()
        status = describe(total((self._past, *self._reports.values())))
        if status != self._status:
            self._status = status
            self.notifier.status(status)


def total(reports: Iterable[Report]) -> Report:
    """The sum of at least one."""
    return Report(*map(sum, zip(*reports, strict=True)))


def describe(report: Report) -> str:
    """The STATUS line."""
    text = f"{report.connections} connection{'' if report.connections == 1 else 's'} now"
    if not report.handshakes:
        return text
    share = 100 * report.offloaded // report.handshakes
    return f"{text}, {report.handshakes} handshake{'' if report.handshakes == 1 else 's'}, {share} % of them with kTLS"
