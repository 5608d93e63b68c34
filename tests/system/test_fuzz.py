"""The fuzz targets: every input that is kept, a short run of the fuzzer where there is one, and what goes around it."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.corpora import corpus_of, inputs_of
from fuzz.cuts import cuts
from fuzz.reach import Step, files_of, most_reaching, steps_of
from fuzz.report import parse
from fuzz.targets import TARGETS, Target

CHECKOUT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 300
LARGEST_CORPUS = 80

targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
with_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="no atheris: there is no wheel for this Python"
)


@targets
def test_every_input_that_is_kept_has_a_right_outcome(target: Target) -> None:
    check = target.load()
    inputs = inputs_of(target)
    assert inputs
    for path in inputs:
        try:
            check(path.read_bytes())
        except Exception as error:
            error.add_note(str(path))
            raise


@targets
def test_a_corpus_is_small(target: Target) -> None:
    inputs = inputs_of(target)
    assert len(inputs) <= LARGEST_CORPUS
    assert max(path.stat().st_size for path in inputs) <= target.longest
    assert len({path.read_bytes() for path in inputs}) == len(inputs)


@targets
def test_a_corpus_reaches_its_modules(target: Target) -> None:
    check = target.load()
    check(b"")
    files = files_of(target)
    steps = {step for path in inputs_of(target) for step in steps_of(check, path.read_bytes(), files)}
    assert {file for file, _, _ in steps} == files


def test_every_folder_is_a_targets() -> None:
    folders = {path.name for path in (CHECKOUT / "fuzz/corpus").iterdir()}
    assert folders == {corpus_of(target).name for target in TARGETS.values()}


@with_atheris
@targets
def test_a_short_run_finds_nothing(target: Target, tmp_path: Path) -> None:
    # The same seed each time: what is due to chance belongs to a long run.
    options = [target.name, f"--runs={target.test_runs}", "--seed=1", f"--found={tmp_path}"]
    run = subprocess.run(
        [sys.executable, "-m", "fuzz", *options],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    row = run.stdout.splitlines()[-1]
    assert row.startswith(f"| {target.name} | ")
    assert row.endswith("| nothing found |")
    executions, edges = (int(cell.strip().replace(",", "")) for cell in (row.split("|")[2], row.split("|")[5]))
    assert executions >= target.test_runs
    assert edges > 10


@pytest.mark.parametrize("arguments", [("nothing",), ("decide", "--runs=1", "--minimise"), ()])
def test_what_is_no_target_is_refused(arguments: tuple[str, ...]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "usage: python -m fuzz" in run.stderr


# --- the pure parts --------------------------------------------------------------------------------------------------


STATUS = """\
#7\tINITED cov: 40 ft: 41 corp: 1/1b exec/s: 0 rss: 40Mb
#9\tNEW    cov: 57 ft: 60 corp: 12/3Kb exec/s: 0 rss: 40Mb
stat::number_of_executed_units: 120000
"""


@pytest.mark.parametrize(
    ("status", "output", "row"),
    [
        (0, STATUS, "| a | 120,000 | 2.0 | 1,000 | 57 | 12 | nothing found |"),
        (77, STATUS, "| a | 120,000 | 2.0 | 1,000 | 57 | 12 | FOUND SOMETHING (77) |"),
        (1, "Traceback", "| a | 0 | 2.0 | 0 | 0 | 0 | FOUND SOMETHING (1) |"),
    ],
)
def test_a_row_says_what_libfuzzer_said(status: int, output: str, row: str) -> None:
    assert parse("a", status, 120.0, output).as_row() == row


def steps(*numbers: int) -> frozenset[Step]:
    return frozenset(("file", number, number) for number in numbers)


@pytest.mark.parametrize(
    ("reached", "most", "taken"),
    [
        ([], 9, []),
        ([(b"a", steps())], 9, []),
        ([(b"a", steps(1)), (b"b", steps(1))], 9, [b"a"]),
        ([(b"long", steps(1, 2)), (b"b", steps(1, 2))], 9, [b"b"]),
        ([(b"a", steps(1)), (b"b", steps(2, 3, 4)), (b"c", steps(1, 2, 5))], 9, [b"b", b"c"]),
        ([(b"a", steps(1)), (b"b", steps(2, 3))], 1, [b"b"]),
    ],
)
def test_the_inputs_that_reach_most_are_taken(
    reached: list[tuple[bytes, frozenset[Step]]], most: int, taken: list[bytes]
) -> None:
    assert most_reaching(reached, most) == taken


def test_steps_are_those_of_an_input() -> None:
    target = TARGETS["accept_encoding"]
    check = target.load()
    files = files_of(target)
    short, long = (steps_of(check, data, files) for data in (b"\x0f", b"\x0fgzip;q=0.5, br"))
    assert short
    assert len(long) > len(short)
    assert all(re.fullmatch(r".*/ktlsd/http/accept_encoding\.py", file) for file, _, _ in long)


@pytest.mark.parametrize(
    ("length", "more", "expected"),
    [(0, (), []), (3, (), [0, 1, 2]), (3, (3,), [0, 1, 2, 3]), (3, (9,), [0, 1, 2])],
)
def test_cuts_of_a_short_input(length: int, more: tuple[int, ...], expected: list[int]) -> None:
    assert list(cuts(length, *more)) == expected


def test_cuts_of_a_long_input_are_few_and_spread() -> None:
    found = list(cuts(10_000, 5000))
    assert found == sorted(set(found))
    assert len(found) < 100
    assert {4999, 5000, 5001} <= set(found)
    assert max(later - earlier for earlier, later in itertools.pairwise(found)) < 500
