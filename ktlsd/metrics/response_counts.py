"""The histograms of responses: their durations, and the sizes of their bodies, by protocol; durations also by site.

Strategy: most responses are sent in the batch of the poller in which their requests came. These are noted by size and
counted together at the end of the batch, with one look at the clock. The others are counted one by one.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from ktlsd.metrics.metrics import DURATION_BUCKETS, DURATIONS, SIZE_BUCKETS, SIZES, HttpVersion, Row
from ktlsd.metrics.site_counts import SiteCounts

_NS: Final = 1_000_000_000


class ResponseCounts:
    """Those of one process and one protocol."""

    __slots__ = ("_durations", "_row", "_sizes", "at_once", "by_site", "sites_at_once", "version")

    def __init__(self, row: Row, version: HttpVersion) -> None:
        self.version = version
        self._row = row
        self._durations = DURATIONS[version]
        self._sizes = SIZES[version]
        self.at_once: list[int] = []
        """Sizes of bodies that were sent in the current batch of the poller, to requests that came with it."""
        self.by_site: SiteCounts | None = None
        """The counts by site; None as long as there is one site."""
        self.sites_at_once: list[int] = []
        """The numbers of the sites of the same responses, if they are counted by site."""

    def count_sites(self) -> None:
        """Count by site from now on."""
        if self.by_site is None:
            self.by_site = SiteCounts(self._row, self.version)

    def end_batch(self, began: float) -> None:
        """A batch of the poller ends that began at this time (time.monotonic())."""
        if self.at_once:
            self.count(began, self.at_once, self.sites_at_once)
            self.at_once.clear()
            self.sites_at_once.clear()

    def count(self, arrived: float, sizes: Sequence[int], sites: Sequence[int]) -> None:
        """Count responses that end now, with these bytes of their bodies sent, of sites with these numbers, to requests
        that arrived at this time (time.monotonic())."""
        row, number = self._row, len(sizes)
        seconds = time.monotonic() - arrived
        first, total = self._durations
        row[first + bisect_left(DURATION_BUCKETS, seconds)] += number
        row[total] += int(seconds * _NS) * number
        first, total = self._sizes
        for size in sizes:
            row[first + bisect_left(SIZE_BUCKETS, size)] += 1
        row[total] += sum(sizes)
        if self.by_site is not None:
            self.by_site.end(sites, seconds)
