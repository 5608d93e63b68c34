"""Requests and their durations by site, for a service that has several.

Strategy: each row has numbers of its own for each site and protocol, behind those of all other metrics; a place is
computed from the site's number. A service with one site counts nothing here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ktlsd.metrics.metrics import (
    SITE_BUCKETS,
    SITE_SLOTS,
    SLOTS,
    STATUS_CLASSES,
    Histogram,
    HttpVersion,
    Kind,
    Metric,
    Row,
    Series,
)
from ktlsd.metrics.site_names import MOST_SITES

_NS: Final = 1_000_000_000
_PLACES: Final = MOST_SITES + 2
_BOUNDS: Final = (*map(str, map(float, SITE_BUCKETS)), "+Inf")
_FIRST_BUCKET: Final = len(STATUS_CLASSES)
_SUM: Final = _FIRST_BUCKET + len(_BOUNDS)

REQUESTS: Final = Metric(
    "ktlsd_site_requests_total",
    Kind.COUNTER,
    "Responses begun, by site, protocol and class of the status, if there are several sites.",
    ("site", "protocol", "class"),
    (),
    sparse=True,
)
DURATIONS: Final = Metric(
    "ktlsd_site_request_duration_seconds",
    Kind.HISTOGRAM,
    "Time from the arrival of a request head to the last byte of its response given to the kernel, by site and"
    " protocol, if there are several sites.",
    ("site", "protocol", "le"),
    (),
    sparse=True,
    scale=_NS,
)


class SiteCounts:
    """Those of one process and one protocol."""

    __slots__ = ("_first", "_row")

    def __init__(self, row: Row, version: HttpVersion) -> None:
        self._row = row
        self._first = SLOTS + list(HttpVersion).index(version) * _PLACES * SITE_SLOTS

    def begin(self, site: int, status: int) -> None:
        """Count a response that begins, by the number of its site."""
        self._row[self._first + site * SITE_SLOTS + status // 100 - 1] += 1

    def end(self, sites: Sequence[int], seconds: float) -> None:
        """Count responses of these sites that end now, so long after their requests arrived."""
        row, nanoseconds = self._row, int(seconds * _NS)
        bucket = self._first + _FIRST_BUCKET + bisect_left(SITE_BUCKETS, seconds)
        total = self._first + _SUM
        # An addition in a row takes longer than a look through a short list.
        for site in set(sites):
            number, place = sites.count(site), site * SITE_SLOTS
            row[bucket + place] += number
            row[total + place] += nanoseconds * number


def requests(labels: Mapping[int, str], totals: Sequence[int]) -> list[Series]:
    """The numbers of REQUESTS in a row, or in the sum of rows, but for zeros; `labels` are those of the sites'
    numbers."""
    return [
        Series((site, version.value, status), count)
        for site, version, place in _groups(labels)
        for status, count in zip(STATUS_CLASSES, totals[place : place + _FIRST_BUCKET], strict=True)
        if count
    ]


def durations(labels: Mapping[int, str], totals: Sequence[int]) -> list[Histogram]:
    """The numbers of DURATIONS, likewise."""
    found = []
    for site, version, place in _groups(labels):
        counts = totals[place + _FIRST_BUCKET : place + _SUM]
        if any(counts):
            label = site, version.value
            buckets = tuple(Series((*label, bound), count) for bound, count in zip(_BOUNDS, counts, strict=True))
            found.append(Histogram(label, buckets, totals[place + _SUM] / DURATIONS.scale))
    return found


def _groups(labels: Mapping[int, str]) -> Iterable[tuple[str, HttpVersion, int]]:
    """The label, protocol and first place of each site's numbers."""
    for number, label in labels.items():
        for index, version in enumerate(HttpVersion):
            yield label, version, SLOTS + (index * _PLACES + number) * SITE_SLOTS
