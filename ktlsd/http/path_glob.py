"""Patterns for the decoded path of a target, as matchers: pure.

Strategy: a pattern becomes a regular expression that tries no part in more than one way: the end of a wildcard is
taken where it first occurs, since that leaves most for the rest, and stands in an atomic group. The steps are at most
the path's length times the pattern's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from ktlsd.config.file_names import fsdecode
from ktlsd.http.placeholders import NAME, SPLAT

Matcher = Callable[[str], bool]
Captures = Callable[[str], Mapping[str, str]]

_GLOB_WILDCARDS: Final = re.compile(r"(\*+|\?)")
# A placeholder is a whole segment.
_HOST_WILDCARDS: Final = re.compile(rf"(\*+|(?<=/):{NAME}(?=/|\Z))")
LOOSE_WILDCARDS: Final = re.compile(rf"(\*+|:{NAME})")
"""Those of compile_protected()."""


def compile_glob(pattern: str, *, either_case: bool = False) -> Matcher:
    """A matcher for a Glob of values.py; the path has its leading slash, and a folder's a trailing one too.

    A pattern without a slash is matched against the last segment, which is empty for a folder. Any other is matched
    against the whole path, and may leave the leading slash out.
    """
    flags = re.IGNORECASE if either_case else re.NOFLAG
    pieces = _GLOB_WILDCARDS.split(pattern)
    if "/" in pattern:
        if not pattern.startswith(("/", "**")):
            pieces[0] = "/" + pieces[0]
        return _compile(pieces, flags)
    matches = _compile(pieces, flags)
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


def placeholders_of(pattern: str) -> tuple[str, ...]:
    """The names of what varies in a path of `_headers`: those of its placeholders, and `splat` for each `*`."""
    wildcards = _HOST_WILDCARDS.split(pattern)[1::2]
    return tuple(SPLAT if wildcard.startswith("*") else wildcard[1:] for wildcard in wildcards)


def compile_captures(pattern: str) -> Captures:
    """A function from a path that the pattern matches, with at most one `*`, to the values of placeholders_of."""
    text, *rest = _HOST_WILDCARDS.split(pattern)
    expression = re.escape(decoded(text))
    for wildcard, text in zip(rest[::2], rest[1::2], strict=True):
        expression += ("(.*)" if wildcard.startswith("*") else "([^/]+)") + re.escape(decoded(text))
    names, matches = placeholders_of(pattern), re.compile(expression, re.DOTALL).fullmatch

    def captures(path: str) -> Mapping[str, str]:
        match = matches(path)
        return {} if match is None else dict(zip(names, match.groups(), strict=True))

    return captures


def compile_protected(pattern: str) -> Matcher:
    """A matcher for a path that a static host's file protects: in doubt it matches.

    Letters match in either case, since there are file systems without the difference, and a `:name` stands for any
    part of a segment, the empty one too.
    """
    text, *rest = LOOSE_WILDCARDS.split(pattern)
    pieces = [decoded(text)]
    for wildcard, text in zip(rest[::2], rest[1::2], strict=True):
        pieces += ("**" if wildcard.startswith("*") else "*", decoded(text))
    return _compile(pieces, re.IGNORECASE)


def decoded(text: str) -> str:
    """Percent-decoded, in the form that os.fsdecode gives to names."""
    return fsdecode(unquote_to_bytes(text.encode("utf-8", "surrogatepass")))


def _compile(pieces: Sequence[str], flags: re.RegexFlag = re.NOFLAG) -> Matcher:
    """A matcher for texts with a wildcard between each two: `?`, `*`, or more than one star."""
    if len(pieces) == 3 and pieces[1].startswith("**") and not pieces[2] and not flags:
        # As most paths of a `_headers` file are.
        prefix = pieces[0]
        return lambda path: path.startswith(prefix)
    # "**" cuts a pattern into groups, "*" a group into parts; a part matches a fixed length.
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
    matches = re.compile("".join(expressions), re.DOTALL | flags).fullmatch
    return lambda path: matches(path) is not None


def _group(parts: Sequence[str], *, first: bool, last: bool) -> str:
    """The expression for a group and the "**" before it."""
    start = "" if first else ".*?"
    if not first and len(parts) > 1:
        # If the rest does not follow the first match in a segment, it follows no later one: one try for each.
        start, parts = "(?:[^/]*+/)*?", ["", *parts]
    if not last:
        return f"(?>{start}{_earliest(parts)})"
    *before, end = parts
    return start + (_earliest(before) + "[^/]*" if before else "") + end


def _earliest(parts: Sequence[str]) -> str:
    """The expression for parts, each as early after the one before as it can be."""
    first, *rest = parts
    return first + "".join(f"(?>[^/]*?{part})" for part in rest)
