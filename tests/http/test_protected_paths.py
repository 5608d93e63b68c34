"""Paths that the files of static hosts protect."""

from __future__ import annotations

import os
import time
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.http.protected_paths import MOST_NAMES, MOST_PATTERNS, GuardedPaths, ProtectedPaths

INDEX = ("index.html", "home.htm")
TRY_FILES = ("{path}", "{path}.htm", "/static{path}", "/app.html")


@pytest.mark.parametrize(
    ("pattern", "protected", "open_"),
    [
        ("/a", ["/a", "/a/", "/A", "/a.html", "/a/index.html", "/a.html.gz", "/a/index.html.br", "/a.zst"], ["/a/b"]),
        ("/a", ["/A.HTML", "/a.Html.GZ", "/a.HTM", "/STATIC/a"], ["/a.txt", "/HTML"]),
        ("/a", ["/a.htm", "/static/a", "/static/a/home.htm"], ["/ab", "/b/a", "/", "/a.txt", "/static"]),
        ("/a/", ["/a", "/a/", "/a/home.htm"], ["/a/b", "/"]),
        ("/a.html", ["/a.html", "/a.html.gz", "/static/a.html"], ["/a", "/a.txt"]),
        ("/a/index.html", ["/a/index.html", "/a/index.html.zst"], ["/index.html", "/a/b"]),
        ("/a/*", ["/a", "/a/", "/a/b", "/a/b/c.txt", "/A/B", "/static/a/b"], ["/ab", "/b/a/c", "/"]),
        ("/*", ["/", "/a", "/a/b", "/index.html"], []),
        ("/", ["/", "/index.html", "/home.htm", "/index.html.gz", "/static"], ["/a", "/a/index.html"]),
        ("/*.pdf", ["/a.pdf", "/a/b.pdf", "/a.pdf.gz", "/a.PDF", "/a.pdf/"], ["/a.txt", "/pdf"]),
        ("/:x/a", ["/b/a", "/é/a/"], ["/a", "/b/b/a"]),
        ("/a-:x/*", ["/a-b/c", "/a-/c"], ["/a/c"]),
        ("/%C3%A9/a%20b", ["/é/a b", "/É/A B"], ["/e/a b"]),
        ("/%2A", ["/*"], ["/a"]),
        # However it is written.
        ("//a///*", ["/a/b"], ["/b"]),
        ("/./a/%2e/b", ["/a/b"], ["/a"]),
        ("/a/../b", ["/a", "/b", "/c", "/"], []),
        ("/a/* # the team", ["/a/b", "/a"], ["/b"]),
        ("/a?x=y", ["/a", "/a?x=y"], ["/b"]),
        ("/a b", ["/a b", "/a"], ["/b"]),
    ],
)
def test_a_path_is_protected_by_all_its_names(pattern: str, protected: list[str], open_: list[str]) -> None:
    paths = ProtectedPaths([pattern], INDEX, TRY_FILES)
    assert paths
    assert [path for path in protected if not paths.cover(path)] == []
    assert [path for path in open_ if paths.cover(path)] == []


def test_nothing_is_protected_without_patterns() -> None:
    paths = ProtectedPaths([], INDEX, TRY_FILES)
    assert not paths
    assert not paths.cover("/")


def test_each_of_several_counts() -> None:
    paths = ProtectedPaths(["/a", "/b/*", "/*.c"])
    assert [paths.cover(path) for path in ("/a", "/b/x", "/x.c", "/x")] == [True, True, True, False]


def test_more_patterns_than_can_be_tried_protect_everything() -> None:
    for count, everything in ((MOST_PATTERNS, False), (MOST_PATTERNS + 1, True)):
        paths = ProtectedPaths(f"/{number}/*" for number in range(count))
        assert paths.cover("/0/x")
        assert paths.cover("/other") is everything


@pytest.mark.parametrize("path", ["/index.html" * 700, "/a" + ".gz" * 2700, "/a" + ".html" * 1600, "/static" * 1100])
def test_a_path_of_more_names_than_can_be_tried_is_protected(path: str) -> None:
    paths = ProtectedPaths([f"/{number}/*a*b" for number in range(MOST_PATTERNS)], INDEX, TRY_FILES)
    assert path.count("/") + path.count(".") > MOST_NAMES
    start = time.process_time()
    assert paths.match(path)
    assert time.process_time() - start < 1


SEGMENTS = st.binary(min_size=1).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(deadline=None)
@given(st.lists(SEGMENTS, min_size=1, max_size=4), st.booleans())
def test_every_path_can_be_protected(names: list[bytes], is_folder: bool) -> None:
    pattern = "/" + "/".join(quote(name, safe="") for name in names) + ("/*" if is_folder else "")
    path = "/" + "/".join(map(os.fsdecode, names))
    paths = ProtectedPaths([pattern])
    for ending in ("", "/", ".gz", ".html", ".html.br", *(("/x", "/x/y.txt") if is_folder else ())):
        assert paths.cover(path + ending)


PATTERNS = st.sampled_from(
    ["/in/**", "*.key", "/a?b/*/in", "in", "**", "/\u017f/**", "/IN/x", "/in/", "/s*k/i:n", "/%69n"]
)
PATHS = st.text(alphabet="/inxsa.bkeyK\u017f\u0130", max_size=12).map("/".__add__) | st.sampled_from(
    ["/in", "/IN/x", "/in.html", "/x/a.key.gz", "/in/index.html", "/axb/c/in", "/\u0131/n", "/shown/in.txt", "/sk/in"]
)
OTHER_NAMES = ("index.html",), ("{path}", "/shown{path}.txt")


@pytest.mark.parametrize("kind", [GuardedPaths, ProtectedPaths])
@given(pattern=PATTERNS, path=PATHS)
def test_what_is_compared_first_decides_nothing(
    kind: type[GuardedPaths | ProtectedPaths], pattern: str, path: str
) -> None:
    paths = kind((pattern,), *OTHER_NAMES)
    assert paths.cover(path) == paths.match(path)


@pytest.mark.parametrize("kind", [GuardedPaths, ProtectedPaths])
@given(pattern=PATTERNS, path=PATHS)
def test_no_path_without_a_literal_is_the_same_as_a_covered_one(
    kind: type[GuardedPaths | ProtectedPaths], pattern: str, path: str
) -> None:
    """A file system may take another case of letters, or another Unicode form, for the same name."""
    paths = kind((pattern,), *OTHER_NAMES)
    if not paths.cover(path) or paths.literals is None:
        return
    same = unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())
    for name in (same, same.upper(), same.swapcase()):
        if name.isascii():
            assert any(literal in name.lower() for literal in paths.literals)
