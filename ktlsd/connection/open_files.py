"""The number of files and sockets that this process may have open (getrlimit(2), RLIMIT_NOFILE).

Strategy: the soft limit, low for the sake of programs that use select(2), is raised to what the operator allows.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import Final

from ktlsd.config.refusal import Refusal

LEAST: Final = 32
"""Open files that a start needs: logs, listeners, event loops, folders, and the sockets that try kTLS on loopback."""
REMEDY: Final = "systemd: LimitNOFILE=, Docker: --ulimit nofile=, shell: ulimit -n"
"""The settings by which an operator raises the limit."""


class OpenFilesError(Refusal):
    """Too few open files to start with; the text is one line for the operator."""


def allow_most() -> None:
    """Raise the soft limit to the hard one, as far as the system lets it. Raises OpenFilesError."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if allowed() < LEAST:
        raise OpenFilesError(
            f"the limit of open files (RLIMIT_NOFILE) is {allowed()}, and ktlsd needs {LEAST} to start and two for each"
            f" connection: raise it ({REMEDY})"
        )


def allowed() -> int:
    """The soft limit, the one that holds."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
