"""All logs of ktlsd: opened before anything is served, opened again on SIGUSR1, closed at the end.

Strategy: files are opened before workers are forked, so that all append to the same ones; each process opens its own
again. The signal's handler does only that, so that it holds to the end, whether an event loop runs or not.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from types import FrameType
from typing import TYPE_CHECKING

from ktlsd.config.options import Settings
from ktlsd.config.refusal import SettingsError
from ktlsd.config.values import LogPlace
from ktlsd.logs import error_log
from ktlsd.logs.log_files import LogFile
from ktlsd.logs.reload_signals import REOPEN_SIGNAL, unblock_reopen_signal

if TYPE_CHECKING:
    from ktlsd.logs.exchange_log import AccessLog

log = logging.getLogger("ktlsd")


class AccessLogFile:
    """The file of the access log where there is one."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError."""
        self._format = settings.access_log_format
        self.file = None if settings.access_log is None else _open("access_log", settings.access_log)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[AccessLog | None]:
        """This process's access log, written for as long as this is open; None where there is none."""
        if self.file is None:
            yield None
            return
        from ktlsd.logs.access_log import FORMATS
        from ktlsd.logs.exchange_log import AccessLog

        access_log = AccessLog(FORMATS[self._format], self.file)
        async with access_log.lines.written():
            yield access_log


class Logs:
    """The error log and the access log of a whole process."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError."""
        self._level = settings.log_level
        self._errors = _open("error_log", settings.error_log or LogPlace())
        self.access_log = AccessLogFile(settings)

    def close(self) -> None:
        """Close what is not the error log, which is heard to the end."""
        self.access_log.close()

    def begin(self) -> None:
        """Take what the process has to say."""
        error_log.use(self._errors, self._level)

    def apply(self, settings: Settings) -> None:
        """Log from this level on."""
        logging.getLogger().setLevel(settings.log_level.upper())

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


def _open(name: str, place: LogPlace) -> LogFile:
    try:
        return LogFile(place)
    except OSError as error:
        reason = f"{name} {place}: cannot be opened ({error.strerror})"
        raise SettingsError(f"{reason}: ktlsd needs a folder there that it may write to") from error
