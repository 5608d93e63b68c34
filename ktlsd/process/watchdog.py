"""Is every process of this service alive, and what does it serve? The answer to systemd's watchdog and STATUS.

Strategy: each event loop writes the time of its beat into its row (metrics.py); a loop that is stuck misses it. The
process that systemd started reads all rows: it answers for itself, and its workers' parent kills one that falls
silent, which is then replaced: a stuck worker does not end the downloads of the others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import trio

from ktlsd.metrics.metrics import BEAT, BY_NAME, Board, Row, series, total
from ktlsd.process.notify import Notifier

STATUS_SECONDS: Final = 5.0
"""Between two beats, and so between two STATUS lines; less where the watchdog is stricter."""
_BEATS_IN_TIME: Final = 3
_NS: Final = 1_000_000_000


class Pulse:
    """The life of all processes, as the one that systemd knows tells of it."""

    def __init__(self, notifier: Notifier, board: Board) -> None:
        self.notifier = notifier
        self._board = board
        # Where nobody listens nothing beats, so silence says nothing.
        self._limit = notifier.watchdog_seconds if notifier.heard else None
        self.seconds = STATUS_SECONDS if self._limit is None else min(STATUS_SECONDS, self._limit / _BEATS_IN_TIME)
        """Between two beats."""
        self._status = ""

    async def beat(self, row: Row, *, alone: bool) -> None:
        """Show that this event loop is alive, until cancelled; at once the end where nobody listens.

        A process that is `alone` has no parent that tells of it.
        """
        while self.notifier.heard:
            row[BEAT] = time.monotonic_ns()
            if alone:
                self.tell()
            await trio.sleep(self.seconds)

    async def tell_end(self, draining: trio.Event) -> None:
        """Tell systemd when the end begins."""
        await draining.wait()
        self.notifier.stopping()

    def silence(self, number: int, since: float) -> float | None:
        """For how many seconds too long worker `number`, started at `since` (time.monotonic()), has missed its beat."""
        silent = time.monotonic() - max(since, self._board.rows[number][BEAT] / _NS)
        return silent if self._limit is not None and silent > self._limit else None

    def tell(self) -> None:
        """Tell systemd that the calling process is alive, and what all of them serve."""
        if self._limit is not None:
            self.notifier.alive()
        status = describe(self._board.totals())
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
