"""Header fields by rules."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any
from urllib.parse import unquote_to_bytes

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.config.options import CacheOptions, HeaderOptions, HstsOptions, SiteOptions
from ktlsd.http.fields import Fields
from ktlsd.http.header_rules import (
    IMMUTABLE,
    RESERVED,
    HeaderRule,
    HeaderRules,
    Origin,
    attachment,
    check,
    forbids_caching,
    has_content_hash,
    refuse_remove,
    refuse_set,
)
from ktlsd.http.path_glob import compile_glob

BASE: Fields = (("Content-Type", "text/html"), ("ETag", '"1"'), ("Vary", "Accept-Encoding"))
NOSNIFF = ("X-Content-Type-Options", "nosniff")


def site(**options: Any) -> SiteOptions:
    return SiteOptions(**({"nosniff": False} | options))


def header(path: str, *remove: str, **fields: str) -> HeaderOptions:
    return HeaderOptions(
        path=path, set={name.replace("_", "-"): value for name, value in fields.items()}, remove=remove
    )


def applied(options: SiteOptions, path: str = "/a", status: int = 200, *, secure: bool = True) -> Fields:
    return HeaderRules(options).apply(path, status, BASE, secure)


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({}, ()),
        ({"nosniff": True}, (NOSNIFF,)),
        ({"hsts": HstsOptions()}, (("Strict-Transport-Security", "max-age=31536000"),)),
        (
            {"nosniff": True, "hsts": HstsOptions(max_age=5, include_subdomains=True, preload=True)},
            (NOSNIFF, ("Strict-Transport-Security", "max-age=5; includeSubDomains; preload")),
        ),
        ({"hsts": HstsOptions(max_age=0)}, (("Strict-Transport-Security", "max-age=0"),)),
    ],
)
@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize("status", [200, 206, 301, 304, 404, 416, 503])
def test_what_all_responses_have(options: dict[str, Any], added: Fields, by_path: bool, status: int) -> None:
    rules = HeaderRules(site(**options, downloads=("*.never",) if by_path else ()))
    assert rules.apply("/a", status, BASE, True) == (*BASE, *added)
    without_hsts = tuple(field for field in added if field[0] != "Strict-Transport-Security")
    assert rules.apply("/a", status, BASE, False) == (*BASE, *without_hsts)


@pytest.mark.parametrize(
    ("rules", "path", "result"),
    [
        ([header("/a", X="1")], "/a", {"X": "1"}),
        ([header("/a", X="1")], "/b", {"X": None}),
        ([header("/*", X="1"), header("/a", X="2")], "/a", {"X": "2"}),
        ([header("/*", X="1"), header("/a", X="2")], "/b", {"X": "1"}),
        ([header("/*", X="1"), header("/a", "x")], "/a", {"X": None}),
        ([header("/*", "x"), header("/a", X="1")], "/a", {"X": "1"}),
        ([header("/*", "X", X="1")], "/a", {"X": "1"}),
        ([header("**", content_type="a/b")], "/a", {"Content-Type": "a/b"}),
        ([header("**", "Content-Type")], "/a", {"Content-Type": None}),
        ([header("**", Vary="Cookie, accept-encoding")], "/a", {"Vary": "Accept-Encoding, Cookie"}),
        ([header("*.b", Vary="C"), header("/a*", Vary="D")], "/a.b", {"Vary": "Accept-Encoding, C, D"}),
    ],
)
def test_rules_are_applied_in_their_order(rules: list[HeaderOptions], path: str, result: dict[str, str | None]) -> None:
    fields = {name.title(): value for name, value in applied(site(header=tuple(rules)), path)}
    for name, value in result.items():
        assert fields.get(name) == value
    assert fields["Etag"] == '"1"'
    assert len(fields) == len(applied(site(header=tuple(rules)), path))


@pytest.mark.parametrize(("status", "of_content"), [(200, True), (206, True), (304, False), (404, False), (301, False)])
def test_fields_of_the_content_are_not_for_an_error(status: int, of_content: bool) -> None:
    options = site(header=(header("**", "Content-Language", Content_Type="image/png", X="1"),))
    fields = dict(applied(options, status=status))
    assert fields["X"] == "1"
    assert fields["Content-Type"] == ("image/png" if of_content else "text/html")


def test_a_rule_cannot_bring_hsts_to_plain_http() -> None:
    options = site(header=(header("**", Strict_Transport_Security="max-age=1"),))
    assert "Strict-Transport-Security" in dict(applied(options))
    assert applied(options, secure=False) == BASE


def test_the_operator_has_the_last_word() -> None:
    everywhere = compile_glob("**")
    extra = [HeaderRule(everywhere, (("X", "file"), ("Y", "file")), ("X-Content-Type-Options",))]
    options = site(nosniff=True, header=(header("**", X="operator"),))
    fields = dict(HeaderRules(options, extra).apply("/", 200, (), True))
    assert fields == {"X": "operator", "Y": "file"}


@pytest.mark.parametrize(
    ("rules", "result"),
    [
        # Neither the server's nor an earlier rule's field is replaced.
        ([{"default": {"X": "1", "content-type": "a/b"}}], {"X": "1", "Content-Type": "text/html"}),
        ([{"set": {"X": "1"}}, {"default": {"x": "2"}}], {"X": "1"}),
        ([{"default": {"X": "1"}}, {"default": {"X": "2"}}], {"X": "1"}),
        # A later rule has the last word.
        ([{"default": {"X": "1"}}, {"set": {"X": "2"}}], {"X": "2"}),
        ([{"default": {"X": "1"}}, {"remove": ("X",)}], {"X": None}),
        ([{"default": {"Content-Type": "a/b"}}, {"set": {"Content-Type": "c/d"}}], {"Content-Type": "c/d"}),
        ([{"remove": ("Content-Type",), "default": {"Content-Type": "a/b"}}], {"Content-Type": "a/b"}),
        ([{"default": {"Cache-Control": "no-cache"}}], {"Cache-Control": "max-age=60"}),
    ],
)
def test_a_default_takes_the_place_of_nothing(rules: list[dict[str, Any]], result: dict[str, str | None]) -> None:
    options = site(
        header=tuple(HeaderOptions(path="**", **rule) for rule in rules),
        cache=(CacheOptions(path="**", control="max-age=60"),),
    )
    fields = applied(options)
    assert {name: dict(fields).get(name) for name in result} == result
    assert len({name.lower() for name, _ in fields}) == len(fields)
    assert dict(fields)["Vary"] == "Accept-Encoding"


def test_a_default_for_caches_is_for_the_file_that_answers() -> None:
    rules = HeaderRules(site(header=(HeaderOptions(path="/a/*", default={"Cache-Control": "max-age=9", "X": "1"}),)))
    found = [
        dict(rules.apply("/a/b", status, (), True, file, origin))
        for status, file, origin in (
            (200, None, Origin.OWN),
            (200, "/index.html", Origin.FALLBACK),
            (404, None, Origin.OWN),
        )
    ]
    assert found == [{"Cache-Control": "max-age=9", "X": "1"}, {"X": "1"}, {"X": "1"}]
    with pytest.raises(ValueError, match="header for /b: ETag is the server's own"):
        check(site(header=(HeaderOptions(path="/b", default={"ETag": "a"}),)))


def test_a_field_can_be_set_more_than_once() -> None:
    cookies = (("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"))
    rules = HeaderRules(site(), [HeaderRule(compile_glob("/a"), cookies)])
    assert rules.apply("/a", 200, (("set-cookie", "c=3"),), True) == cookies


CACHE = (CacheOptions(path="/a/*", control="no-cache"), CacheOptions(path="*.js", control="max-age=60"))


@pytest.mark.parametrize(
    ("path", "control"),
    [
        ("/a/x.js", "no-cache"),
        ("/x.js", "max-age=60"),
        ("/x.3f9c2b1a.js", "max-age=60"),
        ("/x.3f9c2b1a.css", IMMUTABLE),
        ("/x.3f9c2b1a.css/", None),
        ("/x.css", None),
    ],
)
@pytest.mark.parametrize(("status", "cached"), [(200, True), (206, True), (304, True), (301, False), (404, False)])
def test_cache_control(path: str, control: str | None, status: int, cached: bool) -> None:
    fields = dict(applied(site(cache=CACHE, hashed_names=True), path, status))
    assert fields.get("Cache-Control") == (control if cached else None)


MODIFIED = ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")


@pytest.mark.parametrize(
    ("rule", "control", "expires"),
    [
        ({"expires": "7d"}, "max-age=604800", None),
        ({"expires": "0s"}, "max-age=0", None),
        ({"expires": "1h30m", "control": "public, immutable"}, "public, immutable, max-age=5400", None),
        ({"expires": "modified+7d"}, None, "Sun, 13 Nov 1994 08:49:37 GMT"),
        ({"expires": "modified+0s", "control": "public"}, "public", MODIFIED[1]),
    ],
)
@pytest.mark.parametrize(("status", "cached"), [(200, True), (206, True), (304, True), (301, False), (404, False)])
def test_a_lifetime(rule: dict[str, str], control: str | None, expires: str | None, status: int, cached: bool) -> None:
    rules = HeaderRules(site(cache=(CacheOptions(path="/a/*", **rule), CacheOptions(path="**", control="no-store"))))
    fields = dict(rules.apply("/a/b", status, (*BASE, MODIFIED), True))
    assert (fields.get("Cache-Control"), fields.get("Expires")) == ((control, expires) if cached else (None, None))
    # A file without a date, and a file that answers for a path that it does not have.
    assert "Expires" not in dict(rules.apply("/a/b", status, BASE, True))
    elsewhere = dict(rules.apply("/a/b", status, (*BASE, MODIFIED), True, "/index.html", Origin.FALLBACK))
    assert elsewhere.get("Cache-Control") == ("no-store" if cached else None)
    assert "Expires" not in elsewhere


@pytest.mark.parametrize("rule", [header("**", Expires="0"), header("**", expires="0"), header("**", "Expires")])
def test_a_header_rule_wins_over_a_lifetime(rule: HeaderOptions) -> None:
    options = site(cache=(CacheOptions(path="**", expires="modified+7d"),), header=(rule,))
    fields = {name.lower(): value for name, value in HeaderRules(options).apply("/a", 200, (*BASE, MODIFIED), True)}
    assert fields.get("expires") == ("0" if rule.set else None)


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({}, "cache for /b: 'control' is missing, or 'expires'"),
        ({"control": "no-store", "expires": "1d"}, "cache for /b: control has no-store, and there is expires: .*"),
        ({"control": "a, Max-Age=60, b", "expires": "modified+1d"}, "cache for /b: control has Max-Age=60, and .*"),
        ({"expires": "100y"}, "100y is more than 2147483647 seconds"),
    ],
)
def test_a_cache_rule_that_contradicts_itself(rule: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"{complaint}\\Z"):
        check(site(cache=(CacheOptions(path="/b", **rule),)))


FOREVER = ("Cache-Control", "public, max-age=31536000, immutable")
OF_CACHES = (
    "Cache-Control",
    "Expires",
    "CDN-Cache-Control",
    "Cloudflare-CDN-Cache-Control",
    "Netlify-CDN-Cache-Control",
    "Vercel-CDN-Cache-Control",
    "Surrogate-Control",
    "X-Accel-Expires",
)


@pytest.mark.parametrize("name", OF_CACHES)
@pytest.mark.parametrize("from_file", [False, True], ids=["[[header]]", "_headers"])
def test_a_cache_rule_is_for_the_file_that_answers(name: str, from_file: bool) -> None:
    """Not for a fallback, a redirect or an error under the same path."""
    value = "4102444800" if name == "X-Accel-Expires" else FOREVER[1]
    extra = [HeaderRule(compile_glob("/assets/**"), ((name, value), ("X", "1")))]
    options = site() if from_file else site(header=(HeaderOptions(path="/assets/**", set=dict(extra[0].set)),))
    rules = HeaderRules(options, extra if from_file else ())
    path, index = "/assets/gone.js", "/index.html"
    for status in (200, 206, 304):
        assert dict(rules.apply(path, status, (), True)) == {name: value, "X": "1"}
        assert dict(rules.apply(path, status, (), True, path)) == {name: value, "X": "1"}
        for origin in (Origin.REWRITE, Origin.FALLBACK):
            assert dict(rules.apply(path, status, (), True, index, origin)) == {"X": "1"}
            # What such a file may be kept for, the rules for it say.
            assert dict(rules.apply("/old", status, (), True, path, origin)) == {name: value}
    for status in (204, 301, 302, 303, 307, 308, 403, 404, 412, 416, 500, 503):
        assert dict(rules.apply(path, status, (), True)) == {"X": "1"}


@pytest.mark.parametrize(
    ("value", "forbids"),
    [
        ("no-store", True),
        ("private, no-cache", True),
        ("max-age=0", True),
        ("public, max-age=0, must-revalidate", True),
        ('MAX-AGE="0", S-MaxAge=0', True),
        ("max-age=0, s-maxage=60", False),
        ("max-age=0, stale-while-revalidate=86400", False),
        ("max-age=1", False),
        ("private", False),
        ("public", False),
        ("immutable", False),
        ('no-cache="Set-Cookie"', False),
    ],
)
def test_what_forbids_caching_holds_for_whatever_answers(value: str, forbids: bool) -> None:
    assert forbids_caching("cache-control", value) is forbids
    assert not forbids_caching("X-Other", value)
    rules = HeaderRules(site(header=(header("/account/**", Cache_Control=value),)))
    for status, origin in ((200, Origin.REWRITE), (206, Origin.FALLBACK), (304, Origin.FALLBACK), (302, Origin.OWN)):
        fields = dict(rules.apply("/account/x", status, (), True, "/index.html", origin))
        assert fields == ({"Cache-Control": value} if forbids else {})
    assert rules.apply("/account/x", 404, (), True) == ()


@pytest.mark.parametrize(
    ("name", "value", "forbids"),
    [("Expires", "0", True), ("Expires", "Thu, 01 Jan 2099 00:00:00 GMT", False), ("X-Accel-Expires", "0", True)],
)
def test_a_date_that_is_none_forbids_caching(name: str, value: str, forbids: bool) -> None:
    assert forbids_caching(name, value) is forbids


def test_rules_for_the_file_and_rules_for_the_path_keep_their_order() -> None:
    rules = HeaderRules(
        site(
            header=(
                header("/*", Cache_Control="no-cache", X="all"),
                header("/assets/**", Cache_Control="max-age=60", X="assets"),
                header("/index.html", Expires="0"),
                header("/other/**", "Cache-Control"),
            )
        )
    )
    assert dict(rules.apply("/assets/a", 200, (), True, "/index.html", Origin.FALLBACK)) == {
        "Cache-Control": "no-cache",
        "X": "assets",
        "Expires": "0",
    }
    assert dict(rules.apply("/assets/a", 200, (), True)) == {"Cache-Control": "max-age=60", "X": "assets"}
    # What is removed for a path is no field of the file's.
    assert "Cache-Control" in dict(rules.apply("/other/a", 200, (), True, "/index.html", Origin.REWRITE))
    assert dict(rules.apply("/other", 301, (), True)) == {"X": "all"} | {"Cache-Control": "no-cache"}


def test_the_type_of_what_stands_in_for_a_missing_file_is_its_own() -> None:
    """A rewrite is what the operator configured for that path, so downloads apply to it."""
    fields = {"Content_Type": "text/javascript", "Content_Disposition": "attachment"}
    rules = HeaderRules(site(header=(header("/uploads/**", **fields),)))
    path = "/uploads/a.js"
    assert rules.apply(path, 200, BASE, True, "/index.html", Origin.FALLBACK) == BASE
    assert (
        dict(rules.apply(path, 200, BASE, True, "/store/a.js", Origin.REWRITE))["Content-Disposition"] == "attachment"
    )


def test_long_paths_are_not_kept() -> None:
    """Clients can make them up, thousands of bytes each, and each site has rules of its own."""
    fill = HeaderRule(compile_glob("/deep/**"), fill=lambda path: (("X-Path", path),))
    made = HeaderRules(SiteOptions(header=(HeaderOptions(path="/deep/**", set={"X-Deep": "1"}),)), [fill])
    tracemalloc.start()
    for number in range(600):
        path = f"/deep/{number}/" + "x" * 8000
        assert made.apply(path, 404, (), secure=True)[-2:] == (("X-Path", path), ("X-Deep", "1"))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 500_000


def test_names_are_cached_for_ever_only_on_request() -> None:
    assert applied(site(cache=CACHE), "/x.3f9c2b1a.css") == BASE


@pytest.mark.parametrize(("status", "saved"), [(200, True), (206, True), (304, False), (404, False)])
def test_downloads(status: int, saved: bool) -> None:
    options = site(downloads=("*.zip", "/all/**"))
    assert dict(applied(options, "/a/b.zip", status)).get("Content-Disposition") == (
        'attachment; filename="b.zip"' if saved else None
    )
    assert "Content-Disposition" not in dict(applied(options, "/a.txt", status))
    # A listing is shown, and an archive of a folder keeps its own name.
    assert "Content-Disposition" not in dict(applied(options, "/all/", status))
    named = (*BASE, ("Content-Disposition", 'attachment; filename="all.zip"'))
    assert HeaderRules(options).apply("/all/", status, named, True) == named


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a.zip", 'attachment; filename="a.zip"'),
        ("a b;c.zip", 'attachment; filename="a b;c.zip"'),
        ("€ rates", "attachment; filename=\"_ rates\"; filename*=UTF-8''%E2%82%AC%20rates"),  # RFC 6266 section 5
        ('a"b\\c', "attachment; filename=\"a_b_c\"; filename*=UTF-8''a%22b%5Cc"),
        ("a%41", "attachment; filename=\"a_41\"; filename*=UTF-8''a%2541"),
        ("a\r\nb", "attachment; filename=\"a__b\"; filename*=UTF-8''a%0D%0Ab"),
        ("\udcff", "attachment; filename=\"_\"; filename*=UTF-8''%EF%BF%BD"),
        ("é'(1)*", "attachment; filename=\"_'(1)*\"; filename*=UTF-8''%C3%A9%27%281%29%2A"),
    ],
)
def test_the_name_to_save_as(name: str, value: str) -> None:
    assert attachment(name) == value


@given(st.text(min_size=1))
def test_every_name_can_be_saved(name: str) -> None:
    value = attachment(name)
    assert value.isascii()
    assert value.isprintable()
    quoted, _, extended = value.removeprefix('attachment; filename="').partition("; filename*=UTF-8''")
    assert quoted.endswith('"')
    assert '"' not in quoted[:-1]
    assert (unquote_to_bytes(extended).decode() if extended else quoted[:-1]) == name


@pytest.mark.parametrize(
    "name",
    [
        "app.3f9c2b1a.js",
        "app.3f9c2b1a.js.map",
        "app.3f9c2b1a.chunk.css",
        "main.abcdef0123456789.css",
        "main-3f9c2b1a7e.css",
        "index-BsD3kq2A.js",
        "index-D_v-x3Kq.css",
        "index.B_TqY17P.css",
        "firefox-k3eOH_eK.svg",
        "chunk-XYZ123AB.mjs",
        "logo.0123456789abcdef0123456789abcdef.png",
        "0123456789abcdef0123.woff2",
        "jquery.min.3f9c2b1a.js",
        "base.css-0a1b2c3d4e5f.css",
    ],
)
def test_names_with_a_hash(name: str) -> None:
    assert has_content_hash(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "index.html",
        "app.js",
        "jquery-migrated.js",
        "jquery-3.7.1.min.js",
        "some-document.pdf",
        "report-20241231.pdf",
        "photo-20241231.jpg",
        "photo-20241231123456.jpg",
        "photo-2024-12-31.jpg",
        "page-1-2-3-45.js",
        "IMG_20241231.jpg",
        "shirt-A12B3456.jpg",
        "photo-2024123112345678.jpg",
        "deadbeef.js",
        "app-deadbeefdeadbeef.js",
        "app-deadbeef.js",
        "part-a1234567.png",
        "3f9c2b1a.js",
        "BsD3kq2A.js",
        "index-BsD3kq2A.html",
        "index-BsD3kq2A.pdf",
        "app.3f9c2b1a.html",
        "app.3f9c2b1a",
        "app.3f9c2b1a.js\n",
        "app.3f9c2b1.js",
        "app.3f9c2b1ag.js",
        "app_3f9c2b1a.js",
        "app3f9c2b1a.js",
        "jquery-MyReport.js",
        "src-FileList.js",
        "lib-Utf8Text.js",
        "lib-Vector3D.js",
        "lib-Sha256Js.js",
        "sales-Q3Report.png",
        "file-REPORT01.js",
        "icon-512x512x.png",
        "banner-1280x720.png",
        "file-DOCUMENT.js",
        "app-12345678.js",
        "README-CHANGELOG.css",
    ],
)
def test_names_without_a_hash(name: str) -> None:
    assert not has_content_hash(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "1") for name in RESERVED),
        ("Content-Length", "1"),
        ("X", ""),
        ("X", " a"),
        ("X", "a\t"),
        ("X", "a\n"),
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "é"),
        ("X", "a\x7f"),
        ("X\n", "a"),
        ("X Y", "a"),
        ("X:", "a"),
        ("", "a"),
    ],
)
def test_fields_that_no_rule_can_set(name: str, value: str) -> None:
    assert refuse_set(name, value)
    options = site(header=(HeaderOptions(path="/b", set={"Good": "1", name: value}),))
    with pytest.raises(ValueError, match="header for /b: ") as refusal:
        check(options)
    assert str(refusal.value).isprintable()
    with pytest.raises(ValueError, match="header for /b: "):
        HeaderRules(options)


@pytest.mark.parametrize("name", ["ETag", "Vary", "Content-Length", "a b", ""])
def test_fields_that_no_rule_can_remove(name: str) -> None:
    assert refuse_remove(name)
    with pytest.raises(ValueError, match="header for /b: "):
        check(site(header=(header("/b", "X", name),)))


@pytest.mark.parametrize("control", ["", "no-cache\n", "é"])
def test_a_cache_control_is_a_field_value(control: str) -> None:
    with pytest.raises(ValueError, match="cache for /b: "):
        check(site(cache=(CacheOptions(path="/b", control=control),)))


NAMES = (
    st.sampled_from(["X", "x", "Vary", "ETag", "Set-Cookie", "Strict-Transport-Security", "Content-Type"]) | st.text()
)
VALUES = st.sampled_from(["1", "a b", "a, b", "*"]) | st.text()
PATHS = st.binary().map(lambda path: "/" + os.fsdecode(path))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.dictionaries(NAMES, VALUES, max_size=3), st.lists(NAMES, max_size=3)), max_size=4),
    PATHS,
    st.sampled_from([200, 206, 304, 404]),
    st.booleans(),
)
def test_what_rules_make_can_be_sent(
    rules: list[tuple[dict[str, str], list[str]]], path: str, status: int, secure: bool
) -> None:
    accepted = tuple(
        HeaderOptions(
            path="**",
            set={name: value for name, value in fields.items() if refuse_set(name, value) is None},
            remove=tuple(name for name in removed if refuse_remove(name) is None),
        )
        for fields, removed in rules
    )
    options = SiteOptions(header=accepted, downloads=("**",), hashed_names=True, hsts=HstsOptions())
    fields = HeaderRules(options).apply(path, status, BASE, secure)
    h11.Response(status_code=status, headers=list(fields))
    assert ("ETag", '"1"') in fields
    assert sum(name.lower() == "vary" for name, _ in fields) == 1
    assert secure or "strict-transport-security" not in {name.lower() for name, _ in fields}
    assert HeaderRules(options).apply(path, status, BASE, secure) == fields
