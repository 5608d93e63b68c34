"""The signals that ask a running ktlsd to read something again.

Strategy: they stay blocked, and thereby wait, until somebody heeds them, so that none that comes early ends the
process.
"""

from __future__ import annotations

import signal
from typing import Final

RELOAD: Final = signal.SIGHUP
"""Read the configuration and the certificates again."""
RELOAD_CERTIFICATES: Final = signal.SIGUSR2
"""Read the certificates again; the parent of workers sends it."""
RELOAD_SIGNALS: Final = (RELOAD, RELOAD_CERTIFICATES)


def block_reload_signals() -> None:
    """Keep the signals for later."""
    signal.pthread_sigmask(signal.SIG_BLOCK, RELOAD_SIGNALS)


def unblock_reload_signals() -> None:
    """Let them come, those that waited at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RELOAD_SIGNALS)
