"""The error log: all messages of the logging module, one line for each.

Strategy: each message is written at once, so that none is lost in a crash. A full pipe is
waited for once and for a moment; lost messages are counted, and reported when lines get through again.
"""

from __future__ import annotations

import datetime
import json
import logging
from typing import Final

from ktlsd.config.printable import printable
from ktlsd.config.values import ErrorLogFormat, LogLevel
from ktlsd.logs.log_files import LogFile

NOTICE: Final = logging.WARNING + 5
"""The level of what an operator asked for and gets: a reload, the end. `log_level = "warning"` shows it."""
PATIENCE_SECONDS: Final = 0.02
"""Longest time for which a message may delay everything else if the log takes nothing."""


logging.addLevelName(NOTICE, "NOTICE")


class LineFormatter(logging.Formatter):
    """Messages without anything that ends a line or moves a terminal; a traceback's lines are indented."""

    def __init__(self, *, dated: bool) -> None:
        """`dated` for a time (RFC 3339, UTC) and the level before each message: journald adds its own."""
        super().__init__()
        self._dated = dated

    def format(self, record: logging.LogRecord) -> str:
        text = printable(record.getMessage())
        if self._dated:
            text = f"{_time(record)} {record.levelname.lower()} {text}"
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            text = "\n    ".join((text, *map(printable, lines)))
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object for each message, in ASCII: "time" (RFC 3339, UTC), "level", "message", and "exception" for a
    traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        # JSON lets DEL stand as it is.
        return json.dumps(fields, separators=(",", ":")).replace("\x7f", "\\u007f")


def _time(record: logging.LogRecord) -> str:
    at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return f"{at.isoformat(timespec='milliseconds')[:23]}Z"


class ErrorLogHandler(logging.Handler):
    """Writes messages to a LogFile, which stays the caller's to close."""

    def __init__(self, file: LogFile, form: ErrorLogFormat = "text") -> None:
        super().__init__()
        self._file = file
        self._lost = 0
        self.setFormatter(JsonFormatter() if form == "json" else LineFormatter(dated=file.place.path is not None))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            messages = [self.format(record)]
        except Exception:
            self.handleError(record)
            return
        if self._lost:
            notice = {"msg": f"{self._lost} messages of this log were lost", "levelname": "WARNING"}
            messages.insert(0, self.format(logging.makeLogRecord(notice)))
        text = "".join(f"{message}\n" for message in messages)
        lost = self._file.write(text.encode(), 0.0 if self._lost else PATIENCE_SECONDS)
        self._lost = self._lost + 1 if lost else 0


def use(file: LogFile, level: LogLevel, form: ErrorLogFormat) -> None:
    """Have all messages from this level on go to `file`, in place of where they went before."""
    logging.basicConfig(level=level.upper(), handlers=[ErrorLogHandler(file, form)], force=True)
    # No line has them, and to find them is half of what a line costs (Python's logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
