"""Placeholders (`:name`, `$1`) in what an operator wrote, filled in with parts of a request's path: pure.

Strategy: a text is cut at the placeholders that its path has; any other colon or dollar sign stands for
itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Final

SPLAT: Final = "splat"
"""The name of what a `*` matched."""
NAME: Final = "[A-Za-z][A-Za-z0-9_]*"
PLACEHOLDER: Final = re.compile(f":({NAME})")
GROUP: Final = re.compile(r"\$([1-9])")
"""The placeholder of a group of a regular expression."""


class Template:
    """A text with placeholders."""

    def __init__(self, text: str, names: Collection[str], placeholder: re.Pattern[str] = PLACEHOLDER) -> None:
        """`placeholder` has one character before its name, which is its only group."""
        # Literal texts at even places, names at odd ones.
        self._pieces = [""]
        end = 0
        for found in placeholder.finditer(text):
            if found[1] in names:
                self._pieces[-1] += text[end : found.start()]
                self._pieces += (found[1], "")
                end = found.end()
        self._pieces[-1] += text[end:]

    def fill(self, written: Callable[[str], str], given: Callable[[str], str]) -> str:
        """The text with its literals as `written` makes them, and its placeholders as `given` makes their names."""
        return "".join((given if index % 2 else written)(piece) for index, piece in enumerate(self._pieces))


def misplaced(path: str) -> str | None:
    """A segment of a path with a `:name` that is not the whole segment, and is therefore no placeholder."""
    segments = path.removesuffix("*").split("/")
    return next((part for part in segments if PLACEHOLDER.search(part) and not PLACEHOLDER.fullmatch(part)), None)
