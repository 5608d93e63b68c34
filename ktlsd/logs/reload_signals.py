"""The signals that ask a running ktlsd to read or open something again, or to be replaced.

Strategy: they stay blocked, and thereby pending, until a handler is ready, so that an early signal does not end the
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
REOPEN_SIGNAL: Final = signal.SIGUSR1
"""Open the log files again."""
UPGRADE: Final = signal.SIGRTMIN
"""Start the command again, and end once the new process accepts connections."""


def block_early_signals() -> None:
    """Keep all of these signals for later."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*RELOAD_SIGNALS, REOPEN_SIGNAL, UPGRADE))


def unblock_reload_signals() -> None:
    """Let them come, those that waited at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RELOAD_SIGNALS)


def unblock_reopen_signal() -> None:
    """Let it come, one that waited at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {REOPEN_SIGNAL})


def unblock_upgrade_signal() -> None:
    """Let it come, one that waited at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {UPGRADE})
