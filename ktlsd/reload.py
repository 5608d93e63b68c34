"""A running server's configuration, certificates and session ticket keys are kept up to date.

Strategy: a thread builds what is new, so that no connection waits, and one assignment on the event loop puts it into
force: handshakes and requests take it from then on, and no connection is closed for it.
"""

from __future__ import annotations

import logging
import signal
from typing import Final

import trio

from ktlsd.configuration import WATCH_SECONDS, WHAT, Configuration
from ktlsd.server import Server

log = logging.getLogger("ktlsd")

RELOAD: Final = signal.SIGHUP
"""Read the configuration and the certificates again."""
RELOAD_CERTIFICATES: Final = signal.SIGUSR2
"""Read the certificates again; the parent of workers sends it."""
RELOAD_SIGNALS: Final = (RELOAD, RELOAD_CERTIFICATES)
"""Blocked but while an Upkeep runs, so that none of them ends the process."""
_TICKETS_SECONDS: Final = 60.0
"""How often to look for new session ticket keys."""


def block_reload_signals() -> None:
    """Keep the signals for later."""
    signal.pthread_sigmask(signal.SIG_BLOCK, RELOAD_SIGNALS)


class Upkeep:
    """One process's."""

    def __init__(self, server: Server, configuration: Configuration, *, alone: bool) -> None:
        """A process that is not `alone` has a parent, which finds changed certificates and tells the operator."""
        self._server = server
        self._configuration = configuration
        self._alone = alone
        # For threads: there is no sense in two builds at a time.
        self._lane = trio.CapacityLimiter(1)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what signals, files and the clock ask for, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_tickets)
            if self._alone:
                nursery.start_soon(self._watch_certificates)
            with trio.open_signal_receiver(*RELOAD_SIGNALS) as signals:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, RELOAD_SIGNALS)
                task_status.started()
                try:
                    async for number in signals:
                        await self._reload(anew=number == RELOAD)
                finally:
                    # The receiver gives back handlers that would end the process.
                    block_reload_signals()

    async def _reload(self, *, anew: bool) -> None:
        service = await trio.to_thread.run_sync(lambda: self._configuration.load(anew=anew), limiter=self._lane)
        if service is not None:
            self._server.replace(service)
            self._configuration.take(service)
            log.log(logging.INFO if self._alone else logging.DEBUG, "%s reloaded", WHAT[anew])

    async def _watch_certificates(self) -> None:
        while True:
            await trio.sleep(WATCH_SECONDS)
            if await trio.to_thread.run_sync(self._configuration.certificates_changed, limiter=self._lane):
                await self._reload(anew=False)

    async def _follow_tickets(self) -> None:
        while True:
            try:
                ring = await trio.to_thread.run_sync(self._configuration.ring, limiter=self._lane)
            except OSError as error:
                log.error("session ticket keys stay as they are: %s", error)
            else:
                if ring is None:
                    return
                self._configuration.service.use_ring(ring)
            await trio.sleep(_TICKETS_SECONDS)
