"""The README.md of a folder as HTML for its listing. It needs markdown-it-py, of the extra `pages`.

Strategy: the parser escapes HTML in the text and leaves out links of dangerous schemes; the page's policy forbids
scripts and foreign pictures besides. Size and time are bounded: a thread renders a version of a file once, and gives up
on text that takes its rules too long.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from ktlsd.attempt import needs_task
from ktlsd.file_identity import FileIdentity
from ktlsd.site.folder import Entry
from ktlsd.site.lookup import OpenFile
from ktlsd.site.shared_work import SharedWork

NAME: Final = b"readme.md"
"""In lower case."""
LARGEST: Final = 131_072
"""Bytes of a file that is shown."""
LARGEST_HTML: Final = 524_288
"""Bytes of what it becomes."""
MOST_SECONDS: Final = 1.0
"""Processor time for one file."""
_REMEMBERED: Final = 32
_LOWEST: Final = 6


def readme_in(entries: Sequence[Entry]) -> bytes | None:
    """The name of the file to show, if there is one."""
    found = (entry for entry in entries if entry.name.lower() == NAME and not entry.directory)
    return min((entry.name for entry in found if 0 < entry.size <= LARGEST), default=None)


class _TooSlow(Exception):
    """The text takes too long."""


class Readmes:
    """One site's, by the identities of their files."""

    def __init__(self) -> None:
        self._known: OrderedDict[FileIdentity, bytes] = OrderedDict()
        self._rendering = SharedWork[FileIdentity]()

    async def rendered(self, opened: OpenFile) -> bytes:
        """The HTML of an open file, b"" if there is none to show. Raises OSError."""
        identity = opened.identity
        while identity not in self._known:
            needs_task()
            if await self._rendering.ended_elsewhere(identity):
                continue
            with self._rendering.doing(identity):
                self._known[identity] = await opened.run(_render_file)
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        self._known.move_to_end(identity)
        return self._known[identity]


def _render_file(descriptor: int) -> bytes:
    pieces, offset = [], 0
    while offset <= LARGEST and (piece := os.pread(descriptor, LARGEST + 1 - offset, offset)):
        pieces.append(piece)
        offset += len(piece)
    return render(b"".join(pieces).decode("utf-8", "replace")) if offset <= LARGEST else b""


def render(text: str, seconds: float = MOST_SECONDS) -> bytes:
    """Markdown (CommonMark with tables and strikethrough) as HTML; b"" if that is too large or takes too long."""
    until = time.thread_time() + seconds

    def watch() -> bool:
        if time.thread_time() > until:
            raise _TooSlow
        return False

    def watch_line(state: StateBlock, line: int, end: int, silent: bool) -> bool:
        return watch()

    def watch_place(state: StateInline, silent: bool) -> bool:
        return watch()

    markdown = MarkdownIt("js-default", {"linkify": False})
    # Other rules try these at each line, and at each place in it.
    markdown.block.ruler.before("table", "watch", watch_line, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    markdown.inline.ruler.before("text", "watch", watch_place)
    markdown.core.ruler.push("fit", _fit_into_listing)
    try:
        html = markdown.render(text).encode("utf-8", "replace")
    except _TooSlow:
        return b""
    return html if len(html) <= LARGEST_HTML else b""


def _fit_into_listing(state: StateCore) -> None:
    """Headings below the page's own; classes in place of inline styles, which the policy forbids."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + 1, _LOWEST)}"
        _without_style(token)


def _without_style(token: Token) -> None:
    style = token.attrs.pop("style", None)
    if style is not None:
        token.attrs["class"] = str(style).removeprefix("text-align:")
