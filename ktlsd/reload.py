"""A running server's configuration, certificates and session ticket keys are kept up to date.

Strategy: a thread builds what is new, so that no connection waits, and one assignment on the event loop puts it into
force: handshakes and requests take it from then on, and no connection is closed for it.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Final

import trio

from ktlsd.configuration import WATCH_SECONDS, WHAT, Configuration
from ktlsd.notify import Notifier
from ktlsd.reload_signals import RELOAD, RELOAD_SIGNALS, unblock_reload_signals
from ktlsd.server import Server
from ktlsd.terminal import Terminal

log = logging.getLogger("ktlsd")

_TICKETS_SECONDS: Final = 60.0
"""How often to look for new session ticket keys."""


class Upkeep:
    """What one process does to stay up to date."""

    def __init__(
        self, server: Server, configuration: Configuration, terminal: Terminal, notifier: Notifier, *, alone: bool
    ) -> None:
        """A process that is not `alone` has a parent, which finds changed certificates and tells the operator."""
        self._server = server
        self._configuration = configuration
        self._terminal = terminal
        self._notifier = notifier
        self._alone = alone
        # For threads: there is no sense in two builds at a time.
        self._lane = trio.CapacityLimiter(1)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what signals, files and the clock ask for, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_tickets)
            if self._alone:
                nursery.start_soon(self._watch_certificates)
            for reload_signal in RELOAD_SIGNALS:
                # The receiver gives back these handlers when it closes; the default action would end the process.
                signal.signal(reload_signal, lambda number, frame: None)
            with trio.open_signal_receiver(*RELOAD_SIGNALS) as signals:
                unblock_reload_signals()
                task_status.started()
                async for number in signals:
                    if number == RELOAD and self._alone and self._terminal.hung_up():
                        os.kill(os.getpid(), signal.SIGTERM)
                    else:
                        await self._reload(anew=number == RELOAD)

    async def _reload(self, *, anew: bool) -> None:
        if self._alone and anew:
            self._notifier.reloading()
        service = await trio.to_thread.run_sync(lambda: self._configuration.load(anew=anew), limiter=self._lane)
        if service is not None:
            self._server.replace(service)
            self._configuration.take(service)
            log.log(logging.INFO if self._alone else logging.DEBUG, "%s reloaded", WHAT[anew])
        if self._alone and anew:
            self._notifier.ready()

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
