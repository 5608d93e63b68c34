"""Content-Type by a file's name: the same on every machine, and always a legal field."""

from __future__ import annotations

import mimetypes
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ktlsd
from ktlsd.config.values import ENCODED
from ktlsd.site.content_types import DEFAULT_TYPE, ContentTypes, suffixes_of

PIECES = [b"a", b".", b".html", b".gz", b".txt", b":", b"?", b"#", b"/", b"[", b"\xff", b"\n"]

MEDIA_TYPE = re.compile(r"[a-z-]+/[A-Za-z0-9.+_-]+(; charset=utf-8)?")
"""RFC 9110 section 8.3.1, as far as it is used here."""

TYPES = ContentTypes()
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
        (b"a.markdown", "text/markdown; charset=utf-8"),
        (b"a.rst", "text/x-rst; charset=utf-8"),
        (b"a.rtf", "application/rtf"),
        (b"a.xhtml", "application/xhtml+xml"),
        (b"a.rss", "application/rss+xml"),
        (b"a.atom", "application/atom+xml"),
        (b"a.xsl", "application/xml"),
        (b"a.m4v", "video/x-m4v"),
        (b"a.m4s", "video/iso.segment"),
        (b"a.mpd", "application/dash+xml"),
        (b"a.m3u8", "application/vnd.apple.mpegurl"),
        # MPEG transport streams, not TypeScript, as in nginx.
        (b"a.ts", "video/mp2t"),
        (b"a.mts", "video/mp2t"),
        (b"a.mkv", "video/matroska"),
        (b"a.opus", "audio/ogg"),
        (b"a.flac", "audio/flac"),
        (b"a.wav", "audio/wav"),
        (b"a.m4a", "audio/mp4"),
        (b"a.3gp", "video/3gpp"),
        (b"a.vtt", "text/vtt; charset=utf-8"),
        (b"a.srt", "text/plain; charset=utf-8"),
        (b"a.ico", "image/vnd.microsoft.icon"),
        (b"a.heic", "image/heic"),
        (b"a.jxl", "image/jxl"),
        (b"a.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        (b"a.xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        (b"a.pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        (b"a.odt", "application/vnd.oasis.opendocument.text"),
        (b"a.doc", "application/msword"),
        (b"a.xls", "application/vnd.ms-excel"),
        (b"a.ppt", "application/vnd.ms-powerpoint"),
        (b"a.epub", "application/epub+zip"),
        (b"a.ics", "text/calendar; charset=utf-8"),
        (b"a.vcf", "text/vcard; charset=utf-8"),
        (b"a.map", "application/json"),
        (b"a.geojson", "application/geo+json"),
        (b"a.glb", "model/gltf-binary"),
        (b"a.log", "text/plain; charset=utf-8"),
        (b"a.c", "text/plain; charset=utf-8"),
        (b"a.py", "text/x-python; charset=utf-8"),
        (b"a.apk", "application/vnd.android.package-archive"),
        (b"a.deb", "application/vnd.debian.binary-package"),
        (b"a.eot", "application/vnd.ms-fontobject"),
        (b"a.otf", "font/otf"),
        (b"a.ttf", "font/ttf"),
        (b"a.unityweb", DEFAULT_TYPE),
        (b"a.pub", DEFAULT_TYPE),
        # Packed files are what they are: no Content-Encoding that would unpack a download.
        (b"a.tar", "application/x-tar"),
        (b"a.gz", "application/gzip"),
        (b"a.tar.gz", "application/gzip"),
        (b"a.tgz", "application/gzip"),
        (b"a.html.gz", "application/gzip"),
        (b"a.svgz", "application/gzip"),
        (b"a.tar.bz2", "application/x-bzip2"),
        (b"a.tar.xz", "application/x-xz"),
        (b"a.tar.zst", "application/zstd"),
        (b"a.txz", "application/x-xz"),
        (b"a.tbz2", "application/x-bzip2"),
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
    assert TYPES.of_suffixes(suffixes_of(name)) == kind


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
    kind = TYPES.of_suffixes(suffixes_of(name))
    assert MEDIA_TYPE.fullmatch(kind)
    assert ("charset" in kind) == kind.startswith("text/")


@pytest.mark.parametrize("suffix", KNOWN)
def test_every_suffix_that_python_knows_has_a_legal_type(suffix: str) -> None:
    kind = TYPES.of_suffixes(suffix)
    assert MEDIA_TYPE.fullmatch(kind)
    assert ("charset" in kind) == kind.startswith("text/")


OWN = {
    ".gpx": "application/gpx+xml",
    ".GLB": "model/gltf-binary",
    ".html": "application/xhtml+xml",
    ".gz": "application/x-own-gzip",
    ".tar.gz": "application/x-own-tar",
    ".br": "application/x-own-brotli",
    ".log": "text/plain",
    ".ja": "text/plain; charset=shift_jis",
    ".JP": "text/plain;Charset=EUC-JP",
    ".flowed": "text/plain; format=flowed",
    ".loud": "TEXT/PLAIN",
    ".json": "application/json; charset=utf-8",
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"a.gpx", "application/gpx+xml"),
        (b"A.GPX", "application/gpx+xml"),
        (b"a.b.gpx", "application/gpx+xml"),
        (b"a.glb", "model/gltf-binary"),
        # Before the table.
        (b"a.html", "application/xhtml+xml"),
        (b"a.htm", "text/html; charset=utf-8"),
        # The longer suffix counts.
        (b"a.gz", "application/x-own-gzip"),
        (b"a.html.gz", "application/x-own-gzip"),
        (b"a.tar.gz", "application/x-own-tar"),
        (b"b.a.tar.gz", "application/x-own-tar"),
        (b"tar.gz", "application/x-own-gzip"),
        (b"a.js.br", "application/x-own-brotli"),
        (b"a.gpx.txt", "text/plain; charset=utf-8"),
        (b"a.gpx~", DEFAULT_TYPE),
        # A charset for text that has none.
        (b"a.log", "text/plain; charset=utf-8"),
        (b"a.ja", "text/plain; charset=shift_jis"),
        (b"a.jp", "text/plain;Charset=EUC-JP"),
        (b"a.flowed", "text/plain; format=flowed; charset=utf-8"),
        (b"a.loud", "TEXT/PLAIN; charset=utf-8"),
        (b"a.json", "application/json; charset=utf-8"),
    ],
)
def test_a_site_has_types_of_its_own(name: bytes, kind: str) -> None:
    assert ContentTypes(OWN).of_suffixes(suffixes_of(name)) == kind


@pytest.mark.parametrize(
    ("charset", "text"),
    [("", "text/html"), ("iso-8859-1", "text/html; charset=iso-8859-1"), ("utf-8", "text/html; charset=utf-8")],
)
def test_the_charset_of_text_can_be_chosen(charset: str, text: str) -> None:
    types = ContentTypes({".ja": "text/plain; charset=shift_jis"}, charset)
    assert types.of_suffixes(".html") == text
    assert types.of_suffixes(".ja") == "text/plain; charset=shift_jis"
    assert types.of_suffixes(".png") == "image/png"


def test_the_types_of_two_sites_do_not_mix() -> None:
    one, other = ContentTypes({".html": "text/one"}), ContentTypes({".html": "text/other"}, "")
    for _ in range(2):
        assert (one.of_suffixes(".html"), other.of_suffixes(".html")) == ("text/one; charset=utf-8", "text/other")
        assert TYPES.of_suffixes(".html") == "text/html; charset=utf-8"


@pytest.fixture
def machine_types(tmp_path: Path) -> Iterator[None]:
    """A machine whose mime.types says strange things."""
    table = tmp_path / "mime.types"
    table.write_text("text/strange html png nosuchtype\n")
    mimetypes.init([str(table)])
    yield
    mimetypes.init()


@pytest.mark.usefixtures("machine_types")
def test_the_table_of_the_machine_has_no_say() -> None:
    assert mimetypes.guess_type("a.nosuchtype") == ("text/strange", None)
    types = ContentTypes()
    assert types.of_suffixes(".nosuchtype") == DEFAULT_TYPE
    assert types.of_suffixes(".html") == "text/html; charset=utf-8"
    assert types.of_suffixes(".png") == "image/png"


def test_the_table_of_the_machine_has_no_say_from_the_start(tmp_path: Path) -> None:
    """The table is made when the module is imported, after whatever has been read by then."""
    table = tmp_path / "mime.types"
    table.write_text("text/strange html png nosuchtype\n")
    program = (
        f"import mimetypes; mimetypes.init([{str(table)!r}]); from ktlsd.site.content_types import ContentTypes;"
        "types = ContentTypes(); print(*(types.of_suffixes(suffix) for suffix in ('.png', '.html', '.nosuchtype')))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == f"image/png text/html; charset=utf-8 {DEFAULT_TYPE}\n"


def test_the_table_of_python_has_no_say() -> None:
    """It differs between versions of Python, so it is not even imported."""
    program = "import sys, ktlsd.site.content_types; print('mimetypes' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def rows() -> list[list[str]]:
    lines = (Path(ktlsd.__file__).parent / "site/assets/media.types").read_text(encoding="ascii").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_the_table_has_each_suffix_once_with_a_legal_type() -> None:
    suffixes = [suffix for _, *suffixes in rows() for suffix in suffixes]
    assert len(suffixes) > 1200
    assert len(suffixes) == len(set(suffixes))
    for kind, *names in rows():
        for suffix in names:
            assert re.fullmatch(r"\.[a-z0-9_-]+", suffix)
            found = TYPES.of_suffixes(suffix)
            assert found == (f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
            assert MEDIA_TYPE.fullmatch(found), suffix


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (b"application/gpx+xml", ("application/gpx+xml", True)),
        (b"image/png\n", ("image/png", False)),
        (b"text/plain", ("text/plain; charset=utf-8", True)),
        (b"text/plain; charset=koi8-r", ("text/plain; charset=koi8-r", True)),
        *((value, None) for value in (b"", b"text", b"a b/c", b"text/html\r\nX: y", b"text/\xff", b"a/" + b"b" * 300)),
    ],
)
def test_the_type_of_an_attribute(value: bytes, described: tuple[str, bool] | None) -> None:
    assert ContentTypes().of_attribute(value) == described


@given(st.text("a.", min_size=1), st.sampled_from([*OWN, *ENCODED, ".html", ".x", ".tar.x"]), st.booleans())
def test_a_last_suffix_decides_only_by_itself(stem: str, ending: str, bare: bool) -> None:
    types = ContentTypes() if bare else ContentTypes(OWN)
    name = ("a" + stem + ending).encode()
    known = types.of_last_suffix(name[name.rfind(b".") :])
    if known is not None:
        assert types.encoded(name) is None
        assert known == types.described(name)
    else:
        assert ending not in {".html", ".x"}
