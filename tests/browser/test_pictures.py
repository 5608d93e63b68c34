"""The script that makes the README's pictures still makes them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = ("listing.png", "status.png")


def dimensions(picture: Path) -> tuple[int, int]:
    """Width and height, from the header of a PNG (its specification, section 11.2.2)."""
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_the_pictures_can_be_made_again(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        assert not os.environ.get("CI"), "Chromium must be there in CI"
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    script = (sys.executable, REPOSITORY / "docs/make_pictures.py", "--seconds", "1", tmp_path)
    made = subprocess.run(script, capture_output=True, text=True, timeout=180, check=False)
    assert made.returncode == 0, made.stderr
    for name in PICTURES:
        assert dimensions(tmp_path / name) == dimensions(REPOSITORY / "docs/pictures" / name)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_small(name: str) -> None:
    assert (REPOSITORY / "docs/pictures" / name).stat().st_size <= 100 * 1024
