"""Maintenance of a site: 503 with a page and Retry-After for all but named networks ([maintenance]).

Strategy: a check of all paths, so that remembered responses are checked too. Whether the switch file is there is looked
at once a second at most, in a thread, when a request comes.
"""

from __future__ import annotations

import logging
import os
import time
from http import HTTPStatus
from pathlib import Path
from typing import Final

import trio

from ktlsd.attempt import needs_task
from ktlsd.config.networks import Networks
from ktlsd.config.options import MaintenanceOptions
from ktlsd.config.refusal import cause
from ktlsd.file_threads import FileThreads
from ktlsd.http.access import Visitor
from ktlsd.http.decide import Denied, Response, short
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import address_of_origin
from ktlsd.http.protected_paths import GuardedPaths
from ktlsd.site.watched_file import WatchedFile

log = logging.getLogger("ktlsd")

_LOOK_SECONDS: Final = 1.0
_STALLED_SECONDS: Final = 2.0
_THREADS: Final = 2
_CHALLENGES: Final = "/.well-known/acme-challenge/"
"""The path of http-01 challenges (RFC 8555 section 8.3)."""
_REASON: Final = "maintenance"


class _AllButChallenges(GuardedPaths):
    """All paths but those by which an authority verifies names: a certificate is renewed during maintenance, too."""

    def __init__(self) -> None:
        super().__init__(())

    def cover(self, path: str) -> bool:
        return not path.startswith(_CHALLENGES)


class _Switch:
    """The file whose presence is maintenance."""

    def __init__(self, path: Path) -> None:
        """Looks for it."""
        self._path = path
        self._threads = FileThreads(str(path), _STALLED_SECONDS, _THREADS)
        self._looking = trio.Lock()
        self._look_again = time.monotonic() + _LOOK_SECONDS
        self._complaint = ""
        self.on = path.exists()

    @property
    def due(self) -> bool:
        """Whether refresh() would look for the file."""
        return time.monotonic() >= self._look_again and not self._looking.locked()

    async def refresh(self) -> None:
        """Look for the file. A concurrent request goes by the former look."""
        if not self.due:
            return
        needs_task()
        async with self._looking:
            self._look_again = time.monotonic() + _LOOK_SECONDS
            try:
                on = await self._threads.run(self._is_there)
            except OSError as error:
                # It stays as it was.
                if self._complaint != (complaint := cause(error)):
                    self._complaint = complaint
                    log.error("maintenance %s: %s", self._path, complaint)
                return
        self._complaint = ""
        if on != self.on:
            self.on = on
            log.info("maintenance %s: %s", "begins" if on else "ends", self._path)

    def _is_there(self) -> bool:
        try:
            os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


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
