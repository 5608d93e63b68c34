"""Which inputs of a corpus reach most, and the corpus made anew of those.

Strategy: Python's own tracing tells the steps from line to line in a target's modules; the input that adds most steps
is taken first, the shorter of two equals, until none adds any.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fuzz.corpora import corpus_of, inputs_of
from fuzz.targets import Check, Target

_MOST_INPUTS: Final = 48
"""What is kept of a corpus that the fuzzer made; each is run in every test run."""

Step = tuple[str, int, int]
"""A file's name and two lines, of which the second came after the first."""


def steps_of(check: Check, data: bytes, files: frozenset[str]) -> frozenset[Step]:
    """The steps in these files that an input takes. Raises what the check raises."""
    steps: set[Step] = set()

    def begin(frame: FrameType, _: str, __: Any) -> Callable[..., Any] | None:
        file = frame.f_code.co_filename
        if file not in files:
            return None
        last = -frame.f_code.co_firstlineno

        def step(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
            nonlocal last
            if event == "line":
                steps.add((file, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        check(data)
    finally:
        sys.settrace(before)
    return frozenset(steps)


def files_of(target: Target) -> frozenset[str]:
    """The source files of a target's modules."""
    return frozenset(str(sys.modules[name].__file__) for name in target.modules)


def most_reaching(reached: Iterable[tuple[bytes, frozenset[Step]]], most: int) -> list[bytes]:
    """Few inputs that together take all steps of all, or as many as `most` inputs can."""
    left = {data: set(steps) for data, steps in reached}
    taken: list[bytes] = []
    while left and len(taken) < most:
        best = min(left, key=lambda data: (-len(left[data]), len(data), data))
        new = left.pop(best)
        if not new:
            break
        taken.append(best)
        for others in left.values():
            others.difference_update(new)
    return taken


def minimise(target: Target, found: Path) -> None:
    """Make a target's corpus anew of itself and what was found. Files whose names say what they are for stay."""
    check = target.load()
    check(b"")
    files = files_of(target)
    kept = [path for path in inputs_of(target) if not _is_made(path)]
    others = {path.read_bytes() for path in (*inputs_of(target), *(found.iterdir() if found.is_dir() else ()))}
    others -= {path.read_bytes() for path in kept}
    reached = [(data, steps_of(check, data, files)) for data in sorted(others) if len(data) <= target.longest]
    for path in inputs_of(target):
        if _is_made(path):
            path.unlink()
    known = frozenset[Step]().union(*(steps_of(check, path.read_bytes(), files) for path in kept))
    taken = most_reaching(((data, steps - known) for data, steps in reached), _MOST_INPUTS)
    for data in taken:
        (corpus_of(target) / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    steps = known.union(*(steps for _, steps in reached))
    print(f"{target.name}: {len(kept) + len(taken)} of {len(others) + len(kept)} inputs, {len(steps)} steps")


def _is_made(path: Path) -> bool:
    return len(path.name) == 16 and set(path.name) <= set("0123456789abcdef")
