"""The ratios as a picture: `python -m bench.plot DIR` reads DIR/results.json and writes DIR/ratios.png and .svg.

Strategy: one line for each work and peer, a point at the median and whiskers to minimum and maximum; right of 1 ktlsd
is ahead. It runs in the interpreter that has matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

COLOURS: Final = ("#1b6ca8", "#d1603d", "#3b8f5a", "#8a5aa8", "#8c7b3a", "#c2478f", "#4aa3a2", "#6b6b6b", "#a33b3b")
LINE_INCHES: Final = 0.22
MARGIN_INCHES: Final = 1.6
WIDTH_INCHES: Final = 11.0
DPI: Final = 110


def points(data: dict[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """What is drawn, from top to bottom: the work with its metric, the peer, and the spread of the ratio."""
    found = []
    for row in data["rows"]:
        workers = f"{row['workers']} worker{'s' * (row['workers'] > 1)}"
        for metric, peers in row["ratios"].items():
            found += [(f"{row['work']}, {workers}: {metric}", peer, spread) for peer, spread in peers.items()]
    return found


def draw(data: dict[str, Any], directory: Path) -> None:
    """Write ratios.png and ratios.svg; nothing where there is no ratio."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    lines = points(data)
    if not lines:
        return
    peers = list(dict.fromkeys(peer for _, peer, _ in lines))
    figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, MARGIN_INCHES + LINE_INCHES * len(lines)))
    for place, (_, peer, spread) in enumerate(lines):
        colour = COLOURS[peers.index(peer) % len(COLOURS)]
        axes.plot([spread["min"], spread["max"]], [place, place], color=colour, linewidth=2)
        axes.plot(spread["median"], place, "o", color=colour, markersize=5)
        axes.annotate(f" {spread['median']:.2f}", (spread["max"], place), va="center", fontsize=7)
    labels = [
        f"{work if index == 0 or lines[index - 1][0] != work else ''}  {peer}"
        for index, (work, peer, _) in enumerate(lines)
    ]
    axes.set_yticks(range(len(lines)), labels, fontsize=7)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_xlabel(f"ktlsd / peer: min, median, max of {data['rounds']} rounds; above 1 ktlsd is better")
    machine = data["machine"]
    axes.set_title(
        f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"kTLS: {machine['kTLS']}, {data['cipher']}",
        fontsize=9,
    )
    for suffix in ("png", "svg"):
        figure.savefig(directory / f"ratios.{suffix}", dpi=DPI, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    draw(json.loads((where / "results.json").read_text()), where)
