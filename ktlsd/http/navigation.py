"""Whether a request is for a page that a browser is to show: pure.

Strategy: browsers say what a response is for (Sec-Fetch-Dest, Fetch Metadata section 2.1); older ones name HTML in
Accept only for pages. Of a client that says neither, the path decides: a name with a suffix is that of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ktlsd.http.accept import accepts_anything, names_a_page

VARY: Final = "Sec-Fetch-Dest, Accept"
"""The fields that decide."""

_PAGES: Final = frozenset({"document", "iframe", "frame", "fencedframe"})
_PAGE_SUFFIXES: Final = (b".html", b".htm", b".xhtml")


def is_navigation(fields: Mapping[str, str], name: bytes) -> bool:
    """True if a request with these fields is for a page; `name` is the last one of its path, empty for a folder."""
    destination, accept = fields.get("sec-fetch-dest", ""), fields.get("accept")
    # "empty" is that of scripts: a service worker that passes a navigation on keeps its Accept.
    if destination not in ("", "empty"):
        return destination in _PAGES
    if names_a_page(accept):
        return True
    if destination or not accepts_anything(accept):
        return False
    return b"." not in name.lstrip(b".") or name.lower().endswith(_PAGE_SUFFIXES)
