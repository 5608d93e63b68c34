"""Which names are looked at, and what is found of them here; other file systems: tests/ktls/test_other_names.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.request_target import plain_path
from ktlsd.site import exact_names
from ktlsd.site.exact_names import listed, may_differ, surely_listed


@pytest.mark.parametrize(
    "path",
    [b"GIT~1", b"a/PRIVAT~2.TXT", b"a./b", b"a /b", b"a/b.", b"a/b..", "straße/a".encode(), b"a/\xff", b"~1"],
)
def test_names_that_may_be_others(path: bytes) -> None:
    assert may_differ(path)


@pytest.mark.parametrize("path", [b".", b"a", b"a/b.txt", b".well-known/a", b"a~b", b"~user/a", b"A.B.C/d e", b"a b"])
def test_names_of_one_form(path: bytes) -> None:
    assert not may_differ(path)


@given(st.lists(st.sampled_from([b"/", b"a", b"~", b"1", b".", b" ", b"\xc3\xa9", b"?", b"b.css"])).map(b"".join))
def test_plain_paths_have_one_form(target: bytes) -> None:
    path = plain_path(target)
    assert path is None or not may_differ(path)
    # Nothing else is left out.
    names = target.partition(b"?")[0].split(b"/")
    if names[0] == b"" and len(names) > 1 and all(name and name[:1] != b"." and b"~" not in name for name in names[1:]):
        assert path is not None or may_differ(b"/".join(names[1:])) or b" " in target


@pytest.mark.parametrize("bytewise", [True, False])
def test_names_have_to_be_listed_where_they_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytewise: bool
) -> None:
    (tmp_path / "grün/b~1").mkdir(parents=True)
    (tmp_path / "grün/b~1/c.").write_text("c")
    (tmp_path / "d").write_text("d")
    os.symlink("grün", tmp_path / "link")
    monkeypatch.setattr(exact_names, "is_bytewise", lambda _: bytewise)
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        for path in ("grün/b~1/c.", "link/b~1/c.", "d", "grün"):
            assert listed(root, path.encode())
            assert surely_listed(root, path.encode()) == (bytewise or path == "d")
        assert listed(root, "grün/B~1".encode()) == bytewise
        assert listed(root, b"d.") == bytewise
        with pytest.raises(FileNotFoundError):
            listed(root, b"none/a~1")
        assert not surely_listed(root, b"none/a~1")
    finally:
        os.close(root)
