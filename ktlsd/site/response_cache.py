"""The response cache: an identical request head needs no second parse and no second decision, and an equivalent one (it
differs only in fields that did not influence the response) needs no second decision.

Strategy: an entry has the head that h11 wrote, without its Date, and the identity of the file. Each use opens the file
again and compares, so that no byte of an old version is sent after a rename. Other files influence the response too
(siblings, rules, names of higher precedence): every second the folders and rules are compared, and after some minutes,
or if the comparison is not possible, the entry expires.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from ktlsd.http.byte_range import ByteRange
from ktlsd.http.header_line_cache import HeaderLineCache, takes_query, without_query
from ktlsd.http.request_fields import Field
from ktlsd.site.lookup import Identity, OpenFile, Root, identify

if TYPE_CHECKING:
    from ktlsd.logs.exchange_log import Noted

LASTING_SECONDS: Final = 1.0
"""Lifetime of an entry without another comparison of folders and rules."""
RENEWED_SECONDS: Final = 600.0
"""Lifetime of an entry with such comparisons."""
MOST_BYTES: Final = 33_554_432
"""Approximate maximum size of the cache."""
LONGEST_REMEMBERED: Final = 4096
"""Maximum size of a cached request head, in bytes."""

_ENTRY_BYTES: Final = 2048
_LINE_END: Final = b"\r\n"
_BLANK_LINE: Final = b"\r\n\r\n"
# A recently changed file can change again without a change of its times: their clock has ticks.
_SETTLED_NS: Final = 2_000_000_000
# Rules are read within a second of their change, but thousands of them take a while.
_RULES_SETTLED_NS: Final = 10_000_000_000

Key = tuple[str | None, bytes]
"""The cache partition (the server name of the handshake, or another property of the connection) and a request head."""


class CacheKey(NamedTuple):
    """The parts of a request that influenced its response: requests with the same ones get the same response."""

    line: tuple[bytes, bool]
    """The request line without its line end; and true if its query, which had no influence, was removed."""
    names: tuple[bytes, ...]
    """Names of the fields that were read, present or not."""
    values: tuple[str | bytes | None, ...]
    """The cache partition, as in a key, and the value of each of these fields (request_fields.joined)."""

    @classmethod
    def of(
        cls, key: Key, names: tuple[bytes, ...], fields: Mapping[bytes, bytes], *, any_query: bool = False
    ) -> CacheKey:
        """Made from a request of which the fields `names` were read; `any_query`: the query had no influence."""
        name, head = key
        line = head.partition(_LINE_END)[0]
        asked = (without_query(line), True) if any_query else (line, False)
        return cls(asked, names, (name, *map(fields.get, names)))


_ByFields = dict[tuple[bytes, ...], dict[tuple[str | bytes | None, ...], "CacheEntry"]]


class CacheEntry(Struct, eq=False):
    """A response: its status, its head around the value of Date, and the part of a file that follows."""

    key: Key
    cache_key: CacheKey | None
    """None if unknown."""
    status: int
    before: bytes
    after: bytes
    part: ByteRange | None
    sources: tuple[tuple[Root, bytes, Identity], ...]
    """Root, path and identity of the file that is sent, and of the one that it was made from."""
    folders: tuple[tuple[Root, bytes, Identity], ...]
    """Root, path and identity of folders and rules that influenced the response; empty if they are not all known."""
    until: float
    last: float
    """The latest expiry."""
    closes: bool
    """True if the request asked to close its connection."""
    noted: Noted | None = None
    """For the access log, if there is one."""

    def head(self, date: bytes) -> bytes:
        """The head with this value of Date."""
        return self.before + date + self.after


class ResponseCache:
    """The response cache of one process."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._bytes = 0
        self._known: OrderedDict[Key, CacheEntry] = OrderedDict()
        self._alike: dict[tuple[bytes, bool], _ByFields] = {}
        """The entries by request line, field names and values."""
        self._lines = HeaderLineCache()
        self._looks: dict[tuple[Root, bytes], Identity] = {}
        """The identities of folders and rules at the last comparison, by root and path, for all entries."""
        self._looks_until = 0.0
        self.uses = 0
        """Number of cache hits."""

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Key) -> CacheEntry | None:
        """The entry for an identical head, if it has not expired."""
        found = self._known.get(key)
        if found is not None and found.until < time.monotonic():
            return self._holding(found)
        return found

    def read(self, head: bytes, most_fields: int) -> tuple[bytes, list[Field]] | None:
        """The request line and the fields of a whole head; None if it has more fields, or no entry can be equivalent.

        h11 has read the fields one by one only: it may refuse a head for a repeated field.
        """
        line, _, rest = head.removesuffix(_BLANK_LINE).partition(_LINE_END)
        if (line, False) not in self._alike:
            bare = without_query(line)
            # A fragment is no part of a target (request_target.py).
            if (bare, True) not in self._alike or (line != bare and (b"#" in line or not takes_query(line))):
                return None
        lines = rest.split(_LINE_END) if rest else []
        fields = self._lines.read(lines) if len(lines) <= most_fields else None
        return None if fields is None else (line, fields)

    def get_alike(self, name: str | None, line: bytes, fields: Mapping[bytes, bytes]) -> CacheEntry | None:
        """The entry for an equivalent request, if it has not expired; the line is one that read() returned."""
        for asked in ((line, False), (without_query(line), True)):
            for names, by_values in self._alike.get(asked, {}).items():
                found = by_values.get((name, *map(fields.get, names)))
                if found is not None:
                    return self._holding(found)
        return None

    def _holding(self, found: CacheEntry) -> CacheEntry | None:
        if found.until < (now := time.monotonic()) and (not found.folders or found.last < now):
            self._forget(found)
            return None
        return found

    def open(self, remembered: CacheEntry) -> int | None:
        """A descriptor of the file, for the caller to close; None if the file has changed, or may have."""
        descriptor = -1
        for root, path, identity in reversed(remembered.sources):
            if descriptor >= 0:
                os.close(descriptor)
            try:
                descriptor = root.open_now(path)
            except OSError:
                self._forget(remembered)
                return None
            if not _is(descriptor, identity):
                os.close(descriptor)
                self._forget(remembered)
                return None
        now = time.monotonic()
        if remembered.until < now:
            if now > self._looks_until:
                self._looks.clear()
                self._looks_until = now + LASTING_SECONDS
            # The kernel has the names on the way to an open file in memory: no disk access.
            if not (remembered.folders and self._are_as_they_were(remembered.folders)):
                os.close(descriptor)
                self._forget(remembered)
                return None
            remembered.until = self._looks_until
            self._known.move_to_end(remembered.key)
        self.uses += 1
        return descriptor

    def _are_as_they_were(self, folders: Iterable[tuple[Root, bytes, Identity]]) -> bool:
        looks = self._looks
        try:
            for root, path, identity in folders:
                seen = looks.get((root, path))
                if seen is None:
                    seen = looks[root, path] = root.identity_now(path)
                if seen != identity:
                    return False
        except OSError:
            return False
        return True

    def _forget(self, remembered: CacheEntry) -> None:
        del self._known[remembered.key]
        self._bytes -= _size(remembered)
        cache_key = remembered.cache_key
        if cache_key is None:
            return
        alike = self._alike.get(cache_key.line, {})
        by_values = alike.get(cache_key.names, {})
        # Another entry may have replaced it as the equivalent one.
        if by_values.get(cache_key.values) is remembered:
            del by_values[cache_key.values]
            if not by_values:
                del alike[cache_key.names]
            if not alike:
                del self._alike[cache_key.line]

    def remember(
        self,
        key: Key,
        status: int,
        head: bytes,
        date: bytes,
        opened: OpenFile,
        part: ByteRange | None,
        noted: Noted | None = None,
        *,
        cache_key: CacheKey | None = None,
        closes: bool = False,
        rules: Iterable[bytes] | None = None,
        asked_ns: int | None = None,
    ) -> None:
        """Cache a response that h11 wrote as `head`, if that is safe; `date` is the value of its Date; `closes`: the
        request asked to close its connection.

        `rules` has the paths of rule files below the root; None if other files influence the response. `asked_ns` is
        the time at which the decision began, in ns since the epoch; by default the current time.
        """
        if len(key[1]) > LONGEST_REMEMBERED:
            return
        asked_ns = asked_ns or time.time_ns()
        settled = asked_ns - _SETTLED_NS
        sources = []
        for file in (opened, opened.original):
            if file is not None:
                if not file.reopens:
                    return
                if max(file.mtime_ns, file.ctime_ns) > settled:
                    return
                sources.append((file.root, file.path, file.identity()))
        before, _, after = head.partition(date)
        folders = () if rules is None else _folders(opened, rules, asked_ns)
        now = time.monotonic()
        until, last = now + LASTING_SECONDS, now + RENEWED_SECONDS
        if (known := self._known.get(key)) is not None:
            self._forget(known)
        new = CacheEntry(
            key, cache_key, status, before, after, part, tuple(sources), folders, until, last, closes, noted
        )
        self._known[key] = new
        if cache_key is not None:
            self._alike.setdefault(cache_key.line, {}).setdefault(cache_key.names, {})[cache_key.values] = new
        self._bytes += _size(new)
        while self._bytes > self.most_bytes:
            self._forget(next(iter(self._known.values())))


def _size(remembered: CacheEntry) -> int:
    return _ENTRY_BYTES + 2 * len(remembered.key[1]) + len(remembered.before) + len(remembered.after)


def _folders(opened: OpenFile, rules: Iterable[bytes], asked_ns: int) -> tuple[tuple[Root, bytes, Identity], ...]:
    """The folders on the way to a file, and files of rules; none if one of them has changed recently, or the kernel
    would have to ask another file system: a sibling that is not sent may be a link to any."""
    if opened.crosses:
        # A folder on the way may be on a file system that holds up stat(2).
        return ()
    parts = opened.path.split(b"/")[:-1]
    wanted = [(b"/".join(parts[:count]) or b".", _SETTLED_NS) for count in range(len(parts) + 1)]
    found = []
    for path, settled in (*wanted, *((path, _RULES_SETTLED_NS) for path in rules)):
        try:
            identity = opened.root.identity_now(path)
        except FileNotFoundError:
            # Its appearance would change its folder.
            continue
        except OSError:
            return ()
        *_, mtime_ns, ctime_ns = identity
        if max(mtime_ns, ctime_ns) > asked_ns - settled:
            return ()
        found.append((opened.root, path, identity))
    return tuple(found)


def _is(descriptor: int, identity: Identity) -> bool:
    try:
        return identify(os.fstat(descriptor)) == identity
    except OSError:
        return False
