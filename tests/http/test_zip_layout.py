"""Zip archives of stored files: what Python's zipfile reads of a layout, also beyond 4 GiB and 65,535 members."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.zip_layout import ZipLayout

NOON = 1_700_000_000_000_000_000


def whole(files: Sequence[tuple[bytes, bytes]], mtime_ns: int = NOON) -> bytes:
    """The archive of these names and contents."""
    layout = ZipLayout([(name, len(content), mtime_ns) for name, content in files])
    made = b""
    for member, (_, content), offset in zip(layout.members, files, layout.offsets, strict=False):
        assert len(made) == offset
        made += member.header() + content + member.trailer(zlib.crc32(content))
    for number, (_, content) in enumerate(files):
        made += layout.entry(number, zlib.crc32(content))
    made += layout.ending()
    assert len(made) == layout.size
    return made


@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="/\0\\"), min_size=1), st.binary()))
def test_names_and_contents(files: dict[str, bytes]) -> None:
    made = whole([(name.encode(), content) for name, content in files.items()])
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert archive.testzip() is None
        assert {info.filename: archive.read(info) for info in archive.infolist()} == files


def test_folders_times_and_modes() -> None:
    made = whole([(b"a/", b""), (b"a/b", b"x"), (b"caf\xe9", b"y")])
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        folder, file, other = archive.infolist()
        assert folder.is_dir()
        assert not file.is_dir()
        assert (folder.external_attr >> 16, file.external_attr >> 16) == (0o040755, 0o100644)
        assert file.date_time == (2023, 11, 14, 22, 13, 20)
        # No UTF-8: the flag is not set.
        assert (file.flag_bits & 0x800, other.flag_bits & 0x800) == (0x800, 0)


@pytest.mark.parametrize("mtime_ns", [-(2**63), -1, 0, 2**62, 2**63 - 1])
def test_times_of_any_file_system(mtime_ns: int) -> None:
    with zipfile.ZipFile(io.BytesIO(whole([(b"a", b"x")], mtime_ns))) as archive:
        assert 1980 <= archive.infolist()[0].date_time[0] <= 2107


class Sparse(io.RawIOBase):
    """A file of which only the end is there."""

    def __init__(self, size: int, end: bytes) -> None:
        self._size, self._end, self._at = size, end, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        first = self._at - (self._size - len(self._end))
        assert first >= 0
        data = self._end[first : first + count] if count >= 0 else self._end[first:]
        self._at += len(data)
        return data


@pytest.mark.parametrize("sizes", [[5 << 30, 3], [3, (1 << 32) - 1, 7], [1 << 32, 1 << 33, 1], [1] * 70_000])
def test_beyond_32_and_16_bits(sizes: list[int]) -> None:
    layout = ZipLayout([(b"%d" % number, size, NOON) for number, size in enumerate(sizes)])
    end = b"".join(layout.entry(number, 7) for number in range(len(sizes))) + layout.ending()
    with zipfile.ZipFile(Sparse(layout.size, end)) as archive:
        found = archive.infolist()
    assert [info.file_size for info in found] == sizes
    assert [info.header_offset for info in found] == list(layout.offsets[:-1])
    assert layout.offsets[-1] + len(end) == layout.size
