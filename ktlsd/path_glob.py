"""Patterns for the decoded path of a target, as matchers: pure.

Strategy: a pattern becomes a regular expression that tries no part in more than one way: what a wildcard leads to is
taken where it first occurs, since that leaves most for the rest, and stands in an atomic group. The steps are at most
the path's length times the pattern's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

Matcher = Callable[[str], bool]

_GLOB_WILDCARDS: Final = re.compile(r"(\*+|\?)")
# A placeholder is a whole segment.
_HOST_WILDCARDS: Final = re.compile(r"(\*+|(?<=/):[A-Za-z][A-Za-z0-9_]*(?=/|\Z))")


def compile_glob(pattern: str) -> Matcher:
    """A matcher for a Glob of options.py; the path has its leading slash, and a folder's a trailing one too.

    A pattern without a slash is matched against the last segment, which is empty for a folder. Any other is matched
    against the whole path, and may leave the leading slash out.
    """
    pieces = _GLOB_WILDCARDS.split(pattern)
    if "/" in pattern:
        if not pattern.startswith(("/", "**")):
            pieces[0] = "/" + pieces[0]
        return _compile(pieces)
    matches = _compile(pieces)
    return lambda path: matches(path[path.rfind("/") + 1 :])


def compile_host_pattern(pattern: str) -> Matcher:
    """A matcher for a path of a static host's `_headers`: `*` is anything, a segment `:name` any that is not empty.

    The rest is percent-decoded, as the path is.
    """
    text, *rest = _HOST_WILDCARDS.split(pattern)
    pieces = [decoded(text)]
    for wildcard, text in zip(rest[::2], rest[1::2], strict=True):
        pieces += ("**", decoded(text)) if wildcard.startswith("*") else ("?", "", "*", decoded(text))
    return _compile(pieces)


def decoded(text: str) -> str:
    """Percent-decoded, in the form that os.fsdecode gives to names."""
    return os.fsdecode(unquote_to_bytes(text.encode("utf-8", "surrogatepass")))


def _compile(pieces: Sequence[str]) -> Matcher:
    """A matcher for texts with a wildcard between each two: `?`, `*`, or more than one star."""
    # "**" cuts a pattern into groups, "*" a group into parts; what a part matches has a fixed length.
    groups = [[re.escape(pieces[0])]]
    for wildcard, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if wildcard == "?":
            groups[-1][-1] += "[^/]" + re.escape(text)
        elif wildcard == "*":
            groups[-1].append(re.escape(text))
        else:
            groups.append([re.escape(text)])
    last = len(groups) - 1
    expressions = (_group(parts, first=index == 0, last=index == last) for index, parts in enumerate(groups))
    matches = re.compile("".join(expressions), re.DOTALL).fullmatch
    return lambda path: matches(path) is not None


def _group(parts: Sequence[str], *, first: bool, last: bool) -> str:
    """The expression for a group and the "**" before it."""
    start = "" if first else ".*?"
    if not first and len(parts) > 1:
        # What does not follow the first match in a segment follows no later one in it: one try for each segment.
        start, parts = "(?:[^/]*+/)*?", ["", *parts]
    if not last:
        return f"(?>{start}{_earliest(parts)})"
    *before, end = parts
    return start + (_earliest(before) + "[^/]*" if before else "") + end


def _earliest(parts: Sequence[str]) -> str:
    """The expression for parts, each as early after the one before as it can be."""
    first, *rest = parts
    return first + "".join(f"(?>[^/]*?{part})" for part in rest)
