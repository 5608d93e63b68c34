"""The identity of one version of a file: what tells it from another version without reading it.

Strategy: fstat(2) of an open descriptor, never a name, so that what was identified is what is read.
"""

from __future__ import annotations

import os

FileIdentity = tuple[int, int, int, int, int]
"""Device, inode, size in bytes, and the times of the last change of data and inode in ns."""


def identify(descriptor: int) -> FileIdentity:
    """The identity of an open file or folder. Raises OSError."""
    return identity_of(os.fstat(descriptor))


def identity_of(status: os.stat_result) -> FileIdentity:
    """The identity of a file with this status."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
