"""Plain requests of plain files: the short way gives what the decision gives, or nothing."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ktlsd.attempt import attempt
from ktlsd.config.options import (
    AccessOptions,
    CacheOptions,
    CorsOptions,
    HeaderOptions,
    NamedSiteOptions,
    RedirectOptions,
    Settings,
)
from ktlsd.config.values import Mode, Network
from ktlsd.file_identity import identify
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.request_fields import Field
from ktlsd.http.request_head import HeadFields, RequestHead, make_head
from ktlsd.http.validators import is_dated
from ktlsd.protocol import http1_writer, http2_writer
from ktlsd.protocol.exchange import Exchange, fields_of
from ktlsd.protocol.responder import Responder
from ktlsd.service import Service
from ktlsd.site import folder_names, response_cache, rules
from ktlsd.site.plain_files import DECIDING
from ktlsd.site.response_cache import CacheEntry
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.protocol.test_responder import responding
from tests.wire.test_response_cache import LONG_AGO

SETTLED_NS = 100_000_000
"""In place of two seconds: the clock of file systems has ticks of 10 ms at most."""

RULES = (HeaderOptions(path="/deep/**", set={"X-Deep": "1"}, remove=("Server",)),)
CACHE = (CacheOptions(path="**.css", control="public"), CacheOptions(path="/deep/**", expires="modified+7d"))
EVERYBODY = Network("0.0.0.0/0")
SITES = {
    "default": NamedSiteOptions(names=("default",)),
    "listing": NamedSiteOptions(names=("listing",), listing=True, readme=True),
    "rules": NamedSiteOptions(names=("rules",), header=RULES, cache=CACHE, hashed_names=True, downloads=("*.bin",)),
    "bare": NamedSiteOptions(names=("bare",), server_header=False, nosniff=False, charset="", etag="size-mtime"),
    "open": NamedSiteOptions(names=("open",), dotfiles=True, precompressed=(), encoded={}, types={".txt": "text/x"}),
    "spa": NamedSiteOptions(names=("spa",), fallback="/a.txt", clean_urls=True, index=("deep/b.css",)),
    "files": NamedSiteOptions(names=("files",), headers_file=True, redirects_file=True),
}
"""Sites that have plain files."""
GUARDED = NamedSiteOptions(names=("guarded",), access=(AccessOptions(path="/deep/**", deny=(EVERYBODY,)),))
"""A site of which some files are plain."""
OTHERS = {
    "cors": NamedSiteOptions(names=("cors",), cors=CorsOptions(origins=("https://a.example",))),
    "content": NamedSiteOptions(names=("content",), etag="content"),
    "try": NamedSiteOptions(names=("try",), try_files=("{path}", "/a.txt")),
    "hide": NamedSiteOptions(names=("hide",), hide=("*.bin",)),
    "compress": NamedSiteOptions(names=("compress",), compress=True),
    "attributes": NamedSiteOptions(names=("attributes",), type_attributes=True),
    "redirect": NamedSiteOptions(names=("redirect",), redirect=(RedirectOptions(from_="/a.txt", to="/deep/b.css"),)),
    "thumbnails": NamedSiteOptions(names=("thumbnails",), listing=True, thumbnails=True),
}
"""Sites that have none."""
PLAIN = (
    b"/a.txt",
    b"/deep/b.css",
    b"/deep/c.bin",
    b"/empty",
    b"/undated.js",
    b"/deep/app.0123456789abcdef.js",
    b"/link",
)
NOT_PLAIN = (("bare", b"/undated.js"), ("files", b"/link"))
"""A file without a date has no tag of its mtime; with passwords in `_headers`, it counts where a link leads to."""
UNUSUAL = (
    *(
        b"/",
        b"/deep",
        b"/deep/",
        b"/nothing",
        b"/packed/d.js",
        b"/deep/e.svgz",
        b"/%61.txt",
        b"//a.txt",
        b"/deep/../a.txt",
    ),
    *(
        b"/.hidden",
        b"/a.txt/",
        b"/outside",
        b"http://open/a.txt",
        b"/dangling",
        b"/pipe",
        b"/a.txt#b",
        b"*",
    ),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("root")
    (root / "deep").mkdir()
    (root / "packed").mkdir()
    names = ("a.txt", "deep/b.css", "deep/c.bin", "undated.js", "deep/app.0123456789abcdef.js", "packed/d.js")
    for name in (*names, "packed/d.js.br", "deep/e.svgz", ".hidden", "index.html"):
        (root / name).write_bytes(name.encode() * 100)
        os.utime(root / name, ns=(LONG_AGO, LONG_AGO))
    (root / "empty").touch()
    os.utime(root / "undated.js", ns=(0, 0))
    (root / "link").symlink_to("deep/b.css")
    (root / "outside").symlink_to("/etc/hostname")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    (root / "_headers").write_text("/a.txt\n  X-Own: 1\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    for module in (folder_names, response_cache):
        patch.setattr(module, "_SETTLED_NS", SETTLED_NS)
    patch.setattr(response_cache, "_RULES_SETTLED_NS", SETTLED_NS)
    # The files of rules are read once.
    patch.setattr(rules, "_LOOK_SECONDS", 3600.0)
    # The kernel sets its atime, which waits.
    (root / "link").read_bytes()
    library = Library()
    sites = tuple(replace(site, root=root) for site in (*SITES.values(), GUARDED, *OTHERS.values()))
    with contextlib.closing(Service(library, Settings(root=root, site=sites), support(library, Mode.OFF))) as made:
        time.sleep(2 * SETTLED_NS / 1e9)
        trio.run(_look_at_all, made)
        yield made
    patch.undo()


async def _look_at_all(service: Service) -> None:
    """The rules and the names of folders are known."""
    for hosted in service.all:
        site = hosted.site
        await site._rules.refresh(site.root)
        with site.root as root:
            for folder in (b".", b"deep", b"packed"):
                site.root._names.read(root, folder)
        # Outside of an event loop, no thread can read folders ahead.
        site.root._names.ahead_is_due()


def request(site: str, target: bytes, method: bytes = b"GET", fields: Sequence[Field] = ()) -> RequestHead:
    """A request that is nothing but its head."""
    all_fields = [(b"host", site.encode()), *fields]
    return make_head(method, target, b"1.1", HeadFields(all_fields, dict(all_fields), alone=True))


def head_of_http1(responder: Responder, head: RequestHead) -> bytes:
    service = responder.shared.service
    site = service.plain_site(head.of_fields.values[b"host"], responder.client)
    assert site is not None
    assert site.plain_files is not None
    secure = responder.client.origin.https
    found = site.plain_files.find(head, http1_writer.beginning, secure=secure, now=time.time())
    assert found is not None
    found.opened.close()
    return found.head or http1_writer.beginning(HTTPStatus.OK, found.fields)


def short_way(responder: Responder, head: RequestHead) -> CacheEntry | None:
    """The entry of the short way, if it is for this request: it has to be what is decided, and remembered."""
    found = responder.find_file(head, http2_writer.beginning)
    if found is None:
        return None
    entry, descriptor = found
    exchange = Exchange(responder, head, None)
    answer = attempt(exchange.decide())
    response, opened = answer.response, answer.opened
    assert opened is not None
    try:
        fields = fields_of(response, ())
        beginning = http1_writer.beginning(response.status, fields)
        # The head of HTTP/1.1 is for later requests.
        assert entry.head == beginning or (not entry.head and responder.find(head) is not entry)
        assert head_of_http1(responder, head) == beginning
        assert (entry.response.status, entry.block) == (
            response.status,
            http2_writer.beginning(response.status, fields),
        )
        assert (entry.part or ByteRange(0, 0)) == response.body
        assert identify(descriptor) == entry.identity == opened.identity
        assert (entry.site, entry.checks, entry.excess) == (exchange.site, answer.checks, answer.excess)
        if responder.find(head) is entry:
            _compare(entry, exchange.remember(answer, beginning))
    finally:
        opened.close()
        os.close(descriptor)
    return entry


def _compare(entry: CacheEntry, other: CacheEntry | None) -> None:
    """Entries of the two ways differ in their times, and in the fields that were read of a file without a date."""
    assert other is not None
    assert entry.key.asked == other.key.asked
    assert set(other.key.names) <= set(entry.key.names)
    dated = entry.identity is not None and is_dated(entry.identity[3])
    assert entry.key == other.key or not dated
    assert (entry.sources, entry.part, entry.response) == (other.sources, other.part, other.response)
    assert (entry.folders is None) == (other.folders is None)
    if entry.folders is not None and other.folders is not None:
        assert entry.folders.all == other.folders.all


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("query", [b"", b"?a=b"])
def test_a_plain_file_takes_the_short_way(service: Service, site: str, query: bytes) -> None:
    with responding(service) as responder:
        for target in PLAIN:
            first = short_way(responder, request(site, target + query))
            assert (first is None) == ((site, target) in NOT_PLAIN)
            second = short_way(responder, request(site, target + query))
            if second is not None:
                assert responder.find(request(site, target + query)) is not None


@pytest.mark.parametrize("site", OTHERS)
def test_a_site_on_which_more_has_an_influence_takes_the_long_way(service: Service, site: str) -> None:
    with responding(service) as responder:
        assert all(responder.find_file(request(site, target)) is None for target in PLAIN)


def test_checks_of_access_are_made(service: Service) -> None:
    with responding(service) as responder:
        assert short_way(responder, request("guarded", b"/a.txt")) is not None
        # The last one is a link to one of the others.
        for target in (b"/deep/b.css", b"/deep/c.bin", b"/link"):
            assert responder.find_file(request("guarded", target)) is None


@pytest.mark.parametrize(
    "head",
    [
        *(request("default", target) for target in UNUSUAL),
        *(request("files", target) for target in (b"/_headers", b"/_redirects")),
        *(request("default", b"/a.txt", fields=[(name, b"x")]) for name in DECIDING[1:]),
        *(request("default", b"/a.txt", method) for method in (b"HEAD", b"OPTIONS", b"POST", b"get")),
        request("default", b"/a.txt?" + b"x" * 20000),
        request("default", b"/a.txt", fields=[(b"x%d" % number, b"") for number in range(1000)]),
    ],
)
def test_an_unusual_request_takes_the_long_way(service: Service, head: RequestHead) -> None:
    with responding(service) as responder:
        assert responder.find_file(head) is None


def test_a_request_for_another_site_than_the_handshake_takes_the_long_way(service: Service) -> None:
    with responding(service) as responder:
        responder.client = replace(responder.client, server_name="rules")
        assert responder.find_file(request("default", b"/a.txt")) is None
        assert short_way(responder, request("rules", b"/a.txt")) is not None
        responder.client = replace(responder.client, redirected=True)
        assert responder.find_file(request("rules", b"/a.txt")) is None


def test_names_of_hosts_take_little_memory(service: Service) -> None:
    with responding(service) as responder:
        for number in range(3000):
            found = responder.find_file(request(f"host{number}", b"/a.txt"))
            assert found is not None
            os.close(found[1])
        assert responder.find_file(request("a" * 300, b"/a.txt")) is None
    assert len(service._plain_sites) <= 1024


def test_made_up_names_are_not_kept(service: Service) -> None:
    """A site remembers types by suffix, and a target may have thousands of bytes."""
    hosted = service.sites.of_name("default")
    types = cast(Any, hosted.site._types)
    caches = types._described, types.of_suffixes
    before = [cache.cache_info().misses for cache in caches]
    with responding(service) as responder:
        for ending in (b"", b".svgz", b".js"):
            assert responder.find_file(request("default", b"/deep/a." + b"x" * 4000 + ending)) is None
    assert [cache.cache_info().misses for cache in caches] == before


FIELDS = st.tuples(
    st.sampled_from([*DECIDING, b"accept-encoding", b"if-range", b"origin", b"cookie", b"accept"]),
    st.sampled_from(
        [b"", b"br, gzip", b"bytes=0-1", b'"x"', b"*", b"https://a.example", b"Sun, 06 Nov 1994 08:49:37 GMT"]
    ),
)


@given(
    st.sampled_from([*SITES, "guarded", *OTHERS, "unknown", "DEFAULT.:80"]),
    st.one_of(
        st.sampled_from([*PLAIN, *UNUSUAL]),
        st.lists(st.sampled_from([b"/", b"a.txt", b"deep", b"b.css", b".", b"%", b"?", b"#"])).map(b"".join),
    ),
    st.sampled_from([b"GET", b"HEAD"]),
    st.lists(FIELDS, max_size=3, unique_by=lambda field: field[0]),
)
def test_no_request_gets_another_response(
    service: Service, site: str, target: bytes, method: bytes, fields: list[Field]
) -> None:
    with responding(service) as responder:
        short_way(responder, request(site, target, method, [field for field in fields if field[0] != b"host"]))


def test_a_file_that_was_replaced_is_sent_anew(service: Service, tmp_path: Path) -> None:
    root = service.all[0].site.root
    with responding(service) as responder, root as descriptor:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}")) / "deep/c.bin"
        before = short_way(responder, request("default", b"/deep/c.bin"))
        (tmp_path / "new").write_bytes(b"another")
        (tmp_path / "new").rename(path)
        after = short_way(responder, request("default", b"/deep/c.bin"))
    assert before is not None
    assert after is not None
    assert after.part == ByteRange(0, len(b"another"))


def test_a_new_sibling_is_found(service: Service) -> None:
    """As soon as its folder is looked at again."""
    root = service.all[0].site.root
    with responding(service) as responder, root as descriptor:
        assert short_way(responder, request("default", b"/deep/b.css")) is not None
        folder = Path(os.readlink(f"/proc/self/fd/{descriptor}")) / "deep"
        (folder / "b.css.br").write_bytes(b"")
        time.sleep(folder_names.LATELY_SECONDS)
        assert responder.find_file(request("default", b"/deep/b.css")) is None
