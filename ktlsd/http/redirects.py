"""Redirects and rewrites by rules, as Netlify's `_redirects` means them, and by regular expressions: pure.

Strategy: the first rule that matches a path counts; rules are found by their path or its first segment where those are
fixed. What came from the request is percent-encoded for the part of a Location that it goes to, so that it can end
neither that part nor the field. A rule that leads to where the request already is does not match.
"""

from __future__ import annotations

import heapq
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from msgspec import Struct

from ktlsd.config.file_names import fsencode
from ktlsd.config.options import RedirectOptions
from ktlsd.http.path_glob import decoded
from ktlsd.http.placeholders import GROUP, NAME, PLACEHOLDER, SPLAT, Template
from ktlsd.http.regexes import Regex

_REWRITES: Final = (200, 404)
# Where a colon can hardly be meant as itself.
_PLAIN_PLACEHOLDER: Final = re.compile(f"(?<=[/=]):({NAME})")
# No placeholder fits into the origin: a request must not choose the host that it is sent to.
_TARGET: Final = re.compile(
    r"(?P<origin>(?i:https?)://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]+)?(?=[/?#]|\Z)|(?=/(?![/\\])))"
    r"(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?",
    re.DOTALL,
)

_WRITTEN_SAFE: Final = "!$%&'()*+,/:;=?@[]~"
_SEGMENT_SAFE: Final = "!$&'()*+,;=:@~"
_PATH_SAFE: Final = _SEGMENT_SAFE + "/"
_DOTS: Final = frozenset({".", ".."})
_SLASHES: Final = re.compile("/+")
# Values that may have more than one segment: of a `*`, and of the groups of an expression.
_WITH_SLASHES: Final = frozenset({SPLAT, *"123456789"})
_ONE_SOURCE: Final = "there are 'from' and 'regex': leave one out"
_QUERY_SAFE: Final = string.punctuation.replace("#", "")


class RedirectRule(Struct, frozen=True):
    """One line of `_redirects`."""

    source: str
    """A decoded path with `:name` segments and a `*` at its end."""
    target: str
    status: int = 301
    force: bool = False
    parameters: tuple[tuple[str, str], ...] = ()
    """Query parameters that must be there: a value, or `:name` for any."""
    regex: str | None = None
    """A regular expression instead of `source`."""


class Redirected(NamedTuple):
    """Answer with this status (301, 302, 303, 307 or 308) and Location."""

    status: int
    location: str


class Rewritten(NamedTuple):
    """Answer with the file of this path (decoded, no empty or dot segments) and this status (200 or 404)."""

    path: str
    status: int


class Redirects:
    """The rules of one site."""

    def __init__(self, rules: Iterable[RedirectOptions | RedirectRule]) -> None:
        """Raises ValueError as check does."""
        self._fixed: dict[str, list[_Compiled]] = {}
        self._by_first_segment: dict[str, list[_Compiled]] = {}
        self._others: list[_Compiled] = []
        for index, rule in enumerate(rules):
            compiled = _Compiled(index, rule)
            if compiled.fixed is not None:
                self._fixed.setdefault(compiled.fixed, []).append(compiled)
            elif compiled.first_segment is not None:
                self._by_first_segment.setdefault(compiled.first_segment, []).append(compiled)
            else:
                self._others.append(compiled)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._fixed or self._by_first_segment or self._others)

    def find(self, path: str, query: str, *, exists: bool) -> Redirected | Rewritten | None:
        """The outcome for a request of `path` (decoded) with `query` (as received, without question mark).

        `exists` says whether there could be a file: then a rule without force gives way to it, and so do those after.
        Ask with True before the file is looked for, and with False when there was none.
        """
        for rule in self._candidates(path):
            result = rule.follow(path, query)
            if result is not None:
                return result if rule.force or not exists else None
        return None

    def concern(self, path: str) -> bool:
        """Whether there is a rule that may ask for the query of a request for `path` (decoded)."""
        return bool(self) and any(True for _ in self._candidates(path))

    def _candidates(self, path: str) -> Iterable[_Compiled]:
        if not self:
            return ()
        fixed = self._fixed.get(path.rstrip("/"), ())
        by_first_segment = self._by_first_segment.get(path[1:].partition("/")[0], ())
        return heapq.merge(fixed, by_first_segment, self._others, key=attrgetter("index"))


def check(rule: RedirectOptions | RedirectRule) -> None:
    """Raises ValueError, with a text for the operator, for a rule that cannot be followed."""
    _Compiled(0, rule)


class _Compiled:
    """A rule, ready to be tried."""

    def __init__(self, index: int, rule: RedirectOptions | RedirectRule) -> None:
        if isinstance(rule, RedirectOptions):
            if (rule.from_ is None) is (rule.regex is None):
                raise ValueError("'from' is missing, or 'regex'" if rule.regex is None else _ONE_SOURCE)
            rule = RedirectRule(rule.from_ or "", rule.to, rule.status, rule.force, regex=rule.regex)
        self.index = index
        self.force = rule.force
        self._status = rule.status
        self._parameters = rule.parameters
        self.fixed: str | None = None
        """The only path that matches, without a slash at its end; None if there may be others."""
        self.first_segment: str | None = None
        """The common beginning of all matching paths, if it is a whole segment."""
        self._match: Callable[[str], Sequence[str] | None] | None = None
        """The values of `_names` for a path that matches; None if the path alone decides."""
        if rule.regex is None:
            self._take_source(rule.source)
        else:
            self._take_regex(rule.regex)
        names = [*self._names, *(value[1:] for _, value in rule.parameters if PLACEHOLDER.fullmatch(value))]
        target = _TARGET.fullmatch(rule.target)
        of = f"redirect from {rule.source}" if rule.regex is None else f"redirect for {rule.regex}"
        if target is None:
            raise ValueError(f"{of}: {rule.target} is no path after one slash, and no URL")
        if len(set(names)) < len(names):
            raise ValueError(f"{of}: two placeholders of one name")
        wanted, placeholder = (_PLAIN_PLACEHOLDER, PLACEHOLDER) if rule.regex is None else (GROUP, GROUP)
        for found in wanted.finditer(target["path"] + (target["query"] or "") + (target["fragment"] or "")):
            if found[1] not in names:
                raise ValueError(f"{of}: there is no {found[0]} for {rule.target}")
        if rule.status in _REWRITES and (target["origin"] or target["query"] is not None):
            raise ValueError(f"{of}: {rule.status} is for a path of this site without query")
        self._origin = target["origin"]
        self._path = Template(target["path"], names, placeholder)
        self._query = None if target["query"] is None else Template(target["query"], names, placeholder)
        self._fragment = None if target["fragment"] is None else Template(target["fragment"], names, placeholder)

    def _take_source(self, source: str) -> None:
        # As in the paths of targets, several slashes are one.
        source = _SLASHES.sub("/", source)
        self._names, pattern = _source(source)
        first, slash, _ = source[1:].partition("/")
        self.first_segment = first if slash and not PLACEHOLDER.fullmatch(first) else None
        if not self._names:
            # Compiling thousands of expressions would hold up the start.
            self.fixed = source.rstrip("/")
            return
        matches = re.compile(pattern, re.DOTALL).fullmatch

        def match(path: str) -> Sequence[str] | None:
            found = matches(path)
            return None if found is None else found.groups("")

        self._match = match

    def _take_regex(self, expression: str) -> None:
        regex = Regex(expression)
        self._names = [str(number) for number in range(1, regex.groups + 1)]
        self._match = regex.find

    def follow(self, path: str, query: str) -> Redirected | Rewritten | None:
        """The rule's destination; None if it does not match, or leads to the same place."""
        values: dict[str, str] = {}
        if self._match is not None:
            found = self._match(path)
            if found is None:
                return None
            values.update(zip(self._names, found, strict=True))
        if self._parameters:
            given = dict(reversed(parse_qsl(query, keep_blank_values=True, errors="surrogateescape")))
            for key, wanted in self._parameters:
                value = given.get(key)
                if value is None:
                    return None
                if PLACEHOLDER.fullmatch(wanted):
                    values[wanted[1:]] = value
                elif value != wanted:
                    return None
        if self._status in _REWRITES:
            return self._rewritten(path, values)
        return self._redirected(path, query and "?" + quote(fsencode(query), safe=_QUERY_SAFE), values)

    def _rewritten(self, path: str, values: Mapping[str, str]) -> Rewritten | None:
        filled = _SLASHES.sub("/", self._path.fill(decoded, values.__getitem__))
        if filled == path or "\0" in filled or not _DOTS.isdisjoint(filled.split("/")):
            return None
        return Rewritten(filled, self._status)

    def _redirected(self, path: str, query: str, values: Mapping[str, str]) -> Redirected | None:
        def in_path(name: str) -> str:
            return quote(fsencode(values[name]), safe=_PATH_SAFE if name in _WITH_SLASHES else _SEGMENT_SAFE)

        def in_query(name: str) -> str:
            return quote(fsencode(values[name]), safe="")

        filled = self._path.fill(_written, in_path)
        new_query = query if self._query is None else "?" + self._query.fill(_written, in_query)
        if not self._origin:
            # Two slashes would be the start of a host name.
            filled = "/" + filled.lstrip("/")
            if unquote_to_bytes(filled) == fsencode(path) and new_query == query:
                return None
        fragment = "" if self._fragment is None else "#" + self._fragment.fill(_written, in_path)
        return Redirected(self._status, self._origin + filled + new_query + fragment)


def _source(source: str) -> tuple[list[str], str]:
    """The placeholders of a source, and the expression that has a group for each.

    A slash at the end makes no difference, and `/a/*` is for /a too, as on Netlify.
    """
    if not source.startswith("/"):
        raise ValueError(f"redirect from {source}: not a path with a slash before it")
    head = source.removesuffix("*")
    if "*" in head:
        raise ValueError(f"redirect from {source}: a * can stand at the end only")
    names: list[str] = []
    segments: list[str] = []
    for segment in head.removesuffix("/").split("/"):
        if placeholder := PLACEHOLDER.fullmatch(segment):
            names.append(placeholder[1])
            segments.append("([^/]+)")
        else:
            segments.append(re.escape(segment))
    expression = "/".join(segments)
    if head == source:
        return names, expression + "/?"
    return [*names, SPLAT], expression + ("(?:/(.*))?" if head.endswith("/") else "(.*)")


def _written(text: str) -> str:
    """The operator's text, with its percent escapes, in the form for Location."""
    return quote(text.encode("utf-8", "surrogatepass"), safe=_WRITTEN_SAFE)
