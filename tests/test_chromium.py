"""A real browser gets a page, its style sheet, its script, a picture and parts of a file."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.serving import serving

PAGE = """<!doctype html><meta charset=utf-8><title>ktlsd</title><link rel=stylesheet href=style.css>
<img id=picture src=picture.png><script type=module src=script.mjs></script><p id=result>waiting</p>"""
SCRIPT = """
const whole = await (await fetch("data.bin")).arrayBuffer();
const part = await fetch("data.bin", {headers: {Range: "bytes=1000-1999"}});
const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", whole));
const hex = Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
const picture = document.getElementById("picture");
await picture.decode();
const colour = getComputedStyle(document.body).color;
document.getElementById("result").textContent =
  [hex, part.status, (await part.arrayBuffer()).byteLength, picture.naturalWidth, colour].join(" ");
"""


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"".join(bytes((x, y, 128)) for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_chromium_shows_the_page(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        assert not os.environ.get("CI"), "Chromium must be there in CI"
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    root = tmp_path / "root"
    root.mkdir()
    data = os.urandom(1_000_000)
    (root / "data.bin").write_bytes(data)
    (root / "index.html").write_text(PAGE)
    (root / "style.css").write_text("body { color: rgb(1, 2, 3) }")
    (root / "script.mjs").write_text(SCRIPT)
    (root / "picture.png").write_bytes(png(64, 32))
    with serving(root, state=tmp_path / "state") as server:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", "--ignore-certificate-errors"]
        flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
        shown = subprocess.run(
            [chromium, *flags, server.url()], capture_output=True, text=True, timeout=120, check=True
        )
        found = re.search(r"<p id=\"result\">(.*)</p>", shown.stdout)
        assert found is not None
        digest = subprocess.check_output(["sha256sum", str(root / "data.bin")], text=True).split()[0]
        assert found[1] == f"{digest} 206 1000 64 rgb(1, 2, 3)"
        assert any(re.search(r"TLSv1\.3 TLS_AES_128_GCM_SHA256 ", line) for line in server.log)
