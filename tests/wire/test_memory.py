"""Ten thousand handshakes leave nothing behind: kTLS asked for, on whatever kernel this is."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.serving import client_context, connect, get, serving

WARM_UP = 1500
COUNTED = 10_000
# Far below one SSL object (some 10 KiB) in a hundred handshakes, above the allocator's own steps.
MOST_GROWTH_KIB = 512


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_ten_thousand_handshakes(tmp_path: Path, newest: ssl.TLSVersion) -> None:
    (tmp_path / "small.txt").write_text("small")
    context = client_context(newest=newest)
    with serving(tmp_path, "--log-level", "warning", state=tmp_path / "state") as server:
        for _ in range(WARM_UP):
            connect(server.port, context).close()
        assert get(server.port, "/small.txt").body == b"small"
        before, files = server.resident_kib(), server.open_files()
        for _ in range(COUNTED):
            connect(server.port, context).close()
        assert get(server.port, "/small.txt").body == b"small"
        grown = server.resident_kib() - before
        print(f"{COUNTED} {newest.name} handshakes: RssAnon from {before} by {grown} KiB")
        assert grown < MOST_GROWTH_KIB
        assert server.open_files() <= files + 1
