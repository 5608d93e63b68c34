"""Whether a SIGHUP says that the terminal is gone, and not that the configuration is to be read again.

Strategy: a terminal that hangs up is no longer the controlling one by the time of the signal (termios(3), setsid(2)).
"""

from __future__ import annotations

import os
import signal


class Terminal:
    """The terminal that this process was started from, if any."""

    def __init__(self) -> None:
        # Under nohup(1) the process is to outlive it.
        self._counts = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _is_there()

    def hung_up(self) -> bool:
        """Whether it was there and is no more."""
        return self._counts and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
