"""The Accept header field: which of the media types that can be sent a client prefers (RFC 9110 section 12.5.1). Pure.

Strategy: each media range gives the types that it names a weight; of two that are equally welcome, the one that is
named more exactly counts. Clients send few values, so answers are kept.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

LONGEST: Final = 1024
"""Characters. A longer field counts as empty: kept answers must not fill the memory."""

_MEDIA_RANGE: Final = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*+")++')
_QUALITY: Final = re.compile(r";\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", re.IGNORECASE)
_PAGE_TYPES: Final = ("text/html", "application/xhtml+xml")

Preference = tuple[float, int]
"""A weight, and how exactly the type is named: 2 by its name, 1 by its family, 0 by */* or not at all."""


def preference(accept: str | None, media_type: str) -> Preference:
    """How welcome this media type is."""
    return (0.0, 0) if not accept or len(accept) > LONGEST else _preference(accept, media_type)


def wants_json(accept: str | None) -> bool:
    """True if JSON is preferred to HTML; a page is for all others."""
    return preference(accept, "application/json") > max(preference(accept, "text/html"), (0.0, 3))


def names_a_page(accept: str | None) -> bool:
    """True if HTML is accepted by its name, as browsers do for what they show."""
    return any(
        weight > 0 and exactness == 2 for weight, exactness in (preference(accept, kind) for kind in _PAGE_TYPES)
    )


def accepts_anything(accept: str | None) -> bool:
    """True if no media type is named: programs such as curl send */*, or nothing."""
    return accept is None or not accept.strip() or (len(accept) <= LONGEST and _ranges(accept).keys() <= {"*/*"})


@lru_cache(maxsize=512)
def _preference(accept: str, media_type: str) -> Preference:
    ranges = _ranges(accept)
    kind = media_type.partition("/")[0]
    for exactness, media_range in ((2, media_type), (1, kind + "/*"), (0, "*/*")):
        if media_range in ranges:
            return ranges[media_range], exactness
    return 0.0, 0


def _ranges(accept: str) -> dict[str, float]:
    """The weights of media ranges, without their parameters."""
    ranges: dict[str, float] = {}
    for part in _MEDIA_RANGE.findall(accept):
        quality = _QUALITY.search(part)
        ranges[part.partition(";")[0].strip().lower()] = float(quality[1]) if quality else 1.0
    return ranges
