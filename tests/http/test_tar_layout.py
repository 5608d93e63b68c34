"""Tar archives: what Python's tarfile and GNU tar read of a layout, with any names, sizes and times."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktlsd.http.tar_layout import TarLayout

NOON = 1_700_000_000_000_000_000
NAMES = {
    "plain": b"some/a.txt",
    "letters": "some/ümlaut €".encode(),
    "backslash and line end": b"some/a\\b\nc",
    "no UTF-8": b"some/caf\xe9",
    "exactly a name": b"some/" + b"a" * 95,
    "split": b"some/" + b"b" * 90 + b"/" + b"c" * 100,
    "split at the most": b"some/" + b"d" * 150 + b"/" + b"e" * 100,
    "long": b"some/" + b"f" * 200,
    "long letters": b"some/" + "ü".encode() * 120,
    "long and no UTF-8": b"some/" + b"g" * 200 + b"\xe9",
    "deep": b"some/" + b"h/" * 300 + b"i",
    "folder": b"some/folder/",
    "long folder": b"some/" + b"j" * 200 + b"/",
    "folder that ends where it could be split": b"some/" + b"k" * 120 + b"/",
}


def whole(files: Sequence[tuple[bytes, bytes]], mtime_ns: int = NOON) -> bytes:
    """The archive of these names and contents."""
    layout = TarLayout([(name, len(content), mtime_ns) for name, content in files])
    made = b""
    for member, (_, content), offset in zip(layout.members, files, layout.offsets, strict=False):
        assert len(made) == offset
        made += member.header() + content + member.trailer()
    made += layout.ending()
    assert len(made) == layout.size
    return made


def read(data: bytes) -> dict[bytes, bytes | None]:
    """The members by name; None for a folder."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {}
        for info in archive:
            file = archive.extractfile(info)
            found[info.name.encode(errors="surrogateescape")] = None if file is None else file.read()
        return found


@given(st.dictionaries(st.binary(min_size=1, max_size=300).filter(lambda name: not {0, 47} & {*name}), st.binary()))
@example({bytes([byte]): b"" for byte in range(1, 256) if byte != 47})
def test_names_and_contents(files: dict[bytes, bytes]) -> None:
    assert read(whole(list(files.items()))) == files


@given(st.integers(90, 110), st.integers(1, 110))
def test_names_around_the_length_of_a_pax_record(count: int, folders: int) -> None:
    name = b"a/" * folders + b"b" * count
    assert read(whole([(name, b"x")])) == {name: b"x"}


def test_gnu_tar_extracts_the_same_without_a_warning(tmp_path: Path) -> None:
    files = [(name, b"" if name.endswith(b"/") else b"content of " + name * 40) for name in NAMES.values()]
    (tmp_path / "a.tar").write_bytes(whole(files))
    done = subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stderr in (b"", b"tar: Ignoring unknown extended header keyword 'hdrcharset'\n")
    for name, content in files:
        path = os.path.join(os.fsencode(tmp_path), name)
        status = os.stat(path)
        if name.endswith(b"/"):
            assert (status.st_mode & 0o7777) == 0o755
        else:
            with open(path, "rb") as file:
                assert file.read() == content
            assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o644, NOON)
    assert read((tmp_path / "a.tar").read_bytes()) == {
        name.rstrip(b"/"): None if name.endswith(b"/") else content for name, content in files
    }


@pytest.mark.parametrize("mtime_ns", [-(2**63), -1, 0, 2**62, 2**63 - 1])
def test_times_of_any_file_system(mtime_ns: int) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole([(b"a", b"x")], mtime_ns))) as archive:
        assert archive.getmember("a").mtime == mtime_ns // 1_000_000_000


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 1 << 40])
def test_sizes_beyond_11_octal_digits(size: int) -> None:
    layout = TarLayout([(b"large", size, NOON), (b"next", 1, NOON)])
    header = layout.members[0].header()
    with tarfile.open(fileobj=io.BytesIO(header), mode="r|") as archive:
        info = archive.next()
    assert info is not None
    assert (info.name, info.size) == ("large", size)
    assert layout.offsets[1] == len(header) + size + -size % 512
