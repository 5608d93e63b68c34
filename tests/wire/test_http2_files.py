"""HTTP/2 and a file system that hangs: FUSE."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.hanging_fs import mounted
from tests.http2_client import http2
from tests.serving import serving
from tests.wire.test_http2_wire import BIG, config


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_file_system_that_waits(tmp_path: Path) -> None:
    """Its files are read in threads; a read that hangs does not delay other streams, and ends its own in time."""
    shown = tmp_path / "shown"
    shown.mkdir()
    contents = {"big": os.urandom(BIG), "small": os.urandom(500)}
    for name, content in contents.items():
        (shown / name).write_bytes(content)
    (shown / "folder").mkdir()
    with mounted(shown, tmp_path / "mount", tmp_path / "held") as fuse:
        fast = tmp_path / "fast"
        fast.mkdir()
        (fast / "file").write_bytes(b"fast")
        sites = ("listing = true", "[limits]", "file_seconds = 2", "[[site]]", 'names = ["fast.example"]')
        lines = (*sites, f"root = {json.dumps(str(fast))}")
        path = config(tmp_path, tmp_path / "mount", *lines)
        with serving(None, "--config", str(path), state=tmp_path) as server, http2(server.port) as client:
            for name, content in contents.items():
                assert client.get(f"/{name}").body == content
            assert client.get("/big", ("range", "bytes=0-9,1000000-2000000")).status == 206
            assert b"small" in client.get("/").body
            fuse.hold("read")
            held = client.ask("/big")
            assert client.get("/file", host="fast.example").body == b"fast"
            client.wait_for(held)
            assert client.streams[held].status == 503
            fuse.hold()
            assert client.get("/small").body == contents["small"]
