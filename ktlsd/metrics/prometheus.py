"""The counts as Prometheus reads them.

Strategy: prometheus_client writes the text, from families that a collector makes out of the sums over all workers.
"""

from __future__ import annotations

import itertools
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from ktlsd import __version__
from ktlsd.metrics import site_counts
from ktlsd.metrics.metrics import METRICS, PID, Histogram, Kind, Metric, MetricsStore, Series, histograms, series
from ktlsd.metrics.processes import figures_of_all
from ktlsd.tls.pairs import Fault, Validity

if TYPE_CHECKING:
    from ktlsd.acme.plan import Record

_SIMPLE: Final[Mapping[Kind, type[CounterMetricFamily] | type[GaugeMetricFamily]]] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
}


def render(
    store: MetricsStore,
    validities: Sequence[Validity],
    accept: str,
    faults: Sequence[Fault] = (),
    orders: Sequence[tuple[str, Record]] = (),
    openssl: str = "",
) -> tuple[str, bytes]:
    """Media type and text, in the format that an Accept field prefers.

    `orders` are the certificates by ACME, `openssl` is the version of OpenSSL.
    """
    registry = CollectorRegistry()
    registry.register(_Counts(store, validities, faults, orders, openssl))
    encode, media_type = choose_encoder(accept)
    return media_type, encode(registry)


class _Counts(Collector):
    def __init__(
        self,
        store: MetricsStore,
        validities: Sequence[Validity],
        faults: Sequence[Fault],
        orders: Sequence[tuple[str, Record]],
        openssl: str,
    ) -> None:
        self._store = store
        self._validities = validities
        self._faults = faults
        self._orders = orders
        self._openssl = openssl

    def describe(self) -> list[Family]:
        return []

    def collect(self) -> Iterator[Family]:
        totals = self._store.totals()
        for metric in METRICS:
            yield _family(metric, totals)
        yield from _of_sites(self._store.sites.labels(), totals)
        yield GaugeMetricFamily("ktlsd_workers", "Configured number of worker processes.", value=self._store.workers)
        dates = GaugeMetricFamily(
            "ktlsd_certificate_expiry_timestamp_seconds",
            "Expiry of a served certificate, in seconds since the epoch.",
            labels=("site", "file"),
        )
        for validity in self._validities:
            dates.add_metric((validity.site, validity.file), validity.ends)
        yield dates
        unusable = GaugeMetricFamily(
            "ktlsd_unusable_certificates",
            "Unusable files of certificates, keys, authorities and revocation lists, by site; a served site keeps using"
            " the old ones.",
            labels=("site", "served"),
        )
        counted = Counter((fault.site, str(fault.served).lower()) for fault in self._faults)
        # Never without a number: a rate or an alert cannot tell an absent metric from a server that is down.
        for labels, number in counted.items() or [(("", "true"), 0)]:
            unusable.add_metric(labels, number)
        yield unusable
        if self._orders:
            yield from _of_orders(self._orders)
        build = GaugeMetricFamily(
            "ktlsd_build_info",
            "Always 1; the labels are the versions of ktlsd, of OpenSSL and of Python.",
            labels=("version", "openssl", "python"),
        )
        build.add_metric((__version__, self._openssl, platform.python_version()), 1)
        yield build
        yield from _of_processes(self._store)


def _of_sites(labels: Mapping[int, str], totals: Sequence[int]) -> Iterator[Family]:
    """The counts by site; nothing with one site."""
    found = site_counts.requests(labels, totals)
    if found:
        yield _of_series(site_counts.REQUESTS, found)
        yield _of_histograms(site_counts.DURATIONS, site_counts.durations(labels, totals))


def _of_orders(orders: Sequence[tuple[str, Record]]) -> Iterator[Family]:
    failures = GaugeMetricFamily(
        "ktlsd_acme_failures",
        "Failed tries to get a certificate by ACME since the last success.",
        labels=("certificate",),
    )
    renewals = GaugeMetricFamily(
        "ktlsd_acme_renewal_timestamp_seconds",
        "Planned renewal of a certificate by ACME, in seconds since the epoch; 0 if there is none yet.",
        labels=("certificate",),
    )
    for name, record in orders:
        failures.add_metric((name,), record.failures)
        renewals.add_metric((name,), record.renew_at)
    yield failures
    yield renewals


def _of_processes(store: MetricsStore) -> Iterator[Family]:
    figures = figures_of_all(store.first_process, (row[PID] for row in store.rows if row[PID]))
    yield CounterMetricFamily(
        "process_cpu_seconds_total",
        "Processor time of all processes of the service, in user space and in the kernel, in seconds.",
        value=figures.cpu_seconds,
    )
    gauges = (
        (
            "process_resident_memory_bytes",
            "Resident memory of all processes, in bytes; shared pages count once for each of them.",
            figures.resident_bytes,
        ),
        ("process_virtual_memory_bytes", "Virtual memory of all processes, in bytes.", figures.virtual_bytes),
        ("process_open_fds", "Open file descriptors of all processes.", figures.open_files),
        ("process_max_fds", "Sum of the limits of open file descriptors of all processes.", figures.most_files),
        ("process_start_time_seconds", "Start of the service, in seconds since the epoch.", store.started),
    )
    for name, text, value in gauges:
        if value is not None:
            yield GaugeMetricFamily(name, text, value=value)


def _family(metric: Metric, totals: list[int]) -> Family:
    if metric.kind is Kind.HISTOGRAM:
        return _of_histograms(metric, histograms(metric, totals))
    return _of_series(metric, series(metric, totals))


def _of_histograms(metric: Metric, found: Iterable[Histogram]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels[:-1])
    for labels, buckets, total in found:
        sums = itertools.accumulate(bucket.value for bucket in buckets)
        bounds = [(bucket.labels[-1], float(value)) for bucket, value in zip(buckets, sums, strict=True)]
        family.add_metric(labels, bounds, total)
    return family


def _of_series(metric: Metric, found: Iterable[Series]) -> Family:
    simple = _SIMPLE[metric.kind](metric.name, metric.help, labels=metric.labels)
    for number in found:
        simple.add_metric(number.labels, number.value)
    return simple
