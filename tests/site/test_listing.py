"""A listing for people and for programs: order, names of any bytes, header fields."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktlsd.site.folder import Entry
from ktlsd.site.listing import (
    LARGEST_THUMBNAIL,
    Column,
    Sort,
    fields,
    parse_query,
    render_html,
    render_json,
)

NOON = 1_700_000_000_000_000_000
NAMES = st.binary(min_size=1, max_size=60).filter(lambda name: b"/" not in name and b"\0" not in name)
UGLY = [
    b"quote\"'<b>&amp;.txt",
    b"</script><script>alert(1)</script>",
    b"new\nline\r",
    b"bad\xff\xfe",
    "\u202egpj.exe".encode(),
    b"javascript:alert(1)",
    b"a:b",
    b"%2e%2e",
    b"?query#fragment",
    b"\\..\\x",
    b"-->",
    b" ",
]


def media_type(name: bytes) -> str:
    types = {b".png": "image/png", b".svg": "image/svg+xml", b".py": "text/x-python; charset=utf-8"}
    return next((kind for suffix, kind in types.items() if name.endswith(suffix)), "application/octet-stream")


def file(name: bytes, size: int = 10, mtime_ns: int = NOON) -> Entry:
    return Entry(name, False, size, mtime_ns)


def folder(name: bytes, mtime_ns: int = NOON) -> Entry:
    return Entry(name, True, 4096, mtime_ns)


class Page(HTMLParser):
    """Every tag of a page, its links and the text in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.rows: list[tuple[str, str]] = []
        self.crumbs: list[tuple[str, str]] = []
        self.attributes: list[dict[str, str | None]] = []
        self.raw: dict[str, str] = {}
        self.text = ""
        self._stack: list[str] = []
        self._href: str | None = None
        self._link_text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes.append({"tag": tag, **dict(attrs)})
        self._stack.append(tag)
        if tag == "a":
            self._href, self._link_text = dict(attrs)["href"], ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._href is not None:
            where = self.crumbs if "nav" in self._stack and "table" not in self._stack else self.rows
            if not self._href.startswith("?"):
                where.append((self._href, self._link_text))
            self._href = None
        if tag in self._stack:
            while self._stack.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._stack and self._stack[-1] in ("style", "script"):
            self.raw[self._stack[-1]] = data
            return
        self.text += data
        if self._href is not None:
            self._link_text += data

    @property
    def entries(self) -> list[tuple[str, str]]:
        return [row for row in self.rows if row[0].startswith("./") and row[0] != "./"]


def page(entries: Sequence[Entry], *, names: Sequence[bytes] = (), sort: Sort | None = None) -> Page:
    return Page(b"".join(render_html(names, entries, sort or Sort(), media_type)).decode())


def order(entries: Sequence[Entry], sort: Sort) -> list[str]:
    """The names in the order of the page, which must be that of the JSON too."""
    shown = [text for _, text in page(entries, sort=sort).entries]
    rows = json.loads(b"".join(render_json(entries, sort)))
    assert [row["name"] + ("/" if row["type"] == "directory" else "") for row in rows] == shown
    return shown


SOME = [
    file(b"track 10", 30, NOON + 3),
    file(b"Track 9", 20, NOON + 1),
    file(b"track 010b", 20, NOON + 2),
    folder(b"zoo", NOON + 9),
    folder(b"Ant", NOON + 8),
]


@pytest.mark.parametrize(
    ("column", "descending", "expected"),
    [
        ("name", False, ["Ant/", "zoo/", "Track 9", "track 10", "track 010b"]),
        ("name", True, ["zoo/", "Ant/", "track 010b", "track 10", "Track 9"]),
        ("size", False, ["Ant/", "zoo/", "Track 9", "track 010b", "track 10"]),
        ("size", True, ["Ant/", "zoo/", "track 10", "Track 9", "track 010b"]),
        ("date", False, ["Ant/", "zoo/", "Track 9", "track 010b", "track 10"]),
        ("date", True, ["zoo/", "Ant/", "track 10", "track 010b", "Track 9"]),
    ],
)
def test_order(column: Column, descending: bool, expected: list[str]) -> None:
    assert order(SOME, Sort(column, descending)) == expected


@given(st.lists(st.integers(0, 5000), unique=True, max_size=400), st.booleans())
def test_runs_are_merged_to_one_order(numbers: list[int], descending: bool) -> None:
    entries = [file(b"%d" % number, size=number) for number in numbers]
    expected = [str(number) for number in sorted(numbers, reverse=descending)]
    assert order(entries, Sort("name", descending)) == expected
    assert order(entries, Sort("size", descending)) == expected


def test_pieces_are_small_and_many() -> None:
    entries = [file(b"x" * 200 + b"%d" % number) for number in range(5000)]
    pieces = list(render_html((b"a",), entries, Sort(), media_type))
    assert max(map(len, pieces)) < 64 * 1024
    assert len([piece for piece in pieces if piece]) > 5000 // 100
    # Sorting happens between empty pieces, before the first byte.
    assert pieces[0] == b""
    assert max(map(len, render_json(entries, Sort()))) < 64 * 1024


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", Sort()),
        (b"?", Sort()),
        (b"?sort=size", Sort("size")),
        (b"?sort=size&order=desc", Sort("size", True)),
        (b"?order=desc&sort=date", Sort("date", True)),
        (b"?order=desc", Sort("name", True)),
        (b"?sort=owner&order=up", Sort()),
        (b"?sort=%73ize&x&=&order==", Sort()),
        (b"?\xff=\xff&sort=date", Sort("date")),
    ],
)
def test_query(query: bytes, expected: Sort) -> None:
    assert parse_query(query) == expected


@given(st.binary(max_size=50))
def test_every_query_gives_an_order(query: bytes) -> None:
    assert isinstance(parse_query(query), Sort)


@given(st.lists(NAMES, unique=True, max_size=8), st.booleans())
@example(UGLY, False)
@example(UGLY, True)
def test_a_name_of_any_bytes_is_linked_and_adds_no_markup(names: list[bytes], directories: bool) -> None:
    plain = page([Entry(b"%d" % number, directories, 1, NOON) for number in range(len(names))])
    shown = page([Entry(name, directories, 1, NOON) for name in names])
    assert shown.tags == plain.tags
    base = "https://host/x/"
    for href, text in shown.entries:
        url = urlsplit(urljoin(base, href))
        assert (url.scheme, url.netloc, url.query, url.fragment) == ("https", "host", "", "")
        assert not re.search("[\0-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)
    found = {unquote_to_bytes(href.removeprefix("./").removesuffix("/" * directories)) for href, _ in shown.entries}
    assert found == set(names)


@given(st.lists(NAMES, min_size=1, max_size=4))
@example(UGLY)
def test_a_path_of_any_bytes_adds_no_markup(names: list[bytes]) -> None:
    assert page([], names=names).tags == page([], names=[b"x"] * len(names)).tags


@given(st.lists(NAMES, unique=True, max_size=8))
@example(UGLY)
def test_json_has_every_name_as_text_and_as_bytes(names: list[bytes]) -> None:
    rows = json.loads(b"".join(render_json([file(name) for name in names], Sort())))
    assert {unquote_to_bytes(row["href"].removeprefix("./")) for row in rows} == set(names)
    for row in rows:
        assert row["name"] == unquote_to_bytes(row["href"].removeprefix("./")).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\nb\x7f", "a\u240ab\u2421"),
        (b"bad\xff", "bad\ufffd"),
        (b"\x85".decode("latin-1").encode(), "[U+0085]"),
        ("\u202egpj.exe".encode(), "[U+202E]gpj.exe"),
        ("\u2066x\u200f\ufeff".encode(), "[U+2066]x[U+200F][U+FEFF]"),
        ("שלום".encode(), "שלום"),
        ("\U0001f468\u200d\U0001f467".encode(), "\U0001f468\u200d\U0001f467"),
        (b"<b> &amp; \"'", "<b> &amp; \"'"),
    ],
)
def test_what_nobody_sees_is_shown(name: bytes, shown: str) -> None:
    assert [text for _, text in page([file(name)]).entries] == [shown]


def test_json_fields() -> None:
    assert json.loads(b"".join(render_json([file(b"a b.txt", 5), folder(b"sub")], Sort()))) == [
        {"name": "sub", "href": "./sub/", "type": "directory", "modified": "2023-11-14T22:13:20Z"},
        {"name": "a b.txt", "href": "./a%20b.txt", "type": "file", "modified": "2023-11-14T22:13:20Z", "size": 5},
    ]


def test_an_empty_folder() -> None:
    assert json.loads(b"".join(render_json([], Sort()))) == []
    empty = page([], names=[b"a"])
    assert "This folder is empty." in empty.text
    assert empty.crumbs == [("../", "Home")]
    assert empty.rows == [("../", "Parent folder")]
    assert page([]).rows == []


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102_348, "99.9 KiB"),
        (102_400, "100 KiB"),
        (1_023_487, "999 KiB"),
        (1_023_488, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (2**63 - 1, "8.0 EiB"),
    ],
)
def test_human_sizes(size: int, shown: str) -> None:
    found = page([file(b"x", size)])
    assert f">{shown}<" in b"".join(render_html((), [file(b"x", size)], Sort(), media_type)).decode()
    (data,) = (attributes for attributes in found.attributes if attributes["tag"] == "data")
    assert data["value"] == str(size)
    assert data.get("title") == (f"{size:,} bytes" if size >= 1024 else None)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (2**63, "9999-12-31T23:59:59Z"),
        (-(2**63), "0001-01-01T00:00:00Z"),
    ],
)
def test_times_of_any_file_system(seconds: int, shown: str) -> None:
    (row,) = json.loads(b"".join(render_json([file(b"x", mtime_ns=seconds * 10**9)], Sort())))
    assert row["modified"] == shown


def test_parent_folder_and_breadcrumbs() -> None:
    top = page([file(b"x")])
    assert top.crumbs == []
    assert "../" not in [href for href, _ in top.rows]
    deep = page([file(b"x")], names=[b"a", b"b&", b"c"])
    assert deep.crumbs == [("../../../", "Home"), ("../../", "a"), ("../", "b&")]
    assert deep.rows[0] == ("../", "Parent folder")
    # Title and heading are the same.
    assert deep.text.splitlines().count("c/") == 2


@pytest.mark.parametrize(
    ("sort", "links", "marked"),
    [
        (
            Sort(),
            ["?sort=name&order=desc", "?sort=size&order=desc", "?sort=date&order=desc"],
            ["ascending", None, None],
        ),
        (
            Sort("size", True),
            ["?sort=name&order=asc", "?sort=size&order=asc", "?sort=date&order=desc"],
            [None, "descending", None],
        ),
    ],
)
def test_column_heads_sort_without_a_script(sort: Sort, links: list[str], marked: list[str | None]) -> None:
    found = page([file(b"x")], sort=sort).attributes
    assert [tag["href"] for tag in found if tag["tag"] == "a" and str(tag["href"]).startswith("?")] == links
    assert [tag.get("aria-sort") for tag in found if tag["tag"] == "th"] == marked


def test_thumbnails_are_the_small_pictures_themselves() -> None:
    pictures = [file(b"a.png"), file(b"b.svg", LARGEST_THUMBNAIL), file(b"c.png", LARGEST_THUMBNAIL + 1)]
    rest = [file(b"d.png", 0), file(b"e.py"), folder(b"f.png")]
    found = page([*pictures, *rest]).attributes
    images = [tag for tag in found if tag["tag"] == "img"]
    assert [(tag["src"], tag["alt"], tag["loading"]) for tag in images] == [
        ("./a.png", "", "lazy"),
        ("./b.svg", "", "lazy"),
    ]
    icons = [tag["href"] for tag in found if tag["tag"] == "use"]
    assert icons == ["#i-folder", "#i-picture", "#i-picture", "#i-code"]
    assert any(tag.get("id") == "gallery" for tag in found)
    assert not any(tag.get("id") == "gallery" for tag in page(rest).attributes)


@pytest.mark.parametrize(
    "kind",
    ["image/png", "audio/mp4", "video/webm", "application/json", "text/plain", "application/zip", "font/otf"],
)
def test_every_icon_is_there(kind: str) -> None:
    def of_any_name(name: bytes) -> str:
        return kind

    html = b"".join(render_html((b"a",), [file(b"x", 0), folder(b"y")], Sort(), of_any_name))
    found = Page(html.decode()).attributes
    used = {str(tag["href"])[1:] for tag in found if tag["tag"] == "use"}
    assert used <= {tag["id"] for tag in found if tag["tag"] == "symbol"}
    assert len(used) == 3


def test_types_of_what_the_viewer_shows() -> None:
    types = {b"mp4": "video/mp4", b"mp3": "audio/mpeg", b"tif": "image/tiff", b"png": "image/png"}
    files = [file(b"a." + suffix) for suffix in types]
    html = b"".join(render_html((), files, Sort(), lambda name: types[name[-3:]]))
    links = [tag for tag in Page(html.decode()).attributes if tag["tag"] == "a" and "data-type" in tag]
    assert [tag["data-type"] for tag in links] == ["audio/mpeg", "video/mp4", "image/png"]


def test_a_long_name_is_shown_under_the_pointer() -> None:
    long = "<&\"'" * 20
    links = [tag for tag in page([file(long.encode()), file(b"short")]).attributes if tag["tag"] == "a"]
    assert [tag.get("title") for tag in links if str(tag["href"]).startswith("./")][:2] == [long, None]


def test_counts() -> None:
    found = page([folder(b"a"), file(b"b", 1024), file(b"c", 512)])
    assert "1 folder, 2 files, 1.5 KiB" in found.text
    assert "1 file, 10 B" in page([file(b"b")]).text


def test_the_policy_allows_the_page_and_nothing_else() -> None:
    html = dict(fields(as_json=False))
    assert html["Content-Type"] == "text/html; charset=utf-8"
    raw = page([file(b"x")]).raw
    hashes = {
        tag: "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for tag, text in raw.items()
    }
    policy = dict(part.split(" ", 1) for part in html["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "style-src": hashes["style"],
        "script-src": hashes["script"],
        "img-src": "'self' data:",
        "media-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert all("style" not in tag and not any(name.startswith("on") for name in tag) for tag in page(SOME).attributes)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_cache_asks_again_and_keeps_both_forms_apart(as_json: bool) -> None:
    found = dict(fields(as_json=as_json))
    assert found["Content-Type"] == ("application/json" if as_json else "text/html; charset=utf-8")
    assert found["Cache-Control"] == "no-cache"
    assert found["Vary"] == "Accept"
