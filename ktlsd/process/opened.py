"""What a whole process has opened by its settings and a reload may change: listening sockets and logs.

Strategy: all that is new is opened first, and changes nothing; then it takes force in one step, or is closed again. In
a worker the listening sockets come from its parent (handed_sockets.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ktlsd.config.options import Settings
from ktlsd.config.refusal import cause
from ktlsd.connection.listener import Listener, SocketFile
from ktlsd.logs.error_log import NOTICE
from ktlsd.logs.logs import Logs, LogsChange
from ktlsd.process.activation import Passed
from ktlsd.process.listeners import bind_all
from ktlsd.process.privileges import Identity

log = logging.getLogger("ktlsd")

OnChange = Callable[[Sequence[Listener], Sequence[Listener]], None]
"""Called with the listeners that were added, and those that were removed, which it closes."""


class Opening(NamedTuple):
    """What other settings need, opened."""

    settings: Settings
    logs: LogsChange
    listeners: list[Listener]


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

    def take_listeners_from_parent(self) -> None:
        """Leave it to the parent to bind addresses."""
        self._binds = False

    def leave_files(self) -> None:
        """Leave the files of Unix sockets to the process that takes the place of this one."""
        self.listeners = [listener._replace(file=None) for listener in self.listeners]

    def prepare(self, settings: Settings) -> Opening:
        """Open what these settings need. Raises SettingsError, ListenError."""
        logs = self._logs.prepare(settings)
        try:
            listeners = self._bind(settings) if self._binds else self.listeners
        except BaseException:
            logs.discard()
            raise
        return Opening(settings, logs, listeners)

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

    def change_listeners(
        self, listeners: list[Listener], added: Sequence[Listener], removed: Sequence[Listener]
    ) -> None:
        """Listen on `listeners` from now on."""
        self.listeners = listeners
        self.on_change(added, removed)

    def _bind(self, settings: Settings, passed: Sequence[Passed] = ()) -> list[Listener]:
        return bind_all(
            *(settings.listen, settings.http_listen, settings.backend_listen, int(settings.backend_mode, base=8)),
            *(passed, self._owner),
            known=self.listeners,
        )


def _noop(added: Sequence[Listener], removed: Sequence[Listener]) -> None:
    """Nothing listens yet."""


def _set_mode(file: SocketFile, mode: int) -> None:
    try:
        os.chmod(file.path, mode)
    except OSError as error:
        log.error("backend_mode: %s", cause(error))
