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

from ktlsd.decide import Miss
from ktlsd.header_rules import HeaderRules
from ktlsd.lookup import Identity, OpenFile, Root
from ktlsd.options import SiteOptions
from ktlsd.protected_paths import ProtectedPaths
from ktlsd.redirects import Redirects
from ktlsd.site_files import LARGEST_FILE, PROTECTING, HeadersFile, parse_headers, parse_redirects

log = logging.getLogger("ktlsd")

HEADERS_FILE: Final = b"_headers"
REDIRECTS_FILE: Final = b"_redirects"
_LOOK_SECONDS: Final = 1.0
_OVERLAP: Final = 100
"""Bytes that two parts of a long file share, so that no word is cut in two."""

_Version = Identity | Miss | None


class SiteRules:
    """The rules that hold now."""

    def __init__(self, site: SiteOptions) -> None:
        """Raises ValueError for options that contradict themselves."""
        self._site = site
        chosen = ((HEADERS_FILE, site.headers_file), (REDIRECTS_FILE, site.redirects_file))
        self.files = frozenset(name for name, used in chosen if used)
        """The files that are read for rules, and therefore not served."""
        self._versions: dict[bytes, _Version] = dict.fromkeys(self.files, Miss.ABSENT)
        self._look_again = 0.0
        self._first_look = bool(self.files)
        self._looking = trio.Lock()
        # A thread puts new values there while requests look at them: the keys stay.
        self._protected = {name: ProtectedPaths(()) for name in (HEADERS_FILE, REDIRECTS_FILE)}
        self.headers = HeaderRules(site, ())
        self.redirects = Redirects(site.redirect)

    def protect(self, path: str) -> bool:
        """Whether a decoded path, of a request or of a file below the root, is for those only who can log in."""
        return any(paths.cover(path) for paths in self._protected.values())

    def require_password(self, path: str) -> bool:
        """Whether no redirect counts before that."""
        return self._protected[HEADERS_FILE].cover(path)

    @property
    def protecting(self) -> bool:
        """Whether any path is protected."""
        return any(self._protected.values())

    async def refresh(self, root: Root) -> None:
        """Read the files that have changed. Who comes meanwhile has the former rules, but waits for the first ones."""
        if self._first_look:
            async with self._looking:
                if self._first_look:
                    await self._look(root)
                    self._first_look = False
        # Never two looks at a time: the slower one could put older rules into force.
        elif self.files and time.monotonic() >= self._look_again and not self._looking.locked():
            async with self._looking:
                await self._look(root)

    async def _look(self, root: Root) -> None:
        self._look_again = time.monotonic() + _LOOK_SECONDS
        for name in self.files:
            opened = await root.open_hidden(name)
            try:
                await self._take(name, opened)
            except OSError as error:
                self._complain(name, error.strerror)
            finally:
                if isinstance(opened, OpenFile):
                    opened.close()

    async def _take(self, name: bytes, opened: OpenFile | Miss | None) -> None:
        version = opened.identity() if isinstance(opened, OpenFile) else opened
        if version == self._versions[name]:
            return
        if isinstance(opened, OpenFile) or opened is Miss.ABSENT:
            # In a thread, since thousands of rules take a while.
            file = opened if isinstance(opened, OpenFile) else None
            warnings = await trio.to_thread.run_sync(self._read, name, file)
            self._versions[name] = version
            for warning in warnings:
                log.warning("%s/%s", self._site.root, warning)
        else:
            self._versions[name] = version
            # The former rules hold on: a lack of descriptors must not take a Content-Security-Policy away.
            self._complain(name, "a folder" if opened is None else opened.reason)

    def _complain(self, name: bytes, reason: str | None) -> None:
        log.error("%s/%s: cannot be read: %s", self._site.root, os.fsdecode(name), reason)

    def _read(self, name: bytes, opened: OpenFile | None) -> tuple[str, ...]:
        """Put the rules of a file into force; what is wrong with them."""
        text, everything = "", False
        if opened is not None:
            text = os.pread(opened.descriptor, LARGEST_FILE + 1, 0).decode("utf-8", "replace")
            everything = opened.size > LARGEST_FILE and _protects_beyond(opened, name)
        parsed = parse_headers(text) if name == HEADERS_FILE else parse_redirects(text)
        protected, warnings = parsed.protected, parsed.warnings
        if everything:
            protected = (*protected, "/*")
            warnings = (f"{os.fsdecode(name)}: what is left out protects paths: 403 for all of the site", *warnings)
        # Before the rules, which may be about paths that are protected from now on.
        self._protected[name] = ProtectedPaths(protected, self._site.index, self._site.try_files)
        if isinstance(parsed, HeadersFile):
            self.headers = HeaderRules(self._site, parsed.rules)
        else:
            self.redirects = Redirects((*self._site.redirect, *parsed.rules))
        return warnings


def _protects_beyond(opened: OpenFile, name: bytes) -> bool:
    """Whether what is too much of a file has lines that protect paths."""
    wanted = PROTECTING[os.fsdecode(name)]
    return any(
        wanted.search(os.pread(opened.descriptor, LARGEST_FILE + _OVERLAP, start))
        for start in range(LARGEST_FILE - _OVERLAP, opened.size, LARGEST_FILE)
    )
