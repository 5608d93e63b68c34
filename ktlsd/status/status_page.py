"""The status page: the figures of ktlsd, as a page for people and as JSON for its script: pure.

Strategy: one snapshot holds every figure as text, and the few numbers that the script plots; the page is a snapshot
written out, readable without the script, which later fills in the texts of newer ones.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktlsd import __version__
from ktlsd.metrics import site_counts
from ktlsd.metrics.metrics import (
    BY_NAME,
    OPEN_TLS,
    PID,
    SEND,
    SENDFILE,
    STARTED,
    USER_SPACE,
    Histogram,
    MetricsStore,
    Series,
    histograms,
    series,
    total,
)
from ktlsd.site.listing import human_size
from ktlsd.site.page_assets import asset, head, policy, source
from ktlsd.tls.ktls import Offload, Reason
from ktlsd.tls.pairs import Fault, Validity

if TYPE_CHECKING:
    from ktlsd.acme.plan import Record

_BODY, _SCRIPT = map(asset, ("status.html", "status.js"))
_STYLE: Final = asset("theme.css") + asset("status.css")
_DAY: Final = 86400
_REASONS: Final = {reason.name.lower(): reason.value for reason in Reason}
_PATHS: Final = (
    ("From the page cache, by sendfile", SENDFILE),
    ("From memory, by send", SEND),
    ("Encrypted in user space", USER_SPACE),
)


@dataclass(frozen=True, slots=True)
class View:
    """The present figures."""

    store: MetricsStore
    validities: tuple[Validity, ...]
    ready: bool
    faults: tuple[Fault, ...] = ()
    orders: Sequence[tuple[str, Record]] = ()
    """The certificates by ACME, by their first names."""
    openssl: str = ""
    """The version of OpenSSL."""


class Table(NamedTuple):
    """Texts in rows; the last `numeric` columns are numbers."""

    name: str
    title: str
    columns: tuple[str, ...]
    numeric: int
    rows: list[tuple[str, ...]]


class Snapshot(NamedTuple):
    """All that the page shows."""

    ready: bool
    figures: tuple[tuple[str, str, str], ...]
    """Name, title and text of each."""
    tables: tuple[Table, ...]
    numbers: dict[str, float]
    """The plotted numbers: totals since the start, and gauges."""


POLICY: Final = policy(
    f"style-src {source(_STYLE)}", f"script-src {source(_SCRIPT)}", "connect-src 'self'", "img-src data:"
)
"""The page's Content-Security-Policy."""


def snapshot(view: View) -> Snapshot:
    """The page's figures at the current time."""
    totals = view.store.totals()
    now = time.time()

    def of(name: str) -> list[Series]:
        return series(BY_NAME[name], totals)

    negotiated = of("ktlsd_tls_connections_total")
    by_kernel = sum(number.value for number in negotiated if number.labels[2] != Offload.NONE.name.lower())
    handshakes = sum(number.value for number in negotiated)
    by_nic = sum(number.value for number in negotiated if number.labels[2] == Offload.DEVICE.name.lower())
    nic = f", {_percent(by_nic, handshakes)} by a NIC" if by_nic else ""
    open_tls = {offload: totals[place] for offload, place in OPEN_TLS.items()}
    numbers = {
        "time": now,
        "connections": total("ktlsd_open_connections", totals),
        "tls": sum(open_tls.values()),
        "ktls": sum(open_tls.values()) - open_tls[Offload.NONE],
        "requests": total("ktlsd_requests_total", totals),
        "sendfile": totals[SENDFILE],
        "send": totals[SEND],
        "user_space": totals[USER_SPACE],
    }
    figures = (
        ("connections", "Open connections", f"{numbers['connections']:,}"),
        ("flight", "Requests in flight", f"{total('ktlsd_requests_in_flight', totals):,}"),
        ("requests", "Requests", f"{numbers['requests']:,}"),
        ("sent", "Sent", human_size(total("ktlsd_sent_bytes_total", totals))),
        ("share", "TLS connections with kTLS", f"{_percent(by_kernel, handshakes)}{nic} of {handshakes:,}"),
        ("failures", "Failed handshakes", f"{total('ktlsd_handshake_failures_total', totals):,}"),
        ("cold", "Cold reads", f"{total('ktlsd_cold_reads_total', totals):,}"),
        ("restarts", "Worker restarts", f"{total('ktlsd_worker_restarts_total', totals):,}"),
        ("uptime", "Uptime", _duration(int(now - view.store.started))),
        ("expires", "Certificate expires in", _first_end(view.validities, now)),
    )
    sent = sum(totals[place] for _, place in _PATHS)
    tables: tuple[Table, ...] = (
        Table(
            "paths",
            "TLS connections",
            ("Protocol", "Cipher", "Sends (TX)", "Receives (RX)", "Connections"),
            1,
            [(*number.labels[:2], *map(_by_path, number.labels[2:]), f"{number.value:,}") for number in negotiated],
        ),
        Table(
            "fallbacks",
            "Not offloaded, by reason",
            ("Direction", "Reason", "Connections"),
            1,
            [
                (direction.upper(), _REASONS[reason], f"{value:,}")
                for (direction, reason), value in of("ktlsd_ktls_fallbacks_total")
                if value
            ],
        ),
        Table(
            "bytes",
            "Sent, by path",
            ("Path", "Bytes", "Share"),
            2,
            [(title, human_size(totals[place]), _percent(totals[place], sent)) for title, place in _PATHS],
        ),
        Table(
            "latency",
            "Requests by protocol",
            ("Protocol", "Requests", "50 % within", "95 % within", "99 % within"),
            4,
            [_latency(found) for found in histograms(BY_NAME["ktlsd_request_duration_seconds"], totals)],
        ),
        *_by_site(view.store, totals),
        Table(
            "statuses",
            "Requests by protocol and status",
            ("Protocol", "Status", "Requests"),
            1,
            _counts(of("ktlsd_requests_total")),
        ),
        Table(
            "failed",
            "Failed handshakes, by reason",
            ("Reason", "Connections"),
            1,
            _counts(number for number in of("ktlsd_handshake_failures_total") if number.value),
        ),
        Table(
            "workers",
            "Workers",
            ("Worker", "Process", "Up for", "Open connections", "Requests", "Sent"),
            6,
            [_worker(number, row.tolist(), now) for number, row in enumerate(view.store.rows) if row[PID]],
        ),
        Table(
            "certificates",
            "Certificates",
            ("Site", "File", "Expires (UTC)", "Days left"),
            1,
            [
                *(_certificate(validity, now) for validity in view.validities),
                *((fault.site, fault.file, "cannot be used: see the log", "") for fault in view.faults),
            ],
        ),
    )
    if view.orders:
        from ktlsd.acme.words import state

        rows = [(name, state(record, now)) for name, record in view.orders]
        tables = (*tables, Table("orders", "Certificates by ACME", ("Certificate", "State"), 0, [*rows]))
    return Snapshot(view.ready, figures, tables, numbers)


def render_json(view: View) -> bytes:
    """A snapshot for the script: "numbers", "figures" by name, and "tables" by name as lists of rows of texts."""
    shown = snapshot(view)
    document: dict[str, Any] = {
        "state": _state(shown),
        "numbers": shown.numbers,
        "figures": {name: text for name, _, text in shown.figures},
        "tables": {table.name: table.rows for table in shown.tables},
    }
    return json.dumps(document).encode()


def render_html(view: View) -> bytes:
    """The page, with a snapshot in it."""
    shown = snapshot(view)
    figures = "".join(f'<div><dt>{title}</dt><dd id="{name}">{text}</dd></div>' for name, title, text in shown.figures)
    tables = "".join(map(_table, shown.tables))
    body = Template(_BODY).substitute(
        script=_SCRIPT, version=__version__, state=_state(shown), figures=figures, tables=tables
    )
    return (head("ktlsd status", _STYLE) + body).encode()


def _state(shown: Snapshot) -> str:
    return "Ready" if shown.ready else "Draining: no new connections"


def _table(table: Table) -> str:
    kinds = _kinds(table)
    heads = "".join(f'<th scope="col"{kind}>{column}</th>' for column, kind in zip(table.columns, kinds, strict=True))
    labels = [f'{kind} data-label="{column}"' for column, kind in zip(table.columns, kinds, strict=True)]
    rows = "".join(
        "<tr>" + "".join(f"<td{label}>{escape(text)}</td>" for text, label in zip(row, labels, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<section><h2 id="{table.name}-title">{table.title}</h2>'
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{table.name}-title">'
        f'<table aria-labelledby="{table.name}-title"><thead><tr>{heads}</tr></thead>'
        f'<tbody id="{table.name}">{rows}</tbody></table></div></section>\n'
    )


def _kinds(table: Table) -> Sequence[str]:
    texts = len(table.columns) - table.numeric
    return [""] * texts + [' class="number"'] * table.numeric


def _by_path(offload: str) -> str:
    """A side of a connection that the kernel does not encrypt is encrypted by OpenSSL."""
    return "user space" if offload == Offload.NONE.name.lower() else offload


def _by_site(store: MetricsStore, totals: Sequence[int]) -> tuple[Table, ...]:
    """The table of requests by site, if there are several."""
    labels = store.sites.labels()
    errors = {one.labels[:2]: one.value for one in site_counts.requests(labels, totals) if one.labels[2] == "5xx"}
    rows = []
    for found in site_counts.durations(labels, totals):
        shown = _latency(found, "over a minute")
        rows.append((*shown[:3], f"{errors.get(found.labels, 0):,}", *shown[3:]))
    columns = ("Site", "Protocol", "Requests", "Server errors", "50 % within", "95 % within", "99 % within")
    return (Table("sites", "Requests by site and protocol", columns, 5, rows),) if rows else ()


def _latency(found: Histogram, beyond: str = "over an hour") -> tuple[str, ...]:
    """`beyond` is the text for times above the largest bound."""
    count = sum(bucket.value for bucket in found.buckets)
    shares = (_quantile(found.buckets, share) for share in (0.5, 0.95, 0.99))
    return (*found.labels, f"{count:,}", *("\u2013" if bound is None else _seconds(bound, beyond) for bound in shares))


def _quantile(buckets: Sequence[Series], share: float) -> float | None:
    """The upper bound of the bucket that this share of all ends in, in seconds; None without any."""
    left = share * sum(bucket.value for bucket in buckets)
    if not left:
        return None
    for bucket in buckets:
        left -= bucket.value
        if left <= 0:
            return float(bucket.labels[-1])
    return math.inf


def _seconds(bound: float, beyond: str) -> str:
    if math.isinf(bound):
        return beyond
    return f"{bound * 1000:g} ms" if bound < 1 else f"{bound:g} s"


def _counts(numbers: Iterable[Series]) -> list[tuple[str, ...]]:
    return [(*number.labels, f"{number.value:,}") for number in numbers]


def _worker(number: int, row: list[int], now: float) -> tuple[str, ...]:
    return (
        str(number + 1),
        str(row[PID]),
        _duration(int(now) - row[STARTED]),
        f"{total('ktlsd_open_connections', row):,}",
        f"{total('ktlsd_requests_total', row):,}",
        human_size(total("ktlsd_sent_bytes_total", row)),
    )


def _certificate(validity: Validity, now: float) -> tuple[str, ...]:
    ends = time.strftime("%Y-%m-%d %H:%M", time.gmtime(validity.ends))
    return validity.site, validity.file, ends, f"{int(validity.ends - now) // _DAY:,}"


def _first_end(validities: Sequence[Validity], now: float) -> str:
    if not validities:
        return "\u2013"
    days = int(min(validity.ends for validity in validities) - now) // _DAY
    return f"{days:,} day{'s' if days != 1 else ''}" if days >= 0 else "expired"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "none"


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(max(seconds, 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{seconds:02}" if days else f"{hours:02}:{minutes:02}:{seconds:02}"
