"""Regular expressions of operators."""

from __future__ import annotations

import re
import sys
import time

import pytest

from ktlsd.config.options import CacheOptions, HeaderOptions, RedirectOptions, SiteOptions
from ktlsd.http.header_rules import HeaderRules
from ktlsd.http.redirects import Redirected, Redirects, Rewritten, check
from ktlsd.http.regexes import Regex, check_count


@pytest.mark.parametrize(
    ("expression", "path", "groups"),
    [
        (r"^/old/(\d+)$", "/old/12", ("12",)),
        (r"^/old/(\d+)$", "/old/12/", None),
        (r"^/old/(\d+)$", "/new/old/12", None),
        (r"/(\w+)\.php", "/a/index.php", ("index",)),
        (r"^/(a)|^/(b)", "/b", ("", "b")),
        (r"^/(.+)$", "/é", ("é",)),
        (r"^/(é|ü)$", "/ü", ("ü",)),
        (r"(?i)\.JPG$", "/a.jpg", ()),
        # Not UTF-8: a character does not match it, and it can be passed along.
        (r"^/(.*)$", "/\udcff", None),
        (r"^/x(\C*)$", "/x\udcff", ("\udcff",)),
    ],
)
def test_what_is_found(expression: str, path: str, groups: tuple[str, ...] | None) -> None:
    regex = Regex(expression)
    assert regex.find(path) == groups
    assert regex.matches(path) is (groups is not None)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("/a(b", "column 1: missing ): /a(b"),
        ("/ab**", "column 4: bad repetition operator: **"),
        ("/[z-a]", "column 3: invalid character class range: z-a"),
        ("/(?=a)b", "column 2: invalid perl operator: (?="),
        ("/(a)\\1", "column 5: invalid escape sequence: \\1"),
        ("/a\\", "trailing \\"),
        (r"\pL{1000}", "pattern too large - compile failed"),
    ],
)
def test_what_re2_does_not_take_is_told_with_its_place(expression: str, complaint: str) -> None:
    told = re.escape(f"{expression} is no regular expression of RE2: {complaint}")
    with pytest.raises(ValueError, match=rf"\A{told}\Z"):
        Regex(expression)


def test_groups_and_expressions_are_bounded() -> None:
    assert Regex("(a)" * 9).groups == 9
    with pytest.raises(ValueError, match=r"has 10 groups, more than 9: write \(\?:\.\.\.\) for some"):
        Regex("(a)" * 10)
    check_count(100)
    with pytest.raises(ValueError, match="101 rules have a regex, more than 100"):
        check_count(101)


def test_without_the_package_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(ValueError, match=r"need the package google-re2, which is missing: pip install google-re2, or"):
        Regex("^/only-here$")


@pytest.mark.parametrize("expression", [r"^/(a*)*b$", r"^/(a|aa)+$", r"(x+x+)+y", r"^(.*)/(.*)/(.*)!$"])
def test_a_long_path_takes_no_long_time(expression: str) -> None:
    regex, began = Regex(expression), time.process_time()
    assert not regex.matches("/" + "a" * 4000 + "/x" * 2000 + "c")
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("regex", "target", "path", "location"),
    [
        (r"^/old/(\d+)$", "/new/$1", "/old/12", "/new/12"),
        (r"^/old/(\d+)$", "/new/$1", "/old/x", None),
        (r"^/(\d+)/(.*)$", "/$2?year=$1#$1", "/2026/a/b", "/a/b?year=2026#2026"),
        (r"^/b/(.*)$", "https://example.org/$1", "/b/c d", "https://example.org/c%20d"),
        # A colon and another dollar sign stand for themselves.
        (r"^/b$", "/c:d/$x/$", "/b", "/c:d/$x/$"),
        (r"^/(a)?b$", "/c$10", "/b", "/c0"),
        (r"^/r(.*)$", "/$1", "/r/evil.example", "/evil.example"),
        (r"^/r(.*)$", "$1", "/r/x", None),
        (r"^/r(.*)$", "/$1", "/r\\evil.example", "/%5Cevil.example"),
        (r"^/b/(.*)$", "/c?d=$1", "/b/1&e=2/3\r\n", None),
        (r"(?s)^/b/(.*)$", "/c?d=$1", "/b/1&e=2/3\r\n", "/c?d=1%26e%3D2%2F3%0D%0A"),
        (r"^/(.*)$", "/$1", "/a", None),
    ],
)
def test_a_redirect_by_expression(regex: str, target: str, path: str, location: str | None) -> None:
    if not target.startswith(("/", "https:")):
        with pytest.raises(ValueError, match="is no path after one slash, and no URL"):
            check(RedirectOptions(regex=regex, to=target))
        return
    found = Redirects([RedirectOptions(regex=regex, to=target)]).find(path, "", exists=True)
    assert (found.location if isinstance(found, Redirected) else found) == location


def test_a_rewrite_by_expression_cannot_climb() -> None:
    rules = Redirects([RedirectOptions(regex=r"^/a(.*)b(.*)$", to="/x/$1$2/y", status=200)])
    assert rules.find("/a1b2", "", exists=True) == Rewritten("/x/12/y", 200)
    assert rules.find("/a.b.", "", exists=True) is None


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (RedirectOptions(to="/"), "'from' is missing, or 'regex'"),
        (RedirectOptions(from_="/a", regex="/a", to="/"), "there are 'from' and 'regex': leave one out"),
        (RedirectOptions(regex="^/(a)$", to="/$2"), r"redirect for \^/\(a\)\$: there is no \$2 for /\$2"),
        (RedirectOptions(regex="^/(a)$", to="https://$1.example.org/"), "redirect for .* is no path .*, and no URL"),
        (RedirectOptions(regex="^/(a)$", to="https://example.org$1"), "redirect for .* is no path .*, and no URL"),
        (RedirectOptions(regex="^/(a$", to="/"), ".* is no regular expression of RE2: .*"),
    ],
)
def test_a_redirect_that_cannot_be_followed(rule: RedirectOptions, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(rule)


def test_rules_in_their_order_whatever_they_are_found_by() -> None:
    rules = [
        RedirectOptions(from_="/a/b", to="/1"),
        RedirectOptions(regex="^/a/", to="/2"),
        RedirectOptions(from_="/a/:x", to="/3"),
    ]
    found = [Redirects(rules[first:]).find("/a/b", "", exists=True) for first in range(3)]
    assert [one.location for one in found if isinstance(one, Redirected)] == ["/1", "/2", "/3"]


def test_header_and_cache_rules_by_expression() -> None:
    site = SiteOptions(
        nosniff=False,
        header=(HeaderOptions(regex=r"^/v\d+/", set={"X-Version": "yes"}),),
        cache=(CacheOptions(regex=r"\.[0-9a-f]{8}\.(js|css)$", control="immutable"),),
    )
    rules = HeaderRules(site)
    assert rules.by_path
    assert rules.apply("/v2/a.12345678.js", 200, (), True) == (("Cache-Control", "immutable"), ("X-Version", "yes"))
    assert rules.apply("/v2/a.js", 200, (), True) == (("X-Version", "yes"),)
    assert rules.apply("/vx/a.js", 200, (), True) == ()


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (HeaderOptions(), "'path' is missing, or 'regex'"),
        (HeaderOptions(path="*", regex="a"), "there are 'path' and 'regex': leave one out"),
        (HeaderOptions(regex="a("), "is no regular expression"),
    ],
)
def test_a_header_rule_that_cannot_be_followed(rule: HeaderOptions, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        HeaderRules(SiteOptions(header=(rule,)))
