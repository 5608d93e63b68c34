"""Lines on stderr for the operator, whatever becomes of the logs.

Strategy: each is one write(2), since workers may be saying something too, and past sys.stderr, which would keep a line
that nobody reads, and turn it into an exit status of its own at the end.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

_STDERR: Final = 2


def say(text: str) -> None:
    """Write a line; one that cannot be written is no reason to do any less."""
    with contextlib.suppress(OSError):
        os.write(_STDERR, f"{text}\n".encode(errors="backslashreplace"))
