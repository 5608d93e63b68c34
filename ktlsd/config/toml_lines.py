"""On which line of a TOML document a value stands: pure.

Strategy: tomllib itself finds it, by what beginnings of the document hold: a value starts on the line after the longest
beginning without it that can be parsed. One that ends within an array is parsed with the brackets that it lacks.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final

Path = Sequence[str | int]
"""Keys of tables and, from 0 on, positions in arrays: ("site", 1, "etag")."""

_MOST_OPEN: Final = 4
"""Most open brackets at the end of a line; deeper down, the line of the whole is given."""
_CLOSING: Final = tuple(
    "".join(brackets) for depth in range(_MOST_OPEN + 1) for brackets in itertools.product("]}", repeat=depth)
)


def line_of(text: str, path: Path) -> int:
    """The line, from 1 on, on which the value at `path` of a valid TOML document starts: that of its key, of the header
    of its table, or of itself within an array.

    Raises KeyError where there is none.
    """
    if (found := _section(text, tuple(path))) is not None:
        before, text, path = found
        return before + line_of(text, path)
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


def _section(text: str, path: tuple[str | int, ...]) -> tuple[int, str, Path] | None:
    """The part of a document from the header of one of an array's tables to the next, how many lines stand before it,
    and the path in it; None if that is not certain, or is all there is.

    With hundreds of tables, parsing beginnings of the whole would take a tenth of a second for each line.
    """
    if len(path) < 2 or not isinstance(path[0], str) or not isinstance(path[1], int):
        return None
    tables = _document(text).get(path[0])
    lines = text.split("\n")
    header = re.compile(rf"[ \t]*\[\[[ \t]*{re.escape(path[0])}[ \t]*\]\][ \t]*(#.*)?\r?")
    heads = [number for number, line in enumerate(lines) if header.fullmatch(line)]
    if not isinstance(tables, list) or len(heads) != len(tables) or not 0 <= path[1] < len(heads) or len(heads) == 1:
        return None
    begin, end = heads[path[1]], [*heads, len(lines)][path[1] + 1]
    section = "\n".join(lines[begin:end])
    # Text that looks like a header, within a string, would show here.
    if (_parse(section) or {}).get(path[0]) != [tables[path[1]]]:
        return None
    return begin, section, (path[0], 0, *path[2:])


@lru_cache(maxsize=1)
def _document(text: str) -> Mapping[str, Any]:
    return _parse(text) or {}


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
