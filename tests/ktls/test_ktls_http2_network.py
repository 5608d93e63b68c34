"""HTTP/2 over kTLS through a network that loses, delays and reorders packets: all streams arrive whole."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.serving import serving

pytestmark = [
    pytest.mark.ktls,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

SIZES = (3_000_001, 1_000_000, 700_000, 16_375, 10_240, 1)


@pytest.mark.parametrize("netem", ["delay 10ms 5ms loss 1%", "delay 10ms 10ms reorder 25% 50% duplicate 2% loss 2%"])
def test_streams_of_one_connection_arrive_whole(tmp_path: Path, netem: str) -> None:
    name = "ktlsd-http2"
    inside = ("ip", "netns", "exec", name)
    root = tmp_path / "root"
    root.mkdir()
    contents = [os.urandom(size) for size in SIZES]
    for number, content in enumerate(contents):
        (root / f"{number}.bin").write_bytes(content)
    try:
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        with serving(root, "--log-level", "debug", state=tmp_path / "state", wrapper=inside) as server:
            # The server has tried its own handshakes over loopback by now, for which it waits some seconds at most.
            limited = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", *netem.split(), "limit", "20000"]
            subprocess.run([*inside, *limited], check=True)
            transfers = [
                word
                for number in range(len(SIZES))
                for word in (server.url(f"/{number}.bin"), "-o", str(tmp_path / f"{number}.out"))
            ]
            curl = [*inside, "curl", "-ksS", "--http2", "--parallel", "-w", "%{http_version}\n", *transfers]
            done = subprocess.run(curl, check=True, capture_output=True, text=True, timeout=200)
            assert done.stdout.split() == ["2"] * len(SIZES)
            for number, content in enumerate(contents):
                assert (tmp_path / f"{number}.out").read_bytes() == content
            [connection] = [line for line in server.log if " ktls tx=" in line]
            assert re.search(r" ktls tx=software .* alpn=h2$", connection)
        shown = subprocess.check_output([*inside, "tc", "-s", "qdisc", "show", "dev", "lo"], text=True)
        dropped = re.search(r"dropped (\d+)", shown)
        assert dropped is not None
        assert int(dropped[1]) > 0
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)
