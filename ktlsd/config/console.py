"""Lines on stderr for the operator, independent of the logs, and the output of commands on stdout.

Strategy: each line on stderr is one write(2), since workers write to it too, and bypasses sys.stderr, which would
buffer an unread line and change the exit status at the end. A full pipe delays a start only for a moment. Output on
stdout that cannot be written fails the command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Final

from ktlsd.config.refusal import Refusal

EXIT_NO_READER: Final = 128 + signal.SIGPIPE
"""The status that a shell reports for a program killed by SIGPIPE; Python ignores that signal."""

PATIENCE_MILLISECONDS: Final = 1000
"""Longest wait for a line on stderr if its reader takes nothing."""

_STDOUT, _STDERR = 1, 2


class OutputError(Refusal):
    """Output that cannot be written; the text is one line for the operator."""


class _Patience:
    """The wait for a stderr that takes nothing; 0 after one in vain."""

    milliseconds = PATIENCE_MILLISECONDS


def print_error(text: str) -> None:
    """Write a line; a failure is ignored."""
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(_STDERR, select.POLLOUT)
        # A pipe is ready once it has room for PIPE_BUF bytes (pipe(7)), more than any line here, whether it blocks or
        # not.
        if poll.poll(_Patience.milliseconds):
            _Patience.milliseconds = PATIENCE_MILLISECONDS
            os.write(_STDERR, f"{text}\n".encode(errors="backslashreplace"))
        else:
            _Patience.milliseconds = 0


def print_output(text: str) -> None:
    """Print a text on stdout. Raises OutputError, and SystemExit if the reader has closed the pipe."""
    try:
        print(text, flush=True)
    except OSError as error:
        # The interpreter would try to write the rest once more at its end.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, _STDOUT)
        os.close(null)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(EXIT_NO_READER) from error
        raise OutputError(f"stdout: the output cannot be written: {error.strerror}") from error
