"""The Content-Type of a file, by its name: pure.

Strategy: Python's own table, without the machine's mime.types, so that every machine says the same; a few types that
the table of some supported Python version lacks; charset=utf-8 on text.
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

DEFAULT_TYPE: Final = "application/octet-stream"

# Otherwise the machine's files would be read first, and forgotten.
mimetypes.knownfiles.clear()
_TYPES: Final = mimetypes.MimeTypes()
for _suffix, _type in (
    (".avif", "image/avif"),
    (".flac", "audio/flac"),
    (".jxl", "image/jxl"),
    (".m4a", "audio/mp4"),
    (".md", "text/markdown"),
    (".mjs", "text/javascript"),
    (".js", "text/javascript"),
    (".mkv", "video/matroska"),
    (".ogg", "audio/ogg"),
    (".otf", "font/otf"),
    (".ttf", "font/ttf"),
    (".wasm", "application/wasm"),
    (".webm", "video/webm"),
    (".webmanifest", "application/manifest+json"),
    (".webp", "image/webp"),
    (".woff", "font/woff"),
    (".woff2", "font/woff2"),
    (".xml", "application/xml"),
    (".yaml", "application/yaml"),
    (".yml", "application/yaml"),
):
    _TYPES.add_type(_type, _suffix)
# A compressed file is sent as what it is, not as its content with a Content-Encoding that would unpack a download.
_COMPRESSED: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/octet-stream",
    "compress": "application/octet-stream",
}


class ContentTypes:
    """One site's types: its own by suffix, then the table."""

    def __init__(self, own: Mapping[str, str] | None = None, charset: str = "utf-8") -> None:
        """`own` has media types by suffix (".gpx"); `charset` is for text/* without one, "" for none."""
        self._own = {suffix.lower(): kind for suffix, kind in (own or {}).items()}
        self._charset = charset
        self.of_suffixes: Callable[[str], str] = lru_cache(maxsize=1024)(self._of_suffixes)
        """The media type for a name's suffixes (".tar.gz"), with a charset where it is text."""

    def _of_suffixes(self, suffixes: str) -> str:
        kind = self._own.get(suffixes) or self._own.get(os.path.splitext(suffixes)[1]) or _of_table(suffixes)
        lowered = kind.lower()
        if lowered.startswith("text/") and self._charset and "charset=" not in lowered:
            return f"{kind}; charset={self._charset}"
        return kind


def _of_table(suffixes: str) -> str:
    kind, compression = _TYPES.guess_type("name" + suffixes, strict=False)
    return _COMPRESSED.get(compression, DEFAULT_TYPE) if compression else kind or DEFAULT_TYPE


def suffixes_of(name: bytes) -> str:
    """The last two suffixes of a file name, which decide its type (".tar.gz", ".html")."""
    stem, last = os.path.splitext(os.fsdecode(name).lower())
    return os.path.splitext(stem)[1] + last
