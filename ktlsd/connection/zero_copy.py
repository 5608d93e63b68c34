"""Sending files from the page cache itself where a NIC encrypts, without the copy that the kernel makes otherwise.

Strategy: a retransmission reads the page cache again. Bytes that changed meanwhile would break the record, pass for the
old ones, or show a listener two texts under one keystream. So only files that nobody can write are sent this way.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from ktlsd.system_calls import SOL_TLS, TLS_TX_ZEROCOPY_RO, file_system_type, is_verified

# File systems that no kernel can write: squashfs, EROFS, ISO 9660, cramfs (linux/magic.h).
_NEVER_WRITTEN: Final = frozenset({0x73717368, 0xE0F5E1E2, 0x9660, 0x28CD3D45})


class ZeroCopy:
    """Of one connection whose records a NIC encrypts."""

    __slots__ = ("_on", "_socket")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._on = False

    def prepare(self, descriptor: int) -> None:
        """Before each part of a file: let the kernel send it without a copy if it can never change, else with one.

        Raises OSError only if it cannot be switched off.
        """
        wanted = False
        with contextlib.suppress(OSError):
            wanted = never_changes(descriptor)
        if wanted != self._on:
            try:
                self._socket.setsockopt(SOL_TLS, TLS_TX_ZEROCOPY_RO, wanted)
            except OSError:
                if not wanted:
                    raise
                # Linux before 5.19.
                return
            self._on = wanted


def never_changes(descriptor: int) -> bool:
    """Whether nobody can write an open file, not even root. Raises OSError."""
    return is_verified(descriptor) or file_system_type(descriptor) in _NEVER_WRITTEN
