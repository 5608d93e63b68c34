"""A slow disk under one download does not stop the other connections. Needs the machine's throttled disk."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import pytest

from ktlsd.connection.page_cache import FROM_DISK
from ktlsd.connection.tls_transport import USER_SPACE_CHUNK
from tests.serving import connect, get, parse, serving
from tests.vm.plugin import SlowDisk, drop_page_cache

pytestmark = pytest.mark.ktls

REQUEST = b"GET /small.bin HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(("mode", "chunk"), [("auto", FROM_DISK), ("off", USER_SPACE_CHUNK)])
def test_a_cold_file_does_not_stop_the_others(slow_disk: SlowDisk, tmp_path: Path, mode: str, chunk: int) -> None:
    with serving(slow_disk.path, "--ktls", mode, state=tmp_path / "state") as server:
        drop_page_cache()
        small = get(server.port, "/small.bin").body
        assert hashlib.sha256(small).hexdigest() == slow_disk.manifest["small.bin"]
        with connect(server.port) as connection:
            started = time.monotonic()
            with subprocess.Popen(
                ["curl", "-ksS", "--http1.1", server.url("/cold.bin"), "-o", str(tmp_path / "cold.bin")]
            ) as download:
                waits = []
                while download.poll() is None:
                    asked = time.monotonic()
                    connection.sendall(REQUEST)
                    data = b""
                    while len(data) < len(small) + 100:
                        data += connection.recv(65536)
                    waits.append(time.monotonic() - asked)
                    assert parse(data)[0].body == small
                    time.sleep(0.05)
            elapsed = time.monotonic() - started
        assert download.returncode == 0
        cold = (tmp_path / "cold.bin").read_bytes()
        assert hashlib.sha256(cold).hexdigest() == slow_disk.manifest["cold.bin"]
    # What the disk needs for one chunk is what a server that sends without looking would stop for, each time.
    disk_wait = elapsed * chunk / len(cold)
    waits.sort()
    median, p99, longest = waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1]
    print(
        f"--ktls {mode}: {len(cold)} cold bytes in {elapsed:.1f} s, {disk_wait * 1000:.0f} ms of disk for each chunk; "
        f"{len(waits)} other requests meanwhile, median {median * 1000:.1f} ms, 99th percentile {p99 * 1000:.1f} ms, "
        f"longest {longest * 1000:.1f} ms"
    )
    # The chunks' disk time makes up nearly the whole download: on the event loop, most waits would show it. An emulated
    # machine has waits of its own.
    assert len(waits) > 20
    assert median < disk_wait / 2
    assert sum(wait > disk_wait / 2 for wait in waits) <= len(waits) // 4
