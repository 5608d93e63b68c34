"""The shortest way to a file: for plain requests of plain files, which most new requests are.

Strategy: one function from the request to its open file and the fields of its response. The path needs no decoding, the
file is sent whole, and nothing but its name, its times and the rules for header fields decides. Everything else, and
all that would have to wait, gets None: site.py decides about it, and would decide the same about these files.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, NamedTuple

from ktlsd.config.file_names import fsdecode
from ktlsd.config.options import SiteOptions, index_elsewhere
from ktlsd.http.access import Access
from ktlsd.http.decide import Representation, fields_of_whole
from ktlsd.http.fields import Fields
from ktlsd.http.request_head import RequestHead
from ktlsd.http.request_target import plain_path
from ktlsd.site.content_types import ContentTypes
from ktlsd.site.followed_root import FollowedRoot
from ktlsd.site.lookup import OpenFile
from ktlsd.site.rules import SiteRules

DECIDING: Final = (b"host", b"if-match", b"if-modified-since", b"if-none-match", b"if-unmodified-since", b"range")
"""Names of the fields that decide about such a file: all of them but Host are absent."""
_OK: Final = HTTPStatus.OK
_ABSENT: Final = frozenset(DECIDING[1:])


class PlainFile(NamedTuple):
    """A response with status 200 and a whole file."""

    opened: OpenFile
    """For the caller to close."""
    fields: Fields
    """All but Date and those of the connection."""
    rules: frozenset[bytes] | None
    """As Answer has them (site.py)."""


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

    @staticmethod
    def serve(site: SiteOptions) -> bool:
        """Whether a site with these options has plain files."""
        by_request = site.cors is not None or (site.listing and site.thumbnails)
        by_content = site.type_attributes or site.compress or site.etag == "content"
        return not (by_request or by_content or site.try_files or site.hide)

    def find(self, head: RequestHead, *, secure: bool, now: float) -> PlainFile | None:
        """The file and the fields for a request that reached its site; `now` is in seconds since the epoch."""
        path, rules = plain_path(head.target), self._rules
        if path is None or head.method != b"GET" or not _ABSENT.isdisjoint(head.of_fields.values):
            return None
        if rules.redirects or rules.protecting or rules.due():
            return None
        requested = "/" + fsdecode(path)
        # No link leads a visitor to what is guarded either: with checks, links take the long way.
        if self._access is not None and self._access.may_guard(requested):
            return None
        opened = self._followed.root.open_file_now(path)
        if opened is None:
            return None
        try:
            fields = self._fields(opened, now)
            if fields is None:
                opened.close()
                return None
            fields = rules.headers.apply(requested, _OK, fields, secure)
        except BaseException:
            opened.close()
            raise
        return PlainFile(opened, fields, rules.present if rules.at_hand and not self._elsewhere else None)

    def _fields(self, opened: OpenFile, now: float) -> Fields | None:
        """The fields but for rules. Types are remembered by name: only names of files come here, since clients can make
        up any others."""
        if self._types.encoded(opened.path):
            return None
        kind, compressible = self._types.described(opened.path)
        if compressible and self._siblings and not opened.root.lacks_siblings(opened.path):
            return None
        tag = opened.tag(self._recipe)
        if tag is None:
            return None
        return self._server + fields_of_whole(Representation(opened.size, opened.mtime_ns, kind, tag), now)
