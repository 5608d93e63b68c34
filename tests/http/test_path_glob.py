"""Patterns for paths."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktlsd.http.path_glob import (
    compile_captures,
    compile_glob,
    compile_host_pattern,
    compile_protected,
    decoded,
    placeholders_of,
)

LONGEST_PATH = 8192


def reference(pattern: str, text: str) -> bool:
    """What `*`, `**` and `?` mean, by a table of all prefixes: slow, and plainly right."""
    reached = {0}
    position = 0
    while position < len(pattern):
        stars = len(pattern[position:]) - len(pattern[position:].lstrip("*"))
        following: set[int] = set()
        for start in reached:
            if stars:
                end = start
                following.add(end)
                while end < len(text) and (stars > 1 or text[end] != "/"):
                    end += 1
                    following.add(end)
            elif start < len(text) and (
                text[start] != "/" if pattern[position] == "?" else text[start] == pattern[position]
            ):
                following.add(start + 1)
        reached = following
        position += stars or 1
    return len(text) in reached


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*.html", ["/a.html", "/a/b.html", "/.html"], ["/", "/a.html/", "/a.html.gz", "/a.HTML", "/html"]),
        ("/*.html", ["/a.html"], ["/a/b.html", "a.html"]),
        ("/**.html", ["/a.html", "/a/b.html"], ["/a.html/b"]),
        ("**/*.html", ["/a.html", "/a/b.html"], ["/a.html/"]),
        ("/a/**", ["/a/", "/a/b", "/a/b/c/"], ["/a", "/ab", "/b/a/"]),
        ("a/**", ["/a/", "/a/b"], ["/b/a/b"]),
        ("*/a", ["/b/a", "//a"], ["/b/c/a", "/a"]),
        ("/a/*/c", ["/a/b/c", "/a//c"], ["/a/b/b/c", "/a/c"]),
        ("/?", ["/a", "/é", "/\udcff", "/\n"], ["/", "/ab", "//"]),
        ("a?c", ["/abc", "/x/abc"], ["/a/c", "/ac"]),
        ("**", ["/", "/a", "/a/b/"], []),
        ("*", ["/", "/a", "/a/b", "/a/"], []),
        ("/*", ["/", "/a"], ["/a/", "/a/b"]),
        ("/", ["/"], ["/a", ""]),
        ("a.b", ["/a.b", "/c/a.b"], ["/a-b", "/a.b/", "/a.bc"]),
        ("[a].(b)+", ["/[a].(b)+"], ["/a.bb"]),
        ("/a b/é*", ["/a b/é", "/a b/éé"], ["/a b/e"]),
        ("**x*y", ["/x/xy", "/x/xay", "/x/y/x_y"], ["/x/y"]),
        ("/**a*b**c*d", ["/abcd", "/a/ab/c/cd", "/a/a1b/2c3d"], ["/a/b/cd", "/ab/c/d"]),
    ],
)
def test_what_a_glob_matches(pattern: str, matching: list[str], other: list[str]) -> None:
    matches = compile_glob(pattern)
    assert [path for path in matching if not matches(path)] == []
    assert [path for path in other if matches(path)] == []


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("/*", ["/", "/a", "/a/b/"], []),
        ("/a/*", ["/a/", "/a/b", "/a/b/c"], ["/a", "/b/a/"]),
        ("/*.js", ["/a.js", "/a/b.js"], ["/a.jsx"]),
        ("/*/a", ["/b/a", "/b/c/a"], ["/a"]),
        ("/:a/c", ["/b/c", "/é/c"], ["//c", "/b/b/c", "/c"]),
        ("/a/:b", ["/a/b"], ["/a/", "/a/b/", "/a/b/c"]),
        ("/a/:b/*", ["/a/b/", "/a/b/c"], ["/a//c", "/a/b"]),
        ("/a:b", ["/a:b"], ["/ab", "/axb"]),
        ("/:1/:", ["/:1/:"], ["/a/b"]),
        ("/a?b", ["/a?b"], ["/axb"]),
        ("/%C3%A9/a%20b", ["/é/a b"], ["/%C3%A9/a%20b"]),
        ("/%ff%zz", ["/\udcff%zz"], ["/%ff%zz"]),
        ("/%2A", ["/*"], ["/a"]),
    ],
)
def test_what_a_path_of_a_headers_file_matches(pattern: str, matching: list[str], other: list[str]) -> None:
    matches = compile_host_pattern(pattern)
    assert [path for path in matching if not matches(path)] == []
    assert [path for path in other if matches(path)] == []


@pytest.mark.parametrize(
    ("pattern", "path", "values"),
    [
        ("/*", "/", {"splat": ""}),
        ("/*", "/a/b\n", {"splat": "a/b\n"}),
        ("/:a/:b", "/1/2", {"a": "1", "b": "2"}),
        ("/:a/*/c-d/:b", "/1/2/3/c-d/c-d/4", {"a": "1", "splat": "2/3/c-d", "b": "4"}),
        ("/%3A/:a.b/:c", "/:/:a.b/x", {"c": "x"}),
        ("/*.js", "/a/b.js", {"splat": "a/b"}),
        ("/a", "/a", {}),
        ("/:a", "/1/2", {}),
    ],
)
def test_what_placeholders_stand_for(pattern: str, path: str, values: dict[str, str]) -> None:
    assert compile_captures(pattern)(path) == values
    if values:
        assert sorted(placeholders_of(pattern)) == sorted(values)


@settings(deadline=None, max_examples=500)
@given(
    st.text("ab/:*", max_size=12).filter(lambda text: text.replace("**", "*").count("*") < 2),
    st.text("ab/:", max_size=14),
)
def test_placeholders_have_values_where_their_pattern_matches(text: str, rest: str) -> None:
    pattern, path = "/" + text, "/" + rest
    if (names := placeholders_of(pattern)) and len(set(names)) == len(names):
        assert bool(compile_captures(pattern)(path)) is compile_host_pattern(pattern)(path)


@settings(deadline=None, max_examples=500)
@given(st.text("abAB/:*%2", max_size=12), st.text("abAB/:", max_size=14))
def test_what_protects_matches_no_less_than_what_sets_fields(text: str, rest: str) -> None:
    pattern, path = "/" + text, "/" + rest
    if compile_host_pattern(pattern)(path):
        assert compile_protected(pattern)(path)
        assert compile_protected(pattern.lower())(path.upper())


PATTERNS = st.text("ab/?*", min_size=1, max_size=12)


@settings(deadline=None, max_examples=1000)
@given(PATTERNS, st.text("ab/", max_size=14))
@example("/**a*b", "/a/ab")
@example("**a/a*b", "a/a/ab")
@example("/**a*?a**/?b*", "/aaa/ab/bbb")
def test_a_glob_means_what_its_wildcards_say(pattern: str, text: str) -> None:
    path = "/" + text
    if "/" in pattern:
        rooted = pattern if pattern.startswith(("/", "**")) else "/" + pattern
        assert compile_glob(pattern)(path) == reference(rooted, path)
    else:
        assert compile_glob(pattern)(path) == reference(pattern, path.rpartition("/")[2])


@settings(deadline=None, max_examples=500)
@given(st.data(), PATTERNS)
def test_what_a_glob_was_made_of_matches(data: st.DataObject, pattern: str) -> None:
    """Random texts seldom match long patterns: these always do."""
    rooted = "/" + pattern
    fillings = {"**": st.text("ab/", max_size=4), "*": st.text("ab", max_size=3), "?": st.sampled_from("ab")}
    parts = rooted.replace("**", "\0").split("\0")
    path = data.draw(fillings["**"]).join(
        "".join(data.draw(fillings[character]) if character in fillings else character for character in part)
        for part in parts
    )
    assert compile_glob(rooted)(path)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=()), min_size=1), st.text())
def test_any_text_is_a_pattern(pattern: str, path: str) -> None:
    assert compile_glob(pattern)(path) in (True, False)
    assert compile_host_pattern(pattern)(path) in (True, False)


@settings(deadline=None)
@given(st.binary())
def test_any_name_can_be_written_percent_encoded(name: bytes) -> None:
    assert decoded("".join(f"%{octet:02x}" for octet in name)) == os.fsdecode(name)


@pytest.mark.parametrize(
    "pattern",
    [
        "/" + "*a" * 500 + "*b",
        "/" + "**a" * 500 + "**b",
        "/" + "**a*a" * 300 + "b",
        "/" + "*?" * 500 + "b",
        "/" + "**?*a" * 300 + "**?*b",
        "**a*a*a*a*a*a*a*a*b",
        "/**a*b**c",
        "/**a/*a/*b**c",
        "*a" * 500 + "b",
    ],
)
@pytest.mark.parametrize("character", ["a", "a/"])
def test_a_hostile_pattern_ends(pattern: str, character: str) -> None:
    """Trying all ways to place so many wildcards would take longer than there is time."""
    assert not compile_glob(pattern)("/" + (character * LONGEST_PATH)[:LONGEST_PATH])
    assert not compile_host_pattern(pattern)("/" + (character * LONGEST_PATH)[:LONGEST_PATH])
    assert not compile_protected(pattern)("/" + (character * LONGEST_PATH)[:LONGEST_PATH])
