"""Content-Type by a file's name: the same on every machine, and always a legal field."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.content_types import DEFAULT_TYPE, content_type, suffixes_of

PIECES = [b"a", b".", b".html", b".gz", b".txt", b":", b"?", b"#", b"/", b"[", b"\xff", b"\n"]

MEDIA_TYPE = re.compile(r"[a-z]+/[A-Za-z0-9.+_-]+(; charset=utf-8)?")
"""RFC 9110 section 8.3.1, as far as it is used here."""

KNOWN = sorted(suffix for table in mimetypes.MimeTypes().types_map for suffix in table)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"index.html", "text/html; charset=utf-8"),
        (b"INDEX.HTM", "text/html; charset=utf-8"),
        (b"a.css", "text/css; charset=utf-8"),
        (b"a.js", "text/javascript; charset=utf-8"),
        (b"a.mjs", "text/javascript; charset=utf-8"),
        (b"a.min.js", "text/javascript; charset=utf-8"),
        (b"a.txt", "text/plain; charset=utf-8"),
        (b"a.csv", "text/csv; charset=utf-8"),
        (b"README.md", "text/markdown; charset=utf-8"),
        (b"a.json", "application/json"),
        (b"a.xml", "application/xml"),
        (b"a.yml", "application/yaml"),
        (b"a.wasm", "application/wasm"),
        (b"a.pdf", "application/pdf"),
        (b"a.zip", "application/zip"),
        (b"a.webmanifest", "application/manifest+json"),
        (b"a.svg", "image/svg+xml"),
        (b"a.png", "image/png"),
        (b"a.jpg", "image/jpeg"),
        (b"a.JPEG", "image/jpeg"),
        (b"a.gif", "image/gif"),
        (b"a.webp", "image/webp"),
        (b"a.avif", "image/avif"),
        (b"a.mp3", "audio/mpeg"),
        (b"a.ogg", "audio/ogg"),
        (b"a.mp4", "video/mp4"),
        (b"a.webm", "video/webm"),
        (b"a.woff2", "font/woff2"),
        # Packed files are what they are: no Content-Encoding that would unpack a download.
        (b"a.tar", "application/x-tar"),
        (b"a.gz", "application/gzip"),
        (b"a.tar.gz", "application/gzip"),
        (b"a.tgz", "application/gzip"),
        (b"a.html.gz", "application/gzip"),
        (b"a.svgz", "application/gzip"),
        (b"a.tar.bz2", "application/x-bzip2"),
        (b"a.tar.xz", "application/x-xz"),
        (b"a.js.br", DEFAULT_TYPE),
        (b"a.Z", DEFAULT_TYPE),
        (b"a.gz.html", "text/html; charset=utf-8"),
        # Nothing to go by.
        (b"", DEFAULT_TYPE),
        (b"html", DEFAULT_TYPE),
        (b"gz", DEFAULT_TYPE),
        (b".html", DEFAULT_TYPE),
        (b".gz", DEFAULT_TYPE),
        (b"a.", DEFAULT_TYPE),
        (b"a.html.", DEFAULT_TYPE),
        (b"a.nosuch", DEFAULT_TYPE),
        (b"a.html.nosuch", DEFAULT_TYPE),
        (b"a.html~", DEFAULT_TYPE),
        (b"a.\xff", DEFAULT_TYPE),
        # Names, not URLs: nothing in them is a scheme, a query or a fragment.
        (b"a:b.html", "text/html; charset=utf-8"),
        (b"v1.a:b.html", "text/html; charset=utf-8"),
        (b"v1.a:b#c.html", "text/html; charset=utf-8"),
        (b"v1.a:b?c.html", "text/html; charset=utf-8"),
        (b"data:image.png,.html", "text/html; charset=utf-8"),
        # Paths: a suffix of a folder is not one of the file.
        (b"a.html/b", DEFAULT_TYPE),
        (b"a.tar/b.gz", "application/gzip"),
        (b"a.html/.b", DEFAULT_TYPE),
    ],
)
def test_type_of_a_name(name: bytes, kind: str) -> None:
    assert content_type(suffixes_of(name)) == kind


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        (b"a", ""),
        (b"a.html", ".html"),
        (b"a.tar.gz", ".tar.gz"),
        (b"a.b.c.d", ".c.d"),
        (b".bashrc", ""),
        (b".a.html", ".html"),
        (b"dir.d/a", ""),
        (b"dir.d/a.html", ".html"),
        (b"a.\xff", ".\udcff"),
    ],
)
def test_the_last_two_suffixes_decide(name: bytes, suffixes: str) -> None:
    assert suffixes_of(name) == suffixes


@settings(deadline=None)
@given(st.binary() | st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_every_name_has_a_legal_type(name: bytes) -> None:
    kind = content_type(suffixes_of(name))
    assert MEDIA_TYPE.fullmatch(kind)
    assert ("charset" in kind) == kind.startswith("text/")


@pytest.mark.parametrize("suffix", KNOWN)
def test_every_suffix_that_python_knows_has_a_legal_type(suffix: str) -> None:
    kind = content_type(suffix)
    assert MEDIA_TYPE.fullmatch(kind)
    assert ("charset" in kind) == kind.startswith("text/")


@pytest.fixture
def machine_types(tmp_path: Path) -> Iterator[None]:
    """A machine whose mime.types says strange things."""
    table = tmp_path / "mime.types"
    table.write_text("text/strange html png nosuchtype\n")
    mimetypes.init([str(table)])
    content_type.cache_clear()
    yield
    mimetypes.init()
    content_type.cache_clear()


@pytest.mark.usefixtures("machine_types")
def test_the_table_of_the_machine_has_no_say() -> None:
    assert mimetypes.guess_type("a.nosuchtype") == ("text/strange", None)
    assert content_type(".nosuchtype") == DEFAULT_TYPE
    assert content_type(".html") == "text/html; charset=utf-8"
    assert content_type(".png") == "image/png"
