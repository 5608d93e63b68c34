"""Responses remembered by the bytes of their request head: the same bytes need no second parse and no second decision.

Strategy: what h11 wrote is kept but for its Date, together with what the file was when it was decided. Each use opens
the file anew and compares, so that no byte of an old version is sent after a rename; after a second everything is
decided again, since more than the file has a say (siblings, rules, links, other names that come first).
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from ktlsd.byte_range import ByteRange
from ktlsd.lookup import OpenFile
from ktlsd.request_log import Noted
from ktlsd.ssl_ffi import Library

LASTING_SECONDS: Final = 1.0
MOST_HEADS: Final = 4096
LONGEST_REMEMBERED: Final = 4096
"""Bytes of a request head."""

# A file that was changed this recently can be changed again without its times showing it: their clock has ticks.
_SETTLED_NS: Final = 2_000_000_000
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

Key = tuple[str | None, bytes]
"""The name that a client gave in the handshake, or what else sets its connection apart, and a request head."""
Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Remembered:
    """A response: its status, its head around the value of Date, and the part of a file that follows."""

    status: int
    before: bytes
    after: bytes
    part: ByteRange | None
    sources: tuple[tuple[int, bytes, Identity], ...]
    """Root, path and identity of the file that is sent, and of the one that it was made from."""
    until: float
    noted: Noted | None = None
    """For the access log, where there is one."""


class HeadCache:
    """One process's memory."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._known: OrderedDict[Key, Remembered] = OrderedDict()
        self.uses = 0
        """Responses that were given from memory."""

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Key) -> Remembered | None:
        """What was decided for this head within LASTING_SECONDS."""
        found = self._known.get(key)
        if found is not None and found.until < time.monotonic():
            del self._known[key]
            return None
        return found

    def open(self, key: Key, remembered: Remembered) -> int | None:
        """A descriptor of the file, for the caller to close; None when it is not, or may not be, what it was."""
        descriptor = -1
        for root, path, identity in reversed(remembered.sources):
            if descriptor >= 0:
                os.close(descriptor)
            try:
                descriptor = self._library.openat2(root, path, _FLAGS, cached=True)
            except OSError:
                del self._known[key]
                return None
            if identify(os.fstat(descriptor)) != identity:
                os.close(descriptor)
                del self._known[key]
                return None
        self.uses += 1
        return descriptor

    def remember(
        self,
        key: Key,
        status: int,
        head: bytes,
        date: bytes,
        opened: OpenFile,
        part: ByteRange | None,
        noted: Noted | None = None,
    ) -> None:
        """Keep a response that h11 wrote as `head`, where that is safe; `date` is the value of its Date."""
        if len(key[1]) > LONGEST_REMEMBERED:
            return
        settled = time.time_ns() - _SETTLED_NS
        sources = []
        for file in (opened, opened.original):
            if file is not None:
                if max(file.mtime_ns, file.ctime_ns) > settled:
                    return
                sources.append((file.root, file.path, file.identity()))
        before, _, after = head.partition(date)
        until = time.monotonic() + LASTING_SECONDS
        self._known[key] = Remembered(status, before, after, part, tuple(sources), until, noted)
        if len(self._known) > MOST_HEADS:
            self._known.popitem(last=False)


def identify(status: os.stat_result) -> Identity:
    """What tells one version of a file from another."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
