"""The response cache: a request that agrees with an earlier one in everything that decided needs no second decision.

Strategy: an entry is found by method and target, and by the values of the fields that were read to decide. It has the
response, and the identity of its file: each use opens the file again and compares, so that no byte of an old version is
sent after a rename. Other files influence the response too (siblings, rules, names of higher precedence): every second
the folders and rules are compared, and after some minutes, or if the comparison is not possible, the entry expires.
If the file system may hold up its callers, the entry has the bytes themselves, and expires after a second. So does one
for all files that are missing because the root has no such name, as is looked up each time.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Final, cast

from msgspec import Struct

from ktlsd.config.limits import Limit
from ktlsd.file_identity import FileIdentity, identify
from ktlsd.http.access import Check, Excess
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Response
from ktlsd.http.fields import Fields
from ktlsd.http.request_head import RequestHead
from ktlsd.site.lack import Lack
from ktlsd.site.lookup import OpenFile, Root

LASTING_SECONDS: Final = 1.0
"""Lifetime of an entry without another comparison of folders and rules."""
RENEWED_SECONDS: Final = 600.0
"""Lifetime of an entry with such comparisons."""
MOST_BYTES: Final = 33_554_432
"""Approximate maximum size of the cache."""
LONGEST_REMEMBERED: Final = 4096
"""Maximum size of the target and the field values of an entry, in bytes."""
LONGEST_BODY: Final = 131_072
"""Maximum size of a cached body, in bytes."""
MOST_BODY_BYTES: Final = 16_777_216
"""Maximum size of all cached bodies, in bytes."""

MOST_FOLDERS: Final = 4096
"""Folders whose looks are shared by new entries."""

_MARKS: Final = 65536
"""Number of the latest requests that are known to have come before, at most."""
_ENTRY_BYTES: Final = 1280
# A recently changed file can change again without a change of its times: their clock has ticks.
_SETTLED_NS: Final = 2_000_000_000
# Rules are read within a second of their change, but thousands of them take a while.
_RULES_SETTLED_NS: Final = 10_000_000_000

# No target has a space.
_WITH_QUERY: Final = b" "

Look = tuple[Root, bytes, FileIdentity]
"""A file or folder by its root and path, and its identity."""


class Looks(Struct, eq=False, gc=False):
    """The folders and rules that influenced the responses from one folder, which share the comparison."""

    all: tuple[Look, ...]
    settled_ns: int
    """The time from which on they count as settled, in ns since the epoch."""
    until: float
    """The time (time.monotonic()) until which the last comparison holds."""


class CacheKey(Struct, frozen=True, gc=False):
    """The parts of a request that influenced its response: requests with the same ones get the same response."""

    asked: bytes
    """Method and target without a query, if that had no influence; otherwise RequestHead.key and _WITH_QUERY. The
    method alone for names that the root lacks."""
    names: tuple[bytes, ...]
    """Names of the fields that were read, present or not."""
    values: tuple[str | bytes | None, ...]
    """The cache partition (the server name of the handshake, or another property of the connection), and the value of
    each of these fields (request_fields.joined)."""

    @classmethod
    def of(cls, partition: str | None, head: RequestHead, names: tuple[bytes, ...], *, any_query: bool) -> CacheKey:
        """Made from a request of which the fields `names` were read; `any_query`: the query had no influence."""
        asked = head.key.partition(b"?")[0] if any_query else head.key + _WITH_QUERY
        return cls(asked, names, (partition, *map(head.of_fields.values.get, names)))

    @property
    def size(self) -> int:
        """Bytes of what was asked and of the values."""
        return len(self.asked) + sum(map(len, filter(None, self.values)))


class CacheEntry(Struct, eq=False, gc=False):
    """A response, and the file that its body is a part of."""

    key: CacheKey
    response: Response
    """Without fields and body, which `head` and the file have."""
    head: bytes
    """The head in HTTP/1.1, but for Date and what the request decides."""
    sources: tuple[Look, ...]
    """The file that is sent, and the one that it was made from."""
    folders: Looks | None
    """None if what influenced the response is not all known."""
    until: float
    last: float
    """The latest expiry."""
    part: ByteRange | None = None
    """The part of the file that is the body; None if there is no body, or if it is in memory."""
    in_memory: bool = False
    """Whether the file is not opened again."""
    body: bytes = b""
    """Then, the body."""
    block: bytes = b""
    """The header block in HTTP/2, but for Date; empty before its first use."""
    lack: Lack | None = None
    """Set if the response is for all names that the root lacks."""
    checks: tuple[Check, ...] = ()
    """The checks of access that each request must pass."""
    excess: Excess | None = None
    """The limit that each client must be at, if the response is a refusal for that."""
    site: int = 0
    """The number of its site (site_names.py)."""

    @property
    def size(self) -> int:
        """Approximate size in bytes."""
        return _ENTRY_BYTES + 2 * self.key.size

    @property
    def fields(self) -> Fields:
        """All fields of the response but Date and those of its connection."""
        lines = self.head.decode("ascii").split("\r\n")[1:-1]
        return tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))

    @property
    def identity(self) -> FileIdentity | None:
        """That of the file."""
        return self.sources[0][2] if self.sources else None


_NOTHING: Final = CacheKey(b"", (), ())

_ByNames = dict[tuple[bytes, ...], dict[tuple[str | bytes | None, ...], CacheEntry]]
"""Entries by CacheKey.names and values."""
_Asked = dict[bytes, CacheEntry | _ByNames]
"""Entries by CacheKey.asked: most have one."""


class ResponseCache:
    """The response cache of one process."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._bytes = 0
        self._in_memory: OrderedDict[CacheEntry, None] = OrderedDict()
        """Entries with bodies, those that expire first at the front."""
        self._body_bytes = 0
        self._entries: OrderedDict[CacheEntry, None] = OrderedDict()
        """All entries, those that expire first at the front."""
        self._asked: _Asked = {}
        self._looks: dict[tuple[Root, bytes], FileIdentity] = {}
        """The identities of folders and rules at the last comparison, for all entries."""
        self._folders: dict[tuple[Root, bytes, frozenset[bytes]], Looks] = {}
        """The latest of files in one folder under the same rules."""
        self._looks_until = 0.0
        self._marks = bytearray(_MARKS)
        self.uses = 0
        """Number of cache hits."""

    def __len__(self) -> int:
        return len(self._entries)

    def came_before(self, path: bytes) -> bool:
        """Whether there was a call with this path, or with one that looks like it: only then it is worth an entry."""
        number = hash(path)
        place, mark = number % _MARKS, number >> 16 & 0xFF
        marked, self._marks[place] = self._marks[place] == mark, mark
        return marked

    def get(self, partition: str | None, head: RequestHead) -> CacheEntry | None:
        """The entry for a request; open() tells whether it has expired."""
        key, values, all_asked = head.key, head.of_fields.values, self._asked
        # A fragment is no part of a target (request_target.py).
        bare = key.partition(b"?")[0] if b"#" not in key else key
        for asked in (bare, key + _WITH_QUERY, head.method):
            known = all_asked.get(asked)
            if known is not None and (found := _search(known, partition, values)) is not None:
                return found if found.lack is None or found.lack.holds(head.target) else None
        return None

    def open(self, entry: CacheEntry) -> int | None:
        """A descriptor of the file, for the caller to close, -1 if the body is in memory; None if the entry has
        expired, or the file has changed, or may have."""
        now, descriptor, folders = time.monotonic(), -1, entry.folders
        is_late = entry.until < now
        holds = not is_late or (folders is not None and entry.last >= now)
        if entry.in_memory:
            holds = holds and not any(root.closed for root, _, _ in entry.sources)
        elif holds:
            for look in reversed(entry.sources):
                if descriptor >= 0:
                    os.close(descriptor)
                descriptor = _open_again(*look)
                if descriptor < 0:
                    holds = False
                    break
        if holds and is_late and folders is not None:
            # The kernel has the names on the way to an open file in memory: no disk access.
            holds = self._are_as_they_were(folders, now)
            if holds:
                entry.until = folders.until
                self._entries.move_to_end(entry)
        if holds:
            self.uses += 1
            return descriptor
        if descriptor >= 0:
            os.close(descriptor)
        self._forget(entry)
        return None

    def _begin_looks(self, now: float) -> None:
        if now > self._looks_until:
            self._looks.clear()
            self._looks_until = now + LASTING_SECONDS

    def _look(self, root: Root, path: bytes) -> FileIdentity:
        """An identity that is no older than the last second. Raises OSError."""
        seen = self._looks.get((root, path))
        if seen is None:
            seen = self._looks[root, path] = root.identity_now(path)
        return seen

    def _are_as_they_were(self, folders: Looks, now: float) -> bool:
        if folders.until >= now:
            return True
        self._begin_looks(now)
        try:
            if any(self._look(root, path) != identity for root, path, identity in folders.all):
                return False
        except OSError:
            return False
        folders.until = self._looks_until
        return True

    def _forget(self, entry: CacheEntry) -> None:
        if entry not in self._entries:
            return
        del self._entries[entry]
        self._bytes -= entry.size
        if entry.in_memory:
            del self._in_memory[entry]
            self._body_bytes -= len(entry.body)
        key, asked = entry.key, self._asked
        by_names = asked[key.asked]
        if by_names is entry:
            del asked[key.asked]
            return
        by_names = cast(_ByNames, by_names)
        by_values = by_names[key.names]
        del by_values[key.values]
        if not by_values:
            del by_names[key.names]
        if not by_names:
            del asked[key.asked]

    def remember(
        self,
        key: CacheKey,
        response: Response,
        head: bytes,
        opened: OpenFile,
        *,
        rules: frozenset[bytes] | None = None,
        asked_ns: int | None = None,
        checks: tuple[Check, ...] = (),
    ) -> CacheEntry | None:
        """Cache a response whose head in HTTP/1.1 is `head`, but for Date and what the request decides, if that is
        safe.

        `rules` has the paths of rule files below the root; None if other files influence the response. `asked_ns` is
        the time at which the decision began, in ns since the epoch; by default the current time. `checks` are
        those of access that the request has passed.
        """
        if key.size > LONGEST_REMEMBERED:
            return None
        asked_ns = asked_ns or time.time_ns()
        settled = asked_ns - _SETTLED_NS
        body = _body(opened, response) if opened.waits else None
        sources = []
        for file in (opened, opened.original):
            if file is not None:
                if (not file.reopens and body is None) or file.mtime_ns > settled or file.ctime_ns > settled:
                    return None
                sources.append((file.root, file.path, file.identity))
        now = time.monotonic()
        until, last = now + LASTING_SECONDS, now + RENEWED_SECONDS
        folders: Looks | None = None
        if body is not None:
            # It is as old as the decision.
            until -= (time.time_ns() - asked_ns) / 1e9
        elif rules is not None:
            folders = self._folders_of(opened, rules, asked_ns, now)
        content = response.body
        entry = CacheEntry(
            *(key, _bare(response.status, response.reason), head, tuple(sources), folders, until, last),
            part=content if body is None and isinstance(content, ByteRange) and content.count else None,
            in_memory=body is not None,
            body=body or b"",
            checks=checks,
        )
        self._add(entry, now)
        return entry

    def remember_text(
        self,
        key: CacheKey,
        response: Response,
        head: bytes,
        asked_ns: int,
        *,
        lack: Lack | None = None,
        checks: tuple[Check, ...] = (),
        excess: Excess | None = None,
    ) -> CacheEntry | None:
        """Cache a response without a file for a second after its decision began: to requests for names that a root
        lacks, or to those that have passed these checks, and whose clients are at a limit of a rate."""
        if lack is not None:
            key = CacheKey(key.asked.partition(b" ")[0], key.names, key.values)
        now, body = time.monotonic(), response.body
        former = self._kept(key)
        if lack is not None and former is not None and former.until >= now:
            # It is for other names: the root has this one.
            return former
        if key.size > LONGEST_REMEMBERED or not isinstance(body, bytes):
            return None
        until = now + LASTING_SECONDS - (time.time_ns() - asked_ns) / 1e9
        entry = CacheEntry(
            *(key, _bare(response.status, response.reason, response.limit), head, (), None, until, until),
            in_memory=True,
            body=body,
            lack=lack,
            checks=checks,
            excess=excess,
        )
        self._add(entry, now)
        return entry

    def _kept(self, key: CacheKey) -> CacheEntry | None:
        """The entry with this key."""
        known = self._asked.get(key.asked)
        if isinstance(known, CacheEntry):
            return known if (known.key.names, known.key.values) == (key.names, key.values) else None
        return None if known is None else known.get(key.names, {}).get(key.values)

    def _add(self, entry: CacheEntry, now: float) -> None:
        """Add an entry in place of a former one, and bound the cache."""
        key, asked = entry.key, self._asked
        if (former := self._kept(key)) is not None:
            self._forget(former)
        others = asked.setdefault(key.asked, entry)
        if others is not entry:
            if isinstance(others, CacheEntry):
                others = asked[key.asked] = {others.key.names: {others.key.values: others}}
            others.setdefault(key.names, {})[key.values] = entry
        self._entries[entry] = None
        self._bytes += entry.size
        if entry.in_memory:
            self._in_memory[entry] = None
            self._body_bytes += len(entry.body)
            self._bound_bodies(now)
        while self._bytes > self.most_bytes:
            self._forget(next(iter(self._entries)))

    def _bound_bodies(self, now: float) -> None:
        """Forget bodies that have expired, or are too many."""
        while self._in_memory:
            oldest = next(iter(self._in_memory))
            if oldest.until >= now and self._body_bytes <= MOST_BODY_BYTES:
                return
            self._forget(oldest)

    def _folders_of(self, opened: OpenFile, rules: frozenset[bytes], asked_ns: int, now: float) -> Looks | None:
        """The folders on the way to a file, and files of rules; None if one of them has changed recently, or the kernel
        would have to ask another file system: a sibling that is not sent may be a link to any.

        A look may be up to a second old: one that is older than the last change differs from the next, and ends the
        entry.
        """
        if opened.crosses or opened.passes_link:
            # A folder on the way may be on a file system that holds up stat(2), and the appearance of a link's target
            # changes no folder on the way.
            return None
        key = opened.root, opened.path.rpartition(b"/")[0], rules
        known = self._folders.get(key)
        if known is None or not self._are_as_they_were(known, now):
            self._begin_looks(now)
            known = self._looks_at(*key)
            if known is None:
                return None
            if len(self._folders) >= MOST_FOLDERS:
                self._folders.clear()
            self._folders[key] = known
        return known if asked_ns >= known.settled_ns else None

    def _looks_at(self, root: Root, folder: bytes, rules: Iterable[bytes]) -> Looks | None:
        """A folder, those above it, and rules; None if the kernel would have to ask a disk."""
        places = [(b".", _SETTLED_NS), *((rule, _RULES_SETTLED_NS) for rule in rules)]
        names = folder.split(b"/") if folder not in (b"", b".") else []
        places += [(b"/".join(names[:count]), _SETTLED_NS) for count in range(1, len(names) + 1)]
        looks, settled_ns = [], 0
        for path, delay_ns in places:
            try:
                identity = self._look(root, path)
            except FileNotFoundError:
                # Its appearance would change its folder.
                continue
            except OSError:
                return None
            *_, mtime_ns, ctime_ns = identity
            settled_ns = max(settled_ns, mtime_ns + delay_ns, ctime_ns + delay_ns)
            looks.append((root, path, identity))
        return Looks(tuple(looks), settled_ns, self._looks_until)


def new_entry(head: bytes, opened: OpenFile | None, response: Response) -> CacheEntry:
    """What a response with text or a part of a file would be remembered as, as far as sending it goes; it is not."""
    sources = () if opened is None else ((opened.root, opened.path, opened.identity),)
    body = response.body
    part = body if isinstance(body, ByteRange) and body.count else None
    return CacheEntry(
        *(_NOTHING, _WHOLE, head, sources, None, 0.0, 0.0, part), body=body if isinstance(body, bytes) else b""
    )


def _search(known: CacheEntry | _ByNames, partition: str | None, values: Mapping[bytes, bytes]) -> CacheEntry | None:
    """The entry for a request with these field values."""
    if isinstance(known, CacheEntry):
        key = known.key
        return known if key.values == (partition, *map(values.get, key.names)) else None
    for names, by_values in known.items():
        if (found := by_values.get((partition, *map(values.get, names)))) is not None:
            return found
    return None


# Nearly all have the same status and no reason.
@lru_cache(maxsize=64)
def _bare(status: HTTPStatus, reason: str, limit: Limit | None = None) -> Response:
    """A response of a site without fields and body."""
    return Response(status, (), reason=reason, signed=True, limit=limit)


_WHOLE: Final = _bare(HTTPStatus.OK, "")


def _open_again(root: Root, path: bytes, identity: FileIdentity) -> int:
    """A descriptor of the file with this identity; -1 if it is not there any more, or a disk would have to be asked."""
    descriptor = -1
    try:
        descriptor = root.open_now(path)
        if identify(descriptor) == identity:
            return descriptor
    except OSError:
        pass
    if descriptor >= 0:
        os.close(descriptor)
    return -1


def _body(opened: OpenFile, response: Response) -> bytes | None:
    """The body of a response from a file that `waits`, if it is small and was read whole before the response began."""
    part = response.body
    if not isinstance(part, ByteRange) or not part.count:
        return b""
    if part.count > LONGEST_BODY or opened.first is None or not opened.unchanged:
        return None
    offset, data = opened.first
    return data if offset == part.offset and len(data) == part.count else None
