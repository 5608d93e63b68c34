"""Descriptors 0 to 2: each is open before ktlsd opens any file of its own.

Strategy: open(2) returns the lowest free number, so a process that starts without stderr would give descriptor 2 to the
next file or socket, and messages would be written into that. /dev/null takes the free numbers instead.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

from ktlsd.config.refusal import Refusal

_NULL: Final = "/dev/null"
_STANDARD: Final = range(3)


def fill() -> None:
    """Open /dev/null as each of descriptors 0 to 2 that is closed; programs that this process starts inherit it.

    Call it before anything is opened that stays open. Raises Refusal.
    """
    while closed := [descriptor for descriptor in _STANDARD if _is_closed(descriptor)]:
        try:
            os.set_inheritable(os.open(_NULL, os.O_RDWR), True)
        except OSError as error:
            missing = f"descriptor {closed[0]} is closed, and {_NULL} cannot be opened in its place"
            raise Refusal(f"{missing} ({error.strerror}): start ktlsd with stdin, stdout and stderr") from error
    # Python has None for those that were closed when it started, and print(file=None) writes to stdout.
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError as error:
        return error.errno == errno.EBADF
    return False
