"""The outcome as data and as a Markdown table: medians, ratios with their spread, and targets.

Strategy: ratios are taken within a round and then summed up, so that what slows the whole machine down for a while
touches both sides of a ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, Final

from bench.metrics import METRICS, ratio
from bench.rows import Limit
from bench.run import Plan, Result, RowResult
from bench.wire import CIPHER

HEADINGS: Final = (
    *("work", "workers", "metric", "ktlsd", "peer", "its figure", "ratio: min", "median", "max"),
    *("at least", "aim", "reached"),
)


def ratios(outcome: RowResult, peer: str, metric: str) -> list[float]:
    """The row's subject over the peer in each round, turned so that more than 1 is better for ktlsd."""
    pairs = zip(outcome.samples.get(outcome.row.subject, []), outcome.samples.get(peer, []), strict=False)
    found = (ratio(metric, ours[metric], theirs[metric]) for ours, theirs in pairs)
    return [one for one in found if one is not None]


def summary(figures: list[float]) -> dict[str, float] | None:
    if not figures:
        return None
    return {"min": min(figures), "median": statistics.median(figures), "max": max(figures)}


def median(outcome: RowResult, peer: str, metric: str) -> float | None:
    figures = [sample[metric] for sample in outcome.samples.get(peer, [])]
    return statistics.median(figures) if figures else None


def metrics_of(outcome: RowResult) -> list[str]:
    return [name for name in METRICS if any(name in samples[0] for samples in outcome.samples.values())]


def verdict(outcome: RowResult, limit: Limit) -> bool | None:
    """True if the target is met; None if a figure is missing."""
    if limit.peer is not None:
        spread = summary(ratios(outcome, limit.peer, limit.metric))
        return None if spread is None else spread["median"] >= limit.value
    own = median(outcome, outcome.row.subject, limit.metric)
    if own is None:
        return None
    return own >= limit.value if METRICS[limit.metric].more_is_better else own <= limit.value


def as_data(plan: Plan, result: Result) -> dict[str, Any]:
    """All that the plot and any later reader needs, as JSON knows it."""
    return {
        "machine": result.machine,
        "cipher": CIPHER,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "versions": result.versions,
        "missing": result.missing,
        "rows": [_row_data(outcome) for outcome in result.rows],
    }


def _row_data(outcome: RowResult) -> dict[str, Any]:
    row = outcome.row
    peers = [peer for peer in outcome.samples if peer != outcome.row.subject]
    return {
        "name": row.name,
        "work": row.work,
        "setting": str(row.setting),
        "subject": row.subject,
        "workers": outcome.workers,
        "load": outcome.load,
        "samples": outcome.samples,
        "missing": outcome.missing,
        "ratios": {
            metric: {peer: spread for peer in peers if (spread := summary(ratios(outcome, peer, metric)))}
            for metric in metrics_of(outcome)
            if METRICS[metric].compared
        },
        "limits": [
            {
                "kind": kind,
                "metric": limit.metric,
                "peer": limit.peer,
                "value": limit.value,
                "kept": verdict(outcome, limit),
            }
            for kind, limits in (("at least", row.at_least), ("aim", row.aim))
            for limit in limits
        ],
    }


def as_markdown(plan: Plan, result: Result) -> str:
    """The table, what fell short, who is missing and where it ran."""
    parts = [
        f"{plan.rounds} rounds of {plan.seconds} s after a warm-up, the servers in turn in each; TLS 1.3, {CIPHER}, "
        "ECDSA P-256. A ratio above 1 is better for ktlsd.",
        _table(HEADINGS, [line for outcome in result.rows for line in _lines(outcome)]),
        _section("Fell short", [text for outcome in result.rows for text in shortfalls(outcome)] or ["Nothing."]),
        _section("Missing", list(_missing(result)) or ["Nobody."]),
        _section("Versions", [f"{name} {version}" for name, version in result.versions.items()]),
        _section("Machine", [f"{name}: {value}" for name, value in result.machine.items()]),
    ]
    return "\n".join(parts)


def shortfalls(outcome: RowResult) -> list[str]:
    """One line for each "at least" that is not kept or has no result."""
    lines = []
    for limit in outcome.row.at_least:
        kept = verdict(outcome, limit)
        if not kept:
            state = "cannot be told" if kept is None else f"not reached ({_reached(outcome, limit)})"
            where = f"{outcome.row.work} ({outcome.row.setting}, {outcome.workers} workers)"
            lines.append(f"{where}: {limit.metric} {_limit(limit)}: {state}")
    return lines


def _reached(outcome: RowResult, limit: Limit) -> str:
    if limit.peer is None:
        own = median(outcome, outcome.row.subject, limit.metric)
        return "" if own is None else _figure(limit.metric, own)
    spread = summary(ratios(outcome, limit.peer, limit.metric))
    return f"{spread['median']:.2f}x" if spread else ""


def _limit(limit: Limit) -> str:
    if limit.peer is not None:
        return f"{limit.value:g}x {limit.peer}"
    return f"{'≥' if METRICS[limit.metric].more_is_better else '≤'} {limit.value:g}"


def _figure(metric: str, value: float) -> str:
    return f"{value:,.{METRICS[metric].digits}f} {METRICS[metric].unit}"


def _lines(outcome: RowResult) -> Iterator[tuple[str, ...]]:
    work = f"{outcome.row.work} ({outcome.row.setting})"
    for metric in metrics_of(outcome):
        own = median(outcome, outcome.row.subject, metric)
        ours = _figure(metric, own) if own is not None else "missing"
        limits = [
            (kind, limit)
            for kind, found in (("at least", outcome.row.at_least), ("aim", outcome.row.aim))
            for limit in found
            if limit.metric == metric
        ]
        peers = [peer for peer in outcome.samples if peer != outcome.row.subject]
        for peer in (None, *peers):
            mine = {kind: limit for kind, limit in limits if limit.peer == peer}
            if peer is None and not mine and peers:
                continue
            theirs = median(outcome, peer, metric) if peer else None
            spread = summary(ratios(outcome, peer, metric)) if peer and METRICS[metric].compared else None
            yield (
                work,
                str(outcome.workers),
                metric,
                ours,
                peer or "",
                _figure(metric, theirs) if theirs is not None else "",
                *(f"{spread[key]:.2f}" if spread else "" for key in ("min", "median", "max")),
                *(_limit(mine[kind]) if kind in mine else "" for kind in ("at least", "aim")),
                ", ".join(f"{kind}: {_word(verdict(outcome, limit))}" for kind, limit in mine.items()),
            )


def _word(kept: bool | None) -> str:
    return {True: "yes", False: "no", None: "cannot be told"}[kept]


def _missing(result: Result) -> Iterator[str]:
    yield from (f"{name}: {reason}" for name, reason in result.missing.items())
    for outcome in result.rows:
        for name, reason in outcome.missing.items():
            yield f"{name} in {outcome.row.name} ({outcome.row.setting}, {outcome.workers} workers): {reason}"


def _table(headings: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [headings, ("---",) * len(headings), *lines]
    return "\n" + "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "".join(f"- {line}\n" for line in lines)
