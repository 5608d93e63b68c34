"""The metrics and their storage: a row of numbers in shared memory for each worker, one number for each series.

Strategy: the memory is allocated before workers are forked, and each worker writes only to its own row, so that a count
is one 8-byte store without a lock. A scrape adds up all rows; a replacement worker continues the row of the old one.
"""

from __future__ import annotations

import enum
import functools
import itertools
import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

from ktlsd.config import listener_kind
from ktlsd.config.limits import Limit
from ktlsd.http.decide import Denied
from ktlsd.metrics.site_names import MOST_SITES, OTHER, SiteNames
from ktlsd.openssl.algorithms import CIPHERSUITES
from ktlsd.openssl.results import Handshake
from ktlsd.tls.ktls import Direction, Offload, Path, Reason
from ktlsd.tls.policy import EVERY_CIPHER

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram of handshakes, in seconds."""
DURATION_BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 300.0, 900.0, 3600.0),
)
"""Upper bounds of the histogram of requests, in seconds: from a response out of memory to a long download."""
SIZE_BUCKETS: Final = tuple(4**power for power in range(4, 18))
"""Upper bounds of the histogram of bodies: 256 bytes to 16 GiB."""

SITE_BUCKETS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
"""Upper bounds of the histogram of requests of each site, in seconds: few, since there is one for each site."""
STATUS_CLASSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")

_NS: Final = 1_000_000_000
_BYTES_IN_A_SLOT: Final = 8


class Kind(enum.Enum):
    """The type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    """Reset with each worker."""
    HISTOGRAM = "histogram"
    """The last label is `le`. A number for each bucket (not cumulative), followed by a sum for each group of buckets:
    the values of the other labels."""


class Failure(enum.Enum):
    """The reasons why a connection was not served."""

    TIMEOUT = "timeout"
    PLAIN_HTTP = "plain_http"
    LOST = "lost"
    TLS_ERROR = "tls_error"
    KTLS_REQUIRED = "ktls_required"
    CLIENT_CERTIFICATE = "client_certificate"
    PROXY_HEADER = "proxy_header"
    NO_CERTIFICATE = "no_certificate"
    UNKNOWN_NAME = "unknown_name"


class HttpVersion(enum.Enum):
    """The protocol of a request."""

    HTTP_1 = "HTTP/1.1"
    """Also HTTP/1.0."""
    HTTP_2 = "HTTP/2"


class Metric(NamedTuple):
    """One metric; `series` has the values of its labels, in the order of the numbers in a row."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    series: tuple[tuple[str, ...], ...] = ((),)
    sparse: bool = False
    """Leave out series that are 0, if most never occur."""
    scale: int = 1
    """One unit of a histogram, as its sums count it."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The values of all labels but `le` of a histogram."""
        return tuple(dict.fromkeys(values[:-1] for values in self.series)) if self.kind is Kind.HISTOGRAM else ()

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return len(self.series) + len(self.groups)


def _each(*values: str) -> tuple[tuple[str, ...], ...]:
    return tuple((value,) for value in values)


_LISTENERS: Final = _each(*(kind.value for kind in listener_kind.Kind))
_OFFLOADS: Final = tuple(offload.name.lower() for offload in Offload)
CIPHERS: Final = (
    *(("TLSv1.3", cipher) for cipher in (*CIPHERSUITES.split(":"), OTHER)),
    *(("TLSv1.2", cipher) for cipher in (*EVERY_CIPHER.split(":"), OTHER)),
    (OTHER, OTHER),
)

_STATUSES: Final = (*(str(status.value) for status in HTTPStatus), OTHER)
_INFINITE: Final = "+Inf"


def _by_protocol(buckets: Sequence[float]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (version.value, bound) for version in HttpVersion for bound in (*map(str, map(float, buckets)), _INFINITE)
    )


METRICS: Final = (
    Metric(
        "ktlsd_accepted_connections_total",
        Kind.COUNTER,
        "Connections accepted.",
        ("listener",),
        _LISTENERS,
    ),
    Metric("ktlsd_open_connections", Kind.GAUGE, "Connections open.", ("listener",), _LISTENERS),
    Metric(
        "ktlsd_tls_connections_total",
        Kind.COUNTER,
        "TLS handshakes completed, by negotiated protocol and cipher, and by encryption path (tx) and decryption path"
        " (rx).",
        ("protocol", "cipher", "tx", "rx"),
        tuple((*cipher, tx, rx) for cipher in CIPHERS for tx in _OFFLOADS for rx in _OFFLOADS),
        sparse=True,
    ),
    Metric(
        "ktlsd_open_tls_connections",
        Kind.GAUGE,
        "Open TLS connections with a completed handshake, by encryption path.",
        ("tx",),
        _each(*_OFFLOADS),
    ),
    Metric(
        "ktlsd_ktls_fallbacks_total",
        Kind.COUNTER,
        "TLS connections without kernel TLS in a direction, by reason.",
        ("direction", "reason"),
        tuple((direction.value, reason.name.lower()) for direction in Direction for reason in Reason),
    ),
    Metric(
        "ktlsd_handshake_seconds",
        Kind.HISTOGRAM,
        "Time from accepting a connection to its completed TLS handshake.",
        ("le",),
        _each(*map(str, BUCKETS), _INFINITE),
        scale=_NS,
    ),
    Metric(
        "ktlsd_handshake_failures_total",
        Kind.COUNTER,
        "Connections that were not served, by reason.",
        ("reason",),
        _each(*(failure.value for failure in Failure)),
    ),
    Metric(
        "ktlsd_limited_total",
        Kind.COUNTER,
        "Number of times a limit was reached, by limit.",
        ("limit",),
        _each(*(limit.value for limit in Limit)),
    ),
    Metric(
        "ktlsd_requests_total",
        Kind.COUNTER,
        "Responses begun, by protocol and status.",
        ("protocol", "status"),
        tuple((version.value, status) for version in HttpVersion for status in _STATUSES),
        sparse=True,
    ),
    Metric(
        "ktlsd_client_certificates_total",
        Kind.COUNTER,
        "TLS handshakes completed that asked for a client certificate, by its outcome.",
        ("outcome",),
        _each("verified", "none", "refused"),
    ),
    Metric(
        "ktlsd_access_denied_total",
        Kind.COUNTER,
        "Requests refused by a check of access, by reason.",
        ("reason",),
        _each(*(denied.value for denied in Denied)),
    ),
    Metric("ktlsd_requests_in_flight", Kind.GAUGE, "Requests being read or answered."),
    Metric(
        "ktlsd_request_duration_seconds",
        Kind.HISTOGRAM,
        "Time from the arrival of a request head to the last byte of its response given to the kernel, by protocol.",
        ("protocol", "le"),
        _by_protocol(DURATION_BUCKETS),
        scale=_NS,
    ),
    Metric(
        "ktlsd_response_size_bytes",
        Kind.HISTOGRAM,
        "Bytes of the body of a response that were given to the kernel, by protocol.",
        ("protocol", "le"),
        _by_protocol(SIZE_BUCKETS),
    ),
    Metric(
        "ktlsd_sent_bytes_total",
        Kind.COUNTER,
        "Bytes of responses handed to the kernel, by path, without TLS overhead.",
        ("path",),
        _each("sendfile", "send", "user_space"),
    ),
    Metric(
        "ktlsd_cold_reads_total",
        Kind.COUNTER,
        "Parts of files read from disk by a thread because they were not cached.",
    ),
    Metric("ktlsd_worker_restarts_total", Kind.COUNTER, "Workers started to replace one that ended."),
)

BY_NAME: Final = {metric.name: metric for metric in METRICS}

PID: Final = 0
"""The slot with the number of the process that has a row."""
STARTED: Final = 1
"""The slot with the start time of that process, in seconds since the epoch; 0 in an unused row."""
BEAT: Final = 2
"""The slot with the last heartbeat of its event loop, in nanoseconds of the monotonic clock."""
_RESERVED: Final = 3

_FIRST: Final = dict(
    zip(
        (metric.name for metric in METRICS),
        itertools.accumulate((metric.size for metric in METRICS), initial=_RESERVED),
        strict=False,
    )
)
_SLOTS: Final = {
    (metric.name, *values): _FIRST[metric.name] + number
    for metric in METRICS
    for number, values in enumerate(metric.series)
}
SLOTS: Final = _RESERVED + sum(metric.size for metric in METRICS)
"""Numbers in a row, without those of sites."""
SITE_SLOTS: Final = len(STATUS_CLASSES) + len(SITE_BUCKETS) + 2
"""Numbers for one site and one protocol (site_counts.py)."""
_ALL_SLOTS: Final = SLOTS + len(HttpVersion) * (MOST_SITES + 2) * SITE_SLOTS


class Row(Protocol):
    """The counters of one worker."""

    def __getitem__(self, slot: int, /) -> int: ...

    def __setitem__(self, slot: int, value: int, /) -> None: ...


UNCOUNTED: Final[Row] = [0] * _ALL_SLOTS
"""A row for counts that are not reported."""


def slot(name: str, *values: str) -> int:
    """The place in a row of a metric's series. Raises KeyError."""
    return _SLOTS[name, *values]


ACCEPTED: Final = {kind: slot("ktlsd_accepted_connections_total", kind.value) for kind in listener_kind.Kind}
OPEN: Final = {kind: slot("ktlsd_open_connections", kind.value) for kind in listener_kind.Kind}
OPEN_TLS: Final = {offload: slot("ktlsd_open_tls_connections", offload.name.lower()) for offload in Offload}
FAILED: Final = {failure: slot("ktlsd_handshake_failures_total", failure.value) for failure in Failure}
LIMITED: Final = {limit: slot("ktlsd_limited_total", limit.value) for limit in Limit}
CLIENT_CERTIFICATES: Final = {
    outcome: slot("ktlsd_client_certificates_total", outcome) for outcome in ("verified", "none", "refused")
}
DENIED: Final = {denied: slot("ktlsd_access_denied_total", denied.value) for denied in Denied}
REQUESTS: Final[Mapping[HttpVersion, Mapping[int, int]]] = {
    version: {
        0 if status == OTHER else int(status): slot("ktlsd_requests_total", version.value, status)
        for status in _STATUSES
    }
    for version in HttpVersion
}
"""By status; 0 for others."""
IN_FLIGHT: Final = slot("ktlsd_requests_in_flight")
SENDFILE: Final = slot("ktlsd_sent_bytes_total", "sendfile")
SEND: Final = slot("ktlsd_sent_bytes_total", "send")
USER_SPACE: Final = slot("ktlsd_sent_bytes_total", "user_space")
COLD_READS: Final = slot("ktlsd_cold_reads_total")
_RESTARTS: Final = slot("ktlsd_worker_restarts_total")


class Slots(NamedTuple):
    """A group of a histogram in a row."""

    first: int
    """The first of its buckets; the others follow."""
    sum: int


def slots_of(name: str, *group: str) -> Slots:
    """The places in a row of a histogram's group. Raises KeyError, StopIteration."""
    metric = BY_NAME[name]
    lowest = next(values for values in metric.series if values[:-1] == group)
    return Slots(slot(name, *lowest), _FIRST[name] + len(metric.series) + metric.groups.index(group))


_HANDSHAKES: Final = slots_of("ktlsd_handshake_seconds")
DURATIONS: Final = {version: slots_of("ktlsd_request_duration_seconds", version.value) for version in HttpVersion}
SIZES: Final = {version: slots_of("ktlsd_response_size_bytes", version.value) for version in HttpVersion}
_FALLBACKS: Final = {
    (direction, reason): slot("ktlsd_ktls_fallbacks_total", direction.value, reason.name.lower())
    for direction in Direction
    for reason in Reason
}
_WORKERS: Final = 0
"""The place of the number of workers before all rows."""
_USED: Final = 1
"""The place of the number of rows in use."""
_OF_ALL_ROWS: Final = 2
_GAUGES: Final = tuple(
    _FIRST[metric.name] + number for metric in METRICS if metric.kind is Kind.GAUGE for number in range(metric.size)
)


def count_handshake(row: Row, seconds: float, handshake: Handshake, tx: Path, rx: Path) -> None:
    """Count a completed handshake that took `seconds`."""
    for place in _places(handshake.protocol, handshake.cipher, tx, rx):
        row[place] += 1
    row[_HANDSHAKES.first + bisect_left(BUCKETS, seconds)] += 1
    row[_HANDSHAKES.sum] += round(seconds * _NS)


@functools.lru_cache(256)
def _places(protocol: str, cipher: str, tx: Path, rx: Path) -> tuple[int, ...]:
    paths = tx.offload.name.lower(), rx.offload.name.lower()
    names = (("ktlsd_tls_connections_total", *known, *paths) for known in _known(protocol, cipher))
    found = next(_SLOTS[name] for name in names if name in _SLOTS)
    fallbacks = ((Direction.TX, tx.reason), (Direction.RX, rx.reason))
    return (found, *(_FALLBACKS[direction, reason] for direction, reason in fallbacks if reason is not None))


def _known(protocol: str, cipher: str) -> tuple[tuple[str, str], ...]:
    return (protocol, cipher), (protocol, OTHER), (OTHER, OTHER)


class counted:  # noqa: N801  a context manager
    """One more in a gauge, for as long as this lasts."""

    __slots__ = ("_gauge", "_row")

    def __init__(self, row: Row, gauge: int) -> None:
        self._row = row
        self._gauge = gauge

    def __enter__(self) -> None:
        self._row[self._gauge] += 1

    def __exit__(self, *_: object) -> None:
        self._row[self._gauge] -= 1


class MetricsStore:
    """The rows of all workers, in memory that processes forked later share."""

    def __init__(self, workers: int, most_workers: int = 0) -> None:
        """`most_workers` is the most that set_workers() may ask for, if that is more than `workers`: processes that run
        cannot get more shared memory. Rows that are not used take none."""
        self.first_process: Final = os.getpid()
        """The process that starts the workers, or the only one."""
        self.started: Final = time.time()
        """When it started, in seconds since the epoch."""
        self.most_workers: Final = max(workers, most_workers)
        size = (_OF_ALL_ROWS + self.most_workers * _ALL_SLOTS) * _BYTES_IN_A_SLOT
        self._memory: Final = memoryview(mmap.mmap(-1, size)).cast("q")
        self.sites: Final = SiteNames()
        self.set_workers(workers)

    def set_workers(self, workers: int, rows: int = 0) -> None:
        """Change the number of workers; only the first process may. They have more `rows` if workers that end have some
        in between."""
        self._memory[_WORKERS] = workers
        self._memory[_USED] = max(self._memory[_USED], workers, rows)

    @property
    def workers(self) -> int:
        """The configured number of workers."""
        return self._memory[_WORKERS]

    @property
    def rows(self) -> tuple[memoryview[int], ...]:
        """All rows that are, or were, in use: what a former worker has counted stays counted."""
        return tuple(map(self._row, range(self._memory[_USED])))

    def _row(self, number: int) -> memoryview[int]:
        begin = _OF_ALL_ROWS + number * _ALL_SLOTS
        return self._memory[begin : begin + _ALL_SLOTS]

    def take(self, number: int) -> Row:
        """A row for the exclusive use of the calling process; `number` counts workers from 0."""
        row = self._row(number)
        _reset_gauges(row)
        if row[STARTED]:
            row[_RESTARTS] += 1
        row[PID], row[STARTED] = os.getpid(), int(time.time())
        return row

    def leave(self, number: int) -> None:
        """The worker of a row has ended, and none takes its place."""
        row = self._row(number)
        _reset_gauges(row)
        row[PID] = row[STARTED] = 0

    def totals(self) -> list[int]:
        """The sums over all rows, by slot; those of PID, STARTED and BEAT mean nothing."""
        return [sum(column) for column in zip(*(row.tolist() for row in self.rows), strict=True)]


def _reset_gauges(row: Row) -> None:
    for gauge in _GAUGES:
        row[gauge] = 0


class Series(NamedTuple):
    """One number of a metric."""

    labels: tuple[str, ...]
    value: int


def series(metric: Metric, totals: Sequence[int]) -> list[Series]:
    """A metric's numbers in a row, or in the sum of rows, without the sum of a histogram."""
    first = _FIRST[metric.name]
    numbers = zip(metric.series, totals[first : first + len(metric.series)], strict=True)
    return [Series(labels, value) for labels, value in numbers if value or not metric.sparse]


def total(name: str, numbers: Sequence[int]) -> int:
    """The sum of the series of a counter or a gauge in a row, or in the sum of rows."""
    first = _FIRST[name]
    return sum(numbers[first : first + BY_NAME[name].size])


class Histogram(NamedTuple):
    """The numbers of a group of a histogram."""

    labels: tuple[str, ...]
    """Without `le`."""
    buckets: tuple[Series, ...]
    """Not cumulative."""
    sum: float


def histograms(metric: Metric, totals: Sequence[int]) -> list[Histogram]:
    """A histogram's groups in a row, or in the sum of rows."""
    numbers = series(metric, totals)
    size, first_sum = len(metric.series) // len(metric.groups), _FIRST[metric.name] + len(metric.series)
    return [
        Histogram(labels, tuple(numbers[index * size : (index + 1) * size]), totals[first_sum + index] / metric.scale)
        for index, labels in enumerate(metric.groups)
    ]
