"""`_redirects` files: a Location stays on the origin that the rule names, ends no line and does not lead back.

Strategy: an input is a path, a query and the file. Which rule counts is found by trying all in their order, and where
it leads by putting the values into the target's text.
"""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from ktlsd.http.redirects import Redirected, RedirectRule, Redirects, Rewritten
from ktlsd.http.request_target import target_of_path
from ktlsd.site.rule_files import MOST_WARNINGS, parse_redirects

TOKENS: Final = (
    b"/*",
    b"/:splat",
    b":splat",
    b"/:a",
    b" 200",
    b" 301",
    b" 302!",
    b" 404",
    b" 401!",
    b" Role=a",
    b" Country=de",
    b"#:splat",
    b" https://e.org/",
    b"//",
    b"/..",
    b"%2e%2e",
    b"%0d%0a",
    b"%00",
    b"?x=",
    b" x=:y ",
    b"\n/",
    b"\\",
    b"#",
)

_LOCATION: Final = re.compile(r"[!-~]+")
_WARNING: Final = re.compile(r"_redirects:[1-9][0-9]*: [ -~]+")
_ORIGIN: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


def check(data: bytes) -> None:
    first, _, rest = data.partition(b"\n")
    second, _, text = rest.partition(b"\n")
    # As request_target.py gives them: no empty names, and no line feed in a query that came in a request line.
    path = "/" + "/".join(name for name in os.fsdecode(first).split("/") if name)
    path += "/" if first.endswith(b"/") and path != "/" else ""
    query = second.decode("latin-1")
    rules, warnings, protected = parse_redirects(text.decode("utf-8", "replace"))
    assert all(path.startswith("/") for path in protected)
    _check_conditions(text.decode("utf-8", "replace"))
    assert len(warnings) <= MOST_WARNINGS + 1
    assert all(_WARNING.fullmatch(warning) for warning in warnings)
    redirects = Redirects(rules)
    for exists in (True, False):
        found = redirects.find(path, query, exists=exists)
        rule, alone = _first(rules, path, query, exists=exists)
        assert found == alone
        if rule is None or found is None:
            assert found is None
        elif isinstance(found, Rewritten):
            _check_rewritten(rule, found, path)
        else:
            _check_redirected(rule, found, path, query)


def _check_conditions(text: str) -> None:
    """A rule with a condition at its end is none, and one for a role hides its files from all clients."""
    for line in text.removeprefix("\ufeff").split("\n"):
        words = re.sub(r"\s#.*", "", line.strip(), flags=re.DOTALL).split()
        if len(words) > 1 and not words[0].startswith("#") and re.fullmatch("(?i:role|country|language)=.*", words[-1]):
            rules, _, protected = parse_redirects(line)
            assert not rules
            if words[-1][0] in "rR" and any(re.fullmatch("200!?", word) for word in words[1:]):
                assert protected


def _first(
    rules: tuple[RedirectRule, ...], path: str, query: str, *, exists: bool
) -> tuple[RedirectRule | None, Redirected | Rewritten | None]:
    """The first rule that leads somewhere, on its own, and where; nothing where it gives way to a file."""
    for rule in rules:
        found = Redirects([rule]).find(path, query, exists=False)
        if found is not None:
            assert _source_matches(rule.source, path)
            return (rule, found) if rule.force or not exists else (None, None)
    return None, None


def _source_matches(source: str, path: str) -> bool:
    """Segment by segment; a slash at the end makes no difference, and several are one."""
    wanted, given = re.sub("/+", "/", source).split("/")[1:], path.split("/")[1:]
    splat = wanted[-1].endswith("*")
    if splat:
        prefix = wanted.pop()[:-1]
        if len(given) < len(wanted) + bool(prefix):
            return False
        if prefix and not _segment_matches(prefix, given[len(wanted)], splat=True):
            return False
        given = given[: len(wanted)]
    else:
        for segments in (wanted, given):
            if segments and segments[-1] == "":
                segments.pop()
    return len(wanted) == len(given) and all(map(_segment_matches, wanted, given))


def _segment_matches(pattern: str, segment: str, *, splat: bool = False) -> bool:
    if re.fullmatch(":[A-Za-z][A-Za-z0-9_]*", pattern):
        return bool(segment)
    return segment.startswith(pattern) if splat else segment == pattern


def _check_rewritten(rule: RedirectRule, found: Rewritten, path: str) -> None:
    assert rule.status == found.status
    assert found.status in (200, 404)
    assert found.path.startswith("/")
    assert found.path != path
    assert {".", ".."}.isdisjoint(found.path.split("/"))
    assert "//" not in found.path
    assert "\0" not in found.path
    target = target_of_path(found.path)
    assert target is not None
    assert target.path() == found.path


def _check_redirected(rule: RedirectRule, found: Redirected, path: str, query: str) -> None:
    assert rule.status == found.status
    assert found.status in (301, 302, 303, 307, 308)
    assert _LOCATION.fullmatch(found.location)
    origin = _ORIGIN.match(rule.target)
    parts = urlsplit(found.location)
    if origin:
        assert found.location.startswith(origin[0])
        assert found.location[len(origin[0]) : len(origin[0]) + 1] in ("", "/", "?", "#")
    else:
        assert found.location[0] == "/"
        assert found.location[1:2] not in ("/", "\\")
        assert (parts.scheme, parts.netloc) == ("", "")
        # A browser that follows must not come back with the same request.
        same_query = unquote_to_bytes(parts.query) == unquote_to_bytes(query.encode("utf-8", "surrogatepass"))
        assert unquote_to_bytes(parts.path) != os.fsencode(path) or not same_query or "?" in found.location
    # Nothing that was sent can begin another part of the URL.
    written = rule.target
    if "#" not in written:
        assert "#" not in found.location
    if "?" not in written and not query:
        assert "?" not in found.location
