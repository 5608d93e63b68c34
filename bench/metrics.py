"""What is measured: the figures' names, units and which way is better.

Strategy: one table; a ratio is always turned so that more than 1 is better for ktlsd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Sample = dict[str, float]
"""One measurement of one server: a figure for each metric."""


@dataclass(frozen=True)
class Metric:
    unit: str
    more_is_better: bool
    digits: int
    compared: bool = True
    """True if ktlsd's figure is compared with a peer's; the others only explain."""


METRICS: Final[dict[str, Metric]] = {
    "requests": Metric("requests/s", True, 0),
    "throughput": Metric("MB/s", True, 1),
    "cpu per request": Metric("µs/request", False, 1),
    "cpu per request at first": Metric("µs/request", False, 1),
    "p99 at first": Metric("ms", False, 2),
    "memory": Metric("MiB", False, 1),
    "server busy": Metric("% of a core", True, 0, compared=False),
    "user per request": Metric("µs/request", False, 1),
    "system per request": Metric("µs/request", False, 1),
    "as on the disk": Metric("x of the CPU's work on the disk's file system", True, 2),
    "cpu per byte": Metric("CPU s/GB", False, 3),
    "handshakes": Metric("handshakes/s", True, 0),
    "cpu per handshake": Metric("µs/handshake", False, 0),
    "memory per connection": Metric("KiB", False, 1),
    "p99 idle": Metric("ms", False, 3),
    "p99 loaded": Metric("ms", False, 3),
    "p99 growth": Metric("x idle", False, 2),
    "other traffic": Metric("MB/s", True, 1, compared=False),
    "rate kept": Metric("x of the rate at fewest connections", True, 2),
    "start": Metric("s", False, 3),
}


def ratio(metric: str, ktlsd: float, peer: float) -> float | None:
    """How much better ktlsd is than the peer (1: equal); None where a figure is zero, as CPU below a tick is."""
    if ktlsd <= 0 or peer <= 0:
        return None
    return ktlsd / peer if METRICS[metric].more_is_better else peer / ktlsd
