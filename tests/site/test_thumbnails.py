"""Thumbnails: what is remembered of a picture of which none was made."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from ktlsd.site.lookup import OpenFile, Root
from ktlsd.site.thumbnails import Thumbnails


async def test_a_lack_of_processes_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    root, thumbnails = Root(str(tmp_path)), Thumbnails()
    opened = await root.open_file(b"a.png")
    assert isinstance(opened, OpenFile)
    with contextlib.closing(root), contextlib.closing(opened):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/nowhere")
            assert await thumbnails.made(opened) is None
        assert await thumbnails.made(opened) == b""
        monkeypatch.setattr(sys, "executable", "/nowhere")
        assert await thumbnails.made(opened) == b""
