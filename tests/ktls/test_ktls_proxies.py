"""Behind real proxies on a kernel with kTLS: what goes to them is encrypted by the kernel, and all of it arrives."""

from __future__ import annotations

import pytest

from tests.system import test_proxies
from tests.system.test_proxies import (  # noqa: F401
    Behind,
    behind,
    test_a_range_download_comes_out_of_the_cache,
    test_health_checks_find_it_well,
)

pytestmark = pytest.mark.ktls


@pytest.mark.parametrize("front", ["nginx", "haproxy", "caddy", "nginx-passed", "haproxy-passed"])
def test_every_byte_arrives_by_ktls(behind: Behind, front: str) -> None:  # noqa: F811
    test_proxies.test_every_byte_arrives(behind, front)
    paths = [line.partition(" ktls ")[2] for line in behind.of(front).log if " ktls tx=" in line]
    assert paths
    assert [path for path in paths if not path.startswith("tx=software ")] == []
