"""What a listing says that a folder holds: what the server would send, links as what they lead to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ktlsd.site.folder import Entry, read_folder, without_siblings
from tests.files import nothing_stays_open


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(root: Path, path: str = ".", *, dotfiles: bool = False, hidden: frozenset[bytes] = frozenset()) -> list[Entry]:
    with opened(root) as top, opened(root / path) as folder:
        return sorted(read_folder(top, path.encode(), folder, dotfiles=dotfiles, hidden=hidden))


def kinds(entries: list[Entry]) -> dict[bytes, bool]:
    return {entry.name: entry.directory for entry in entries}


def test_files_and_folders_with_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.utime(tmp_path / "file", ns=(0, 1_234_567_890_123_456_789))
    (tmp_path / "folder").mkdir()
    file, folder = read(tmp_path)
    assert file == Entry(b"file", False, 5, 1_234_567_890_123_456_789)
    assert (folder.name, folder.directory) == (b"folder", True)


def test_any_bytes_are_a_name(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", "Ωμέγα".encode(), b" ", b"\x7f\x01"]
    for name in names:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).touch()
    assert [entry.name for entry in read(tmp_path)] == sorted(names)


def test_dotfiles_and_hidden_names_are_left_out(tmp_path: Path) -> None:
    for name in (".git", "_headers", "shown"):
        (tmp_path / name).touch()
    assert kinds(read(tmp_path, hidden=frozenset({b"_headers"}))) == {b"shown": False}
    assert kinds(read(tmp_path, dotfiles=True)) == {b".git": False, b"_headers": False, b"shown": False}


def test_a_link_is_shown_as_what_it_leads_to_if_that_is_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "here/below").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "above").write_bytes(b"123")
    links = {
        "to-above": "../above",
        "to-folder": "below",
        "to-link": "to-above",
        "out": "../../outside/secret",
        "out-folder": "../../outside",
        "absolute": str(root / "above"),
        "absolute-out": str(outside / "secret"),
        "nowhere": "missing",
        "loop": "loop",
    }
    for name, target in links.items():
        (root / "here" / name).symlink_to(target)
    entries = read(root, "here")
    assert kinds(entries) == {
        b"below": True,
        b"to-above": False,
        b"to-folder": True,
        b"to-link": False,
        b"absolute": False,
    }
    assert {entry.size for entry in entries if not entry.directory} == {3}


def test_what_is_neither_file_nor_folder_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("to-pipe").symlink_to("pipe")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind("socket")
        assert read(tmp_path) == []


def test_an_unreadable_file_is_listed(tmp_path: Path) -> None:
    (tmp_path / "private").touch(mode=0o000)
    assert kinds(read(tmp_path)) == {b"private": False}


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    path_only = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            read_folder(path_only, b".", path_only, dotfiles=False)
    finally:
        os.close(path_only)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for number in range(20):
        (tmp_path / f"link-{number}").symlink_to("file")
    with nothing_stays_open():
        assert len(read(tmp_path)) == 21


def test_precompressed_siblings_are_left_out() -> None:
    def entry(name: bytes, mtime_ns: int = 5, *, directory: bool = False) -> Entry:
        return Entry(name, directory, 1, mtime_ns)

    kept = [entry(b"a"), entry(b"b.gz"), entry(b"c"), entry(b"c.gz", 6), entry(b"d.gz", directory=True), entry(b"d")]
    kept += [entry(b"e.br"), entry(b"f", directory=True), entry(b"f.gz"), entry(b"a.xz")]
    siblings = [entry(b"a.gz"), entry(b"a.zst")]
    assert without_siblings([*kept, *siblings], (b".zst", b".gz")) == kept
    assert without_siblings([*kept, *siblings], ()) == [*kept, *siblings]
