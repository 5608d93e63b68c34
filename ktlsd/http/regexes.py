"""Regular expressions of operators on the decoded paths of strangers: pure.

Strategy: RE2 (the package google-re2, an extra) takes time in proportion to the path, and a fixed amount of memory; it
has no look-around and no back-references. It is imported only if a configuration has an expression.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from ktlsd.config.file_names import fsdecode, fsencode
from ktlsd.config.refusal import install

MOST_EXPRESSIONS: Final = 100
"""In a list of rules: a request may try them all."""
MOST_BYTES: Final = 1 << 20
"""Memory of one expression and its automata."""
MOST_GROUPS: Final = 9
"""$1 to $9."""


def check_count(count: int) -> None:
    """Raises ValueError for more expressions in a list of rules than there may be."""
    if count > MOST_EXPRESSIONS:
        raise ValueError(f"{count} rules have a regex, more than {MOST_EXPRESSIONS}")


class Regex:
    """A compiled expression."""

    def __init__(self, expression: str) -> None:
        """Raises ValueError, with a text for the operator."""
        self._regexp = _compile(expression)
        self.groups: int = self._regexp.groups
        """Number of its groups."""
        if self.groups > MOST_GROUPS:
            raise ValueError(f"{expression} has {self.groups} groups, more than {MOST_GROUPS}: write (?:...) for some")

    def matches(self, path: str) -> bool:
        """Whether it is found in a path, from any place on."""
        return self._regexp.search(fsencode(path)) is not None

    def find(self, path: str) -> tuple[str, ...] | None:
        """The groups of a match, the empty text for one that took no part; None if there is no match."""
        match = self._regexp.search(fsencode(path))
        return None if match is None else tuple(map(fsdecode, match.groups(b"")))


@functools.lru_cache(maxsize=4 * MOST_EXPRESSIONS)
def _compile(expression: str) -> Any:
    try:
        import re2
    except ImportError:
        remedy = install("google-re2", "regex")
        raise ValueError(f"regular expressions need the package google-re2, which is missing: {remedy}") from None
    options = re2.Options()
    options.max_mem = MOST_BYTES
    options.log_errors = False
    try:
        return re2.compile(expression.encode(), options)
    except re2.error as error:
        reason = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error.args[0])
        raise ValueError(_complaint(expression, reason)) from None


def _complaint(expression: str, reason: str) -> str:
    """What is wrong and where: RE2 quotes the part of the expression, but does not tell its place."""
    part = reason.partition(": ")[2]
    place = expression.rfind(part) if part else -1
    column = f"column {place + 1}: " if place >= 0 else ""
    return f"{expression} is no regular expression of RE2: {column}{reason}"
