"""Paths with restricted access: pure. GuardedPaths are those of the site's options, ProtectedPaths those that the
files of a static host protect (Basic-Auth, Role=).

Strategy: a path is covered if any way to name the same file is: with and without its slash, its index file or its
`.html`, the name that `try_files` makes it from, the original of a precompressed sibling. In doubt it is covered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from ktlsd.http.accept_encoding import SUFFIXES
from ktlsd.http.path_glob import LOOSE_WILDCARDS, Matcher, compile_glob, compile_protected, decoded

MOST_PATTERNS: Final = 1000
"""More than these protect the whole site: a request must not have to try them all."""
MOST_NAMES: Final = 32
"""A path with more names than these is protected: no real request has such a path."""

_EVERYTHING: Final = "/*"
_WANTED: Final = "{path}"
_GLOB_WILDCARDS: Final = re.compile(r"[*?]+")
_ENDINGS: Final = (".html", *(suffix.decode("ascii") for suffix in SUFFIXES.values()))
# Neither a comment nor a query is part of a path; a file's name may have one.
_AFTER_PATH: Final = re.compile(r"[\s?#]")


def ends_with(name: str, ending: str) -> bool:
    """Whether a name has an ending, in either case of letters: there are file systems without the difference."""
    return name[-len(ending) :].lower() == ending


class _Paths:
    """Paths by patterns, and all other ways to name the same files."""

    def __init__(
        self,
        fixed: frozenset[str],
        matchers: Sequence[Matcher],
        literals: Sequence[str],
        index: Sequence[str],
        try_files: Sequence[str],
    ) -> None:
        """`fixed` are case-folded paths, `literals` a part of each pattern (_literal()); the last two are the site's
        options."""
        self.literals = tuple(literals) if all(literals) else None
        """Texts in lower case. An ASCII path that has none of them is not covered, and neither is any path that a file
        system may take for the same (another case of letters, another Unicode form). None if that cannot be told."""
        self._fixed = fixed
        self._matchers = matchers
        self._index = frozenset(name.casefold() for name in index)
        self._around = [
            (before, after)
            for before, *afters in (entry.split(_WANTED) for entry in try_files)
            for after in afters
            if len(afters) == 1
        ]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._matchers or self._fixed)

    def cover(self, path: str) -> bool:
        """Whether a decoded path, of a request or of a file below the root, is one of these."""
        # All names of a file are parts of its path, and ASCII letters have no other case than these.
        if self.literals is not None and path.isascii():
            lowered = path.lower()
            if not any(map(lowered.__contains__, self.literals)):
                return False
        return self.match(path)

    def match(self, path: str) -> bool:
        """The same by trying all names."""
        if not self:
            return False
        names = list(islice(self._names(path), MOST_NAMES + 1))
        if len(names) > MOST_NAMES or not self._fixed.isdisjoint(name.casefold() for name in names):
            return True
        return any(matches(name) for name in names for matches in self._matchers)

    def _names(self, path: str) -> Iterator[str]:
        """The ways to name what a path names."""
        seen: set[str] = set()
        ahead = [path]
        while ahead:
            path = ahead.pop().rstrip("/")
            if path in seen:
                continue
            seen.add(path)
            yield path + "/"
            if path:
                yield path
            folder, _, name = path.rpartition("/")
            if name.casefold() in self._index:
                ahead.append(folder)
            ahead += (
                path[: -len(ending)] for ending in _ENDINGS if ends_with(name, ending) and len(name) > len(ending)
            )
            for before, after in self._around:
                inner = path[len(before) : len(path) - len(after)]
                around = path[: len(before)] + path[len(before) + len(inner) :]
                if around.casefold() == (before + after).casefold() and inner[:1] in ("", "/"):
                    ahead.append(inner)


class ProtectedPaths(_Paths):
    """The protected paths of one site."""

    def __init__(self, patterns: Iterable[str], index: Sequence[str] = (), try_files: Sequence[str] = ()) -> None:
        """`patterns` are paths as `_headers` writes them; the rest is the site's options."""
        written = {pattern for path in patterns for pattern in _patterns(path)}
        if len(written) > MOST_PATTERNS:
            written = {_EVERYTHING}
        wild = {pattern for pattern in written if "*" in pattern or ":" in pattern}
        fixed = frozenset(decoded(pattern).casefold() for pattern in written - wild)
        matchers = [compile_protected(pattern) for pattern in sorted(wild)]
        literals = [_literal(map(decoded, LOOSE_WILDCARDS.split(pattern)[::2])) for pattern in sorted(written)]
        super().__init__(fixed, matchers, literals, index, try_files)


class GuardedPaths(_Paths):
    """The paths of one of the site's options."""

    def __init__(self, patterns: Iterable[str], index: Sequence[str] = (), try_files: Sequence[str] = ()) -> None:
        """`patterns` are globs (path_glob.compile_glob) in either case of letters, since there are file systems without
        the difference. The rest is the site's options."""
        patterns = tuple(patterns)
        matchers = [compile_glob(pattern, either_case=True) for pattern in patterns]
        literals = [_literal(_GLOB_WILDCARDS.split(pattern)) for pattern in patterns]
        super().__init__(frozenset(), matchers, literals, index, try_files)


def _literal(texts: Iterable[str]) -> str:
    """The longest of the texts between a pattern's wildcards, in lower case and without the slash at its end, which a
    path may lack; "" if it cannot be compared."""
    longest = max((text.rstrip("/") for text in texts), key=len)
    return longest.lower() if longest.isascii() else ""


def _patterns(path: str) -> Iterator[str]:
    """The pattern to compile for a path as it is written."""
    for written in {path, _AFTER_PATH.split(path, maxsplit=1)[0]}:
        segments = [segment for segment in written.split("/") if decoded(segment) not in ("", ".")]
        if ".." in map(decoded, segments):
            yield _EVERYTHING
        else:
            yield "/" + "/".join(segments) + ("/" if segments and written.endswith("/") else "")
