"""Maintenance of a site: 503 with a page and Retry-After for all but named networks ([maintenance]).

Strategy: a check of all paths, so that remembered responses are checked too. Whether the switch file is there is looked
at once a second at most, in a thread, when a request comes.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Final

from ktlsd.config.networks import Networks
from ktlsd.config.options import MaintenanceOptions
from ktlsd.http.access import Visitor
from ktlsd.http.decide import Denied, Response, short
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import address_of_origin
from ktlsd.http.protected_paths import GuardedPaths
from ktlsd.site.watched_file import WatchedFile, WatchedSwitch

log = logging.getLogger("ktlsd")

_CHALLENGES: Final = "/.well-known/acme-challenge/"
"""The path of http-01 challenges (RFC 8555 section 8.3)."""
_REASON: Final = "maintenance"


class _AllButChallenges(GuardedPaths):
    """All paths but those by which an authority verifies names: a certificate is renewed during maintenance, too."""

    def __init__(self) -> None:
        super().__init__(())
        # No text tells which paths are covered.
        self.literals = None

    def cover(self, path: str) -> bool:
        return not path.startswith(_CHALLENGES)


class _Switch(WatchedSwitch):
    """The file whose presence is maintenance."""

    def _look(self) -> None:
        former = self.on
        super()._look()
        if self.on != former:
            log.info("maintenance %s: %s", "begins" if self.on else "ends", self.path)


class MaintenanceCheck:
    """The [maintenance] of a site."""

    def __init__(self, rule: MaintenanceOptions, page: WatchedFile[bytes] | None, page_type: str) -> None:
        """`page_type` is the page's media type. Raises OSError for a switch file that cannot be looked for."""
        self.paths = _AllButChallenges()
        self._switch = None if rule.enabled or rule.file is None else _Switch(rule.file)
        self._allow = Networks(rule.allow)
        self._page = page
        self._page_type = page_type
        self._fields: Fields = (("Retry-After", str(rule.retry_after)),)
        if self._switch is None or self._switch.on:
            log.info("maintenance: %s", "enabled" if self._switch is None else rule.file)

    def admits(self, visitor: Visitor) -> bool:
        """Whether there is no maintenance, or the visitor may see the site nevertheless."""
        switch = self._switch
        if switch is not None and not switch.due and not switch.on:
            return True
        return self._allows(visitor)

    async def refusal(self, visitor: Visitor) -> Response | None:
        """503 to any other."""
        if self._allows(visitor):
            return None
        if self._switch is not None:
            await self._switch.refresh()
            if not self._switch.on:
                return None
        head, status, denied = visitor.method == b"HEAD", HTTPStatus.SERVICE_UNAVAILABLE, Denied.MAINTENANCE
        if self._page is None:
            return short(status, _REASON, head=head, extra=self._fields, denied=denied)
        await self._page.refresh()
        page = self._page.value
        fields = (("Content-Type", self._page_type), ("Content-Length", str(len(page))), *self._fields)
        return Response(status, fields, b"" if head else page, _REASON, denied=denied, has_page=True)

    def _allows(self, visitor: Visitor) -> bool:
        return bool(self._allow) and self._allow.holds(address_of_origin(visitor.origin))

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        """As they are."""
        return fields
