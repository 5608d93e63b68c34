"""The Accept-Encoding header field and the codings of precompressed siblings (RFC 9110 section 12.5.3): pure.

Strategy: each member gives a coding its weight; the codings that may be sent instead of the plain representation come
out in the order of weight, then of the server's own preference. Browsers send a handful of values, so answers are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from ktlsd.config.values import Coding

SUFFIXES: Final[Mapping[Coding, bytes]] = {"zstd": b".zst", "br": b".br", "gzip": b".gz"}
"""Suffix of a file's sibling in this coding."""

LONGEST: Final = 1024
"""Characters. A longer field counts as empty: no client needs it, and kept answers must not fill the memory."""

# coding [ OWS ";" OWS "q=" qvalue ]
_MEMBER: Final = re.compile(
    r"([!#$%&'*+.^_`|~0-9a-z-]+)(?:[ \t]*+;[ \t]*+q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?", re.IGNORECASE
)
_ALIASES: Final = {"x-gzip": "gzip"}


class Preference(NamedTuple):
    """The codings that a client accepts."""

    codings: tuple[Coding, ...]
    """Those it prefers to the plain representation, or accepts equally, best first."""
    identity: bool
    """True if it accepts the plain representation. If not, and without a sibling in one of `codings`, the plain one is
    sent all the same, as nginx does: most clients can use it, and none can use a 406."""


_PLAIN: Final = Preference((), True)


def preferred(field: str | None, available: tuple[Coding, ...]) -> Preference:
    """The codings of `available`, which is in the server's order of preference, that this Accept-Encoding allows.

    Without the field anything may be sent, and the plain representation is. Malformed members are ignored; of several
    with one coding the first counts.
    """
    return _PLAIN if not field or len(field) > LONGEST else _weigh(field, available)


@lru_cache(maxsize=512)
def _weigh(field: str, available: tuple[Coding, ...]) -> Preference:
    weights: dict[str, float] = {}
    for member in field.split(","):
        if match := _MEMBER.fullmatch(member.strip(" \t")):
            name = match[1].lower()
            weights.setdefault(_ALIASES.get(name, name), float(match[2] or "1"))
    others = weights.get("*", 0.0)
    # An unmentioned coding is acceptable, but a mentioned one is preferred.
    plain = weights.get("identity")
    weighed = [(weights.get(coding, others), coding) for coding in available]
    liked = sorted((pair for pair in weighed if pair[0] > 0 and pair[0] >= (plain or 0)), key=lambda pair: -pair[0])
    identity = plain > 0 if plain is not None else weights.get("*") != 0
    return Preference(tuple(coding for _, coding in liked), identity)
