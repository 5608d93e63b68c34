"""Regular expressions: RE2 finds what Python's `re` finds, and groups end neither a Location nor its part.

Strategy: an input is an expression, a line feed and a path. Both engines are asked about expressions that they read
alike, on paths so short that trying every way ends.
"""

from __future__ import annotations

import os
import re
from typing import Final

from ktlsd.config.options import RedirectOptions
from ktlsd.http.redirects import Redirected, Redirects
from ktlsd.http.regexes import MOST_GROUPS, Regex

TOKENS: Final = (
    *(b"^/", b"$", b"(.*)", b"([^/]+)", b"(a|b)", b"(", b")", b"*", b"+", b"?", b"|", b"\\d", b"[a-c]", b"a{2}"),
    *(b"\n/", b"/a/b", b"//", b"\\", b"\r", b"\xc3\xa9", b"\xff", b"(?i)", b"(?:", b"\\pL", b"[[:alpha:]]", b"\\Q"),
)

_ALIKE: Final = re.compile(r"[abc019/.\-_*+?|()^$]{1,32}")
_LONGEST_COMPARED: Final = 10
_TARGETS: Final = ("/n/$1", "/$1", "/$2?a=$1#$3", "https://example.org/$1")


def check(data: bytes) -> None:
    written, _, path = data.partition(b"\n")
    expression, decoded = written.decode("utf-8", "replace"), "/" + os.fsdecode(path).lstrip("/")
    try:
        regex = Regex(expression)
    except ValueError as error:
        if not str(error).startswith(expression):
            raise
        return
    found = regex.find(decoded)
    assert regex.matches(decoded) is (found is not None)
    assert regex.groups <= MOST_GROUPS
    if found is not None:
        assert len(found) == regex.groups
        assert all(group in decoded for group in found)
    if _ALIKE.fullmatch(expression) and "(?" not in expression and len(decoded) <= _LONGEST_COMPARED:
        _compare(expression, decoded, found)
    for target in _TARGETS[: regex.groups + 1]:
        _check_location(expression, target, decoded)


def _compare(expression: str, path: str, found: tuple[str, ...] | None) -> None:
    try:
        # A `$` of Python is also before a line feed at the end.
        other = re.compile(expression.replace("$", r"\Z"), re.ASCII)
    except re.error:
        return
    if path.isascii():
        match = other.search(path)
        assert (match is None) is (found is None)
        # What a group that is repeated holds at last is a matter of taste.
        if match is not None and not re.search(r"\)[*+?]", expression):
            assert match.groups("") == found


def _check_location(expression: str, target: str, path: str) -> None:
    if int(max("0", *re.findall(r"\$(\d)", target))) > Regex(expression).groups:
        return
    followed = Redirects([RedirectOptions(regex=expression, to=target)]).find(path, "", exists=False)
    if isinstance(followed, Redirected):
        assert re.fullmatch(r"[!-~]+", followed.location)
        if target.startswith("https:"):
            assert followed.location.startswith("https://example.org/")
        else:
            assert re.match(r"/(?![/\\])|/\Z", followed.location)
        assert followed.location.count("#") <= target.count("#")
        assert followed.location.count("?") <= target.count("?")
