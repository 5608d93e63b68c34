"""How many files and sockets this process may have open (getrlimit(2), RLIMIT_NOFILE).

Strategy: the soft limit, low for the sake of programs that use select(2), is raised to what the operator allows.
"""

from __future__ import annotations

import contextlib
import resource
import sys


def allow_most() -> None:
    """Raise the soft limit to the hard one, as far as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def allowed() -> int:
    """The soft limit, the one that holds."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
