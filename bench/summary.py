"""The table of docs/performance.md: `python -m bench.summary RESULTS.json...` prints it from one run or several.

Strategy: a line for each figure that is to reach something, from what a run wrote to results.json; all other figures
are in the run's own table.md.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.metrics import METRICS

HEADINGS: Final = (
    "work",
    "setting",
    "workers",
    "figure",
    "ktlsd",
    "compared",
    "median (min to max)",
    "at least",
    "aim",
)


def lines(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The lines of one run."""
    for row in results["rows"]:
        wanted: dict[tuple[str, str | None], dict[str, dict[str, Any]]] = {}
        for limit in row["limits"]:
            wanted.setdefault((limit["metric"], limit["peer"]), {})[limit["kind"]] = limit
        for (metric, peer), limits in wanted.items():
            own = [sample[metric] for sample in row["samples"].get(row.get("subject", "ktlsd"), ())]
            yield (
                row["work"],
                row["setting"],
                str(row["workers"]),
                metric,
                f"{statistics.median(own):,.{METRICS[metric].digits}f} {METRICS[metric].unit}" if own else "missing",
                peer or "",
                _spread(results, row, metric, peer, own),
                *(_reached(limits[kind], peer) if kind in limits else "" for kind in ("at least", "aim")),
            )


def _spread(results: dict[str, Any], row: dict[str, Any], metric: str, peer: str | None, own: list[float]) -> str:
    if peer is None:
        return f"({min(own):.3g} to {max(own):.3g})" if own else ""
    ratio = row["ratios"].get(metric, {}).get(peer)
    if ratio is None:
        return f"missing: {row['missing'].get(peer) or results['missing'].get(peer, 'not measured')}"
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _reached(limit: dict[str, Any], peer: str | None) -> str:
    word = {True: "yes", False: "**no**", None: "cannot be told"}[limit["kept"]]
    return f"{limit['value']:g}{'x' if peer else ''}: {word}"


def table(runs: list[dict[str, Any]]) -> str:
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(line for run in runs for line in lines(run))]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(table([json.loads(Path(path).read_text()) for path in sys.argv[1:]]))
