"""The files of static hosts."""

from __future__ import annotations

import os
import re

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.config.options import SiteOptions
from ktlsd.http.header_rules import HeaderRules
from ktlsd.http.redirects import Redirected, RedirectRule, Redirects, Rewritten
from ktlsd.site.rule_files import (
    LARGEST_FILE,
    LONGEST_LINE,
    MOST_HEADER_RULES,
    MOST_PASSWORD_RULES,
    MOST_REDIRECTS,
    MOST_WARNINGS,
    parse_headers,
    parse_redirects,
)

HEADERS = """\
\ufeff# The example of both hosts' manuals.
/*
  X-Frame-Options: DENY
  Cache-Control: public
  Cache-Control: max-age=60

  # not a field
  Set-Cookie: a=1
  Set-Cookie: b=2
/templates/:name/x
\tX-Frame-Options: SAMEORIGIN
\t! cache-control
/caf%C3%A9/*.jpg\r
  X-Time:12:00\r
"""


COOKIES = {("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")}
EVERYWHERE = COOKIES | {("X-Frame-Options", "DENY"), ("Cache-Control", "public, max-age=60")}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/a", EVERYWHERE),
        ("/templates/a/x", COOKIES | {("X-Frame-Options", "SAMEORIGIN")}),
        ("/café/b/c.jpg", EVERYWHERE | {("X-Time", "12:00")}),
    ],
)
def test_a_headers_file(path: str, fields: set[tuple[str, str]]) -> None:
    rules, warnings, _, _ = parse_headers(HEADERS)
    assert warnings == ()
    result = HeaderRules(SiteOptions(nosniff=False), rules).apply(path, 200, (("Cache-Control", "no-cache"),), True)
    assert set(result) == fields
    assert len(result) == len(fields)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("A: b\n/a\n  X: y", 1, "no path"),
        ("https://example.org/*\n  A: b\n/a\n  X: y", 1, "host"),
        ("/a\n  A b\n  X: y", 2, "colon"),
        ("/a\n  A B: c\n  X: y", 2, "no field name"),
        ("/a\n  A:\n  X: y", 2, "printable"),
        ("/a\n  A: é\n  X: y", 2, "printable"),
        ("/a\n  A: b\rc\n  X: y", 2, "printable"),
        ("/a\n  Content-Length: 5\n  X: y", 2, "frames"),
        ("/a\n  X: y\n\n  ! ETag", 4, "the file does"),
        ("/a\n  X: y\n  !", 3, "no field name"),
        ("/a\n  X: y\n  A: " + "b" * LONGEST_LINE, 3, "longer"),
        ("/a\n  X: y\n" + "é" * (LARGEST_FILE // 2), 3, "larger"),
        ("/a\n  X: y\n" + "/b\n" * MOST_HEADER_RULES, MOST_HEADER_RULES + 2, "the rest"),
        ("/a\n  X: y\n  \x1b[2J", 3, r"\\x1b"),
        # Fields below what is no path are not for the path above.
        ("/a\n  X: y\n*.js\n  X: z\n  Cache-Control: immutable", 3, "begins with a slash"),
        ("/a\n  X: y\nassets/*\n  A: b", 3, "begins with a slash"),
        ("/a\n  X: y\n  assets/*\n  A: b", 3, "begins with a slash"),
        ("/a\n  X: y\nhttps://example.org/a\n  X: z", 3, "host"),
        ("/a\n  X: y\n/" + "a" * LONGEST_LINE + "\n  X: z", 3, "longer"),
        ("/a\nX-A b\nX: y", 2, "colon"),
        # Placeholders that have no single value.
        ("/a\n  X: y\n  A: :splat", 3, "no \\*"),
        ("/a\n  X: y\n/:n/*/:n\n A: :n", 4, "no single value"),
        ("/a\n  X: y\n/:n/*/*\n A: :n", 4, "no single value"),
        ("/a\n  X: y\n/*/*\n A: :splat", 4, "no single value"),
        ("/a\n  X: y\n/b-:n/x\n  A: b", 3, "whole segment"),
    ],
)
def test_what_a_headers_file_cannot_say(text: str, line: int, reason: str) -> None:
    rules, warnings, protected, _ = parse_headers(text)
    assert protected == ()
    assert len(warnings) == 1
    assert re.search(rf"^_headers:{line}: .*{reason}", warnings[0])
    assert HeaderRules(SiteOptions(nosniff=False), rules).apply("/a", 200, (), True) == (("X", "y"),)


PLACEHOLDERS = """\
/movies/:title
  x-movie-name: You are watching ":title"
/shop/:shop/*  # a comment
  Link: <https://example.org/:splat>; rel="canonical"
  Cache-Tag: :shop, :shops, all
  Set-Cookie: shop=:shop; Secure
  Content-Security-Policy: default-src https://example.org:8443 http://e:x
/*.pdf
  X-Name: :splat
"""


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/movies/Brazil", {"x-movie-name": 'You are watching "Brazil"'}),
        ('/movies/a b"c', {"x-movie-name": 'You are watching "a%20b%22c"'}),
        ("/movies/é\r\nX: y\udcff", {"x-movie-name": 'You are watching "%C3%A9%0D%0AX:%20y%FF"'}),
        (
            "/shop/a;b,c/d/e",
            {
                "Link": '<https://example.org/d/e>; rel="canonical"',
                "Cache-Tag": "a%3Bb%2Cc, :shops, all",
                "Set-Cookie": "shop=a%3Bb%2Cc; Secure",
                "Content-Security-Policy": "default-src https://example.org:8443 http://e:x",
            },
        ),
        ("/a/b.pdf", {"X-Name": "a/b"}),
        # A field without a value is none.
        ("/.pdf", {}),
        ("/" + "é" * LONGEST_LINE + ".pdf", {}),
        ("/other", {}),
    ],
)
def test_placeholders_in_values_stand_for_parts_of_the_path(path: str, fields: dict[str, str]) -> None:
    rules, warnings, protected, _ = parse_headers(PLACEHOLDERS)
    assert (warnings, protected) == ((), ())
    assert dict(HeaderRules(SiteOptions(nosniff=False), rules).apply(path, 200, (), True)) == fields


def test_every_value_of_a_placeholder_can_be_sent() -> None:
    rules, _, _, _ = parse_headers("/:a/*\n  X: :a-:splat\n  Y: a :splat\n")
    headers = HeaderRules(SiteOptions(nosniff=False), rules)
    for octet in range(1, 256):
        path = "/x" + os.fsdecode(bytes([octet])).replace("/", "") + "/" + os.fsdecode(bytes([octet]))
        fields = headers.apply(path, 200, (), True)
        h11.Response(status_code=200, headers=list(fields))
        assert not re.search("[,;\"'\\\\<>\\s]", dict(fields)["X"])


SECRET = "user:pa55word"


@pytest.mark.parametrize(
    ("text", "line", "protected"),
    [
        (f"/a/*\n  X: y\n  Basic-Auth {SECRET}\n", 3, ("/a/*",)),
        (f"/a/*\n  X: y\n  Basic Auth: {SECRET}\n", 3, ("/a/*",)),
        ("/a/*\n  X: y\n  Basic-Auth:\n", 3, ("/a/*",)),
        ("/a/*\n  X: y\nBASIC_AUTH\n", 3, ("/a/*",)),
        ("/a/*\n  X: y\n  ! Basic-Auth\n", 3, ("/a/*",)),
        (f"/a/*\n  X: y\n  Basic-Auth: {SECRET} é\n", 3, ("/a/*",)),
        (f"/a/*  # team\n  X: y\n  Basic-Auth: {SECRET} " + "a" * LONGEST_LINE, 3, ("/a/*",)),
        ("/a/*\n  X: y\n" + "/b\n" * MOST_HEADER_RULES + f"/c\n Basic-Auth {SECRET}", 1004, ("/c",)),
        (f"/a/*\n  X: y\nhttps://example.org/c/*\n  Basic-Auth {SECRET}", 4, ("/c/*",)),
        (f"/a/*\n  X: y\nhttps://example.org\n  Basic-Auth {SECRET}", 4, ("/",)),
        (f"/a/*\n  X: y\nc/*\n  Basic-Auth {SECRET}", 4, ("/c/*",)),
        (f"Basic-Auth: {SECRET}\n/a/*\n  X: y", 1, ()),
        ("broken\n" * 200 + f"/a/*\n  X: y\n  Basic-Auth {SECRET}", 203, ("/a/*",)),
    ],
)
def test_a_line_that_is_no_password_protects_its_path_and_is_told_to_nobody(
    text: str, line: int, protected: tuple[str, ...]
) -> None:
    rules, warnings, found, passwords = parse_headers(text)
    assert (found, passwords) == (protected, ())
    assert any(
        re.search(rf"^_headers:{line}: Basic-Auth (is not name:password|protects nothing)", text) for text in warnings
    )
    assert "pa55" not in "".join(warnings)
    fields = HeaderRules(SiteOptions(nosniff=False), rules).apply("/a/b", 200, (), True)
    assert fields == (("X", "y"),)


@pytest.mark.parametrize(
    ("text", "passwords"),
    [
        (f"/a/*\n  Basic-Auth: {SECRET}\n  X: y", [("/a/*", {b"user": b"pa55word"})]),
        (f"/a/*\n  X: y\n  basic-auth:{SECRET}  b:c:d\n", [("/a/*", {b"user": b"pa55word", b"b": b"c:d"})]),
        ("/a/*\n  Basic-Auth: a:b\n  X: y\n  Basic-Auth: é:ü\n", [("/a/*", {b"a": b"b", "é".encode(): "ü".encode()})]),
        ("/a/*\n  X: y\n" + "/b\n" * MOST_HEADER_RULES + "/c\n Basic-Auth: a:b", [("/c", {b"a": b"b"})]),
        ("/a/*\n  X: y\nhttps://example.org/c/*\n  Basic-Auth: a:b", [("/c/*", {b"a": b"b"})]),
    ],
)
def test_passwords_of_a_path(text: str, passwords: list[tuple[str, dict[bytes, bytes]]]) -> None:
    rules, warnings, protected, found = parse_headers(text)
    assert ([tuple(rule) for rule in found], protected) == (passwords, ())
    assert not any("Basic-Auth" in warning for warning in warnings)
    assert HeaderRules(SiteOptions(nosniff=False), rules).apply("/a/b", 200, (), True) == (("X", "y"),)


def test_too_many_paths_with_passwords_are_refused() -> None:
    text = "".join(f"/{number}\n  Basic-Auth: a:b\n" for number in range(MOST_PASSWORD_RULES + 1))
    _, warnings, protected, passwords = parse_headers(text)
    assert (len(protected), passwords) == (MOST_PASSWORD_RULES + 1, ())
    assert "403 for them" in warnings[0]


def test_names_like_it_are_fields_as_any() -> None:
    rules, warnings, protected, _ = parse_headers("/a\n  Basic-Authors: b\n  X-Basic-Auth: c\n")
    assert (warnings, protected) == ((), ())
    assert rules[0].set == (("Basic-Authors", "b"), ("X-Basic-Auth", "c"))


REDIRECTS = """\
# from  to  status
/home              /
/blog/*            /news/:splat 302   # moved
/store id=:id      /goods/:id?  303
/store             /goods
/caf%C3%A9         https://example.org/caf%C3%A9 307
\t/app/*  /app/index.html  200!
/de/*  /de/404.html 404
/fragment /a#b
"""


@pytest.mark.parametrize(
    ("path", "query", "result"),
    [
        ("/home", "", Redirected(301, "/")),
        ("/blog/a/b", "x", Redirected(302, "/news/a/b?x")),
        ("/store", "id=5", Redirected(303, "/goods/5?")),
        ("/store", "", Redirected(301, "/goods")),
        ("/café", "", Redirected(307, "https://example.org/caf%C3%A9")),
        ("/app/a", "", Rewritten("/app/index.html", 200)),
        ("/de/a", "", Rewritten("/de/404.html", 404)),
        ("/fragment", "", Redirected(301, "/a#b")),
        ("/other", "", None),
    ],
)
def test_a_redirects_file(path: str, query: str, result: Redirected | Rewritten | None) -> None:
    rules, warnings, _ = parse_redirects(REDIRECTS)
    assert warnings == ()
    assert Redirects(rules).find(path, query, exists=False) == result
    assert Redirects(rules).find(path, query, exists=True) == (result if path == "/app/a" else None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/a", "nowhere"),
        ("/a b=c", "nowhere"),
        ("a /b", "not a path"),
        ("/a?b /c", "not a path"),
        ("https://example.org/a /b", "host"),
        ("/a /b 302 Country=us", "Country=us"),
        ("/a /b Language=de", "Language=de"),
        ("/a /b 200! Role=admin", "Role=admin"),
        ("/a /b c", "conditions"),
        ("/a /b 410", "410"),
        ("/a /b 300!", "300"),
        ("/a https://example.org/:splat 200", "proxy"),
        ("/a https://example.org/ 404", "of this site"),
        ("/a //example.org/", "one slash"),
        ("/a /b/:c", ":c"),
        ("/a*c /b", "at the end"),
        ("/a " + "/b" * LONGEST_LINE, "longer"),
        ("/a \x1b[2J", r"\\x1b"),
    ],
)
def test_what_a_redirects_file_cannot_say(line: str, reason: str) -> None:
    rules, warnings, protected = parse_redirects(f"\n/x /y\n{line}\n/z /y 308\n")
    assert rules == (RedirectRule("/x", "/y"), RedirectRule("/z", "/y", 308))
    assert len(warnings) == 1
    assert re.search(f"^_redirects:3: .*{reason}", warnings[0])
    assert protected == (("/a",) if "Role=" in line else ())


@pytest.mark.parametrize(
    ("line", "protected"),
    [
        ("/a/* 200! Role=admin", "/a/*"),
        ("/a/* /a/:splat 200! Role=admin,editor", "/a/*"),
        ("/a/* /a/:splat 200 role=admin  # comment", "/a/*"),
        ("/a/* Role=admin", "/a/*"),
        ("https://example.org/a/* 200! Role=admin", "/a/*"),
        ("a/* 200! Role=admin", "/a/*"),
        ("/a/*/b 200! Country=de Role=admin", "/a/*/b"),
        ("/a/* /sorry 401!", "/a/*"),
        ("/a /sorry 410!", "/a"),
        ("/a " + "/b" * LONGEST_LINE + " 200! Role=admin", None),
        # Others see what is there.
        ("/a /b 302! Role=admin", None),
        ("/a /b Role=admin", None),
        ("/a /sorry 401", None),
        ("/a /b 200! Country=de", None),
        ("/a https://example.org/ 200!", None),
    ],
)
def test_a_role_or_an_error_protects_its_path(line: str, protected: str | None) -> None:
    rules, warnings, found = parse_redirects(f"/x /y\n{line}\n/z /y 308\n")
    assert rules == (RedirectRule("/x", "/y"), RedirectRule("/z", "/y", 308))
    assert found == ((protected,) if protected else ())
    assert len(warnings) == 1
    assert warnings[0].startswith("_redirects:2: ")
    assert warnings[0].endswith(f"403 for files of {protected}") is bool(protected)


def test_a_role_beyond_the_last_rule_protects_its_path() -> None:
    rules, warnings, protected = parse_redirects("/a /b\n" * MOST_REDIRECTS + "/c /d\n/e 200! Role=a\n")
    assert (len(rules), len(warnings), protected) == (MOST_REDIRECTS, 2, ("/e",))


def test_a_colon_in_a_segment_is_no_placeholder_and_is_told() -> None:
    rules, warnings, _ = parse_redirects("/b-:x /c\n")
    assert rules == (RedirectRule("/b-:x", "/c"),)
    assert [re.search("^_redirects:1: .*b-:x is taken as it is written", text) is not None for text in warnings] == [
        True
    ]


def test_the_number_of_redirects_has_a_bound() -> None:
    rules, warnings, _ = parse_redirects("/a /b\n" * (MOST_REDIRECTS + 1))
    assert len(rules) == MOST_REDIRECTS
    assert len(warnings) == 1
    assert warnings[0].startswith(f"_redirects:{MOST_REDIRECTS + 1}: more than")


def test_a_file_that_is_cut_loses_its_last_line_whole() -> None:
    rest = "#" * (LONGEST_LINE - 1) + "\n"
    text = rest * (LARGEST_FILE // len(rest) - 1)
    text += "#" * (LARGEST_FILE - len(text) - 10) + "\n/a /b 302"
    assert len(text) == LARGEST_FILE
    assert parse_redirects(text)[0] == (RedirectRule("/a", "/b", 302),)
    rules, warnings, _ = parse_redirects(text + "!")
    assert rules == ()
    assert len(warnings) == 1


def test_warnings_have_a_bound() -> None:
    for parse in (parse_headers, parse_redirects):
        warnings = parse("a\n" * 1000).warnings
        assert len(warnings) == MOST_WARNINGS + 1
        assert warnings[-1].endswith("without a warning for each")


PIECES = [
    "/",
    "/a",
    "*",
    ":b",
    "  ",
    "\n",
    "\r",
    "\t",
    ": ",
    "!",
    "#",
    "A",
    "Set-Cookie",
    "Vary",
    "200",
    "302!",
    "=",
    "?",
]
PIECES += ["https://", "é", "\0", "\x85", "\u2028", "\ud800", "\udcff", "%0d%0a", "%ff", ":splat", "//", "\\", "x", "?"]
FILES = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(st.characters(exclude_categories=()))


def check_warnings(warnings: tuple[str, ...], file: str, text: str) -> None:
    for warning in warnings:
        match = re.fullmatch(rf"{file}:([0-9]+): [ -~]+", warning)
        assert match
        assert 1 <= int(match[1]) <= text.count("\n") + 1


@settings(deadline=None, max_examples=500)
@given(FILES, st.sampled_from(["/", "/a", "/a/é", "/\udcff\n"]))
def test_no_headers_file_breaks_a_response(text: str, path: str) -> None:
    rules, warnings, _, _ = parse_headers(text)
    check_warnings(warnings, "_headers", text)
    for rule in rules:
        h11.Response(status_code=200, headers=list(rule.set))
        assert all(re.fullmatch("[!-~]([ -~\t]*[!-~])?", value) for _, value in rule.set)
    fields = HeaderRules(SiteOptions(), rules).apply(path, 200, (("Content-Length", "5"),), True)
    h11.Response(status_code=200, headers=list(fields))
    assert ("Content-Length", "5") in fields


@settings(deadline=None, max_examples=500)
@given(FILES, st.sampled_from(["/", "/a", "/a/é", "/\udcff\n"]), st.sampled_from(["", "?", "A=x&é=\n"]))
def test_no_redirects_file_breaks_a_response(text: str, path: str, query: str) -> None:
    rules, warnings, _ = parse_redirects(text)
    check_warnings(warnings, "_redirects", text)
    result = Redirects(rules).find(path, query, exists=False)
    if isinstance(result, Redirected):
        assert re.fullmatch("[!-~]+", result.location)
        assert not result.location.startswith("//")
