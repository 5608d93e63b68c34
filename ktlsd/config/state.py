"""The folder for files that outlive a process: the certificate for localhost, session ticket keys.

Strategy: systemd names it; without systemd, the XDG base directory specification does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

SERVICE_STATE: Final = Path("/var/lib/ktlsd")
"""The folder of the service of this repository (systemd/ktlsd.service)."""


def state_folder() -> Path:
    """Systemd's StateDirectory, else this user's folder by the XDG base directory specification.

    Raises RuntimeError for a user without a home.
    """
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "ktlsd"


def service_folder(user: str | None) -> Path:
    """The same for what is written while ktlsd runs; /var/lib/ktlsd if root is given up for a `user`, who may not
    enter root's home.

    Raises RuntimeError for a user without a home.
    """
    if user is None or os.environ.get("STATE_DIRECTORY") or os.environ.get("XDG_STATE_HOME"):
        return state_folder()
    return SERVICE_STATE
