"""The layout of a tar archive in the pax interchange format (IEEE Std 1003.1-2024, utility pax): pure.

Strategy: a ustar header for each member, and before it a pax header with what a ustar header cannot hold: names that
are long or not ASCII, files of 8 GiB and more, times before 1970. All members belong to user and group 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from msgspec import Struct

from ktlsd.http.archive_layout import is_utf_8

_BLOCK: Final = 512
_MOST_NAME, _MOST_PREFIX = 100, 155
_MOST_SIZE = _MOST_SECONDS = 8**11 - 1
"""What 11 octal digits hold."""
_NAME_OF_PAX: Final = b"././@PaxHeader"
"""No extractor that knows pax headers makes this file; others do."""


class TarMember(Struct, frozen=True, gc=False):
    """A file, or a folder if its name ends in a slash."""

    name: bytes
    size: int
    mtime_ns: int

    def header(self) -> bytes:
        """The bytes before the file."""
        folder = self.name.endswith(b"/")
        seconds, size = self.mtime_ns // 1_000_000_000, self.size
        records = b""
        prefix, name = _split(self.name)
        if len(name) > _MOST_NAME or (not self.name.isascii() and is_utf_8(self.name)):
            if not is_utf_8(self.name):
                records += _record(b"hdrcharset", b"BINARY")
            records += _record(b"path", self.name)
            prefix, name = b"", self.name[:_MOST_NAME]
        if size > _MOST_SIZE:
            records, size = records + _record(b"size", b"%d" % size), 0
        if not 0 <= seconds <= _MOST_SECONDS:
            records, seconds = records + _record(b"mtime", b"%d" % seconds), 0
        mode, kind = (0o755, b"5") if folder else (0o644, b"0")
        return _pax(records) + _ustar(prefix, name, mode, size, seconds, kind)

    def trailer(self, checksum: int = 0) -> bytes:
        """The bytes after the file: to the end of its block."""
        return bytes(-self.size % _BLOCK)

    @property
    def span(self) -> int:
        """Bytes of header, file and trailer."""
        return len(self.header()) + self.size + len(self.trailer())


class TarLayout:
    """An archive of these members: names, sizes and times in nanoseconds."""

    has_checksums = False

    def __init__(self, members: Sequence[tuple[bytes, int, int]]) -> None:
        self.members = tuple(TarMember(*member) for member in members)
        self.offsets = tuple(accumulate((member.span for member in self.members), initial=0))
        """Of each member, then of the ending."""
        self.size = self.offsets[-1] + len(self.ending())

    def entry(self, number: int, checksum: int) -> bytes:
        """There are none."""
        return b""

    def ending(self) -> bytes:
        """The bytes after the last member."""
        return bytes(2 * _BLOCK)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """The fields `prefix` and `name`, which readers join by a slash; the second is too long if there is no place to
    split at."""
    if len(name) <= _MOST_NAME:
        return b"", name
    place = name.find(b"/", len(name) - _MOST_NAME - 1)
    # A folder's last slash belongs to its name.
    return (name[:place], name[place + 1 :]) if 0 < place <= _MOST_PREFIX and place < len(name) - 1 else (b"", name)


def _record(key: bytes, value: bytes) -> bytes:
    """A pax record: its length, which counts its own digits, key and value."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    size += len(str(size)) - len(str(rest))
    return b"%d %b=%b\n" % (size, key, value)


def _pax(records: bytes) -> bytes:
    """The pax header with these records, if there are any."""
    if not records:
        return b""
    return _ustar(b"", _NAME_OF_PAX, 0o644, len(records), 0, b"x") + records + bytes(-len(records) % _BLOCK)


def _ustar(prefix: bytes, name: bytes, mode: int, size: int, seconds: int, kind: bytes) -> bytes:
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, 0, 0, size, seconds)
    before = name.ljust(_MOST_NAME, b"\0") + numbers
    # No link; no names of owners; no device.
    after = kind + bytes(100) + b"ustar\x0000" + bytes(64) + b"%07o\0%07o\0" % (0, 0) + prefix.ljust(167, b"\0")
    # The checksum counts its own field as eight spaces.
    return before + b"%06o\0 " % (sum(before) + sum(after) + 8 * ord(" ")) + after
