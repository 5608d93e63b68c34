"""Files with a line for each user or key, which begins with its name and a colon; comments begin with a number sign.

Strategy: a line that cannot be used refuses the file, so that no name stands there without effect. No message has more
of a line than its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def parse_lines(data: bytes, parse: Callable[[bytes], tuple[bytes, T]], remedy: str) -> dict[bytes, T]:
    """What `parse` makes of the lines, by name, in their order.

    Raises ValueError with the number of the line, the text of the ValueError of `parse` and the `remedy`.
    """
    found: dict[bytes, T] = {}
    for number, line in enumerate(data.splitlines(), 1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        try:
            name, value = parse(text)
            if name in found:
                raise ValueError(f"{name.decode('utf-8', 'replace')} is in a line above already")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}: {remedy}") from None
        found[name] = value
    return found
