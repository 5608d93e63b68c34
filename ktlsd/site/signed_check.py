"""Visitors of some paths by signed links: 403 without a right signature, 410 after the end ([[signed]])."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus

from ktlsd.config.file_names import fsencode
from ktlsd.http.access import Visitor
from ktlsd.http.basic_auth import is_preflight
from ktlsd.http.cache_fields import ending
from ktlsd.http.decide import Denied, Response, short
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import address_of_origin
from ktlsd.http.protected_paths import GuardedPaths
from ktlsd.http.request_target import parse_target
from ktlsd.http.signed_links import Unsigned, read_link
from ktlsd.site.watched_file import WatchedFile


class SignedCheck:
    """One [[signed]] of a site."""

    def __init__(self, paths: GuardedPaths, file: WatchedFile[Mapping[bytes, bytes]]) -> None:
        self.paths = paths
        self._file = file

    def admits(self, visitor: Visitor) -> bool:
        """Whether the link of the visitor is right."""
        if is_preflight(visitor.method, visitor.fields):
            return True
        return not self._file.due and self._refusal(visitor) is None

    async def refusal(self, visitor: Visitor) -> Response | None:
        """403 or 410 to a visitor without a right link."""
        if is_preflight(visitor.method, visitor.fields):
            return None
        await self._file.refresh()
        return self._refusal(visitor)

    def _refusal(self, visitor: Visitor) -> Response | None:
        head = visitor.method == b"HEAD"
        try:
            # It could be read before this check.
            target = parse_target(visitor.target)
            link = read_link(fsencode(target.path()), target.query[1:], self._file.value.get)
        except Unsigned as error:
            return short(HTTPStatus.FORBIDDEN, str(error), head=head, denied=Denied.SIGNATURE)
        now = time.time()
        if not link.is_for(address_of_origin(visitor.origin)):
            reason = "a signed link for another client"
            return short(HTTPStatus.FORBIDDEN, reason, head=head, denied=Denied.SIGNATURE)
        if now < link.starts:
            reason = "a signed link that is not valid yet"
            return short(HTTPStatus.FORBIDDEN, reason, head=head, denied=Denied.SIGNATURE)
        if now >= link.ends:
            return short(HTTPStatus.GONE, "an expired signed link", head=head, denied=Denied.EXPIRED)
        visitor.ends = link.ends if visitor.ends is None else min(visitor.ends, link.ends)
        return None

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        """For the caches of this visitor only, and not longer than the link."""
        return fields if visitor.ends is None else ending(fields, time.time(), visitor.ends)
