"""README.md as HTML: what it may contain, and how long it may take."""

from __future__ import annotations

import contextlib
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktlsd.site.folder import Entry
from ktlsd.site.lookup import OpenFile, Root
from ktlsd.site.readme import LARGEST, Readmes, readme_in, render

TAGS = frozenset(
    (
        *("p", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s", "a"),
        *("img", "hr", "br", "table", "thead", "tbody", "tr", "th", "td"),
    )
)
ATTRIBUTES = frozenset(("href", "src", "alt", "title", "class", "start"))


class Elements(HTMLParser):
    """Tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>[]()!*_`#|-:\"'&\\/ \nabjscript:x=."), max_size=80))
@example("<script>alert(1)</script>")
@example("<img src=x onerror=alert(1)>")
@example(
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,x) [d](vbscript:x) <javascript:alert(1)>"
)
@example('![a](javascript:alert(1)) ![b](x"onerror="alert(1))')
@example("[a]: javascript:alert(1)\n[a]")
@example("| a |\n|:-:|\n| <b> |\n")
def test_only_harmless_elements(text: str) -> None:
    for tag, attributes in Elements(render(text).decode()).tags:
        assert tag in TAGS
        assert attributes.keys() <= ATTRIBUTES
        for name in ("href", "src"):
            scheme = (attributes.get(name) or "").strip().lower().partition(":")[0]
            assert scheme not in ("javascript", "vbscript", "file")
            assert not (scheme == "data" and name == "href")


def test_headings_are_below_the_pages_own() -> None:
    assert render("# One\n\n###### Six\n") == b"<h2>One</h2>\n<h6>Six</h6>\n"


def test_tables_have_no_inline_style() -> None:
    html = render("| a | b |\n|--:|:-:|\n| 1 | 2 |\n")
    assert b"style" not in html
    assert b'<td class="right">1</td>' in html


@pytest.mark.parametrize("text", ["[" * 60_000, "![" * 30_000, "> " * 50 + "a\n" + "b\n" * 50_000])
def test_slow_text_is_given_up(text: str) -> None:
    began = time.thread_time()
    assert render(text, seconds=0.1) == b""
    assert time.thread_time() - began < 2


async def test_requests_at_the_same_time_share_the_work(tmp_path: Path) -> None:
    text = "x " * 60_000
    (tmp_path / "README.md").write_text(text)
    root = Root(str(tmp_path))
    opened = await root.open_file(b"README.md")
    assert isinstance(opened, OpenFile)
    began = time.process_time()
    render(text)
    alone, began = time.process_time() - began, time.process_time()
    readmes = Readmes()
    with contextlib.closing(root), contextlib.closing(opened):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(readmes.rendered, opened)
    assert time.process_time() - began < 4 * alone
    assert await readmes.rendered(opened)


def test_large_output_is_not_shown() -> None:
    assert render("&" * LARGEST) == b""


def test_which_file() -> None:
    def entry(name: bytes, size: int = 5, *, directory: bool = False) -> Entry:
        return Entry(name, directory, size, 0)

    assert readme_in([entry(b"a"), entry(b"readme.md"), entry(b"README.md")]) == b"README.md"
    assert readme_in([entry(b"Readme.MD")]) == b"Readme.MD"
    assert readme_in([entry(b"README.md", LARGEST + 1), entry(b"readme.md", 0)]) is None
    assert readme_in([entry(b"README.md", directory=True)]) is None
