"""The Content-Type of a file, by its name, and the content coding of a file that is stored in one.

Strategy: one table, which ktlsd carries (packaging/make_types.py makes it), so every machine and every Python says the
same; charset=utf-8 on text. A site's own types come first. The table is read once, when this module is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from ktlsd.config.values import ENCODED, MEDIA_TYPE, Coding
from ktlsd.http.accept_encoding import SUFFIXES
from ktlsd.http.compressible import is_compressible

DEFAULT_TYPE: Final = "application/octet-stream"

_TABLE: Final = os.path.join(os.path.dirname(__file__), "assets", "media.types")
_MEDIA_TYPE: Final = re.compile(MEDIA_TYPE)
_LONGEST_ATTRIBUTE: Final = 255
# Names with one suffix for a content and the coding around it.
_WHOLE: Final = {".svgz": ".svg"}
_CODING_SUFFIXES: Final = frozenset(os.fsdecode(suffix) for suffix in SUFFIXES.values())


class Encoded(NamedTuple):
    """A file that is stored in a content coding and is asked for by its own name."""

    content_type: str
    """Of what is in it."""
    coding: Coding


def _read_table() -> dict[str, str]:
    """The types by suffix; every process reads all of them at its start, so word by word, not line by line."""
    with open(_TABLE, encoding="utf-8") as file:
        words = file.read().partition("\n\n")[2].split()
    table: dict[str, str] = {}
    kind = ""
    for word in words:
        if word[0] == ".":
            table[word] = kind
        else:
            kind = word
    return table


_TYPES: Final = _read_table()


class ContentTypes:
    """One site's types: its own by suffix, then the table."""

    def __init__(
        self,
        own: Mapping[str, str] | None = None,
        charset: str = "utf-8",
        encoded: Mapping[str, Coding] = ENCODED,
    ) -> None:
        """`own` has media types by suffix (".gpx"); `charset` is for text/* without one, "" for none; `encoded` has the
        codings of files that are stored in one, by suffix (".wasm.br")."""
        self._own = {suffix.lower(): kind for suffix, kind in (own or {}).items()}
        self._charset = charset
        self._encoded = {suffix.lower(): coding for suffix, coding in encoded.items()}
        # The longest first: of ".json.br" and ".symbols.json.br", the latter counts.
        self._endings = tuple(sorted(self._encoded, key=len, reverse=True))
        self._plain_endings = tuple(os.fsencode(ending) for ending in self._endings)
        self.of_suffixes: Callable[[str], str] = lru_cache(maxsize=1024)(self._of_suffixes)
        """The media type for a name's suffixes (".tar.gz"), with a charset where it is text."""
        self._described = lru_cache(maxsize=1024)(self._describe)

    def encoded(self, name: bytes) -> Encoded | None:
        """The type and coding of a file that is stored in a content coding; None for any other file."""
        if name.isascii() and not name.lower().endswith(self._plain_endings):
            return None
        lowered = os.fsdecode(name).lower()
        if not lowered.endswith(self._endings):
            return None
        ending = next(ending for ending in self._endings if lowered.endswith(ending))
        stem, last = os.path.splitext(lowered)
        if len(os.path.basename(lowered)) == len(ending):
            return None
        own = self._own.get(ending)
        if own is not None:
            return Encoded(self._with_charset(own), self._encoded[ending])
        inner = stem if last in _CODING_SUFFIXES else stem + _WHOLE.get(last, last)
        return Encoded(self.of_suffixes(suffixes_of(os.fsencode(inner))), self._encoded[ending])

    def of_last_suffix(self, suffix: bytes) -> tuple[str, bool] | None:
        """The same as described() for all names with this last suffix (b".css"), unless they may be encoded(), or have
        suffixes before it that decide, too: then None."""
        last = os.fsdecode(suffix).lower()
        decide = (ending.endswith(last) for ending in (*self._encoded, *(own for own in self._own if own != last)))
        return None if any(decide) else self._describe(suffix)

    def described(self, path: bytes) -> tuple[str, bool]:
        """The media type of a file by its name, and whether its content may get smaller by compression."""
        # Dots at the beginning begin no suffix, as for os.path.splitext().
        parts = path[path.rfind(b"/") + 1 :].lstrip(b".").rsplit(b".", 2)
        return self._described(b"".join([b"." + part for part in parts[1:]]))

    def of_attribute(self, value: bytes) -> tuple[str, bool] | None:
        """The same by a file's extended attribute; None for one that is no media type."""
        text = value.strip().decode("latin-1")
        if len(text) > _LONGEST_ATTRIBUTE or not _MEDIA_TYPE.match(text):
            return None
        kind = self._with_charset(text)
        return kind, is_compressible(kind)

    def _describe(self, suffixes: bytes) -> tuple[str, bool]:
        kind = self.of_suffixes(os.fsdecode(suffixes).lower())
        return kind, is_compressible(kind)

    def _of_suffixes(self, suffixes: str) -> str:
        last = suffixes[suffixes.rfind(".") :]
        return self._with_charset(self._own.get(suffixes) or self._own.get(last) or _TYPES.get(last, DEFAULT_TYPE))

    def _with_charset(self, kind: str) -> str:
        lowered = kind.lower()
        if lowered.startswith("text/") and self._charset and "charset=" not in lowered:
            return f"{kind}; charset={self._charset}"
        return kind


def read_attribute(descriptor: int) -> bytes:
    """The extended attribute of a file for its media type; empty if it has none. Waits for the file system."""
    try:
        return os.getxattr(descriptor, "user.mime_type")
    except OSError:
        return b""


def suffixes_of(name: bytes) -> str:
    """The last two suffixes of a file name, which decide its type (".tar.gz", ".html")."""
    stem, last = os.path.splitext(os.fsdecode(name).lower())
    return os.path.splitext(stem)[1] + last
