"""The layout of a zip archive of stored files (APPNOTE.TXT 6.3.10): pure.

Strategy: the sizes and names of all files are known before, so the place of every byte is too, and the length of the
whole. A checksum follows its file in a data descriptor, so that it can be made while the file is sent.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from msgspec import Struct

from ktlsd.http.archive_layout import is_utf_8

_MOST_32: Final = 0xFFFFFFFF
_MOST_16: Final = 0xFFFF
_NEEDED, _NEEDED_64 = 20, 45
"""Versions of the format: folders, and sizes of 64 bits (section 4.4.3)."""
_MADE_BY_UNIX: Final = 3 << 8
_SIZES_FOLLOW: Final = 1 << 3
_UTF_8: Final = 1 << 11
_ZIP64_ID, _TIME_ID = 0x0001, 0x5455
_OLDEST, _NEWEST = 315_532_800, 4_354_819_199
"""Seconds since the epoch of the years 1980 and 2107, which dates of MS-DOS have."""
_FILE_MODE, _FOLDER_MODE = 0o100644 << 16, (0o040755 << 16) | 0x10


class ZipMember(Struct, frozen=True, gc=False):
    """A file, or a folder if its name ends in a slash."""

    name: bytes
    size: int
    mtime_ns: int

    @property
    def folder(self) -> bool:
        return self.name.endswith(b"/")

    @property
    def _large(self) -> bool:
        return self.size >= _MOST_32

    def _common(self, needed: int) -> bytes:
        """What a local header and an entry of the central directory have in common, up to the checksum."""
        flags = (_UTF_8 if is_utf_8(self.name) else 0) | (_SIZES_FOLLOW if self.size else 0)
        return struct.pack("<HHHI", needed, flags, 0, _dos_time(self.mtime_ns))

    def header(self) -> bytes:
        """The bytes before the file (section 4.3.7)."""
        large = self._large
        extra = (struct.pack("<HHQQ", _ZIP64_ID, 16, 0, 0) if large else b"") + _time_field(self.mtime_ns)
        size = _MOST_32 if large else 0
        common = self._common(_NEEDED_64 if large else _NEEDED)
        lengths = struct.pack("<IIIHH", 0, size, size, len(self.name), len(extra))
        return b"PK\3\4" + common + lengths + self.name + extra

    def trailer(self, checksum: int) -> bytes:
        """The bytes after the file (section 4.3.9); an empty file and a folder have none."""
        if not self.size:
            return b""
        return struct.pack("<4sIQQ" if self._large else "<4sIII", b"PK\7\10", checksum, self.size, self.size)

    @property
    def span(self) -> int:
        """Bytes of header, file and descriptor."""
        return len(self.header()) + self.size + len(self.trailer(0))

    def central_entry(self, checksum: int, offset: int) -> bytes:
        """The entry of the central directory (section 4.3.12); `offset` is that of the local header."""
        far = offset >= _MOST_32
        large = struct.pack("<QQ", self.size, self.size) if self._large else b""
        large += struct.pack("<Q", offset) if far else b""
        extra = (struct.pack("<HH", _ZIP64_ID, len(large)) + large if large else b"") + _time_field(self.mtime_ns)
        size = min(self.size, _MOST_32)
        needed = _NEEDED_64 if large else _NEEDED
        mode = _FOLDER_MODE if self.folder else _FILE_MODE
        sizes = (size, size, len(self.name), len(extra), 0, 0, 0)
        rest = struct.pack("<IIIHHHHHII", checksum, *sizes, mode, min(offset, _MOST_32))
        return b"PK\1\2" + struct.pack("<H", _MADE_BY_UNIX | needed) + self._common(needed) + rest + self.name + extra


class ZipLayout:
    """An archive of these members: names, sizes and times in nanoseconds."""

    has_checksums = True

    def __init__(self, members: Sequence[tuple[bytes, int, int]]) -> None:
        self.members = tuple(ZipMember(*member) for member in members)
        self.offsets = tuple(accumulate((member.span for member in self.members), initial=0))
        """Of each member, then of the central directory."""
        self.directory_size = sum(
            len(member.central_entry(0, offset)) for member, offset in zip(self.members, self.offsets, strict=False)
        )
        self.size = self.offsets[-1] + self.directory_size + len(self.ending())

    def entry(self, number: int, checksum: int) -> bytes:
        """The entry of a member in the central directory."""
        return self.members[number].central_entry(checksum, self.offsets[number])

    def ending(self) -> bytes:
        """The bytes after the central directory (sections 4.3.14 to 4.3.16)."""
        count, size, offset = len(self.members), self.directory_size, self.offsets[-1]
        large = b""
        if count >= _MOST_16 or size >= _MOST_32 or offset >= _MOST_32:
            versions = (_MADE_BY_UNIX | _NEEDED_64, _NEEDED_64)
            large = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, *versions, 0, 0, count, count, size, offset)
            large += struct.pack("<4sIQI", b"PK\6\7", 0, offset + size, 1)
        shown = min(count, _MOST_16)
        sizes = (min(size, _MOST_32), min(offset, _MOST_32))
        return large + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, shown, shown, *sizes, 0)


def _dos_time(mtime_ns: int) -> int:
    """UTC in two 16-bit numbers, time and date (section 4.4.6)."""
    seconds = min(max(mtime_ns // 1_000_000_000, _OLDEST), _NEWEST)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    date = ((moment.year - 1980) << 9) | (moment.month << 5) | moment.day
    return (date << 16) | (moment.hour << 11) | (moment.minute << 5) | (moment.second // 2)


def _time_field(mtime_ns: int) -> bytes:
    """The time as Info-ZIP's extra field, which has seconds since the epoch in 32 bits."""
    seconds = mtime_ns // 1_000_000_000
    return struct.pack("<HHBi", _TIME_ID, 5, 1, seconds) if -(1 << 31) <= seconds < 1 << 31 else b""
