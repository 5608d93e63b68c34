"""On which line of a TOML document a value stands: pure.

Strategy: tomllib itself finds it, by what beginnings of the document hold: a value starts on the line after the longest
beginning without it that can be parsed. One that ends within an array is parsed with the brackets that it lacks.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

Path = Sequence[str | int]
"""Keys of tables and, from 0 on, positions in arrays: ("site", 1, "etag")."""

_MOST_OPEN: Final = 4
"""So many brackets may be open at the end of a line; deeper down, the line of the whole is told."""
_CLOSING: Final = tuple(
    "".join(brackets) for depth in range(_MOST_OPEN + 1) for brackets in itertools.product("]}", repeat=depth)
)


def line_of(text: str, path: Path) -> int:
    """The line, from 1 on, on which the value at `path` of a valid TOML document starts: that of its key, of the header
    of its table, or of itself within an array.

    Raises KeyError where there is none.
    """
    lines = text.split("\n")

    @cache
    def beginning(length: int) -> dict[str, Any] | None:
        return _parse("\n".join(lines[:length]))

    def parsed_up_to(length: int) -> int:
        """The length of the longest beginning that can be parsed; nothing at all can be."""
        return next(shorter for shorter in range(length, -1, -1) if beginning(shorter) is not None)

    def is_in(length: int) -> bool:
        document = beginning(parsed_up_to(length))
        return document is not None and _has(document, path)

    if not is_in(len(lines)):
        raise KeyError(path)
    without, with_it = 0, len(lines)
    while with_it - without > 1:
        middle = (without + with_it) // 2
        if is_in(middle):
            with_it = middle
        else:
            without = middle
    return parsed_up_to(without) + 1


def _parse(text: str) -> dict[str, Any] | None:
    for closing in _CLOSING:
        try:
            return tomllib.loads(f"{text}\n{closing}")
        except (ValueError, RecursionError):
            continue
    return None


def _has(value: object, path: Path) -> bool:
    for step in path:
        if isinstance(value, Mapping):
            if step not in value:
                return False
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value):
            value = value[step]
        else:
            return False
    return True
