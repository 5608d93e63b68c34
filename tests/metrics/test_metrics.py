"""The counters: a slot for each series, rows that forked processes share, and what is written out of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html import unescape
from http import HTTPStatus
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ktlsd.acme.plan import Record
from ktlsd.config import listener_kind
from ktlsd.metrics import site_counts
from ktlsd.metrics.metrics import (
    ACCEPTED,
    BEAT,
    BUCKETS,
    COLD_READS,
    DURATION_BUCKETS,
    IN_FLIGHT,
    METRICS,
    OPEN,
    OPEN_TLS,
    PID,
    SIZE_BUCKETS,
    SLOTS,
    STARTED,
    USER_SPACE,
    HttpVersion,
    Kind,
    MetricsStore,
    count_handshake,
    counted,
    slot,
    slots_of,
)
from ktlsd.metrics.processes import figures_of_all
from ktlsd.metrics.prometheus import render
from ktlsd.metrics.response_counts import ResponseCounts
from ktlsd.metrics.site_names import MOST_SITES, NO_SITE, OTHER, OTHER_SITE, SiteNames
from ktlsd.openssl.results import Handshake
from ktlsd.status.metrics_page import Asked, answer, is_own
from ktlsd.status.status_page import View, render_html, render_json, snapshot
from ktlsd.tls.ktls import Offload, Reason
from ktlsd.tls.ktls import Path as KtlsPath
from ktlsd.tls.pairs import Fault, Validity

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((REPOSITORY / "docs/grafana-dashboard.json").read_text(encoding="utf-8"))
ALERTS = REPOSITORY / "docs/alerts.yml"
DOCUMENT = (REPOSITORY / "docs/metrics.md").read_text(encoding="utf-8")
VALIDITY = Validity('a"b\\c', "/etc/x\n.pem", 1_800_000_000, 1_900_000_000)
FAULT = Fault("b.example", ("site", 1, "cert", 0), "/b.pem", ("/b.pem", "/b.key"), "wrong", former=False, served=False)

HTTP_2 = HttpVersion.HTTP_2
NO_KTLS = KtlsPath(Offload.NONE, Reason.NO_ULP)
SOFTWARE = KtlsPath(Offload.SOFTWARE, None)


def shake(protocol: str = "TLSv1.3", cipher: str = "TLS_AES_128_GCM_SHA256") -> Handshake:
    return Handshake(protocol, cipher, resumed=False, max_fragment_length=False, ktls_tx=False, ktls_rx=False)


def read_openmetrics(text: str) -> Iterator[Family]:
    # This parser has no annotations.
    families: Iterator[Family] = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    return families


def samples(store: MetricsStore, *validities: Validity) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every number of the text by its name and labels."""
    _, text = render(store, validities, "", orders=[("www.example.test", Record(failures=2))])
    every = [sample for family in parse_text(text.decode()) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in every}
    assert len(found) == len(every)
    assert found["ktlsd_acme_failures", frozenset({("certificate", "www.example.test")})] == 2
    return found


def value(store: MetricsStore, name: str, **labels: str) -> float:
    return samples(store)[name, frozenset(labels.items())]


# --- slots and rows


def test_every_series_has_a_slot_of_its_own() -> None:
    slots = [slot(metric.name, *values) for metric in METRICS for values in metric.series]
    sums = [slots_of(metric.name, *group).sum for metric in METRICS for group in metric.groups]
    assert len(sums) == 1 + 2 * len(HttpVersion)
    assert len({*slots, *sums, PID, STARTED, BEAT}) == len(slots) + len(sums) + 3
    assert max(*slots, *sums) + 1 == SLOTS == len(slots) + len(sums) + 3


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert metric.name.startswith("ktlsd_")
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert len(set(metric.series)) == len(metric.series)
        assert all(len(values) == len(metric.labels) for values in metric.series)


def test_rows_are_apart_and_added_up() -> None:
    store = MetricsStore(3)
    rows = [store.take(number) for number in range(3)]
    for row, amount in zip(rows, (1, 20, 300), strict=True):
        row[USER_SPACE] += amount
    assert [row[USER_SPACE] for row in rows] == [1, 20, 300]
    assert store.totals()[USER_SPACE] == 321
    assert value(store, "ktlsd_sent_bytes_total", path="user_space") == 321
    # The neighbours of the first and the last slot belong to other rows.
    rows[1][SLOTS - 1] = 5
    assert (rows[0][SLOTS - 1], rows[2][PID]) == (0, os.getpid())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_counts_into_the_same_memory() -> None:
    store = MetricsStore(2)
    child = os.fork()
    if not child:
        try:
            row = store.take(1)
            row[COLD_READS] += 7
            row[IN_FLIGHT] += 1
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.take(0)[COLD_READS] += 1
    assert store.totals()[COLD_READS] == 8
    assert store.rows[1][PID] == child
    assert abs(store.rows[1][STARTED] - time.time()) < 60


def test_a_successor_goes_on_counting_but_for_gauges() -> None:
    store = MetricsStore(2)
    for number in range(2):
        row = store.take(number)
        row[COLD_READS] = row[IN_FLIGHT] = row[OPEN[listener_kind.Kind.HTTPS]] = row[OPEN_TLS[Offload.DEVICE]] = 4
    assert value(store, "ktlsd_worker_restarts_total") == 0
    row = store.take(1)
    row[COLD_READS] += 1
    assert value(store, "ktlsd_worker_restarts_total") == 1
    assert value(store, "ktlsd_cold_reads_total") == 9
    assert value(store, "ktlsd_requests_in_flight") == 4
    assert value(store, "ktlsd_open_connections", listener="https") == 4
    assert value(store, "ktlsd_open_tls_connections", tx="device") == 4
    store.take(1)
    assert value(store, "ktlsd_worker_restarts_total") == 2


def test_a_gauge_goes_back_after_an_error() -> None:
    row = MetricsStore(1).take(0)
    seen = []
    with contextlib.suppress(ValueError), counted(row, IN_FLIGHT), counted(row, IN_FLIGHT):
        seen.append(row[IN_FLIGHT])
        raise ValueError
    assert [*seen, row[IN_FLIGHT]] == [2, 0]


# --- handshakes


@pytest.mark.parametrize(
    ("protocol", "cipher", "counted_as"),
    [
        ("TLSv1.3", "TLS_AES_256_GCM_SHA384", ("TLSv1.3", "TLS_AES_256_GCM_SHA384")),
        ("TLSv1.2", "ECDHE-RSA-AES128-SHA256", ("TLSv1.2", "ECDHE-RSA-AES128-SHA256")),
        ("TLSv1.3", "TLS_SM4_GCM_SM3", ("TLSv1.3", OTHER)),
        ("TLSv1.2", "TLS_AES_128_GCM_SHA256", ("TLSv1.2", OTHER)),
        ("TLSv1.4", "TLS_AES_128_GCM_SHA256", (OTHER, OTHER)),
    ],
)
@pytest.mark.parametrize(("tx", "rx"), [(SOFTWARE, NO_KTLS), (NO_KTLS, NO_KTLS), (SOFTWARE, SOFTWARE)])
def test_handshakes_by_what_they_settled(
    protocol: str, cipher: str, counted_as: tuple[str, str], tx: KtlsPath, rx: KtlsPath
) -> None:
    store = MetricsStore(1)
    count_handshake(store.take(0), 0.5, shake(protocol, cipher), tx, rx)
    found = samples(store)
    settled = [(dict(labels), number) for (name, labels), number in found.items() if name.startswith("ktlsd_tls_")]
    expected = {"protocol": counted_as[0], "cipher": counted_as[1], "tx": tx.offload.value, "rx": rx.offload.value}
    assert settled == [(expected, 1)]
    fallbacks = {labels: number for (name, labels), number in found.items() if "fallbacks" in name and number}
    assert fallbacks == {
        frozenset({("direction", direction), ("reason", "no_ulp")}): 1
        for direction, path in (("tx", tx), ("rx", rx))
        if path is NO_KTLS
    }


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(BUCKETS) | st.floats(0, 20), max_size=30))
def test_the_histogram_is_cumulative(seconds: list[float]) -> None:
    store = MetricsStore(2)
    rows = [store.take(number) for number in range(2)]
    for number, one in enumerate(seconds):
        count_handshake(rows[number % 2], one, shake(), SOFTWARE, SOFTWARE)
    found = samples(store)
    for bound in (*BUCKETS, float("inf")):
        text = "+Inf" if bound == float("inf") else str(bound)
        expected = sum(one <= bound for one in seconds)
        assert found["ktlsd_handshake_seconds_bucket", frozenset({("le", text)})] == expected
    assert found["ktlsd_handshake_seconds_count", frozenset()] == len(seconds)
    assert found["ktlsd_handshake_seconds_sum", frozenset()] == pytest.approx(sum(seconds), abs=1e-6)


# --- responses


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(SIZE_BUCKETS) | st.integers(0, 1 << 36), max_size=30))
def test_sizes_by_protocol(sizes: list[int]) -> None:
    store = MetricsStore(2)
    for number, size in enumerate(sizes):
        for version in HttpVersion:
            ResponseCounts(store.rows[number % 2], version).count(
                time.monotonic(), (size,) * (1 + (version is HTTP_2)), ()
            )
    found = samples(store)
    for version, times in ((HttpVersion.HTTP_1, 1), (HTTP_2, 2)):
        for bound in (*map(float, SIZE_BUCKETS), float("inf")):
            labels = {"protocol": version.value, "le": "+Inf" if bound == float("inf") else str(bound)}
            expected = times * sum(one <= bound for one in sizes)
            assert found["ktlsd_response_size_bytes_bucket", frozenset(labels.items())] == expected
        of = frozenset({("protocol", version.value)})
        assert found["ktlsd_response_size_bytes_sum", of] == times * sum(sizes)
        assert found["ktlsd_response_size_bytes_count", of] == times * len(sizes)
        assert found["ktlsd_request_duration_seconds_count", of] == times * len(sizes)


def test_durations_of_a_batch_and_of_single_responses() -> None:
    store = MetricsStore(1)
    counts = ResponseCounts(store.take(0), HTTP_2)
    counts.end_batch(time.monotonic() - 500)
    counts.at_once += [10, 20, 30]
    counts.end_batch(time.monotonic() - 7)
    counts.end_batch(time.monotonic() - 500)
    counts.count(time.monotonic() - 100, [5], [3])
    found = samples(store)
    protocol = ("protocol", "HTTP/2")

    def up_to(bound: str) -> float:
        return found["ktlsd_request_duration_seconds_bucket", frozenset({protocol, ("le", bound)})]

    assert [up_to(bound) for bound in ("5.0", "10.0", "60.0", "300.0", "+Inf")] == [0, 3, 3, 4, 4]
    assert 121 <= found["ktlsd_request_duration_seconds_sum", frozenset({protocol})] < 125
    assert found["ktlsd_response_size_bytes_sum", frozenset({protocol})] == 65


# --- sites


def test_requests_by_site() -> None:
    store = MetricsStore(2)
    one, two = store.sites.number("one.example"), store.sites.number("two.example")
    assert (store.sites.number("one.example"), one, two) == (one, 1, 2)
    for row in map(store.take, range(2)):
        counts = ResponseCounts(row, HTTP_2)
        counts.at_once.append(5)
        counts.end_batch(time.monotonic())
        counts.count_sites()
        assert counts.by_site is not None
        for site, status in ((one, 200), (one, 404), (two, 500), (NO_SITE, 400)):
            counts.by_site.begin(site, status)
        counts.at_once += [1, 2, 3]
        counts.sites_at_once += [one, one, two]
        counts.end_batch(time.monotonic() - 0.05)
        counts.count(time.monotonic() - 100, (1,), (two,))
    found = samples(store)

    def value_of(name: str, of: str, **labels: str) -> float | None:
        named = {"site": of, "protocol": "HTTP/2", **labels}
        return found.get((f"ktlsd_site_{name}", frozenset(named.items())))

    begun = {("one.example", "2xx"): 2, ("one.example", "4xx"): 2, ("two.example", "5xx"): 2, ("none", "4xx"): 2}
    for (site_name, group), number in begun.items():
        assert value_of("requests_total", site_name, **{"class": group}) == number
    assert sum(name == "ktlsd_site_requests_total" for name, _ in found) == len(begun)
    for label, values in (("one.example", (0, 4, 4, 4)), ("two.example", (0, 2, 2, 4))):
        bounds = ("0.025", "0.1", "60.0", "+Inf")
        assert tuple(value_of("request_duration_seconds_bucket", label, le=bound) for bound in bounds) == values
    assert 200 < (value_of("request_duration_seconds_sum", "two.example") or 0) < 205
    assert value_of("request_duration_seconds_count", "none") is None
    rows = next(table.rows for table in snapshot(View(store, (), ready=True)).tables if table.name == "sites")
    assert rows == [
        ("one.example", "HTTP/2", "4", "0", "100 ms", "100 ms", "100 ms"),
        ("two.example", "HTTP/2", "4", "2", "100 ms", "over a minute", "over a minute"),
    ]


def test_a_site_alone_is_not_counted_by_site() -> None:
    store = MetricsStore(1)
    ResponseCounts(store.take(0), HTTP_2).count(time.monotonic(), (1,), (store.sites.number("default"),))
    assert not [name for name, _ in samples(store) if name.startswith("ktlsd_site_")]
    assert "sites" not in [table.name for table in snapshot(View(store, (), ready=True)).tables]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_number_of_sites_is_bounded_and_only_the_first_process_names_them() -> None:
    names = SiteNames()
    assert [names.number(f"{number}.example") for number in range(MOST_SITES - 1)] == [*range(1, MOST_SITES)]
    child = os.fork()
    if child == 0:
        os._exit(not (names.number("new.example") == OTHER_SITE and names.number("0.example") == 1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert names.number("x" * 300) == OTHER_SITE
    assert [names.number(name) for name in ("last.example", "more.example")] == [MOST_SITES, OTHER_SITE]
    labels = names.labels()
    assert [labels[place] for place in (NO_SITE, 1, MOST_SITES, OTHER_SITE)] == [
        "none",
        "0.example",
        "last.example",
        "other",
    ]


# --- processes


def test_figures_of_processes() -> None:
    """Descriptors, memory and processor time of this process and of a child, which is counted on once it has ended."""
    quiet = figures_of_all(os.getpid(), ())
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    memory = mmap.mmap(-1, 1 << 24)
    memory.write(bytes(len(memory)))
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alone, both = (figures_of_all(os.getpid(), pids) for pids in ((), (child.pid, os.getpid())))
        assert alone.open_files is not None
        assert quiet.open_files is not None
        assert both.open_files is not None
        assert both.most_files is not None
        assert quiet.open_files + 10 <= alone.open_files < both.open_files
        assert alone.resident_bytes - quiet.resident_bytes > (1 << 23)
        assert both.resident_bytes > alone.resident_bytes
        assert both.virtual_bytes > both.resident_bytes
        assert both.cpu_seconds >= alone.cpu_seconds + 0.28
        assert both.most_files == 2 * (alone.most_files or 0)
    memory.close()
    for number in held:
        os.close(number)
    after = figures_of_all(os.getpid(), (child.pid,))
    assert after.cpu_seconds >= both.cpu_seconds - 0.02
    assert after.virtual_bytes < both.virtual_bytes


# --- the text


def test_both_formats_say_the_same() -> None:
    store = MetricsStore(2)
    for number, place in itertools.product(range(2), range(2, SLOTS)):
        store.rows[number][place] = place * (number + 1)
    store.rows[0][PID] = store.rows[1][PID] = os.getpid()
    media_type, text = render(store, (VALIDITY,), "")
    assert media_type.startswith("text/plain; version=0.0.4")
    open_type, open_text = render(store, (VALIDITY,), "application/openmetrics-text; version=1.0.0")
    assert open_type.startswith("application/openmetrics-text")
    plain, modern = (
        {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}
        for families in (parse_text(text.decode()), read_openmetrics(open_text.decode()))
    )
    assert plain.keys() == modern.keys()
    changing = ("process_cpu", "process_resident", "process_virtual", "process_open")
    assert all(plain[key] == modern[key] or key[0].startswith(changing) for key in plain)
    # The counts of five histograms, the workers, two of certificates, the versions, six of processes.
    assert len(plain) == SLOTS - 3 + 5 + 1 + 2 + 1 + 6


def test_every_family_has_help_and_a_type_and_stands_together() -> None:
    _, text = render(MetricsStore(1), (VALIDITY,), "")
    helped = re.findall(r"^# HELP (\S+) \S.*\.$", text.decode(), re.MULTILINE)
    typed = re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram)$", text.decode(), re.MULTILINE)
    assert helped == typed
    assert len(set(helped)) == len(helped) == len(METRICS) + 4 + len(PROCESS_METRICS)


def test_series_that_never_occurred_are_left_out_where_most_never_occur() -> None:
    store = MetricsStore(1)
    names = [name for name, _ in samples(store)]
    assert "ktlsd_requests_total" not in names
    assert "ktlsd_tls_connections_total" not in names
    assert names.count("ktlsd_ktls_fallbacks_total") == 2 * len(Reason)
    for place in range(2, SLOTS):
        store.rows[0][place] = 1
    assert [name for name, _ in samples(store)].count("ktlsd_requests_total") == 2 * (len(HTTPStatus) + 1)


def test_certificates_with_strange_names() -> None:
    labels = frozenset({("site", VALIDITY.site), ("file", VALIDITY.file)})
    assert samples(MetricsStore(1), VALIDITY)["ktlsd_certificate_expiry_timestamp_seconds", labels] == VALIDITY.ends


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ((), {("", "true"): 0.0}),
        ((FAULT,), {("b.example", "false"): 1.0}),
        (
            (FAULT, FAULT._replace(file="/b.key"), FAULT._replace(served=True, site="a")),
            {("b.example", "false"): 2.0, ("a", "true"): 1.0},
        ),
    ],
)
def test_certificates_that_cannot_be_used_are_counted(
    faults: tuple[Fault, ...], expected: dict[tuple[str, str], float]
) -> None:
    _, text = render(MetricsStore(1), (), "", faults)
    families = {family.name: family for family in parse_text(text.decode())}
    found = families["ktlsd_unusable_certificates"].samples
    assert {(sample.labels["site"], sample.labels["served"]): sample.value for sample in found} == expected


def test_the_status_page_shows_certificates_that_cannot_be_used() -> None:
    shown = snapshot(View(MetricsStore(1), (VALIDITY,), ready=True, faults=(FAULT,)))
    rows = next(table.rows for table in shown.tables if table.name == "certificates")
    assert [row[:2] for row in rows] == [(VALIDITY.site, VALIDITY.file), ("b.example", "/b.pem")]
    assert rows[1][2] == "cannot be used: see the log"


# --- answers


def ask(target: str, method: str = "GET", host: str = "localhost", *, ready: bool = True) -> tuple[int, str, bytes]:
    reply = answer(Asked(method, target, host, ""), View(MetricsStore(1), (VALIDITY,), ready), "metrics.example")
    assert dict(reply.fields())["Content-Length"] == str(len(reply.body))
    return reply.status.value, reply.media_type, reply.body


@pytest.mark.parametrize(
    ("target", "method", "status", "begins"),
    [
        ("/metrics", "GET", 200, b"# HELP "),
        ("/metrics?x=y", "GET", 200, b"# HELP "),
        ("/healthz", "GET", 200, b"ok\n"),
        ("/healthz", "HEAD", 200, b"ok\n"),
        ("/readyz", "GET", 200, b"ready\n"),
        ("/", "GET", 200, b"<!doctype html>"),
        ("/status.json", "GET", 200, b"{"),
        ("/", "POST", 405, b"405 Method Not Allowed: "),
        ("/metrics", "OPTIONS", 405, b"405 "),
        ("/nothing", "GET", 404, b"404 Not Found: "),
        ("/nothing", "POST", 404, b"404 "),
        ("//", "GET", 404, b"404 "),
        ("/metrics/", "GET", 404, b"404 "),
        ("*", "OPTIONS", 404, b"404 "),
        ("http://localhost/metrics", "GET", 404, b"404 "),
        ("/../etc/passwd", "GET", 404, b"404 "),
    ],
)
def test_targets(target: str, method: str, status: int, begins: bytes) -> None:
    found, media_type, body = ask(target, method)
    assert (found, body[: len(begins)]) == (status, begins)
    assert media_type.startswith("text/plain") == (target not in ("/", "/status.json") or status != 200)


def test_readiness_ends_with_draining_but_life_does_not() -> None:
    assert ask("/readyz", ready=False)[0] == 503
    assert ask("/healthz", ready=False)[0] == 200
    assert b"Draining" in ask("/", ready=False)[2]


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("", True),
        ("localhost", True),
        ("LOCALHOST:9090", True),
        ("localhost.", True),
        ("a.localhost:9090", True),
        ("127.0.0.1:9090", True),
        ("[::1]:9090", True),
        ("[::1]", True),
        ("192.0.2.1", True),
        ("metrics.example:9090", True),
        ("evil.example", False),
        ("evil.example:9090", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("xlocalhost", False),
        ("metrics.example.evil", False),
    ],
)
def test_names_of_others_are_refused(host: str, own: bool) -> None:
    assert is_own(host, "metrics.example") is own
    assert ask("/metrics", host=host)[0] == (200 if own else 421)


@pytest.mark.parametrize(
    "host", ["[::1].evil", "[1]", "[1.2.3.4]", "127.0.0.1]", "[127.0.0.1", "a%", "localhost:x", "a b", "::1"]
)
@pytest.mark.parametrize("own_name", ["metrics.example", None])
def test_what_is_no_host_is_refused(host: str, own_name: str | None) -> None:
    reply = answer(Asked("GET", "/metrics", host, ""), View(MetricsStore(1), (), ready=True), own_name)
    assert reply.status == 400
    assert not is_own(host, "metrics.example")


def test_every_name_will_do_where_none_is_its_own() -> None:
    reply = answer(Asked("GET", "/healthz", "evil.example", ""), View(MetricsStore(1), (), ready=True), None)
    assert reply.status == 200


# --- the status page


def test_page_and_script_get_the_same_texts() -> None:
    store = MetricsStore(2)
    for number, place in itertools.product(range(2), range(2, SLOTS)):
        store.rows[number][place] = 1000 * place
        store.rows[number][PID] = 1000 + number
    view = View(store, (VALIDITY,), ready=True)
    document = json.loads(render_json(view))
    page = unescape(render_html(view).decode())
    for name, text in document["figures"].items():
        assert f'<dd id="{name}">{text}</dd>' in page
    for name, rows in document["tables"].items():
        body = page.partition(f'<tbody id="{name}">')[2].partition("</tbody>")[0]
        assert body.count("<tr>") == len(rows) > 0
        if name != "workers":
            assert re.findall(r"<td[^>]*>(.*?)</td>", body, re.DOTALL) == [text for row in rows for text in row]


def test_no_name_is_markup_on_the_page() -> None:
    page = render_html(View(MetricsStore(1), (Validity("<script>alert(1)", "<img src=x>", 0, 0),), ready=True))
    assert page.count(b"<script>") == 1
    assert b"<img" not in page


def test_the_page_of_a_new_server() -> None:
    store = MetricsStore(1)
    row = store.take(0)
    shown = snapshot(View(store, (), ready=True))
    assert {name: text for name, _, text in shown.figures} == {
        "connections": "0",
        "flight": "0",
        "requests": "0",
        "sent": "0 B",
        "share": "none of 0",
        "failures": "0",
        "cold": "0",
        "restarts": "0",
        "uptime": "00:00:00",
        "expires": "\u2013",
    }
    count_handshake(row, 0.1, shake(), SOFTWARE, NO_KTLS)
    for _ in range(2):
        count_handshake(row, 0.1, shake(), NO_KTLS, NO_KTLS)
    row[OPEN_TLS[Offload.NONE]], row[OPEN_TLS[Offload.SOFTWARE]], row[OPEN[listener_kind.Kind.HTTPS]] = 3, 2, 6
    row[ACCEPTED[listener_kind.Kind.HTTPS]] = 9
    shown = snapshot(View(store, (), ready=True))
    assert {name: text for name, _, text in shown.figures}["share"] == "33 % of 3"
    assert (shown.numbers["tls"], shown.numbers["ktls"], shown.numbers["connections"]) == (5, 2, 6)
    fallbacks = next(table.rows for table in shown.tables if table.name == "fallbacks")
    assert fallbacks == [("TX", Reason.NO_ULP.value, "2"), ("RX", Reason.NO_ULP.value, "3")]


def test_times_of_requests_by_protocol() -> None:
    store = MetricsStore(1)
    bounds = slots_of("ktlsd_request_duration_seconds", HttpVersion.HTTP_2.value)
    for bucket, count in ((0, 60), (3, 38), (len(DURATION_BUCKETS), 2)):
        store.rows[0][bounds.first + bucket] = count
    shown = snapshot(View(store, (), ready=True))
    latency = next(table.rows for table in shown.tables if table.name == "latency")
    assert latency == [
        ("HTTP/1.1", "0", *("\u2013",) * 3),
        ("HTTP/2", "100", "0.1 ms", "1 ms", "over an hour"),
    ]


@pytest.mark.parametrize(("left", "shown"), [(86400 * 30 + 5, "30 days"), (86405, "1 day"), (-5, "expired")])
def test_the_first_certificate_to_expire(left: int, shown: str) -> None:
    ends = (int(time.time()) + left, int(time.time()) + left + 10**7)
    validities = tuple(Validity("a", "b", 0, end) for end in ends)
    figures = snapshot(View(MetricsStore(1), validities, ready=True)).figures
    assert {name: text for name, _, text in figures}["expires"] == shown


# --- the documents


SITE_METRICS = (site_counts.REQUESTS, site_counts.DURATIONS)
PROCESS_METRICS = {
    "process_cpu_seconds_total": "counter",
    "process_resident_memory_bytes": "gauge",
    "process_virtual_memory_bytes": "gauge",
    "process_open_fds": "gauge",
    "process_max_fds": "gauge",
    "process_start_time_seconds": "gauge",
}


def exposed() -> dict[str, set[str]]:
    """Every name in the output, those of a histogram's parts too, and the labels of each."""
    store = MetricsStore(1)
    for place in range(2, len(store.rows[0])):
        store.rows[0][place] = 1
    store.sites.number("www.example.test")
    found: dict[str, set[str]] = {}
    for name, labels in samples(store, VALIDITY):
        found.setdefault(name, set()).update(label for label, _ in labels)
    return found


def test_every_metric_is_described() -> None:
    rows = re.findall(r"^\| `((?:ktlsd|process)_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT, re.MULTILINE)
    described = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    families = {metric.name: (metric.kind.value, set(metric.labels)) for metric in (*METRICS, *SITE_METRICS)}
    families["ktlsd_workers"] = ("gauge", set())
    families["ktlsd_certificate_expiry_timestamp_seconds"] = ("gauge", {"site", "file"})
    families["ktlsd_unusable_certificates"] = ("gauge", {"site", "served"})
    families["ktlsd_build_info"] = ("gauge", {"version", "openssl", "python"})
    families.update((name, (kind, set())) for name, kind in PROCESS_METRICS.items())
    families["ktlsd_acme_failures"] = families["ktlsd_acme_renewal_timestamp_seconds"] = ("gauge", {"certificate"})
    assert described == families


def test_every_value_of_a_label_is_described() -> None:
    for metric in METRICS:
        if not metric.sparse and metric.kind is not Kind.HISTOGRAM:
            for text in {text for values in metric.series for text in values}:
                assert f"`{text}`" in DOCUMENT, text


def queries() -> list[str]:
    alerts = re.findall(
        r"^ +expr: (?:>-\n)?((?:.+\n)+?)(?= +(?:for|labels):)", ALERTS.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(alerts) == ALERTS.read_text(encoding="utf-8").count("- alert: ")
    return alerts + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("query", queries())
def test_queries_name_what_there_is(query: str) -> None:
    there = exposed()
    names = set(re.findall(r"\b(?:ktlsd|process)_\w+", query))
    assert names <= there.keys()
    if "up{" not in query:
        assert names
    text = re.sub(r'"[^"]*"', "", query)
    assert all(text.count(left) == text.count(right) for left, right in ("()", "{}", "[]"))
    allowed = {"instance", "job"}.union(*(there[name] for name in names))
    for selector in re.findall(r"{([^}]*)}", query):
        assert set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', selector)) <= allowed
    for grouping in re.findall(r"by \(([^)]*)\)", query):
        assert set(re.split(r",\s*", grouping)) <= allowed


def test_every_alert_is_described() -> None:
    described = re.findall(r"^\| (`Ktlsd\w+`(?:, `Ktlsd\w+`)*) \| (\w+(?:, \w+)*) \|", DOCUMENT, re.MULTILINE)
    pairs = [pair for names, kinds in described for pair in zip(names.split(", "), kinds.split(", "), strict=True)]
    found = re.findall(r"- alert: (\w+)\n(?:.*\n)*?          severity: (\w+)", ALERTS.read_text(encoding="utf-8"))
    assert pairs == [(f"`{name}`", severity) for name, severity in found]


def test_promtool_accepts_the_alerts_and_each_fires_when_it_should() -> None:
    subprocess.run(["promtool", "check", "rules", ALERTS], check=True)
    subprocess.run(["promtool", "test", "rules", Path(__file__).with_name("alerts_test.yml")], check=True)


def test_the_dashboard_has_every_metric_and_fits_together() -> None:
    text = json.dumps([panel["targets"] for panel in DASHBOARD["panels"]])
    for metric in (*METRICS, *SITE_METRICS):
        assert metric.name in text
    for name in (
        "ktlsd_build_info",
        *PROCESS_METRICS.keys() - {"process_virtual_memory_bytes", "process_start_time_seconds"},
    ):
        assert name in text
    assert "ktlsd_workers" in text
    assert "ktlsd_certificate_expiry_timestamp_seconds" in text
    assert "ktlsd_unusable_certificates" in text
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 36
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert taken.isdisjoint(cells)
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
