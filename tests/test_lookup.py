"""No race gets a byte from outside the root: links swapped while files are looked up."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import trio

from ktlsd.decide import Miss
from ktlsd.lookup import OpenFile, Root
from ktlsd.request_target import parse_target
from ktlsd.ssl_ffi import Library


async def test_links_swapped_during_the_look_up_never_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "inside/file.txt").write_text("inside")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file.txt").write_text("outside")
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            # A link that leads outside takes the place of the folder, and the folder that of the link.
            os.symlink(("../outside", "inside")[number % 2], root / "next")
            os.rename(root / "next", root / "link")

    swapper = threading.Thread(target=swap)
    os.symlink("inside", root / "link")
    swapper.start()
    files = Root(Library(), str(root))
    outcomes = set()
    try:
        for _ in range(3000):
            found = await files.find(parse_target(b"/link/file.txt"))
            if isinstance(found, OpenFile):
                assert os.pread(found.descriptor, 100, 0) == b"inside"
                found.close()
                outcomes.add("served")
            else:
                assert isinstance(found, Miss)
                outcomes.add(found.name)
            await trio.lowlevel.checkpoint()
    finally:
        stop.set()
        swapper.join()
        files.close()
    assert {"served", "OUTSIDE"} <= outcomes <= {"served", "OUTSIDE", "BUSY"}
