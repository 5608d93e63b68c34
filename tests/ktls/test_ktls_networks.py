"""Networks that hinder kTLS: those of test_faults.py, and packets that arrive damaged, twice and out of order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.serving import serving
from tests.wire.test_faults import (  # noqa: F401
    contents,
    faulty,
    root,
    test_a_path_mtu_black_hole,
    test_narrow_connections_get_every_byte,
)

pytestmark = [
    pytest.mark.ktls(machine="debian13"),
    pytest.mark.skipif(not os.environ.get("KTLSD_VM"), reason="this would disturb the machine"),
]


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_packets_out_of_order_twice_damaged_and_lost(
    root: Path,  # noqa: F811
    contents: dict[str, bytes],  # noqa: F811
    tmp_path: Path,
    mode: str,
) -> None:
    name = "ktlsd-disorder"
    netem = "delay 10ms 10ms reorder 25% 50% duplicate 2% corrupt 1% loss 2% limit 20000"
    try:
        for line in (
            f"ip netns add {name}",
            f"ip -n {name} link set lo up",
            f"ip netns exec {name} tc qdisc add dev lo root netem {netem}",
        ):
            subprocess.run(line.split(), check=True)
        inside = ("ip", "netns", "exec", name)
        with serving(root, "--ktls", mode, state=tmp_path / "state", wrapper=inside) as server:
            output = tmp_path / "output"
            subprocess.run([*inside, "curl", "-ksS", "-o", str(output), server.url("/medium.bin")], check=True)
            assert output.read_bytes() == contents["medium.bin"]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)
