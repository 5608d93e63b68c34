"""The watchdog of all processes: heartbeats of event loops, systemd's watchdog and the STATUS line.

Strategy: each event loop writes the time of its heartbeat into its row (metrics.py); a stuck loop misses it. The
process that systemd started reads all rows: it reports its own health to systemd, and as the parent of workers it kills
and replaces a worker without heartbeats: a stuck worker does not end the downloads of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from ktlsd.metrics.metrics import BEAT, BY_NAME, MetricsStore, Row, series, total
from ktlsd.process.notify import Notifier

STATUS_SECONDS: Final = 5.0
"""Interval of heartbeats and STATUS lines; shorter if systemd's watchdog requires it."""
_BEATS_IN_TIME: Final = 3
_NS: Final = 1_000_000_000


class Watchdog:
    """Monitors all processes and reports to systemd."""

    def __init__(self, notifier: Notifier, store: MetricsStore, troubles: Callable[[], str] = str) -> None:
        """`troubles` gives what the operator should know beside the figures, "" for nothing."""
        self.notifier = notifier
        self._troubles = troubles
        self.store = store
        # Without systemd there are no heartbeats, so a missing one means nothing.
        self._limit = notifier.watchdog_seconds if notifier.heard else None
        self.seconds = STATUS_SECONDS if self._limit is None else min(STATUS_SECONDS, self._limit / _BEATS_IN_TIME)
        """Interval of heartbeats."""
        self._status = ""

    async def beat(self, row: Row, *, alone: bool) -> None:
        """Write heartbeats of this event loop, until cancelled; return at once without systemd.

        A process that is `alone` has no parent and reports to systemd itself.
        """
        while self.notifier.heard:
            row[BEAT] = time.monotonic_ns()
            if alone:
                self.tell()
            await trio.sleep(self.seconds)

    async def tell_end(self, draining: trio.Event) -> None:
        """Notify systemd when the shutdown begins."""
        await draining.wait()
        self.notifier.stopping()

    def silence(self, number: int, since: float) -> float | None:
        """Seconds since the last heartbeat of worker `number`, started at `since` (time.monotonic()); None if in
        time."""
        silent = time.monotonic() - max(since, self.store.rows[number][BEAT] / _NS)
        return silent if self._limit is not None and silent > self._limit else None

    def tell(self) -> None:
        """Report to systemd that the calling process is alive, and the status of all processes."""
        if self._limit is not None:
            self.notifier.alive()
        status = "; ".join(filter(None, (describe(self.store.totals()), self._troubles())))
        if status != self._status:
            self._status = status
            self.notifier.status(status)


def describe(totals: Sequence[int]) -> str:
    """The STATUS line for sums over all rows."""
    connections = total("ktlsd_open_connections", totals)
    text = f"{connections} connection{'' if connections == 1 else 's'} now"
    metric = BY_NAME["ktlsd_tls_connections_total"]
    tx = metric.labels.index("tx")
    handshakes = offloaded = 0
    for labels, count in series(metric, totals):
        handshakes += count
        offloaded += count * (labels[tx] != "none")
    if not handshakes:
        return text
    share = 100 * offloaded // handshakes
    return f"{text}, {handshakes} handshake{'' if handshakes == 1 else 's'}, {share} % of them with kTLS"
