"""One site's header rules and redirects: from its options, and from its `_headers` and `_redirects` files.

Strategy: the files may change with every deployment of the site, so a request checks them, at most once a second.
Unsupported lines are logged with their number and ignored.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from ktlsd.attempt import needs_task
from ktlsd.config.options import SiteOptions
from ktlsd.file_identity import FileIdentity
from ktlsd.file_threads import Stalled
from ktlsd.http.access import Check
from ktlsd.http.decide import Miss
from ktlsd.http.header_rules import HeaderRules
from ktlsd.http.protected_paths import ProtectedPaths
from ktlsd.http.redirects import Redirects
from ktlsd.site.lookup import OpenFile, Root, Unusable, miss_of
from ktlsd.site.passwords import Passwords
from ktlsd.site.rule_files import (
    LARGEST_FILE,
    PROTECTING,
    HeadersFile,
    PasswordRule,
    RedirectsFile,
    parse_headers,
    parse_redirects,
)

log = logging.getLogger("ktlsd")

HEADERS_FILE: Final = b"_headers"
REDIRECTS_FILE: Final = b"_redirects"
_REALM: Final = "Restricted"
_LOOK_SECONDS: Final = 1.0
_OVERLAP: Final = 100
"""Bytes that two parts of a long file share, so that no word is cut in two."""

_Version = FileIdentity | Miss | None


class SiteRules:
    """The rules in force."""

    def __init__(self, site: SiteOptions, passwords: Passwords) -> None:
        """Passwords of `_headers` are verified by `passwords`. Raises ValueError for options that contradict
        themselves."""
        self._site = site
        self._passwords = passwords
        self.checks: Sequence[Check] = ()
        """The checks of access that `_headers` asks for."""
        chosen = ((HEADERS_FILE, site.headers_file), (REDIRECTS_FILE, site.redirects_file))
        self.files = frozenset(name for name, used in chosen if used)
        """The files that are read for rules, and therefore not served."""
        self._versions: dict[bytes, _Version] = dict.fromkeys(self.files, Miss.ABSENT)
        self._look_again = 0.0
        self._wanted, self._had = int(bool(self.files)), 0
        """First looks that are due, one for each root, and those that there were."""
        self._failures = 0
        self._failed_as = Miss.FAILED
        """First looks that failed, and the answer to the requests that waited for the last of them."""
        self.at_hand = True
        """True if the files are on no file system that may hold up its callers."""
        self._looking = trio.Lock()
        self._protected = {name: ProtectedPaths(()) for name in (HEADERS_FILE, REDIRECTS_FILE)}
        self.protecting = False
        """True if any path is protected."""
        self.present = frozenset[bytes]()
        """The files of `files` that there were at the last look."""
        self.headers = HeaderRules(site, ())
        self.redirects = Redirects(site.redirect)

    def protect(self, path: str) -> bool:
        """True if a decoded path, of a request or of a file below the root, requires a login."""
        return any(paths.cover(path) for paths in self._protected.values())

    def require_password(self, path: str) -> bool:
        """True if no redirect applies before that."""
        return self._protected[HEADERS_FILE].cover(path)

    def renew(self) -> None:
        """Read the files again before the next answer: the root is another folder."""
        self._wanted += int(bool(self.files))

    def due(self) -> bool:
        """True if refresh() has something to do."""
        if self._had != self._wanted:
            return True
        # Never two looks at a time: the slower one could put older rules into force.
        return bool(self.files) and time.monotonic() >= self._look_again and not self._looking.locked()

    async def refresh(self, root: Root) -> None:
        """Read the files that have changed. A concurrent request gets the former rules, but waits for the first ones.
        Raises OSError if those cannot be read for the moment."""
        if self._had != self._wanted:
            needs_task()
            failures = self._failures
            async with self._looking:
                if self._had == self._wanted:
                    return
                if self._failures != failures:
                    # The look that this request waited for failed: another one would take as long again.
                    raise Unusable(self._failed_as)
                wanted = self._wanted
                try:
                    if await self._look(root, first=True):
                        self._had = wanted
                except OSError as error:
                    self._failures += 1
                    self._failed_as = miss_of(error)
                    raise
        elif self.due():
            needs_task()
            async with self._looking:
                await self._look(root, first=False)

    async def _look(self, root: Root, *, first: bool) -> bool:
        """True if all files were read. If the root was closed meanwhile, they may be those of another."""
        self._look_again = time.monotonic() + _LOOK_SECONDS
        for name in self.files:
            opened = await root.open_hidden(name)
            if opened is Miss.DANGLING:
                opened = Miss.ABSENT
            if root.closed:
                if isinstance(opened, OpenFile):
                    opened.close()
                return False
            miss = opened if isinstance(opened, Miss) else None
            try:
                await self._take(name, opened)
            except Stalled:
                raise
            except OSError as error:
                if self._versions[name] is not Miss.FAILED:
                    self._complain(name, error.strerror)
                self._versions[name] = miss = Miss.FAILED
            finally:
                self.present = frozenset(file for file, had in self._versions.items() if isinstance(had, tuple))
                if isinstance(opened, OpenFile):
                    self.at_hand = opened.reopens
                    opened.close()
            if first and miss is not None and miss not in _NO_RULES:
                # Serving without the rules that protect it would be worse than not serving. Apache does the same
                # for an unreadable .htaccess.
                raise Unusable(miss)
        return True

    async def _take(self, name: bytes, opened: OpenFile | Miss | None) -> None:
        version = opened.identity if isinstance(opened, OpenFile) else opened
        if version == self._versions[name]:
            return
        if isinstance(opened, OpenFile) or opened is Miss.ABSENT:
            # In a thread, since thousands of rules take a while.
            if isinstance(opened, OpenFile):
                parsed, everything = await opened.run(partial(self._parse, name, opened.size))
            else:
                parsed, everything = self._parse(name, 0, None)
            warnings = self._put_into_force(name, parsed, everything=everything)
            self._versions[name] = version
            for warning in warnings:
                log.warning("%s/%s", self._site.root, warning)
        else:
            self._versions[name] = version
            # The former rules stay in force: a lack of descriptors must not remove a Content-Security-Policy.
            self._complain(name, "a folder" if opened is None else opened.reason)

    def _complain(self, name: bytes, reason: str | None) -> None:
        log.error("%s/%s: cannot be read: %s", self._site.root, os.fsdecode(name), reason)

    def _parse(self, name: bytes, size: int, descriptor: int | None) -> tuple[HeadersFile | RedirectsFile, bool]:
        """The rules of a file of `size` bytes, or of none; and True if the unread rest of it protects paths."""
        text, everything = "", False
        if descriptor is not None:
            text = os.pread(descriptor, LARGEST_FILE + 1, 0).decode("utf-8", "replace")
            everything = size > LARGEST_FILE and _protects_beyond(descriptor, size, name)
        return (parse_headers(text) if name == HEADERS_FILE else parse_redirects(text)), everything

    def _put_into_force(self, name: bytes, parsed: HeadersFile | RedirectsFile, *, everything: bool) -> tuple[str, ...]:
        """Put the rules of a file into force; the warnings about them."""
        protected, warnings = parsed.protected, parsed.warnings
        if isinstance(parsed, HeadersFile):
            self.checks = self._checks(parsed.passwords)
        if everything:
            protected = (*protected, "/*")
            warnings = (f"{os.fsdecode(name)}: what is left out protects paths: 403 for all of the site", *warnings)
        self._protected[name] = ProtectedPaths(protected, self._site.index, self._site.try_files)
        self.protecting = any(self._protected.values())
        if isinstance(parsed, HeadersFile):
            self.headers = HeaderRules(self._site, parsed.rules)
        else:
            self.redirects = Redirects((*self._site.redirect, *parsed.rules))
        return warnings

    def _checks(self, rules: Sequence[PasswordRule]) -> Sequence[Check]:
        if not rules:
            return ()
        from ktlsd.site.password_check import FixedUsers, PasswordCheck

        index, try_files = self._site.index, self._site.try_files
        return tuple(
            PasswordCheck(ProtectedPaths((path,), index, try_files), FixedUsers(users), _REALM, self._passwords)
            for path, users in rules
        )


def _protects_beyond(descriptor: int, size: int, name: bytes) -> bool:
    """True if the part beyond the limit has lines that protect paths."""
    wanted = PROTECTING[os.fsdecode(name)]
    return any(
        wanted.search(os.pread(descriptor, LARGEST_FILE + _OVERLAP, start))
        for start in range(LARGEST_FILE - _OVERLAP, size, LARGEST_FILE)
    )


_NO_RULES: Final = (Miss.ABSENT, Miss.SPECIAL)
