"""The inputs that are kept, a folder for each target.

Strategy: those that a person named say in their names what they are for; those that the fuzzer found are named by their
hash.
"""

from __future__ import annotations

from pathlib import Path

from fuzz.targets import Target


def corpus_of(target: Target) -> Path:
    return Path(__file__).parent / "corpus" / target.name


def inputs_of(target: Target) -> list[Path]:
    """The files in a fixed order."""
    return sorted(path for path in corpus_of(target).iterdir() if path.is_file())
