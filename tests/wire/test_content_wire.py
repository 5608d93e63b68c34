"""What a site sends over the wire: content codings, validators, types, error pages, rules, parts and listings.

One server has a site for each kind of options, and no name in the handshake, so that Host alone says which. All over
both protocols. Here over whatever path this machine gives; test_ktls_content_wire.py has it over kTLS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email
import gzip
import json
import os
import random
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import brotli
import pytest
import zstandard

from ktlsd.http.byte_range import MOST_RANGES
from tests.files import DAY_NS, set_age, write
from tests.protocols import HTTP_1, Conversation, ask, ask_by_both, conversation
from tests.serving import WAIT_SECONDS, Answer, Running, exchange, parse, serving
from tests.wire.test_response_cache import settle

ATTRIBUTES = {
    "track": b"application/gpx+xml",
    "page.html": b" text/x-own\n",
    "plain.html": b"",
    "bad.html": b"no type",
    "evil.html": b"text/html\r\nSet-Cookie: a=b",
    "picture.svgz": b"text/plain",
}
PAGE = b"<h1>A page that gets smaller by compression</h1>\n" * 200
LARGE = 1_000_003
MANY = 50_000
CODED = {
    "gzip": (".gz", gzip.compress(PAGE)),
    "br": (".br", brotli.compress(PAGE)),
    "zstd": (".zst", zstandard.compress(PAGE)),
}
CONFIGURATION = """
root = "files"
listing = true

[[site]]
names = ["size-mtime"]
etag = "size-mtime"

[[site]]
names = ["content"]
etag = "content"

[[site]]
names = ["types"]
root = "types"
charset = ""
precompressed = []
nosniff = false
server_header = false
types = { ".gpx" = "application/gpx+xml", ".txt" = "text/plain; charset=koi8-r", ".TAR.gz" = "application/x-own" }

[[site]]
names = ["attributes"]
root = "attributes"
type_attributes = true

[[site]]
names = ["errors"]
root = "errors"
nosniff = true
cache = [{ path = "**", control = "public, max-age=60" }]
[site.error_pages]
403 = "/403.html"
404 = "/pages/404.html"
412 = "/missing.html"
416 = "/416.txt"
[[site.error_page]]
path = "/folder/**"
status = 404
file = "/folder/404.html"
[[site.error_page]]
path = "*.txt"
status = 404
file = "/missing.html"
[[site.error_page]]
path = "**"
status = 412
file = "/416.txt"

[[site]]
names = ["error-access"]
root = "errors"
error_page = [{ path = "/pages/**", status = 403, file = "/403.html" }]
[[site.access]]
path = "**"
deny = ["127.0.0.0/8", "::1"]

[[site]]
names = ["try-status"]
root = "pages"
listing = false
fallback = "/app.html"
try_files = ["{path}", "{path}.html", "=404"]
error_page = [{ path = "/deep/**", status = 404, file = "/about.html" }]

[[site]]
names = ["try-gone"]
root = "pages"
try_files = ["/old{path}", "=410"]
error_pages = { 410 = "/about.html" }

[[site]]
names = ["try"]
root = "pages"
try_files = ["{path}", "{path}.html", "/app.html"]

[[site]]
names = ["clean"]
root = "pages"
clean_urls = true
index = ["index.xhtml", "index.html", "about.html"]

[[site]]
names = ["fallback"]
root = "pages"
fallback = "/app.html"
listing = false

[[site]]
names = ["moved"]
root = "pages"
[site.error_pages]
404 = "/app.html"
[[site.redirect]]
from = "/s301"
to = "/to"
[[site.redirect]]
from = "/s302"
to = "/to"
status = 302
[[site.redirect]]
from = "/s303"
to = "https://other.example/to?x=y"
status = 303
[[site.redirect]]
from = "/s307"
to = "/to?own"
status = 307
[[site.redirect]]
from = "/s308"
to = "/to#part"
status = 308
[[site.redirect]]
from = "/s200"
to = "/about.html"
status = 200
[[site.redirect]]
from = "/s404"
to = "/about.html"
status = 404
[[site.redirect]]
from = "/about.html"
to = "/forced"
[[site.redirect]]
from = "/app.html"
to = "/not-forced"
force = false
[[site.redirect]]
regex = '^/archive/([0-9]{4})-([0-9]+)(/.*)?$'
to = "/archive/$1/$2$3"
status = 302
[[site.redirect]]
regex = '^/(about|app)[.]php$'
to = "/$1.html"
status = 200
[[site.redirect]]
from = "/blog/:year/*"
to = "/archive/:year/:splat"
[[site.redirect]]
from = "/search/:word"
to = "https://search.example/?q=:word"

[[site]]
names = ["rules"]
root = "rules"
hashed_names = true
downloads = ["*.zip", "/reports/**"]
[site.hsts]
max_age = 100
include_subdomains = true
preload = true
[[site.cache]]
path = "/assets/**"
control = "public, max-age=3600"
[[site.cache]]
path = "*.html"
control = "no-cache"
[[site.cache]]
path = "*.zip"
control = "public"
expires = "modified+7d"
[[site.cache]]
path = "/reports/**"
expires = "1h30m"
[[site.header]]
path = "**"
set = { X-Frame-Options = "DENY", X-All = "yes" }
[[site.header]]
regex = '^/assets/.*[.][0-9a-f]{8}[.]js$'
set = { X-Hashed = "yes" }
[[site.header]]
path = "/assets/**"
set = { X-Frame-Options = "SAMEORIGIN" }
remove = ["X-Content-Type-Options", "Server"]

[[site]]
names = ["cors"]
root = "rules"
[site.cors]
origins = ["https://app.example"]
path = "/assets/**"
headers = ["Authorization"]
expose = ["ETag"]
max_age = 600
credentials = true

[[site]]
names = ["cors-any"]
root = "rules"
[site.cors]
origins = ["*"]

[[site]]
names = ["static-host"]
root = "static-host"
headers_file = true
redirects_file = true

[[site]]
names = ["list"]
root = "list"

[[site]]
names = ["list-dots"]
root = "list"
dotfiles = true

[[site]]
names = ["many"]
root = "many"
"""


@dataclass
class Place:
    """A running server, the folder that its configuration is in, and the protocol to ask it by."""

    server: Running
    folder: Path
    protocol: str = HTTP_1

    def ask(self, site: str, target: str, *fields: str, method: str = "GET") -> Answer:
        return ask(self.server.port, target, *fields, protocol=self.protocol, method=method, host=site)

    def ask_by_both(self, site: str, target: str, *fields: str) -> Answer:
        return ask_by_both(self.server.port, target, *fields, host=site)

    def conversation(self) -> contextlib.AbstractContextManager[Conversation]:
        return conversation(self.server.port, self.protocol)

    def file(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    make_files(folder / "files")
    make_types(folder / "types")
    make_attributes(folder / "attributes")
    make_errors(folder / "errors")
    make_pages(folder / "pages")
    make_rules(folder / "rules")
    make_list(folder / "list")
    (folder / "static-host").mkdir()
    (folder / "static-host/index.html").write_text("static")
    (folder / "many").mkdir()
    config = folder / "ktlsd.toml"
    config.write_text(CONFIGURATION)
    # Siblings of another time than their files are compared once neither changes.
    for name in ("files/page.html.gz", "errors/pages/404.html.gz"):
        settle(folder / name)
    with start(config) as server:
        yield Place(server, folder)


@pytest.fixture
def place(started: Place, protocol: str) -> Place:
    return dataclasses.replace(started, protocol=protocol)


def start(config: Path) -> contextlib.AbstractContextManager[Running]:
    # Root may read anything; without these capabilities a file's mode means what it says.
    wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    return serving(None, "--config", str(config), state=config.parent / "state", wrapper=wrapper)


def make_files(root: Path) -> None:
    write(root / "page.html", PAGE, 2 * DAY_NS)
    for suffix, content in CODED.values():
        write(root / f"page.html{suffix}", content)
    write(root / "plain.html", PAGE)
    write(root / "picture.png", b"\x89PNG" + PAGE)
    write(root / "picture.png.gz", gzip.compress(PAGE))
    for name in ("stale", "folder-beside", "locked-beside", "link-beside"):
        write(root / f"{name}.css", PAGE)
    write(root / "stale.css.gz", gzip.compress(PAGE.replace(b"e", b"a")), 0)
    write(root / "half.css", PAGE)
    write(root / "half.css.gz", CODED["gzip"][1][:-1], 0)
    write(root / "undated.css", PAGE)
    os.utime(root / "undated.css", (1, 1))
    write(root / "undated.css.gz", gzip.compress(PAGE.replace(b"e", b"a")))
    os.utime(root / "undated.css.gz", (1, 1))
    (root / "folder-beside.css.gz").mkdir()
    write(root / "locked-beside.css.gz", CODED["gzip"][1], 0)
    (root / "locked-beside.css.gz").chmod(0)
    write(root.parent / "outside.gz", CODED["gzip"][1], 0)
    (root / "link-beside.css.gz").symlink_to("../outside.gz")
    write(root / "large.bin", random.Random(1).randbytes(LARGE))
    write(root / "line-ends.txt", b"a\r\n\r\n--b\rc\n" * 1000)
    write(root / "empty.txt", b"")


def make_types(root: Path) -> None:
    for name in TYPES:
        write(root / name, PAGE)
    write(root / "other.html.gz", CODED["gzip"][1], 0)


def make_attributes(root: Path) -> None:
    for name, attribute in ATTRIBUTES.items():
        write(root / name, PAGE)
        if attribute:
            os.setxattr(root / name, "user.mime_type", attribute)


def make_errors(root: Path) -> None:
    write(root / "pages/404.html", "<h1>lost</h1>", 2 * DAY_NS)
    write(root / "pages/404.html.gz", gzip.compress(b"<h1>lost</h1>"))
    write(root / "416.txt", "no such part")
    write(root / "folder/404.html", "<h1>not in this folder</h1>")
    write(root / "403.html", "<h1>locked</h1>")
    write(root / "file.txt", "content")
    write(root / "locked.txt", "locked")
    (root / "locked.txt").chmod(0)


def make_pages(root: Path) -> None:
    for name in ("app.html", "about.html", "both", "both.html", "deep/page.html", "deep/.secret.html"):
        write(root / name, name)
    write(root / "empty/file.txt", "file")
    write(root / "second/index.html", "second index")
    write(root / "beside/index.html", "beside index")
    write(root / "beside.html", "beside.html")
    write(root / "both-indexes/index.html", "later")
    write(root / "both-indexes/index.xhtml", "earlier")
    (root / "folder-index/index.html").mkdir(parents=True)
    write(root / "folder-index/about.html", "about index")


def make_rules(root: Path) -> None:
    for name in (
        "index.html",
        "assets/page.html",
        "assets/style.css",
        "assets/app.3f9c2b1a.js",
        "app.3f9c2b1a.js",
        "app.banner00.js",
        "archive.zip",
        "reports/2024 Übersicht.pdf",
        'reports/a "quoted" 100%.txt',
        "plain.txt",
    ):
        write(root / name, name)


def make_list(root: Path) -> None:
    for name in ("b.txt", "a10.txt", "a2.txt", "<script>\"&'.html", "new\nline", "right\u202eleft.txt", "é.txt"):
        write(root / name, name)
    write(root / os.fsdecode(b"latin-\xe9.txt"), "x")
    write(root / "folder/inner.txt", "inner")
    write(root / ".hidden", "hidden")
    write(root / ".folder/inner.txt", "hidden")
    write(root / "locked.txt", "locked")
    (root / "locked.txt").chmod(0)
    write(root / "with-index/index.html", "the index")
    (root / "empty").mkdir()
    (root / "unreadable").mkdir()
    (root / "unreadable").chmod(0)
    (root / "inside-link").symlink_to("folder/inner.txt")
    (root / "outside-link").symlink_to("../files/page.html")
    (root / "broken-link").symlink_to("nothing")
    os.mkfifo(root / "fifo")


# --- content codings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("deflate, compress", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP ; Q=0.5", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, br;q=0.9, zstd;q=0.8", "gzip"),
        ("gzip;q=0.1, br;q=0.2", "br"),
        ("gzip;q=0, br;q=0.001", "br"),
        ("gzip;q=0", None),
        ("*", "zstd"),
        ("*;q=0.5, zstd;q=0", "br"),
        ("*;q=0", None),
        ("identity;q=0", None),
        ("identity;q=0, gzip", "gzip"),
        ("identity;q=1, gzip;q=0.5", None),
        ("gzip;q=2", None),
    ],
)
def test_the_best_sibling_that_a_client_takes_is_sent(place: Place, accepted: str | None, coding: str | None) -> None:
    fields = [] if accepted is None else [f"Accept-Encoding: {accepted}"]
    answer = place.ask("files", "/page.html", *fields)
    assert answer.status == 200
    assert answer.fields.get("content-encoding") == coding
    assert answer.body == (PAGE if coding is None else CODED[coding][1])
    assert answer.fields["vary"] == "Accept-Encoding"
    assert answer.fields["content-type"] == "text/html; charset=utf-8"
    head = place.ask("files", "/page.html", *fields, method="HEAD")
    del answer.fields["date"], head.fields["date"]
    assert head.fields == answer.fields


def coded(place: Place, coding: str, *fields: str, site: str = "files") -> Answer:
    return place.ask(site, "/page.html", f"Accept-Encoding: {coding}", *fields)


@pytest.mark.parametrize("site", ["files", "size-mtime", "content"])
def test_each_coding_has_a_tag_of_its_own_that_brings_304(place: Place, site: str) -> None:
    codings = [*CODED, "identity"]
    tags = {coding: coded(place, coding, site=site).fields["etag"] for coding in codings}
    assert len(set(tags.values())) == len(codings)
    for coding in codings:
        for known, tag in tags.items():
            answer = coded(place, coding, f"If-None-Match: {tag}", site=site)
            if known == coding:
                assert (answer.status, answer.fields["etag"], answer.body) == (304, tag, b"")
                assert answer.fields["vary"] == "Accept-Encoding"
                assert "content-encoding" not in answer.fields
            else:
                assert answer.status == 200
        every = ", ".join(tags.values())
        assert coded(place, coding, f'If-None-Match: "x", W/{tags[coding]}', site=site).status == 304
        assert coded(place, coding, f"If-Match: {every}", site=site).status == 200
        assert coded(place, coding, f"If-Match: W/{tags[coding]}", site=site).status == 412


@pytest.mark.parametrize("coding", CODED)
def test_a_range_is_one_of_the_coded_bytes(place: Place, coding: str) -> None:
    content = CODED[coding][1]
    whole = coded(place, coding)
    answer = coded(place, coding, "Range: bytes=10-29")
    assert (answer.status, answer.body) == (206, content[10:30])
    assert answer.fields["content-range"] == f"bytes 10-29/{len(content)}"
    for name in ("content-encoding", "vary", "etag", "content-type", "last-modified"):
        assert answer.fields[name] == whole.fields[name]
    assert coded(place, coding, "Range: bytes=10-29", f"If-Range: {whole.fields['etag']}").status == 206
    plain_tag = place.ask("files", "/page.html").fields["etag"]
    answer = coded(place, coding, "Range: bytes=10-29", f"If-Range: {plain_tag}")
    assert (answer.status, answer.body) == (200, content)
    answer = coded(place, coding, f"Range: bytes={len(content)}-")
    assert (answer.status, answer.fields["content-range"]) == (416, f"bytes */{len(content)}")


@pytest.mark.parametrize(
    "target",
    [
        "/plain.html",
        "/picture.png",
        "/stale.css",
        "/half.css",
        "/undated.css",
        "/folder-beside.css",
        "/locked-beside.css",
        "/link-beside.css",
    ],
)
def test_what_is_no_good_sibling_makes_no_choice(place: Place, target: str) -> None:
    answer = place.ask("files", target, "Accept-Encoding: gzip")
    assert (answer.status, answer.body) == (200, place.file(f"files{target}"))
    assert not {"content-encoding", "vary"} & answer.fields.keys()


def test_a_sibling_that_is_asked_for_itself_is_what_it_is(place: Place) -> None:
    answer = place.ask("files", "/page.html.gz", "Accept-Encoding: gzip")
    assert (answer.body, answer.fields["content-type"]) == (CODED["gzip"][1], "application/gzip")
    assert "content-encoding" not in answer.fields


def test_siblings_come_and_go_while_running(started: Place) -> None:
    path = started.folder / "files/changing.css"
    write(path, PAGE)
    sibling = path.with_suffix(".css.br")

    def coding() -> str | None:
        return started.ask_by_both("files", "/changing.css", "Accept-Encoding: br").fields.get("content-encoding")

    assert coding() is None
    write(sibling, CODED["br"][1], 0)
    settle(sibling)
    assert coding() == "br"
    write(path, PAGE + b"newer", -DAY_NS)
    assert coding() is None
    # A later time makes it no sibling of this version.
    set_age(sibling, -2 * DAY_NS)
    settle(sibling)
    assert coding() is None
    # The same time does, as tools give it to what they make.
    sibling.write_bytes(brotli.compress(PAGE + b"newer"))
    assert coding() is None
    shutil.copystat(path, sibling)
    assert coding() == "br"
    os.truncate(sibling, 20)
    assert coding() is None
    settle(sibling)
    assert coding() is None
    sibling.unlink()
    assert coding() is None


# --- entity tags -----------------------------------------------------------------------------------------------------


def test_what_tags_are_made_of_shows_on_two_servers(place: Place, tmp_path: Path) -> None:
    for name in ("files", "types", "errors", "pages", "rules", "list", "static-host", "many"):
        (tmp_path / name).mkdir()
    shutil.copy2(place.folder / "files/large.bin", tmp_path / "files/same.bin")
    shutil.copyfile(place.folder / "files/large.bin", tmp_path / "files/later.bin")
    shutil.copy2(place.folder / "files/large.bin", place.folder / "files/same.bin")
    shutil.copy2(place.folder / "files/large.bin", place.folder / "files/later.bin")
    config = tmp_path / "ktlsd.toml"
    config.write_text(CONFIGURATION)
    shared = {}
    with start(config) as server:
        other = Place(server, tmp_path, place.protocol)
        for site in ("files", "size-mtime", "content"):
            for target in ("/same.bin", "/later.bin"):
                here, there = (at.ask(site, target, method="HEAD").fields["etag"] for at in (place, other))
                shared[site, target] = here == there
        # A download that began on one server goes on from the other.
        tag = place.ask("content", "/same.bin", method="HEAD").fields["etag"]
        part = other.ask("content", "/later.bin", "Range: bytes=1000-1999", f"If-Range: {tag}")
        assert (part.status, part.body) == (206, place.file("files/same.bin")[1000:2000])
    assert shared == {
        ("files", "/same.bin"): False,
        ("files", "/later.bin"): False,
        ("size-mtime", "/same.bin"): True,
        ("size-mtime", "/later.bin"): False,
        ("content", "/same.bin"): True,
        ("content", "/later.bin"): True,
    }


@pytest.mark.parametrize(
    ("site", "touched", "replaced", "rewritten"),
    [("files", True, True, True), ("size-mtime", True, False, True), ("content", False, False, True)],
)
def test_tags_change_with_what_they_are_made_of(
    place: Place, site: str, touched: bool, replaced: bool, rewritten: bool
) -> None:
    path = place.folder / f"files/tagged-{site}.txt"

    def tag() -> str:
        return place.ask(site, f"/{path.name}").fields["etag"]

    write(path, "one")
    first = tag()
    assert tag() == first
    # The same bytes in place, with the time that they had.
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (tag() != first) is (site == "files")
    first = tag()
    set_age(path, 2 * DAY_NS)
    second = tag()
    assert (second != first) is touched
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    third = tag()
    assert (third != second) is replaced
    write(path, "two", 3 * DAY_NS)
    assert (tag() != third) is rewritten


def test_files_without_a_date_have_tags_that_differ_and_no_last_modified(place: Place) -> None:
    """Nix gives every file the time 1, and a freed inode number goes to the next file."""
    path = place.folder / "files/undated.txt"
    for site in ("files", "size-mtime", "content"):
        tags = set[str]()
        for content in ("version 1", "version 2"):
            path.unlink(missing_ok=True)
            path.write_text(content)
            os.utime(path, (1, 1))
            answer = place.ask(site, "/undated.txt", *(f"If-None-Match: {tag}" for tag in tags))
            assert (answer.status, answer.body.decode()) == (200, content)
            assert "last-modified" not in answer.fields
            tag = answer.fields["etag"]
            tags.add(tag)
            known = ("If-Modified-Since: Thu, 01 Jan 1970 00:00:01 GMT",)
            assert place.ask(site, "/undated.txt", *known).status == 200
            assert place.ask(site, "/undated.txt", f"If-None-Match: {tag}").status == 304
            part = place.ask(site, "/undated.txt", "Range: bytes=0-1", f"If-Range: {tag}")
            assert (part.status, part.body) == (206, b"ve")
            assert "last-modified" not in part.fields
        assert len(tags) == 2


def test_two_versions_are_never_joined_by_if_range(place: Place) -> None:
    """In place, in the same size and with the same time: only the ctime differs."""
    path = place.folder / "files/joined.bin"
    path.write_bytes(b"1" * 5000)
    os.utime(path, (DAY_NS // 10**9,) * 2)
    tag = place.ask("files", "/joined.bin", "Range: bytes=0-2499").fields["etag"]
    path.write_bytes(b"2" * 5000)
    os.utime(path, (DAY_NS // 10**9,) * 2)
    answer = place.ask("files", "/joined.bin", "Range: bytes=2500-", f"If-Range: {tag}")
    assert (answer.status, answer.body) == (200, b"2" * 5000)
    assert place.ask("files", "/joined.bin", f"If-None-Match: {tag}").status == 200
    assert place.ask("files", "/joined.bin", f"If-Match: {tag}").status == 412


# --- types -----------------------------------------------------------------------------------------------------------

# On a site without a charset but with types of its own, and on one with the defaults.
TYPES = {
    "other.html": ("text/html", "text/html; charset=utf-8"),
    "style.CSS": ("text/css", "text/css; charset=utf-8"),
    "code.mjs": ("text/javascript", "text/javascript; charset=utf-8"),
    "note.txt": ("text/plain; charset=koi8-r", "text/plain; charset=utf-8"),
    "track.gpx": ("application/gpx+xml", None),
    "data.json": ("application/json", "application/json"),
    "image.svg": ("image/svg+xml", "image/svg+xml"),
    "photo.avif": ("image/avif", "image/avif"),
    "code.wasm": ("application/wasm", "application/wasm"),
    "font.woff2": ("font/woff2", "font/woff2"),
    "film.mp4": ("video/mp4", "video/mp4"),
    "own.tar.gz": ("application/x-own", "application/gzip"),
    "none": ("application/octet-stream", "application/octet-stream"),
    "odd.unknown-suffix": ("application/octet-stream", "application/octet-stream"),
}


@pytest.mark.parametrize("name", TYPES)
def test_types_are_the_tables_or_the_sites_own(place: Place, name: str) -> None:
    own, usual = TYPES[name]
    answer = place.ask("types", f"/{name}", "Accept-Encoding: gzip")
    assert (answer.status, answer.fields["content-type"]) == (200, own)
    assert not {"x-content-type-options", "server", "content-encoding", "vary"} & answer.fields.keys()
    shutil.copy2(place.folder / "types" / name, place.folder / "files" / name)
    answer = place.ask("files", f"/{name}")
    assert usual is None or answer.fields["content-type"] == usual
    assert (answer.fields["x-content-type-options"], answer.fields["server"]) == ("nosniff", "ktlsd")


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("track", "application/gpx+xml"),
        ("page.html", "text/x-own; charset=utf-8"),
        ("plain.html", "text/html; charset=utf-8"),
        ("bad.html", "text/html; charset=utf-8"),
        ("evil.html", "text/html; charset=utf-8"),
        ("picture.svgz", "image/svg+xml"),
    ],
)
def test_a_type_is_that_of_the_attribute(place: Place, name: str, content_type: str) -> None:
    # The second is from memory.
    for method in ("GET", "GET", "HEAD"):
        answer = place.ask("attributes", f"/{name}", method=method)
        assert (answer.status, answer.fields["content-type"]) == (200, content_type)
    assert place.ask("files", "/plain.html").fields["content-type"] == "text/html; charset=utf-8"


def test_a_new_attribute_counts_at_once(started: Place) -> None:
    path = started.folder / "attributes/later"
    write(path, PAGE)
    assert started.ask_by_both("attributes", "/later").fields["content-type"] == "application/octet-stream"
    os.setxattr(path, "user.mime_type", b"text/css")
    assert started.ask_by_both("attributes", "/later").fields["content-type"] == "text/css; charset=utf-8"


# --- error pages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "fields", "status", "body"),
    [
        ("/nothing", (), 404, b"<h1>lost</h1>"),
        ("/nothing", ("Range: bytes=0-1",), 404, b"<h1>lost</h1>"),
        ("/nothing", ("If-None-Match: *", "If-Modified-Since: Thu, 01 Jan 2099 00:00:00 GMT"), 404, b"<h1>lost</h1>"),
        ("/nothing", ("If-Match: *",), 404, b"<h1>lost</h1>"),
        ("/locked.txt", (), 403, b"<h1>locked</h1>"),
        ("/file.txt", ("Range: bytes=100-",), 416, b"no such part"),
        # There is no such page: the short text.
        ("/nothing.txt", (), 404, b"404 Not Found\n"),
        ("/file.txt", ('If-Match: "x"',), 412, b"no such part"),
        ("/pages/404.html", (), 200, b"<h1>lost</h1>"),
    ],
)
def test_an_error_has_the_page_that_was_made_for_it(
    place: Place, target: str, fields: tuple[str, ...], status: int, body: bytes
) -> None:
    answer = place.ask("errors", target, *fields)
    assert (answer.status, answer.body) == (status, body)
    assert answer.fields["x-content-type-options"] == "nosniff"
    assert answer.fields.get("content-range") == ("bytes */7" if status == 416 else None)
    # What is right for a file is not for the news that there is none.
    assert answer.fields.get("cache-control") == ("public, max-age=60" if status == 200 else None)
    if body.startswith(b"<h1>"):
        assert answer.fields["content-type"] == "text/html; charset=utf-8"
    if status in (403, 404, 416) and not body.startswith(b"404"):
        assert not {"etag", "accept-ranges"} & answer.fields.keys()
    if fields and fields[0].startswith("Range") and status == 416:
        # Range has a meaning only for GET.
        assert place.ask("errors", target, *fields, method="HEAD").status == 200
        return
    head = place.ask("errors", target, *fields, method="HEAD")
    del answer.fields["date"], head.fields["date"]
    assert (head.status, head.fields) == (status, answer.fields)


def test_an_error_page_has_siblings_too(place: Place) -> None:
    answer = place.ask("errors", "/nothing", "Accept-Encoding: gzip")
    assert (answer.status, gzip.decompress(answer.body)) == (404, b"<h1>lost</h1>")
    assert (answer.fields["content-encoding"], answer.fields["vary"]) == ("gzip", "Accept-Encoding")


def test_a_missing_error_page_is_logged(place: Place) -> None:
    lines = len(place.server.log)
    place.ask("errors", "/nothing.txt")
    place.server.wait_for_line(r"error page /missing\.html for 404 not found", since=lines)


def test_an_error_page_is_that_of_its_path_and_status(place: Place) -> None:
    answers = [place.ask("errors", target) for target in ("/folder/a/b", "/folder", "/folder/", "/folder/none.txt")]
    of_folder, of_site = b"<h1>not in this folder</h1>", b"<h1>lost</h1>"
    assert [(answer.status, answer.body) for answer in answers[:1]] == [(404, of_folder)]
    assert (answers[1].status, answers[1].fields["location"]) == (301, "/folder/")
    assert answers[2].status == 200
    # The first rule that matches counts.
    assert (answers[3].status, answers[3].body) == (404, of_folder)
    assert place.ask("errors", "/folder-beside").body == of_site
    # An error that a rule about visitors gives has its page, too.
    assert [place.ask("error-access", target).body for target in ("/pages/x", "/x")] == [
        b"<h1>locked</h1>",
        b"403 Forbidden\n",
    ]


@pytest.mark.parametrize(
    ("site", "target", "status", "body"),
    [
        ("try-status", "/about", 200, b"about.html"),
        # Neither a fallback nor the 403 of a folder without index file follows.
        ("try-status", "/nothing", 404, b"404 Not Found\n"),
        ("try-status", "/empty/", 404, b"404 Not Found\n"),
        ("try-status", "/deep/nothing", 404, b"about.html"),
        ("try-gone", "/about.html", 410, b"about.html"),
    ],
)
def test_a_status_ends_try_files(place: Place, site: str, target: str, status: int, body: bytes) -> None:
    answer = place.ask(site, target)
    assert (answer.status, answer.body) == (status, body)


# --- which file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "target", "status", "body"),
    [
        ("try", "/about.html", 200, b"about.html"),
        ("try", "/about", 200, b"about.html"),
        ("try", "/about/", 200, b"app.html"),
        ("try", "/both", 200, b"both"),
        ("try", "/deep/page", 200, b"deep/page.html"),
        ("try", "/deep/.secret", 200, b"app.html"),
        ("try", "/any/route?x=y", 200, b"app.html"),
        ("try", "/%7Bpath%7D", 200, b"app.html"),
        ("try", "/%2e%2e", 400, b"400 Bad Request\n"),
        ("try", "/second/", 200, b"second index"),
        ("clean", "/about", 200, b"about.html"),
        ("clean", "/about.html", 200, b"about.html"),
        ("clean", "/both", 200, b"both"),
        ("clean", "/deep/page", 200, b"deep/page.html"),
        ("clean", "/deep/.secret", 404, b"404 Not Found\n"),
        ("clean", "/nothing", 404, b"404 Not Found\n"),
        ("clean", "/both-indexes/", 200, b"earlier"),
        ("clean", "/second/", 200, b"second index"),
        # A file for the clean URL comes before a folder of its name.
        ("clean", "/beside", 200, b"beside.html"),
        ("clean", "/beside/", 200, b"beside index"),
        # A folder of an index file's name is none.
        ("clean", "/folder-index/", 200, b"about index"),
        ("fallback", "/any/route", 200, b"app.html"),
        ("fallback", "/deep/", 200, b"app.html"),
        ("fallback", "/about.html", 200, b"about.html"),
        ("fallback", "/about", 200, b"app.html"),
        ("fallback", "/.secret", 200, b"app.html"),
    ],
)
def test_the_file_that_answers(place: Place, site: str, target: str, status: int, body: bytes) -> None:
    answer = place.ask(site, target)
    assert (answer.status, answer.body) == (status, body)
    if status == 200:
        tag = answer.fields["etag"]
        assert place.ask(site, target, f"If-None-Match: {tag}").status == 304
        assert place.ask(site, target, "Range: bytes=0-2").body == body[:3]


def test_the_fallback_is_for_pages_only(place: Place) -> None:
    vary = "Sec-Fetch-Dest, Accept"
    as_page, as_style = ("Sec-Fetch-Dest: document", "Accept: text/html"), ("Sec-Fetch-Dest: style", "Accept: text/css")
    with place.conversation() as client:
        # The last ones are remembered responses.
        for _ in range(3):
            page = client.get("/assets/missing.css", *as_page, host="fallback")
            style = client.get("/assets/missing.css", *as_style, host="fallback")
            program = client.get("/assets/missing.css", host="fallback")
            assert (page.status, page.body, page.fields["vary"]) == (200, b"app.html", vary)
            assert (style.status, style.body, style.fields["vary"]) == (404, b"404 Not Found\n", vary)
            assert (program.status, program.fields["vary"]) == (404, vary)
        assert "vary" not in client.get("/about.html", *as_style, host="fallback").fields


@pytest.mark.parametrize("site", ["try", "clean", "fallback"])
def test_a_folder_is_sent_to_its_slash_by_every_way_to_look_up(place: Place, site: str) -> None:
    answer = place.ask(site, "/second?x=y")
    assert (answer.status, answer.fields["location"]) == (301, "/second/?x=y")


@pytest.mark.parametrize(
    ("site", "target", "location"),
    [
        ("files", "/plain.html/", "/plain.html"),
        ("files", "/plain.html/?x=/y", "/plain.html?x=/y"),
        ("files", "//plain.html//", "/plain.html"),
        ("rules", "/reports/2024%20%C3%9Cbersicht.pdf/", "/reports/2024%20%C3%9Cbersicht.pdf"),
        ("clean", "/about/", "/about"),
        ("clean", "/about.html/", "/about.html"),
        ("files", "/plain.html/x", None),
        ("files", "/nothing/", None),
        ("files", "/folder-beside.css.gz/x/", None),
        ("clean", "/deep/.secret/", None),
        ("try-status", "/about.html/", None),
    ],
)
def test_a_slash_after_a_file_is_sent_to_the_file(place: Place, site: str, target: str, location: str | None) -> None:
    answer = place.ask(site, target)
    assert answer.status == (307 if location else 404)
    assert answer.fields.get("location") == location
    if location is not None:
        assert place.ask(site, location).status == 200


# --- redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status", "location"),
    [
        ("/s301", 301, "/to"),
        ("/s301?a=b&c", 301, "/to?a=b&c"),
        ("/s302", 302, "/to"),
        ("/s303", 303, "https://other.example/to?x=y"),
        ("/s307?given", 307, "/to?own"),
        ("/s308?a", 308, "/to?a#part"),
        ("/about.html", 301, "/forced"),
        ("/blog/2024/a/b?q", 301, "/archive/2024/a/b?q"),
        ("/blog/2024/", 301, "/archive/2024/"),
        ("/archive/2024-12/a%20b?q", 302, "/archive/2024/12/a%20b?q"),
        ("/blog/20%2024/%C3%BC", 301, "/archive/20%2024/%C3%BC"),
        ("/blog/%0d%0aX:y/z", 301, "/archive/%0D%0AX:y/z"),
        ("/blog//evil.example/z", 301, "/archive/evil.example/z"),
        ("/search/a&b=c", 301, "https://search.example/?q=a%26b%3Dc"),
        ("/search/%23x?own", 301, "https://search.example/?q=%23x"),
    ],
)
def test_redirects_lead_where_their_rules_say(place: Place, target: str, status: int, location: str) -> None:
    answer = place.ask("moved", target)
    assert (answer.status, answer.fields["location"]) == (status, location)
    assert answer.fields["x-content-type-options"] == "nosniff"
    head = place.ask("moved", target, method="HEAD")
    assert (head.status, head.fields["location"]) == (status, location)


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/s200", 200, b"about.html"),
        ("/about.php", 200, b"about.html"),
        # The rule's own page, not the one for every 404.
        ("/s404", 404, b"about.html"),
        ("/nothing", 404, b"app.html"),
        ("/app.html", 200, b"app.html"),
    ],
)
def test_rewrites_send_another_file(place: Place, target: str, status: int, body: bytes) -> None:
    answer = place.ask("moved", target)
    assert (answer.status, answer.body) == (status, body)
    assert ("etag" in answer.fields) is (status == 200)


# --- the files of static hosts ---------------------------------------------------------------------------------------


def eventually(started: Place, target: str, expected: tuple[int, str | None]) -> None:
    """Ask until the answer has this status and X-Rule."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        answer = started.ask("static-host", target)
        found = answer.status, answer.fields.get("x-rule")
        if found == expected or time.monotonic() > deadline:
            assert found == expected
            started.ask_by_both("static-host", target)
            return
        time.sleep(0.1)


def test_headers_and_redirects_files_count_while_running_and_are_not_served(started: Place) -> None:
    root = started.folder / "static-host"
    eventually(started, "/", (200, None))
    (root / "_headers").write_text("/*\n  X-Rule: one\n  Content-Length: 5\n")
    (root / "_redirects").write_text("/old/* /new/:splat 302\n/ /elsewhere\n/nothing /index.html 200\nbroken\n")
    lines = len(started.server.log)
    eventually(started, "/", (200, "one"))
    started.server.wait_for_line(r"_headers:3: Content-Length is the server's own", since=lines)
    answer = started.ask_by_both("static-host", "/old/a/b?c")
    assert (answer.status, answer.fields["location"]) == (302, "/new/a/b?c")
    assert started.ask_by_both("static-host", "/nothing").body == b"static"
    started.server.wait_for_line(r"_redirects:4: broken: not a path", since=lines)
    for name in ("_headers", "_redirects", "%5fheaders", "/_headers", "_headers/", "./_redirects"):
        assert started.ask_by_both("static-host", f"/{name}").status == 404
    (root / "_headers").write_text("/*\n  X-Rule: two\n")
    eventually(started, "/", (200, "two"))
    (root / "_headers").unlink()
    (root / "_redirects").unlink()
    eventually(started, "/", (200, None))
    assert started.ask_by_both("static-host", "/old/a").status == 404


def test_without_the_option_they_are_files_as_any(place: Place) -> None:
    write(place.folder / "files/_headers", "/*\n  X-Rule: never\n")
    answer = place.ask("files", "/_headers")
    assert (answer.status, answer.body) == (200, b"/*\n  X-Rule: never\n")
    assert "x-rule" not in answer.fields


# --- rules for header fields -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            "/",
            {
                # What counts is the file that answers, index.html.
                "cache-control": "no-cache",
                "x-frame-options": "DENY",
                "x-all": "yes",
                "x-content-type-options": "nosniff",
                "server": "ktlsd",
                "strict-transport-security": "max-age=100; includeSubDomains; preload",
                "content-disposition": None,
            },
        ),
        ("/index.html", {"cache-control": "no-cache"}),
        (
            "/assets/page.html",
            {
                "cache-control": "public, max-age=3600",
                "x-frame-options": "SAMEORIGIN",
                "x-content-type-options": None,
                "server": None,
            },
        ),
        ("/assets/app.3f9c2b1a.js", {"cache-control": "public, max-age=3600"}),
        ("/app.3f9c2b1a.js", {"cache-control": "public, max-age=31536000, immutable"}),
        ("/app.banner00.js", {"cache-control": None}),
        ("/plain.txt", {"cache-control": None, "content-disposition": None}),
        ("/archive.zip", {"content-disposition": 'attachment; filename="archive.zip"'}),
        (
            "/reports/2024%20%C3%9Cbersicht.pdf",
            {
                "content-disposition": 'attachment; filename="2024 _bersicht.pdf"; '
                "filename*=UTF-8''2024%20%C3%9Cbersicht.pdf"
            },
        ),
        (
            "/reports/a%20%22quoted%22%20100%25.txt",
            {
                "content-disposition": 'attachment; filename="a _quoted_ 100_.txt"; '
                "filename*=UTF-8''a%20%22quoted%22%20100%25.txt"
            },
        ),
    ],
)
def test_rules_for_header_fields_hold_for_get_head_and_parts(
    place: Place, target: str, expected: dict[str, str | None]
) -> None:
    asked = (
        place.ask("rules", target),
        place.ask("rules", target, method="HEAD"),
        place.ask("rules", target, "Range: bytes=0-1"),
    )
    assert [answer.status for answer in asked] == [200, 200, 206]
    for answer in asked:
        assert {name: answer.fields.get(name) for name in expected} == expected


def test_a_lifetime_counts_from_the_change_or_from_the_response(place: Place) -> None:
    with place.conversation() as connection:
        # The second is from memory.
        for method, *fields in (
            ("GET",),
            ("GET",),
            ("HEAD",),
            ("GET", "Range: bytes=0-1"),
            ("GET", "If-None-Match: *"),
        ):
            answer = connection.get("/archive.zip", *fields, method=method, host="rules")
            modified, expires = (parsedate_to_datetime(answer.fields[name]) for name in ("last-modified", "expires"))
            assert expires - modified == timedelta(days=7)
            assert answer.fields["cache-control"] == "public"
        report = connection.get("/reports/a%20%22quoted%22%20100%25.txt", host="rules")
        assert (report.fields["cache-control"], report.fields.get("expires")) == ("max-age=5400", None)
        missing = connection.get("/none.zip", host="rules")
        assert not {"expires", "cache-control"} & missing.fields.keys()


def test_304_has_what_caches_need_and_404_no_promise_for_ever(place: Place) -> None:
    whole = place.ask("rules", "/app.3f9c2b1a.js")
    answer = place.ask("rules", "/app.3f9c2b1a.js", f"If-None-Match: {whole.fields['etag']}")
    assert (answer.status, answer.fields["cache-control"]) == (304, whole.fields["cache-control"])
    assert not {"content-type", "content-length", "content-disposition"} & answer.fields.keys()
    answer = place.ask("rules", "/gone.3f9c2b1a.js")
    assert (answer.status, answer.fields["x-all"]) == (404, "yes")
    assert "cache-control" not in answer.fields
    assert "content-disposition" not in place.ask("rules", "/reports/nothing.pdf").fields


# --- CORS ------------------------------------------------------------------------------------------------------------

ORIGIN, STRANGER = "https://app.example", "https://evil.example"


def cors_fields(answer: Answer) -> dict[str, str]:
    prefix = "access-control-"
    return {name.removeprefix(prefix): value for name, value in answer.fields.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("site", "target", "origin", "expected", "vary"),
    [
        (
            "cors",
            "/assets/style.css",
            ORIGIN,
            {"allow-origin": ORIGIN, "allow-credentials": "true", "expose-headers": "ETag"},
            "Origin",
        ),
        ("cors", "/assets/style.css", STRANGER, {}, "Origin"),
        ("cors", "/assets/style.css", None, {}, "Origin"),
        ("cors", "/plain.txt", ORIGIN, {}, None),
        (
            "cors",
            "/assets/nothing",
            ORIGIN,
            {"allow-origin": ORIGIN, "allow-credentials": "true", "expose-headers": "ETag"},
            "Accept, Origin",
        ),
        ("cors-any", "/plain.txt", STRANGER, {"allow-origin": "*"}, None),
        ("cors-any", "/plain.txt", None, {"allow-origin": "*"}, None),
        ("rules", "/plain.txt", ORIGIN, {}, None),
    ],
)
def test_scripts_of_some_origins_may_read(
    place: Place, site: str, target: str, origin: str | None, expected: dict[str, str], vary: str | None
) -> None:
    fields = [] if origin is None else [f"Origin: {origin}"]
    answer = place.ask(site, target, *fields)
    assert answer.status in (200, 404)
    assert cors_fields(answer) == expected
    assert answer.fields.get("vary") == vary


@pytest.mark.parametrize(
    ("site", "target", "origin", "expected"),
    [
        (
            "cors",
            "/assets/style.css",
            ORIGIN,
            {
                "allow-origin": ORIGIN,
                "allow-credentials": "true",
                "allow-methods": "GET, HEAD",
                "allow-headers": "Authorization",
                "max-age": "600",
            },
        ),
        ("cors", "/assets/style.css", STRANGER, {}),
        ("cors", "/plain.txt", ORIGIN, {}),
        (
            "cors-any",
            "/nothing",
            STRANGER,
            {"allow-origin": "*", "allow-methods": "GET, HEAD", "allow-headers": "X-Asked", "max-age": "86400"},
        ),
    ],
)
def test_a_preflight_is_answered(place: Place, site: str, target: str, origin: str, expected: dict[str, str]) -> None:
    asked = (f"Origin: {origin}", "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: X-Asked")
    answer = place.ask(site, target, *asked, method="OPTIONS")
    assert (answer.status, answer.fields["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert cors_fields(answer) == expected
    if origin == ORIGIN and expected:
        assert answer.fields["vary"] == "Origin"


# --- several ranges --------------------------------------------------------------------------------------------------


def parts_of(answer: Answer) -> list[tuple[int, int, bytes]]:
    """The parts of a multipart/byteranges, as the standard library reads them: first and last position, bytes."""
    assert answer.status == 206
    assert answer.fields["content-type"].startswith("multipart/byteranges; boundary=")
    assert "content-range" not in answer.fields
    head = f"Content-Type: {answer.fields['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.body)
    assert message.is_multipart()
    assert not message.defects
    parts = []
    for part in message.get_payload():
        assert isinstance(part, email.message.Message)
        assert sorted(name.lower() for name in part) == ["content-range", "content-type"]
        assert part["Content-Type"] == "application/octet-stream"
        found = re.fullmatch(rf"bytes (\d+)-(\d+)/{LARGE}", part["Content-Range"])
        assert found
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        parts.append((int(found[1]), int(found[2]), content))
    return parts


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("0-0,500-999", [(0, 0), (500, 999)]),
        ("500-999, 0-0", [(500, 999), (0, 0)]),
        ("0-9,-10", [(0, 9), (LARGE - 10, LARGE - 1)]),
        (f"5-5,{LARGE - 400_000}-", [(5, 5), (LARGE - 400_000, LARGE - 1)]),
        ("0-199999,300000-499999,600000-799999", [(0, 199999), (300000, 499999), (600000, 799999)]),
        # What overlaps or nearly touches is joined.
        ("0-99,50-149,1000-1000", [(0, 149), (1000, 1000)]),
        ("1000-1000,0-9,20-29", [(1000, 1000), (0, 29)]),
        # What is not there is left out.
        (f"0-0,{LARGE}-,1000-1000", [(0, 0), (1000, 1000)]),
        (",0-0 ,, 1000-1000,", [(0, 0), (1000, 1000)]),
    ],
)
def test_several_ranges_come_as_parts(place: Place, field: str, expected: list[tuple[int, int]]) -> None:
    content = place.file("files/large.bin")
    answer = place.ask("files", "/large.bin", f"Range: bytes={field}")
    assert parts_of(answer) == [(first, last, content[first : last + 1]) for first, last in expected]
    assert answer.fields["content-length"] == str(len(answer.body))
    assert answer.fields["accept-ranges"] == "bytes"
    assert "etag" in answer.fields


def test_random_sets_of_ranges_come_as_what_the_file_has_there(place: Place) -> None:
    content = place.file("files/large.bin")
    chance = random.Random(2)
    fields = []
    for _ in range(30):
        starts = [chance.randrange(LARGE) for _ in range(chance.randint(2, 12))]
        fields.append([(start, min(LARGE - 1, start + chance.choice((0, 7, 20_000)))) for start in starts])
    with place.conversation() as client:
        answers = [
            client.get(
                "/large.bin", "Range: bytes=" + ",".join(f"{first}-{last}" for first, last in ranges), host="files"
            )
            for ranges in fields
        ]
    for ranges, answer in zip(fields, answers, strict=True):
        if answer.fields["content-type"].startswith("multipart/"):
            parts = parts_of(answer)
        else:
            first, last = map(int, answer.fields["content-range"][len("bytes ") :].partition("/")[0].split("-"))
            parts = [(first, last, answer.body)]
        for first, last, part in parts:
            assert part == content[first : last + 1]
        for first, last in ranges:
            assert any(begin <= first and last <= end for begin, end, _ in parts)


OVERHEAD = MOST_RANGES * 200
"""Bytes of the headers of as many parts as there can be."""


@pytest.mark.parametrize(
    "field",
    [
        ",".join(["0-"] * 1000),
        ",".join(["0-"] * MOST_RANGES),
        ",".join(f"{start}-" for start in range(MOST_RANGES)),
        ",".join(f"-{count}" for count in range(1, MOST_RANGES + 1)),
        ",".join(f"{start}-{start}" for start in range(0, MOST_RANGES * 200, 200)),
        ",".join(f"{start}-{start}" for start in range(0, 2000, 2)),
        ",".join(f"{start}-{start}" for start in range(0, 6400, 100)),
        "0-," * 60 + "5-5",
    ],
)
def test_no_set_of_ranges_costs_more_than_the_file(place: Place, field: str) -> None:
    answer = place.ask("files", "/large.bin", f"Range: bytes={field}")
    assert answer.status in (200, 206)
    assert len(answer.body) <= LARGE + OVERHEAD
    content = place.file("files/large.bin")
    if answer.fields["content-type"].startswith("multipart/"):
        sent = parts_of(answer)
        assert sum(len(part) for _, _, part in sent) <= LARGE
        assert all(part == content[first : last + 1] for first, last, part in sent)
    elif answer.status == 200:
        assert answer.body == content


def test_more_ranges_than_anyone_needs_bring_the_whole(place: Place) -> None:
    field = ",".join(f"{start}-{start}" for start in range(0, (MOST_RANGES + 1) * 1000, 1000))
    assert place.ask("files", "/large.bin", f"Range: bytes={field}").status == 200


def test_a_range_of_an_empty_file_is_ignored(place: Place) -> None:
    for field in ("0-", "0-1048575", "-5", "0-0,5-9"):
        answer = place.ask("files", "/empty.txt", f"Range: bytes={field}")
        assert (answer.status, answer.body, answer.fields["content-length"]) == (200, b"", "0")
        assert "content-range" not in answer.fields


def test_head_and_if_range_with_several_ranges(place: Place) -> None:
    field = "Range: bytes=0-0,500-999"
    head = place.ask("files", "/large.bin", field, method="HEAD")
    assert (head.status, head.fields["content-length"]) == (200, str(LARGE))
    for name in ("etag", "last-modified"):
        assert place.ask("files", "/large.bin", field, f"If-Range: {head.fields[name]}").status == 206
    for value in ('"other"', f"W/{head.fields['etag']}", "Thu, 01 Jan 1970 00:00:00 GMT", "nonsense"):
        assert place.ask("files", "/large.bin", field, f"If-Range: {value}").status == 200


def test_parts_of_text_keep_their_line_ends(place: Place) -> None:
    content = place.file("files/line-ends.txt")
    answer = place.ask("files", "/line-ends.txt", "Range: bytes=1-12,5000-5016")
    boundary = answer.fields["content-type"].partition("boundary=")[2]
    first, second = (
        b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%b\r\n--"
        % (first, last, len(content), content[first : last + 1])
        for first, last in ((1, 12), (5000, 5016))
    )
    mark = boundary.encode()
    assert answer.body == b"\r\n--" + mark + first + mark + second + mark + b"--\r\n"


@pytest.mark.parametrize("field", ["5-4", "a-b", "0-0,x", "-", "", "0-0;1-1", "1-2-3"])
def test_a_set_that_is_none_brings_the_whole(place: Place, field: str) -> None:
    assert place.ask("files", "/large.bin", f"Range: bytes={field}").status == 200


def test_parts_of_a_coded_file_are_coded(place: Place) -> None:
    content = CODED["zstd"][1]
    last = len(content) - 1
    joined = coded(place, "zstd", f"Range: bytes=0-1,{last}-{last}")
    # So small a gap is sent along.
    assert (joined.status, joined.body) == (206, content)
    assert joined.fields["content-encoding"] == "zstd"


# --- listings --------------------------------------------------------------------------------------------------------

NAMES = {
    "b.txt",
    "a10.txt",
    "a2.txt",
    "<script>\"&'.html",
    "new\nline",
    "right\u202eleft.txt",
    "é.txt",
    "latin-\ufffd.txt",
    "folder",
    "locked.txt",
    "with-index",
    "empty",
    "unreadable",
    "inside-link",
}


def listed(answer: Answer) -> list[dict[str, object]]:
    assert (answer.status, answer.fields["content-type"]) == (200, "application/json")
    entries = json.loads(answer.body)
    assert isinstance(entries, list)
    return entries


def test_a_listing_as_json_names_what_can_be_asked_for(place: Place) -> None:
    entries = {str(entry["name"]): entry for entry in listed(place.ask("list", "/", "Accept: application/json"))}
    assert entries.keys() == NAMES
    assert entries["folder"]["type"] == "directory"
    assert (entries["b.txt"]["type"], entries["b.txt"]["size"]) == ("file", 5)
    for name, entry in entries.items():
        status = place.ask("list", "/" + str(entry["href"]).removeprefix("./")).status
        assert status == (403 if name in ("locked.txt", "unreadable") else 200)


def test_with_dotfiles_hidden_names_are_listed(place: Place) -> None:
    names = {entry["name"] for entry in listed(place.ask("list-dots", "/", "Accept: application/json"))}
    assert names == NAMES | {".hidden", ".folder"}


def test_a_listing_as_a_page_is_chunked_and_safe(place: Place) -> None:
    answer = place.ask("list", "/", "Accept: text/html,application/xhtml+xml,*/*;q=0.8")
    assert (answer.status, answer.fields["content-type"]) == (200, "text/html; charset=utf-8")
    assert "content-length" not in answer.fields
    assert answer.fields.get("transfer-encoding") == ("chunked" if place.protocol == HTTP_1 else None)
    assert answer.fields["content-security-policy"].startswith("default-src 'none'; ")
    assert answer.fields["vary"] == "Accept, Accept-Encoding"
    page = answer.body.decode()
    assert page.endswith("</html>\n")
    assert '<script>"&' not in page
    assert "&lt;script&gt;" in page
    assert 'href="./latin-%E9.txt"' in page
    assert "\u202e" not in page
    assert "/.hidden" not in page
    order = [page.index(f"<bdi>{name}") for name in ("empty/", "folder/", "a2.txt", "a10.txt", "b.txt")]
    assert order == sorted(order)


def test_head_of_a_listing_has_its_fields(place: Place) -> None:
    for accepted in ("text/html", "application/json"):
        whole, head = (place.ask("list", "/", f"Accept: {accepted}", method=method) for method in ("GET", "HEAD"))
        del whole.fields["date"], head.fields["date"]
        assert (head.status, head.fields) == (200, whole.fields)


def test_http_1_0_gets_a_listing_up_to_the_end_of_the_connection(started: Place) -> None:
    for accepted, end in (("text/html", b"</html>\n"), ("application/json", b"]\n")):
        request = f"GET /folder/ HTTP/1.0\r\nHost: list\r\nAccept: {accepted}\r\n\r\n"
        answer, _ = parse(exchange(started.server.port, request.encode()))
        assert not {"transfer-encoding", "content-length"} & answer.fields.keys()
        assert answer.fields["connection"] == "close"
        assert b"inner.txt" in answer.body
        assert answer.body.endswith(end)


@pytest.mark.parametrize(
    ("target", "status"),
    [("/unreadable/", 403), ("/.folder/", 404), ("/outside-link/", 404), ("/fifo", 403), ("/nothing/", 404)],
)
def test_what_cannot_be_listed(place: Place, target: str, status: int) -> None:
    assert place.ask("list", target).status == status


def test_an_index_file_and_a_missing_slash_come_before_a_listing(place: Place) -> None:
    assert place.ask("list", "/with-index/").body == b"the index"
    answer = place.ask("list", "/folder?sort=size")
    assert (answer.status, answer.fields["location"]) == (301, "/folder/?sort=size")


def test_a_listing_keeps_the_connection(place: Place) -> None:
    with place.conversation() as client:
        answers = [client.get("/folder/", host="list") for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert len({answer.body for answer in answers}) == 1


@pytest.fixture(scope="module")
def many(started: Place) -> None:
    for number in range(MANY):
        os.mknod(started.folder / f"many/file-{number:05}.txt", 0o644 | stat.S_IFREG)


@pytest.mark.usefixtures("many")
def test_a_client_that_leaves_in_the_middle_of_a_listing_leaves_nothing_behind(place: Place) -> None:
    place.ask("files", "/empty.txt")
    before = place.server.open_files()
    lines = len(place.server.log)
    with place.conversation() as client:
        assert b"<!doctype html>" in client.begin("/", host="many").read(1)
        assert place.ask("files", "/page.html").body == PAGE
    deadline = time.monotonic() + WAIT_SECONDS
    while place.server.open_files() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert place.server.open_files() <= before
    assert not [line for line in place.server.log[lines:] if "defect" in line or "Traceback" in line]
