"""Patterns for paths: they match what a table of all beginnings of both says.

Strategy: an input is a pattern, a line feed and a path. The table (dynamic programming) tries every way, and takes the
time that it takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from ktlsd.http.path_glob import compile_glob, compile_host_pattern

TOKENS: Final = (b"*", b"**", b"/", b"?", b"/**/", b"/:name", b":a", b"***", b".html", b"%2a", b"\n/")

_ANY, _IN_SEGMENT, _ONE = "**", "*", "?"
_PLACEHOLDER: Final = re.compile(r":[A-Za-z][A-Za-z0-9_]*")


def check(data: bytes) -> None:
    pattern, _, path = os.fsdecode(data).partition("\n")
    if not path.startswith("/"):
        path = "/" + path
    assert compile_glob(pattern)(path) == matches_glob(pattern, path)
    assert compile_host_pattern(pattern)(path) == matches_host_pattern(pattern, path)


def matches_glob(pattern: str, path: str) -> bool:
    if "/" not in pattern:
        path = path.rpartition("/")[2]
    elif not pattern.startswith(("/", "**")):
        pattern = "/" + pattern
    tokens: list[str | None] = []
    for piece in re.findall(r"\*+|\?|[^*?]+", pattern):
        if piece[0] == "*":
            tokens.append(_IN_SEGMENT if piece == "*" else _ANY)
        elif piece == "?":
            tokens.append(_ONE)
        else:
            tokens += ("=" + character for character in piece)
    return _matches(tokens, path)


def matches_host_pattern(pattern: str, path: str) -> bool:
    """A path of `_headers`: stars are anything, a whole segment `:name` is any segment but an empty one."""
    tokens: list[str | None] = []
    segments = pattern.split("/")
    for number, segment in enumerate(segments):
        if number:
            tokens.append("=/")
        if number and _PLACEHOLDER.fullmatch(segment):
            tokens += (_ONE, _IN_SEGMENT)
            continue
        for piece in re.findall(r"\*+|[^*]+", segment):
            if piece[0] == "*":
                tokens.append(_ANY)
            else:
                text = os.fsdecode(unquote_to_bytes(piece.encode("utf-8", "surrogatepass")))
                tokens += ("=" + character for character in text)
    return _matches(tokens, path)


def _matches(tokens: Sequence[str | None], text: str) -> bool:
    """Whether the tokens, of which "=x" stands for x, match all of a text."""
    reached = {0}
    for token in tokens:
        if token == _ANY:
            reached = set(range(min(reached), len(text) + 1)) if reached else set()
        elif token == _IN_SEGMENT:
            further = set()
            for start in reached:
                position = start
                further.add(position)
                while position < len(text) and text[position] != "/":
                    position += 1
                    further.add(position)
            reached = further
        elif token == _ONE:
            reached = {start + 1 for start in reached if start < len(text) and text[start] != "/"}
        else:
            reached = {start + 1 for start in reached if start < len(text) and "=" + text[start] == token}
    return len(text) in reached
