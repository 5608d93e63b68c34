"""The shortest way to a file: for plain requests of plain files, which most new requests are.

Strategy: one function from the request to its open file and the head of its response. The path needs no decoding, the
file is sent whole, and nothing but its name, its times and the rules for header fields decides. Where no rule looks at
the path, heads of files with the same suffix differ in three values: the rest is written once. Everything else, and all
that would have to wait, gets None: site.py decides about it, and would decide the same about these files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple

from ktlsd.config.file_names import fsdecode
from ktlsd.config.options import SiteOptions, index_elsewhere
from ktlsd.http.access import Access
from ktlsd.http.decide import Representation, fields_of_whole
from ktlsd.http.fields import Fields
from ktlsd.http.header_rules import HeaderRules
from ktlsd.http.request_head import RequestHead
from ktlsd.http.request_target import plain_path
from ktlsd.http.validators import last_modified
from ktlsd.site.content_types import ContentTypes
from ktlsd.site.followed_root import FollowedRoot
from ktlsd.site.lookup import OpenFile
from ktlsd.site.rules import SiteRules

DECIDING: Final = (b"host", b"if-match", b"if-modified-since", b"if-none-match", b"if-unmodified-since", b"range")
"""Names of the fields that decide about such a file: all of them but Host are absent."""
_OK: Final = HTTPStatus.OK
_ABSENT: Final = frozenset(DECIDING[1:])
_GAPS: Final = {"Content-Length": "%d", "ETag": "%s", "Last-Modified": "%s"}
"""The fields whose values differ among files with the same suffix, in their order."""
_ANY_SECOND: Final = 1_000_000_000
"""A time at which a file has a date, in seconds since the epoch."""

Write = Callable[[HTTPStatus, Fields], bytes]
"""Writes the head of a response, but for Date and what the request decides."""


class PlainFile(NamedTuple):
    """A response with status 200 and a whole file."""

    opened: OpenFile
    """For the caller to close."""
    head: bytes
    """As it was written; empty if only `fields` are known."""
    fields: Fields
    """All but Date and those of the connection; none if `head` has them."""
    rules: frozenset[bytes] | None
    """As Answer has them (site.py)."""


class _Kind(NamedTuple):
    """What files with the same suffix have in common."""

    content_type: str
    compressible: bool
    template: str = ""
    """The head with _GAPS; empty if it is to be written anew for each file."""


class PlainFiles:
    """Those of one site."""

    def __init__(
        self,
        site: SiteOptions,
        followed: FollowedRoot,
        rules: SiteRules,
        types: ContentTypes,
        access: Access | None,
        server: Fields,
    ) -> None:
        self._followed = followed
        self._rules = rules
        self._types = types
        self._access = access
        self._server = server
        self._siblings = bool(site.precompressed)
        self._recipe = site.etag
        self._elsewhere = index_elsewhere(site)
        self._kinds = lru_cache(maxsize=1024)(self._kind)

    @staticmethod
    def serve(site: SiteOptions) -> bool:
        """Whether a site with these options has plain files."""
        by_request = site.cors is not None or (site.listing and site.thumbnails)
        by_content = site.type_attributes or site.compress or site.etag == "content"
        return not (by_request or by_content or site.try_files or site.hide)

    def find(self, head: RequestHead, write: Write | None, *, secure: bool, now: float) -> PlainFile | None:
        """The file and the fields of its response for a request that reached its site, or with `write` the head, unless
        that depends on the path; `now` is in seconds since the epoch."""
        path, rules = plain_path(head.target), self._rules
        if path is None or head.method != b"GET" or not head.of_fields.values.keys().isdisjoint(_ABSENT):
            return None
        if rules.redirects or rules.protecting or rules.due():
            return None
        # No link leads a visitor to what is guarded either: with checks, links take the long way.
        if self._access is not None and self._access.may_guard("/" + fsdecode(path)):
            return None
        opened = self._followed.root.open_file_now(path)
        if opened is None:
            return None
        try:
            written = self._written(opened, write, secure, now)
        except BaseException:
            opened.close()
            raise
        if written is None:
            opened.close()
            return None
        return PlainFile(opened, *written, rules.present if rules.at_hand and not self._elsewhere else None)

    def _written(self, opened: OpenFile, write: Write | None, secure: bool, now: float) -> tuple[bytes, Fields] | None:
        """The head of the response, or its fields; None if siblings, or more than the name and the times, decide."""
        path, headers = opened.path, self._rules.headers
        suffix = path[path.rfind(b".") :]
        # Types are remembered by name: only names of files come here, since clients can make up any others.
        kind = self._kinds(suffix, write, headers, secure) if b"/" not in suffix else None
        if kind is None:
            if self._types.encoded(path):
                return None
            kind = _Kind(*self._types.described(path))
        if kind.compressible and self._siblings and not opened.root.lacks_siblings(path):
            return None
        tag, date = opened.tag(self._recipe), last_modified(opened.mtime_ns, now)
        if tag is None:
            return None
        if kind.template and date is not None:
            return (kind.template % (opened.size, tag, date)).encode("ascii"), ()
        found = Representation(opened.size, opened.mtime_ns, kind.content_type, tag)
        fields = self._server + fields_of_whole(found, now)
        return b"", headers.apply("/" + fsdecode(path), _OK, fields, secure)

    def _kind(self, suffix: bytes, write: Write | None, headers: HeaderRules, secure: bool) -> _Kind | None:
        """None if the suffix does not decide by itself."""
        found = self._types.of_last_suffix(suffix) if suffix.startswith(b".") else None
        if found is None:
            return None
        if write is None or headers.by_path:
            return _Kind(*found)
        sample = Representation(0, _ANY_SECOND * 1_000_000_000, found[0].replace("%", "%%"), "")
        whole = tuple((name, _GAPS.get(name, value)) for name, value in fields_of_whole(sample, _ANY_SECOND))
        fields = self._server + whole
        return _Kind(*found, write(_OK, headers.apply("", _OK, fields, secure)).decode("ascii"))
