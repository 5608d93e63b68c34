"""What the layouts of archives have in common (zip_layout.py, tar_layout.py): the place of every byte is known before.

Strategy: an archive is each member's header, content and trailer, then an entry for each member, then an ending. The
checksum of a file, if the format has one, is needed only behind the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Member(Protocol):
    """A file, or a folder if its name ends in a slash."""

    @property
    def size(self) -> int:
        """Bytes of the file; 0 for a folder."""

    def header(self) -> bytes:
        """The bytes before the file."""

    def trailer(self, checksum: int) -> bytes:
        """The bytes after the file; their number does not depend on its CRC-32."""


class Layout(Protocol):
    """An archive of some members."""

    @property
    def members(self) -> Sequence[Member]: ...

    @property
    def offsets(self) -> Sequence[int]:
        """Of each member, then of the first entry."""

    @property
    def size(self) -> int:
        """Bytes of the archive."""

    @property
    def has_checksums(self) -> bool:
        """Whether there are trailers with checksums, and entries."""

    def entry(self, number: int, checksum: int) -> bytes:
        """The entry of a member, by its place."""

    def ending(self) -> bytes:
        """The last bytes."""


def is_utf_8(name: bytes) -> bool:
    """Whether a member's name is valid UTF-8."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
