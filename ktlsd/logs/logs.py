"""All logs of ktlsd: opened before anything is served, opened again on SIGUSR1, changed by a reload, closed at the end.

Strategy: files are opened before workers are forked, so that all append to the same ones; each process opens its own
again. The signal's handler does only that, so that it holds to the end, whether an event loop runs or not. A reload
opens what is new before it changes anything. Connections keep the format that they began with.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
from collections.abc import AsyncIterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ktlsd.config.options import Settings
from ktlsd.config.refusal import PlacedError, SettingsError
from ktlsd.config.values import LogPlace
from ktlsd.logs import error_log
from ktlsd.logs.log_files import LogFile
from ktlsd.logs.reload_signals import REOPEN_SIGNAL, unblock_reopen_signal

if TYPE_CHECKING:
    from ktlsd.logs.batch import LogBatch
    from ktlsd.logs.exchange_log import AccessLog

log = logging.getLogger("ktlsd")


class AccessLogFile:
    """The access log of a process, where there is one."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError."""
        self._format = settings.access_log_format
        self._written = settings.access_log is not None
        self.place = settings.access_log
        """The file's, once all that is called for is done."""
        self.file = None if settings.access_log is None else _open("access_log", settings.access_log)
        self._lines: LogBatch | None = None
        self._nursery: trio.Nursery | None = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def current(self) -> AccessLog | None:
        """The log of new connections, None where there is none; only while it is open()."""
        if not self._written or self.file is None or self._nursery is None:
            return None
        from ktlsd.logs.access_log import FORMATS
        from ktlsd.logs.batch import LogBatch
        from ktlsd.logs.exchange_log import AccessLog

        if self._lines is None:
            self._lines = LogBatch(self.file)
            self._nursery.start_soon(self._lines.write_until_end)
        return AccessLog(FORMATS[self._format], self._lines)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Have lines written for as long as this is open."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                if self._lines is not None:
                    self._lines.end()

    def change(self, settings: Settings, opened: LogFile | None) -> None:
        """Take the settings of another access log, with its file where that is another one."""
        self._format = settings.access_log_format
        # Connections that began with a log end with it.
        self._written = settings.access_log is not None
        if opened is None:
            return
        self.place = opened.place
        if self.file is None:
            self.file = opened
        elif self._lines is None:
            _move(self.file, opened)
        else:
            self._lines.call(partial(_move, self.file, opened))


def _move(file: LogFile, to: LogFile) -> None:
    file.become(to)
    to.close()


_REMEDIES: Final = {errno.EISDIR: "name a file", errno.ENXIO: "a named pipe needs a reader first"}


class LogsChange(NamedTuple):
    """Opened files for other settings."""

    settings: Settings
    errors: LogFile | None
    accesses: LogFile | None

    def discard(self) -> None:
        for file in (self.errors, self.accesses):
            if file is not None:
                file.close()


class Logs:
    """The error log and the access log of a whole process."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError."""
        self._level = settings.log_level
        self._errors = _open("error_log", settings.error_log or LogPlace())
        self._error_format = settings.error_log_format
        self.access_log = AccessLogFile(settings)

    def close(self) -> None:
        """Close what is not the error log, which is heard to the end."""
        self.access_log.close()

    def begin(self) -> None:
        """Take what the process has to say."""
        error_log.use(self._errors, self._level, self._error_format)

    def prepare(self, settings: Settings) -> LogsChange:
        """Open the files of other settings that are others. Raises SettingsError."""
        errors = _open_other("error_log", self._errors.place, settings.error_log or LogPlace())
        accesses = None
        if settings.access_log is not None:
            try:
                accesses = _open_other("access_log", self.access_log.place, settings.access_log)
            except SettingsError:
                if errors is not None:
                    errors.close()
                raise
        return LogsChange(settings, errors, accesses)

    def take(self, change: LogsChange) -> None:
        """Log as the settings say."""
        self._level = change.settings.log_level
        logging.getLogger().setLevel(self._level.upper())
        changed = change.errors is not None or change.settings.error_log_format != self._error_format
        self._error_format = change.settings.error_log_format
        if change.errors is not None:
            _move(self._errors, change.errors)
        if changed:
            self.begin()
        self.access_log.change(change.settings, change.accesses)

    def follow_rotation(self) -> None:
        """Heed REOPEN_SIGNAL from now on; not before root is given up, or root would open files in others' folders."""
        signal.signal(REOPEN_SIGNAL, self._handle_reopen)
        unblock_reopen_signal()

    def reopen(self) -> None:
        """Go on in the files that have the names now; one that cannot be opened keeps the old file."""
        for file in (self._errors, self.access_log.file):
            if file is None or file.place.path is None:
                continue
            try:
                file.reopen()
            except OSError as error:
                log.error("log %s: cannot be reopened (%s), the old file is still in use", file.place, error.strerror)
            else:
                log.log(error_log.NOTICE, "log %s: reopened", file.place)

    def _handle_reopen(self, number: int, frame: FrameType | None) -> None:
        self.reopen()


def _open_other(name: str, known: LogPlace | None, place: LogPlace) -> LogFile | None:
    """The file of a place, None if it is the known one. Raises SettingsError."""
    return None if known == place else _open(name, place)


def _open(name: str, place: LogPlace) -> LogFile:
    try:
        return LogFile(place)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "ktlsd needs a folder there that it may write to")
        raise PlacedError((), name, f"{name} {place}: cannot be opened ({error.strerror}): {remedy}") from error
