"""The command: `python -m fuzz TARGET|all --seconds N` looks for inputs with wrong outcomes; it ends with a table.

Strategy: each target runs in a process of its own, one after the other. What it finds new goes to a folder beside the
corpus of the repository; `--minimise` puts into that corpus what of both reaches most.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fuzz import reach
from fuzz.corpora import corpus_of
from fuzz.report import HEADER, Outcome, parse
from fuzz.targets import TARGETS, Target

_LONGEST_EXECUTION_SECONDS: Final = 20
_MEMORY_MIB: Final = 2048
EXIT_FOUND: Final = 1
EXIT_USAGE: Final = 2


def main() -> int:
    options = _parser().parse_args()
    targets = list(TARGETS.values()) if options.target == "all" else [TARGETS[options.target]]
    if options.minimise:
        for target in targets:
            reach.minimise(target, options.found / target.name)
        return 0
    if importlib.util.find_spec("atheris") is None:
        remedy = "packaging/groups.py fuzz | .venv/bin/pip install -r /dev/stdin"
        print(f"fuzz: atheris is missing: {remedy} (CPython 3.11 to 3.14 on x86-64)", file=sys.stderr)
        return EXIT_USAGE
    outcomes = []
    for target in targets:
        outcome = _run(target, options)
        outcomes.append(outcome)
        print(outcome.as_row(), file=sys.stderr, flush=True)
    print("\n".join((HEADER, *(outcome.as_row() for outcome in outcomes))))
    return EXIT_FOUND if any(outcome.status for outcome in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Look for inputs with wrong outcomes.")
    add = parser.add_argument
    add("target", choices=["all", *TARGETS], metavar="TARGET", help=f"all, or one of {', '.join(TARGETS)}")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=int, default=60, metavar="N", help="how long each target runs (default: 60)")
    length.add_argument("--runs", type=int, metavar="N", help="how many inputs each target gets, instead")
    length.add_argument("--minimise", action="store_true", help="run nothing, but make the corpus anew")
    add("--seed", type=int, default=0, metavar="N", help="of the random numbers (default: another each time)")
    add("--found", type=Path, default=Path(".fuzz"), metavar="DIR", help="where new inputs go (default: .fuzz)")
    return parser


def _run(target: Target, options: argparse.Namespace) -> Outcome:
    found: Path = options.found / target.name
    failures: Path = options.found / "failures"
    for folder in (found, failures):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".dict") as dictionary:
        dictionary.writelines(f'"{_escaped(token)}"\n' for token in target.tokens())
        dictionary.flush()
        arguments = [
            f"-max_len={target.longest}",
            f"-timeout={_LONGEST_EXECUTION_SECONDS}",
            f"-rss_limit_mb={_MEMORY_MIB}",
            f"-artifact_prefix={failures}/{target.name}-",
            f"-dict={dictionary.name}",
            f"-seed={options.seed}",
            f"-runs={options.runs}" if options.runs is not None else f"-max_total_time={options.seconds}",
            "-print_final_stats=1",
        ]
        folders = [str(found), str(corpus_of(target))]
        return _watched(target, [sys.executable, "-m", "fuzz.worker", target.name, *arguments, *folders])


def _watched(target: Target, command: Sequence[str]) -> Outcome:
    """Run to the end; a failure's text is shown."""
    began = time.monotonic()
    process = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    outcome = parse(target.name, process.returncode, time.monotonic() - began, process.stdout)
    if process.returncode:
        print("\n".join(process.stdout.splitlines()[-40:]), file=sys.stderr)
    return outcome


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    sys.exit(main())
