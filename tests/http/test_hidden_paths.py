"""Which paths an operator's patterns hide."""

from __future__ import annotations

import time

import pytest

from ktlsd.http.hidden_paths import HiddenPaths

HIDDEN = HiddenPaths(("*.bak", "node_modules", "/private/**", "drafts", "/old/*.html", "/logs/", "/a?c"))


@pytest.mark.parametrize(
    "path",
    [
        b"x.bak",
        b"deep/x.bak",
        b"deep/X.BAK",
        # Precompressed siblings go with their file.
        b"x.bak.gz",
        b"x.bak.zst.br",
        # Below a folder that is hidden.
        b"backup.bak/file",
        b"node_modules/a/b.js",
        b"deep/node_modules/a.js",
        b"private/x",
        b"Private/deep/x",
        b"drafts/2026/x.html",
        b"old/x.html",
        b"old/x.html.gz",
        b"old/x.HTML.GZ",
        b"old/x.html/y",
        b"logs/access.log",
        b"abc",
        b"abc/d",
        "aüc".encode(),
        b"a\xffc/d",
    ],
)
def test_what_is_hidden(path: bytes) -> None:
    assert HIDDEN.cover(path)


@pytest.mark.parametrize("path", [b"node_modules", b"deep/drafts", b"private", b"logs", b"x.bak", b"old/x.html"])
def test_a_folder_is_hidden(path: bytes) -> None:
    assert HIDDEN.cover(path, folder=True)


@pytest.mark.parametrize(
    "path",
    [
        b".",
        b"x.bak2",
        b"x.bakery/file",
        b"xbak",
        b"deep/private/x",
        b"private",
        b"logs",
        b"old/deep/x.html",
        b"old/x.htm",
        b"deep/abc",
        b"a/c",
        b".gz",
        b"deep/.br",
        b"x.gz",
        b"old/x",
    ],
)
def test_what_is_not_hidden(path: bytes) -> None:
    assert not HIDDEN.cover(path)


@pytest.mark.parametrize("path", [b".", b"old", b"deep", b"old/sub"])
def test_a_folder_above_what_is_hidden_is_not(path: bytes) -> None:
    assert not HIDDEN.cover(path, folder=True)


@pytest.mark.parametrize(
    ("pattern", "path", "folder", "clean_urls", "hidden"),
    [
        ("/secret", b"secret.html", False, True, True),
        ("/secret", b"secret.html.gz", False, True, True),
        ("/secret", b"secret.html", False, False, False),
        ("/**", b".", True, False, True),
        ("/**", b"index.html", False, False, True),
        ("**", b"a/b", False, False, True),
        ("/", b".", True, False, True),
        ("/index.html", b".", True, False, False),
    ],
)
def test_other_forms(pattern: str, path: bytes, folder: bool, clean_urls: bool, hidden: bool) -> None:
    assert HiddenPaths((pattern,), clean_urls=clean_urls).cover(path, folder=folder) is hidden


def test_a_long_path_costs_no_more_than_its_length_times_the_patterns() -> None:
    hidden = HiddenPaths(("*a*b*c*d*e*f", "/x/**/a*b*c*d", "/**/no/*/such/?"))
    began = time.process_time()
    assert not hidden.cover(b"/".join([b"abcde" * 3] * 500))
    assert time.process_time() - began < 1.0
