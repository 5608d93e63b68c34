"""Where what outlives a process is kept: the certificate for localhost, session ticket keys.

Strategy: systemd says where, and otherwise the XDG base directory specification does.
"""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """Where this user's programs keep state: systemd's StateDirectory, else the XDG base directory specification's.

    Raises RuntimeError for a user without a home.
    """
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "ktlsd"
