#!/usr/bin/env python3
"""Makes the README's pictures, of a listing and the status page, with Chromium. `docs/make_pictures.py [--seconds N]`

Strategy: a real server on a folder with fixed names, sizes and times; real downloads at a bounded rate, so that the
status page's plots have something to show. It needs the environment of tests/run, and Chromium. Takes two minutes.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tests.browser.browsing import chromium, opened, wait_until  # noqa: E402
from tests.serving import Running, serving  # noqa: E402

PICTURES: Final = REPOSITORY / "docs/pictures"
MOST_BYTES: Final = 100 * 1024
"""Of one picture."""
NEWEST: Final = 1_795_000_000
"""The time of the newest file, in seconds since 1970."""
FOLDERS: Final = ("drawings", "releases", "talks")
FILES: Final = {
    "backup-2026-11.tar.zst": 3_481_000_000,
    "index.css": 4_210,
    "minutes.md": 18_400,
    "talk.webm": 734_003_200,
    "thesis.pdf": 2_613_000,
}
PHOTOS: Final = {"beach.png": (40, 130, 200), "forest.png": (40, 140, 70), "sunset.png": (240, 120, 40)}
SHOWN: Final = {"width": 900, "height": 560}
STATUS_SHOWN: Final = {"width": 900, "height": 848}
RATE: Final = "3M"
"""Bytes per second of each download."""
STATUS_SECONDS: Final = 75
"""Of downloads before the picture of the status page, which plots two minutes."""


def gradient(red: int, green: int, blue: int, edge: int = 96) -> bytes:
    """A small PNG that goes from a colour to white."""
    rows = b"".join(
        b"\0" + bytes(colour + (255 - colour) * row // edge for colour in (red, green, blue)) * edge
        for row in range(edge)
    )
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def fill(folder: Path) -> None:
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name, size in FILES.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)
    for name, colour in PHOTOS.items():
        (folder / name).write_bytes(gradient(*colour))
    # Chromium asks every site for one.
    (folder / "favicon.ico").write_bytes(gradient(0, 0, 0, edge=16))
    for age, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (NEWEST - 86_400 * age * age,) * 2)


@contextmanager
def downloads(server: Running, count: int, seconds: int) -> Iterator[None]:
    """Run `count` curl processes, each with a large file at a bounded rate, for twice as long at most."""
    url = server.url("/backup-2026-11.tar.zst")
    curl = ["curl", "-sk", "--limit-rate", RATE, "-o", os.devnull, "--max-time", str(2 * seconds), url]
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(curl))
            stack.callback(process.kill)
        yield


def make(pictures: Path, seconds: int) -> None:
    pictures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        # A path of every machine, since the pictures show it.
        folder, state = Path(scratch) / "srv", Path(scratch) / "state"
        fill(folder)
        options = ("--listing", "--workers", "2", "--metrics-listen", "127.0.0.1:0", "--log-level", "warning")
        with serving(folder, *options, state=state) as server:
            with opened(browser, server.url(), viewport=SHOWN) as page:
                wait_until(page, "[...document.querySelectorAll('td img')].every(one => one.naturalWidth > 0)")
                page.screenshot(path=pictures / "listing.png")
            status = server.wait_for_line("^metrics on ").removeprefix("metrics on ")
            with opened(browser, status, viewport=STATUS_SHOWN) as page, downloads(server, 4, seconds):
                for second in range(seconds):
                    for _ in range(1 + second * 7 % 5):
                        subprocess.run(["curl", "-skO", server.url("/minutes.md")], cwd=scratch, check=True)
                    page.wait_for_timeout(1000)
                page.screenshot(path=pictures / "status.png")
    for name in ("listing.png", "status.png"):
        size = (pictures / name).stat().st_size
        print(f"{pictures / name}: {size} bytes")
        if size > MOST_BYTES:
            raise SystemExit(f"{pictures / name}: more than {MOST_BYTES} bytes")


def main() -> None:
    arguments = argparse.ArgumentParser(description="Make the README's pictures.")
    arguments.add_argument(
        "--seconds", type=int, default=STATUS_SECONDS, help="time of downloads (default %(default)s)"
    )
    arguments.add_argument("folder", nargs="?", type=Path, default=PICTURES, help="default: %(default)s")
    given = arguments.parse_args()
    make(given.folder, given.seconds)


if __name__ == "__main__":
    main()
