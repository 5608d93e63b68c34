"""What a whole process has opened by its settings and a reload may change: listening sockets, metrics' too, and logs.

Strategy: all that is new is opened first, and changes nothing; then it takes force in one step, or is closed again. In
a worker the listening sockets come from its parent (handed_sockets.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ktlsd.config.options import Settings
from ktlsd.config.refusal import cause
from ktlsd.config.values import Listen
from ktlsd.connection.listener import Listener, MetricsSockets, SocketFile
from ktlsd.logs.error_log import NOTICE
from ktlsd.logs.logs import Logs, LogsChange
from ktlsd.process.activation import Passed
from ktlsd.process.listeners import bind_all, bind_metrics, close_all
from ktlsd.process.privileges import Identity

log = logging.getLogger("ktlsd")

OnChange = Callable[[Sequence[Listener], Sequence[Listener]], None]
"""Called with the listeners that were added, and those that were removed, which it closes."""
OnMetrics = Callable[[MetricsSockets | None, MetricsSockets | None], None]
"""Called with the new sockets for metrics and the former ones, which it closes."""


class Opening(NamedTuple):
    """What other settings need, opened."""

    settings: Settings
    logs: LogsChange
    listeners: list[Listener]
    metrics: MetricsSockets | None


class Opened:
    """The listening sockets and logs of a process. The creator closes them."""

    def __init__(
        self,
        settings: Settings,
        logs: Logs,
        passed: Sequence[Passed],
        owner: Identity | None,
        inherited: Sequence[Listener] = (),
    ) -> None:
        """`inherited` listeners are used again if the settings have their addresses; the caller closes the others.

        Raises ListenError, PrivilegeError.
        """
        self._logs = logs
        self._owner = owner
        self._mode = settings.backend_mode
        self._binds = True
        self.listeners = list(inherited)
        self.listeners = self._bind(settings, passed)
        self.on_change: OnChange = _noop
        """Called after each change of listeners or logs."""
        self.metrics: MetricsSockets | None = None
        self.on_metrics: OnMetrics = _noop
        """Called after each change of the sockets for metrics."""

    def open_metrics(self, listen: Listen | None, inherited: Sequence[tuple[Listen, socket.socket]] = ()) -> None:
        """Bind the sockets for metrics, or use `inherited` ones of this address. Raises ListenError."""
        if listen is not None:
            same = tuple(sock for place, sock in inherited if place == listen)
            self.metrics = MetricsSockets(listen, same) if same else bind_metrics(listen)

    def take_listeners_from_parent(self) -> None:
        """Leave it to the parent to bind addresses."""
        self._binds = False

    def leave(self) -> None:
        """Leave the files of Unix sockets, and metrics, to the process that takes the place of this one."""
        self.listeners = [listener._replace(file=None) for listener in self.listeners]
        self.change_metrics(None)

    def prepare(self, settings: Settings) -> Opening:
        """Open what these settings need. Raises SettingsError, ListenError."""
        listen, metrics, listeners = settings.metrics_listen, self.metrics, self.listeners
        with contextlib.ExitStack() as stack:
            logs = self._logs.prepare(settings)
            stack.callback(logs.discard)
            if self._binds:
                listeners = self._bind(settings)
                stack.callback(close_all, [one for one in listeners if one not in self.listeners])
                if listen != (None if metrics is None else metrics.listen):
                    metrics = None if listen is None else bind_metrics(listen)
            stack.pop_all()
        return Opening(settings, logs, listeners, metrics)

    def take(self, opening: Opening) -> None:
        """Put what was opened into force."""
        self._logs.take(opening.logs)
        if not self._binds:
            self.on_change((), ())
            return
        if opening.settings.backend_mode != self._mode:
            self._mode = opening.settings.backend_mode
            for listener in opening.listeners:
                if listener.file is not None:
                    _set_mode(listener.file, int(self._mode, base=8))
        added = [listener for listener in opening.listeners if listener not in self.listeners]
        removed = [listener for listener in self.listeners if listener not in opening.listeners]
        for listener in added:
            log.log(NOTICE, "%s", listener.announcement())
        for listener in removed:
            log.log(NOTICE, "no longer %s", listener.announcement())
            if listener.file is not None:
                listener.file.remove()
        self.change_listeners(opening.listeners, added, removed)
        if opening.metrics is not self.metrics:
            for url in () if opening.metrics is None else opening.metrics.urls():
                log.log(NOTICE, "metrics on %s", url)
            for url in () if self.metrics is None else self.metrics.urls():
                log.log(NOTICE, "no longer metrics on %s", url)
            self.change_metrics(opening.metrics)

    def change_listeners(
        self, listeners: list[Listener], added: Sequence[Listener], removed: Sequence[Listener]
    ) -> None:
        """Listen on `listeners` from now on."""
        self.listeners = listeners
        self.on_change(added, removed)

    def change_metrics(self, metrics: MetricsSockets | None) -> None:
        """Answer with metrics there from now on; None for nowhere."""
        former, self.metrics = self.metrics, metrics
        self.on_metrics(metrics, former)

    def _bind(self, settings: Settings, passed: Sequence[Passed] = ()) -> list[Listener]:
        return bind_all(
            *(settings.listen, settings.http_listen, settings.backend_listen, int(settings.backend_mode, base=8)),
            *(passed, self._owner),
            known=self.listeners,
        )


def _noop(added: object, removed: object) -> None:
    """Nothing listens yet."""


def _set_mode(file: SocketFile, mode: int) -> None:
    try:
        os.chmod(file.path, mode)
    except OSError as error:
        log.error("backend_mode: %s", cause(error))
