"""Accept-Encoding: the codings in order are those of a second reading of RFC 9110 section 12.5.3.

Strategy: members are taken apart by their separators, and weights are counted in thousandths.
"""

from __future__ import annotations

import itertools
import string
from typing import Final

from ktlsd.config.values import Coding
from ktlsd.http.accept_encoding import LONGEST, Preference, preferred

TOKENS: Final = (b"gzip", b"x-gzip", b"br", b"zstd", b"identity", b"*", b";q=", b"0.", b"1.000", b", ", b"0.001")

_CODINGS: Final[tuple[Coding, ...]] = ("zstd", "br", "gzip")
_AVAILABLE: Final = tuple(
    order for count in range(len(_CODINGS) + 1) for order in itertools.permutations(_CODINGS, count)
)
_TOKEN: Final = frozenset(string.ascii_letters + string.digits + "!#$%&'*+.^_`|~-")
_DIGITS: Final = frozenset(string.digits)


def check(data: bytes) -> None:
    if not data:
        return
    available = _AVAILABLE[data[0] % len(_AVAILABLE)]
    field = data[1:].decode("latin-1")
    found = preferred(field, available)
    assert found == expected(field, available)
    assert preferred(field, available) == found


def expected(field: str, available: tuple[Coding, ...]) -> Preference:
    weights: dict[str, int] = {}
    if 0 < len(field) <= LONGEST:
        for member in field.split(","):
            name, weight = _member(member.strip(" \t"))
            if weight is not None and name not in weights:
                weights[name] = weight
    else:
        return Preference((), True)
    for_others = weights.get("*", 0)
    plain = weights.get("identity", 0)
    liked = [(weights.get(coding, for_others), coding) for coding in available]
    codings: list[Coding] = []
    for wanted in sorted({weight for weight, _ in liked if weight > 0}, reverse=True):
        codings += [coding for weight, coding in liked if weight == wanted and weight >= plain]
    refused = weights.get("identity", weights.get("*", 1)) == 0
    return Preference(tuple(codings), not refused)


def _member(text: str) -> tuple[str, int | None]:
    """A coding and its weight in thousandths, None for what is malformed."""
    name, semicolon, parameter = text.partition(";")
    if semicolon:
        name = name.rstrip(" \t")
    name = name.lower()
    name = "gzip" if name == "x-gzip" else name
    if not name or not _TOKEN.issuperset(name):
        return name, None
    if not semicolon:
        return name, 1000
    key, equals, value = parameter.lstrip(" \t").partition("=")
    whole, _, fraction = value.partition(".")
    if key not in ("q", "Q") or not equals or whole not in ("0", "1") or len(fraction) > 3:
        return name, None
    if not _DIGITS.issuperset(fraction) or (whole == "1" and fraction.strip("0")):
        return name, None
    return name, int(whole) * 1000 + int(fraction.ljust(3, "0"))
