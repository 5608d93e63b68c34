"""`:name` placeholders in what an operator wrote, filled in with parts of a request's path: pure.

Strategy: a text is cut at the placeholders that its path has; any other colon stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Final

SPLAT: Final = "splat"
"""The name of what a `*` matched."""
NAME: Final = "[A-Za-z][A-Za-z0-9_]*"
PLACEHOLDER: Final = re.compile(f":({NAME})")


class Template:
    """A text with placeholders."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        # Literal texts at even places, names at odd ones.
        self._pieces = [""]
        for index, piece in enumerate(PLACEHOLDER.split(text)):
            if index % 2 and piece in names:
                self._pieces += (piece, "")
            else:
                self._pieces[-1] += ":" + piece if index % 2 else piece

    def fill(self, written: Callable[[str], str], given: Callable[[str], str]) -> str:
        """The text with its literals as `written` makes them, and its placeholders as `given` makes their names."""
        return "".join((given if index % 2 else written)(piece) for index, piece in enumerate(self._pieces))


def misplaced(path: str) -> str | None:
    """A segment of a path with a `:name` that is not the whole segment, and is therefore no placeholder."""
    segments = path.removesuffix("*").split("/")
    return next((part for part in segments if PLACEHOLDER.search(part) and not PLACEHOLDER.fullmatch(part)), None)
