"""The folder for files that outlive a process: the certificate for localhost, session ticket keys.

Strategy: systemd names it; without systemd, the XDG base directory specification does.
"""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """Systemd's StateDirectory, else this user's folder by the XDG base directory specification.

    Raises RuntimeError for a user without a home.
    """
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "ktlsd"
