"""Redirects and rewrites."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.config.options import RedirectOptions
from ktlsd.http.redirects import Redirected, RedirectRule, Redirects, Rewritten, check


def location(source: str, target: str, path: str, query: str = "") -> str | None:
    result = Redirects([RedirectRule(source, target)]).find(path, query, exists=False)
    assert result is None or isinstance(result, Redirected)
    return result and result.location


@pytest.mark.parametrize(
    ("source", "target", "path", "expected"),
    [
        ("/a", "/b", "/a", "/b"),
        ("/a", "/b", "/a/", "/b"),
        ("/a/", "/b", "/a", "/b"),
        ("/a", "/b", "/a/c", None),
        ("/a", "/b", "/A", None),
        ("/", "/b", "/", "/b"),
        ("/", "/b", "/a", None),
        ("/a.c", "/b", "/abc", None),
        ("/é", "/b", "/é", "/b"),
        ("/*", "/b", "/", "/b"),
        ("/*", "/b/:splat", "/", "/b/"),
        ("/*", "/b/:splat", "/c/d/", "/b/c/d/"),
        ("/a/*", "/b/:splat", "/a/c/d", "/b/c/d"),
        ("/a/*", "/b/:splat", "/a/", "/b/"),
        ("/a/*", "/b/:splat", "/a", "/b/"),
        ("/a/*", "/b/:splat", "/ab", None),
        ("/a*", "/b/:splat", "/abc/d", "/b/bc/d"),
        ("/:x", "/b/:x", "/a", "/b/a"),
        ("/:x", "/b/:x", "/a/", "/b/a"),
        ("/:x", "/b/:x", "/", None),
        ("/:x", "/b/:x", "/a/c", None),
        ("/n/:y/:m", "/b-:y-:m.html", "/n/2024/12", "/b-2024-12.html"),
        ("/:x/*", "/:splat/:x", "/a/b/c", "/b/c/a"),
        ("/:x/*", "/:splat/:x", "/a/", "/a"),
        ("/:x/*", "/:splat/:x", "/a", None),
        ("/:a/:ab", "/:ab/x:a:b", "/1/2", "/2/x1:b"),
        ("/a:b", "/c", "/a:b", "/c"),
        ("/a:b", "/c", "/a1", None),
        # Several slashes are one, as in the paths of targets.
        ("/a//", "/b", "/a", "/b"),
        ("//a//c", "/b", "/a/c", "/b"),
        ("/:x//", "/b/:x", "/a", "/b/a"),
        ("/a//:x", "/b/:x", "/a/c", "/b/c"),
        ("/a//*", "/b/:splat", "/a/c", "/b/c"),
        ("//*", "/b/:splat", "/a", "/b/a"),
        # absolute
        ("/a/*", "https://example.org/:splat", "/a/b/c", "https://example.org/b/c"),
        ("/a", "https://example.org", "/a", "https://example.org"),
        ("/a", "http://[::1]:8080/?x#y", "/a", "http://[::1]:8080/?x#y"),
        ("/a", "HTTPS://example.org/", "/a", "HTTPS://example.org/"),
        # what is written, with its escapes
        ("/a", "/é b", "/a", "/%C3%A9%20b"),
        ("/a", "/%C3%A9%2f", "/a", "/%C3%A9%2f"),
        ("/a", '/b\\c"<>', "/a", "/b%5Cc%22%3C%3E"),
        ("/a", "/b#é:x", "/a", "/b#%C3%A9:x"),
        # what is sent
        ("/*", "/b/:splat", "/é\udcff", "/b/%C3%A9%FF"),
        ("/*", "/b/:splat", "/\r\nSet-Cookie: a=b", "/b/%0D%0ASet-Cookie:%20a=b"),
        ("/*", "/b/:splat", "/%2e?x#y", "/b/%252e%3Fx%23y"),
        ("/*", "/:splat", "//evil.example", "/evil.example"),
        ("/*", "/:splat", "///evil.example", "/evil.example"),
        ("/*", "/:splat", "/\\evil.example", None),
        ("/b/*", "/:splat", "/b//evil.example", "/evil.example"),
        ("/b/*", "/:splat", "/b/\\evil.example", "/%5Cevil.example"),
        ("/b/*", "/:splat/evil.example", "/b", "/evil.example"),
        ("/b/*", "/:splat", "/b/https://evil.example", "/https://evil.example"),
        ("/b/*", "/c?d=:splat", "/b/1&e=2/3", "/c?d=1%26e%3D2%2F3"),
        ("/b/*", "/c?d=:splat#:splat", "/b/#", "/c?d=%23#%23"),
        ("/b/*", "/#/:splat", "/b/c/d?e", "/#/c/d%3Fe"),
        ("/b/:x", "https://e/c#:x-:y", "/b/d/", "https://e/c#d-:y"),
        # to where the request is
        ("/a", "/a", "/a", None),
        ("/a", "/a/", "/a", "/a/"),
        ("/a", "/a/", "/a/", None),
        ("/é", "/%c3%a9", "/é", None),
        ("/a", "/a#b", "/a", None),
        ("/*", "/:splat", "/a/b", None),
        ("/a", "/a?b", "/a", "/a?b"),
    ],
)
def test_where_a_rule_leads(source: str, target: str, path: str, expected: str | None) -> None:
    assert location(source, target, path) == expected


@pytest.mark.parametrize(
    ("target", "query", "expected"),
    [
        ("/b", "", "/b"),
        ("/b", "?", "/b??"),
        ("/b", "x=1&y=%20/?", "/b?x=1&y=%20/?"),
        ("/b#f", "x", "/b?x#f"),
        ("/b?z=1", "x=1", "/b?z=1"),
        ("/b?", "x=1", "/b?"),
        ("https://e/", "x", "https://e/?x"),
        ("/b", "x\r\ny é", "/b?x%0D%0Ay%20%C3%A9"),
        ("/b", "x#y", "/b?x%23y"),
        ("/a", "x", None),
        ("/a?x", "x", None),
        ("/a?x", "y", "/a?x"),
    ],
)
def test_a_query_is_passed_along(target: str, query: str, expected: str | None) -> None:
    assert location("/a", target, "/a", query) == expected


@pytest.mark.parametrize(
    ("parameters", "target", "query", "expected"),
    [
        ((("id", ":id"),), "/b/:id", "id=1", "/b/1?id=1"),
        ((("id", ":id"),), "/b/:id", "x=2&id=1", "/b/1?x=2&id=1"),
        ((("id", ":id"),), "/b/:id?", "id=1&id=2", "/b/1?"),
        ((("id", ":id"),), "/b/:id?", "id=", "/b/?"),
        ((("id", ":id"),), "/b/:id?", "id=%2F..%0d+%ff", "/b/%2F..%0D%20%FF?"),
        ((("id", ":id"),), "/b/:id", "ID=1", None),
        ((("id", ":id"),), "/b/:id", "", None),
        ((("id", "1"),), "/b?", "id=1", "/b?"),
        ((("id", "1"),), "/b?", "id=2", None),
        ((("x", ":x"), ("y", ":y")), "/:y/:x?", "y=1&x=2", "/1/2?"),
        ((("x", ":x"), ("y", ":y")), "/:y/:x?", "y=1", None),
    ],
)
def test_conditions_on_the_query(
    parameters: tuple[tuple[str, str], ...], target: str, query: str, expected: str | None
) -> None:
    result = Redirects([RedirectRule("/a", target, parameters=parameters)]).find("/a", query, exists=False)
    assert (result and (result.location if isinstance(result, Redirected) else result.path)) == expected


@pytest.mark.parametrize(
    ("source", "target", "path", "expected"),
    [
        ("/*", "/index.html", "/a/b", "/index.html"),
        ("/*", "/index.html", "/index.html", None),
        ("/a/*", "/b/:splat", "/a/é\udcff\n", "/b/é\udcff\n"),
        ("/a/*", "/b/:splat", "/a/%2e%2e", "/b/%2e%2e"),
        ("/a/*", "/b/:splat", "/a/../c", None),
        ("/a/*", "/b/:splat", "/a/./c", None),
        ("/a/*", "/b/:splat", "/a/\0", None),
        ("/a/*", "/b/:splat/c", "/a", "/b/c"),
        ("/a/*", "/%C3%A9/:splat", "/a/c", "/é/c"),
        ("/a", "/../b", "/a", None),
        ("/a", "/%2e%2e/b", "/a", None),
    ],
)
@pytest.mark.parametrize("status", [200, 404])
def test_rewrites(source: str, target: str, path: str, expected: str | None, status: int) -> None:
    result = Redirects([RedirectRule(source, target, status)]).find(path, "x", exists=False)
    assert result == (None if expected is None else Rewritten(expected, status))


def test_a_rewrite_keeps_below_the_root_whatever_a_parameter_says() -> None:
    rules = Redirects([RedirectRule("/a", "/b/:x", 200, parameters=(("x", ":x"),))])
    assert rules.find("/a", "x=c%2fd", exists=False) == Rewritten("/b/c/d", 200)
    assert rules.find("/a", "x=%2fetc", exists=False) == Rewritten("/b/etc", 200)
    assert rules.find("/a", "x=..%2f..%2fetc", exists=False) is None


FIRST, SECOND = Redirected(302, "/first"), Redirected(302, "/second")


@pytest.mark.parametrize(
    ("rules", "there", "missing"),
    [
        ([("/a", False)], None, FIRST),
        ([("/a", True)], FIRST, FIRST),
        ([("/b", True), ("/a", True)], SECOND, SECOND),
        ([("/a", True), ("/a", True)], FIRST, FIRST),
        ([("/*", True), ("/a", True)], FIRST, FIRST),
        ([("/a", True), ("/*", True)], FIRST, FIRST),
        ([("/:x", False), ("/a", True)], None, FIRST),
        ([("/a", False), ("/*", True)], None, FIRST),
        ([("/b", False), ("/*", False)], None, SECOND),
        ([("/*", True), ("/a/*", True)], FIRST, FIRST),
        ([("/a/*", True), ("/*", True)], FIRST, FIRST),
        ([("/a/*", False), ("/a", True)], None, FIRST),
        ([("/a", True), ("/a/*", False)], FIRST, FIRST),
    ],
)
def test_the_first_that_matches_counts(
    rules: list[tuple[str, bool]], there: Redirected | None, missing: Redirected
) -> None:
    targets = (FIRST.location, SECOND.location)
    redirects = Redirects(
        RedirectRule(source, target, 302, force) for (source, force), target in zip(rules, targets, strict=False)
    )
    assert redirects.find("/a", "", exists=True) == there
    assert redirects.find("/a", "", exists=False) == missing


def test_a_rule_that_leads_nowhere_else_gives_way_to_the_next() -> None:
    rules = Redirects([RedirectRule("/*", "/a", force=True), RedirectRule("/a", "/b", 308, force=True)])
    assert rules.find("/c", "", exists=True) == Redirected(301, "/a")
    assert rules.find("/a", "", exists=True) == Redirected(308, "/b")


def test_rules_of_the_options() -> None:
    rules = Redirects(
        [RedirectOptions(from_="/:x/", to="/b/:x"), RedirectOptions(from_="/*", to="/c", status=404, force=False)]
    )
    assert rules.find("/a", "", exists=True) == Redirected(301, "/b/a")
    assert rules.find("/a/a", "", exists=True) is None
    assert rules.find("/a/a", "", exists=False) == Rewritten("/c", 404)


@pytest.mark.parametrize(
    ("source", "target", "status"),
    [
        ("a", "/b", 301),
        ("/a*b", "/b", 301),
        ("/*/b", "/b", 301),
        ("/**", "/b", 301),
        ("/:x/:x", "/b", 301),
        ("/:splat/*", "/b", 301),
        ("/a", "b", 301),
        ("/a", "", 301),
        ("/a", "?b", 301),
        ("/a", "//evil.example", 301),
        ("/a", "/\\evil.example", 301),
        ("/a", "ftp://example.org/", 301),
        ("/a", "javascript:alert(1)", 301),
        ("/a", "https://", 301),
        ("/a", "https:///b", 301),
        ("/a", "https://é.example/", 301),
        ("/a", "https://user@example.org/", 301),
        ("/*", "https://:splat", 301),
        ("/*", "https://:splat.example/", 301),
        ("/*", "https://example.org:splat", 301),
        ("/*", "https://example.org\\:splat", 301),
        ("/a", "/b/:x", 301),
        ("/a", "/b/:splat", 301),
        ("/a", "/b?c=:x", 301),
        ("/a", "/#/:x", 301),
        ("/a", "https://example.org/", 200),
        ("/a", "https://example.org/", 404),
        ("/a", "/b?c", 200),
    ],
)
def test_rules_that_cannot_be_followed(source: str, target: str, status: int) -> None:
    rule = RedirectRule(source, target, status)
    with pytest.raises(ValueError, match=re.escape(f"redirect from {source}: ")):
        check(rule)
    with pytest.raises(ValueError, match=re.escape(f"redirect from {source}: ")):
        Redirects([rule])


PARTS = ["a", "/", "//", "\\", ":", "..", ".", "%2f", "\r\n", "é", "?", "#", "@", "https:", "&", "=", "\0", "\udcff"]
TELLING = st.lists(st.sampled_from(PARTS)).map("".join)
SENT = TELLING | st.binary().map(os.fsdecode)
RULES = [
    RedirectRule("/a/*", "/:splat"),
    RedirectRule("/b/*", "/:splat/b"),
    RedirectRule("/c/*", "/c?x=:splat&y=1#f"),
    RedirectRule("/d/:x/*", "/:x:splat"),
    RedirectRule("/e", "/:x/e", parameters=(("x", ":x"),)),
    RedirectRule("/f/*", "https://example.org/:splat"),
    RedirectRule("/g/*", "/:splat", 200),
    RedirectRule("/:x", "/:x/:x"),
]


@settings(deadline=None, max_examples=500)
@given(st.sampled_from("abcdefg"), SENT, SENT)
def test_no_request_breaks_out_of_a_location(start: str, rest: str, query: str) -> None:
    result = Redirects(RULES).find(f"/{start}/{rest}", "x=" + query, exists=False)
    if isinstance(result, Rewritten):
        assert {"", ".", ".."}.isdisjoint(result.path.strip("/").split("/")) or result.path == "/"
        assert "\0" not in result.path
    elif result is not None:
        h11.Response(status_code=result.status, headers=[("Location", result.location)])
        assert re.fullmatch("[!-~]+", result.location)
        assert "\\" not in result.location.partition("?")[0]
        url = urlsplit(result.location)
        assert (url.scheme, url.netloc) in {("", ""), ("https", "example.org")}
        assert result.location.startswith("https://example.org/") or not result.location.startswith("//")
        assert url.fragment == ("f" if start == "c" and url.path == "/c" else "")


@settings(deadline=None)
@given(SENT.map("/".__add__), TELLING)
def test_what_does_not_match_leads_nowhere(source: str, target: str) -> None:
    """Whatever is written, it is refused or leads to this site or the host that was written."""
    try:
        rules = Redirects([RedirectRule(source, "/" + target)])
    except ValueError:
        return
    result = rules.find(source.replace("*", ""), "", exists=False)
    if isinstance(result, Redirected):
        assert re.fullmatch("/(?![/\\\\])[!-~]*", result.location)
