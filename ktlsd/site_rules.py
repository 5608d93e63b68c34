"""One site's header rules and redirects: from its options, and from its `_headers` and `_redirects` files.

Strategy: the files may change with every deployment of the site, so they are looked at again, once a second at most,
when a request comes; what cannot be understood in them is logged with its line and left out.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

import trio

from ktlsd.header_rules import HeaderRules
from ktlsd.lookup import OpenFile, Root
from ktlsd.options import SiteOptions
from ktlsd.redirects import Redirects
from ktlsd.site_files import LARGEST_FILE, parse_headers, parse_redirects

log = logging.getLogger("ktlsd")

HEADERS_FILE: Final = b"_headers"
REDIRECTS_FILE: Final = b"_redirects"
_LOOK_SECONDS: Final = 1.0

_Version = tuple[int, int, int] | None


class SiteRules:
    """The rules that hold now."""

    def __init__(self, site: SiteOptions) -> None:
        """Raises ValueError for options that contradict themselves."""
        self._site = site
        chosen = ((HEADERS_FILE, site.headers_file), (REDIRECTS_FILE, site.redirects_file))
        self.files = frozenset(name for name, used in chosen if used)
        """The files that are read for rules, and therefore not served."""
        self._versions: dict[bytes, _Version] = dict.fromkeys(self.files)
        self._look_again = 0.0
        self.headers = HeaderRules(site, ())
        self.redirects = Redirects(site.redirect)

    async def refresh(self, root: Root) -> None:
        """Read the files that have changed."""
        if not self.files or time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_SECONDS
        for name in self.files:
            opened = await root.open_hidden(name)
            try:
                await self._take(name, opened if isinstance(opened, OpenFile) else None)
            except OSError as error:
                log.error("%s/%s: cannot be read: %s", self._site.root, os.fsdecode(name), error.strerror)
            finally:
                if isinstance(opened, OpenFile):
                    opened.close()

    async def _take(self, name: bytes, opened: OpenFile | None) -> None:
        version = None if opened is None else (opened.inode, opened.size, opened.mtime_ns)
        if version == self._versions[name]:
            return
        self._versions[name] = version
        # In a thread, since thousands of rules take a while.
        for warning in await trio.to_thread.run_sync(self._read, name, opened):
            log.warning("%s/%s", self._site.root, warning)

    def _read(self, name: bytes, opened: OpenFile | None) -> tuple[str, ...]:
        """Put the rules of a file into force; what is wrong with them."""
        text = ""
        if opened is not None:
            text = os.pread(opened.descriptor, LARGEST_FILE + 1, 0).decode("utf-8", "replace")
        if name == HEADERS_FILE:
            headers, warnings = parse_headers(text)
            self.headers = HeaderRules(self._site, headers)
        else:
            redirects, warnings = parse_redirects(text)
            self.redirects = Redirects((*self._site.redirect, *redirects))
        return warnings
