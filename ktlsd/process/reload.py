"""A running server's configuration, certificates and session ticket keys are kept up to date.

Strategy: a thread builds what is new, so that no connection waits, and one assignment on the event loop puts it into
force: handshakes and requests use it from then on, and no connection is closed for it. A worker reloads what its
parent has already loaded; if it fails, it tries again, since the log says that the reload is done.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

import trio

from ktlsd.config.refusal import cause
from ktlsd.logs.error_log import NOTICE
from ktlsd.logs.reload_signals import RELOAD, RELOAD_SIGNALS, unblock_reload_signals
from ktlsd.process.backoff import Backoff
from ktlsd.process.configuration import WATCH_SECONDS, WHAT, Configuration
from ktlsd.process.notify import Notifier
from ktlsd.process.terminal import Terminal
from ktlsd.server import Server

log = logging.getLogger("ktlsd")

T = TypeVar("T")

_TICKETS_SECONDS: Final = 60.0
"""Interval of looks for new session ticket keys."""


class Reloader:
    """Keeps one process up to date."""

    def __init__(self, server: Server, configuration: Configuration, notifier: Notifier, *, alone: bool) -> None:
        """A process that is not `alone` has a parent, which finds changed certificates and writes the log lines."""
        self._server = server
        self._configuration = configuration
        self._notifier = notifier
        self._alone = alone
        configuration.quiet = not alone
        # For threads: there is no sense in two at a time.
        self._lane = trio.CapacityLimiter(1)
        # A new service is made from the one in force, so it takes force before the next is made.
        self._reloading = trio.Lock()

    async def run(self, terminal: Terminal, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what signals, files and the clock ask for, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.follow_files)
            for reload_signal in RELOAD_SIGNALS:
                # The receiver gives back these handlers when it closes; the default action would end the process.
                signal.signal(reload_signal, lambda number, frame: None)
            with trio.open_signal_receiver(*RELOAD_SIGNALS) as signals:
                unblock_reload_signals()
                task_status.started()
                await self._handle_signals(signals, terminal)

    async def follow_files(self) -> None:
        """Do what files and the clock ask for, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_tickets)
            if self._alone:
                nursery.start_soon(self._watch_certificates)

    async def _handle_signals(self, signals: AsyncIterator[int], terminal: Terminal) -> None:
        """Reload on signals; in a worker, repeat a failed reload after a growing pause."""
        owed: bool | None = None
        pauses = Backoff()
        while True:
            number = None
            with trio.move_on_after(math.inf if owed is None else pauses.pause(0.0)):
                number = await anext(signals)
            if number == RELOAD and self._alone and terminal.hung_up():
                os.kill(os.getpid(), signal.SIGTERM)
                continue
            if number is not None:
                pauses = Backoff()
            anew = bool(owed) or number == RELOAD
            done = await self._reload(anew=anew)
            owed = None if done or self._alone else anew

    async def _reload(self, *, anew: bool) -> bool:
        """Whether what there is now is in force."""
        if self._alone and anew:
            self._notifier.reloading()
        async with self._reloading:
            service = await self._in_thread(lambda: self._configuration.load(anew=anew))
            if service is not None:
                self._server.replace(service)
                self._configuration.take(service)
                level = NOTICE if self._alone and service.renewed else logging.DEBUG
                log.log(level, "%s reloaded", WHAT[anew])
        if self._alone and anew:
            self._notifier.ready()
        return service is not None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        # It is cancelled when the process ends, which must not wait for a file system that hangs.
        return await trio.to_thread.run_sync(call, limiter=self._lane, abandon_on_cancel=True)

    async def _watch_certificates(self) -> None:
        while True:
            with trio.move_on_after(WATCH_SECONDS) as waited:
                await self._await_orders()
            if not waited.cancelled_caught or await self._in_thread(self._configuration.certificates_changed):
                await self._reload(anew=False)

    async def _await_orders(self) -> None:
        """Return once there is a new certificate by ACME."""
        while True:
            if await self._in_thread(self._configuration.order):
                return
            await trio.sleep(self._configuration.order_seconds())

    async def _follow_tickets(self) -> None:
        while True:
            try:
                ring = await self._in_thread(self._configuration.ring)
            except OSError as error:
                log.error("session ticket keys not reloaded, the old ones stay in force: %s", cause(error))
            else:
                if ring is not None:
                    self._configuration.service.use_ring(ring)
            await trio.sleep(_TICKETS_SECONDS)
