"""Checks that a precompressed sibling belongs to its original: an incomplete or outdated one is never sent.

Strategy: a sibling with its original's mtime, set on purpose and after the original's last change, belongs: gzip(1),
zstd(1), `ktlsd compress`, `cp -p` and `rsync -t` set it once all is written. Any other is unpacked once in a thread and
compared with the original, once neither changes any more; the verdict is cached by the identities of both files.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import trio

from ktlsd.attempt import needs_task
from ktlsd.config.values import Coding
from ktlsd.file_identity import FileIdentity, identify
from ktlsd.http.validators import is_dated
from ktlsd.site.lookup import OpenFile
from ktlsd.site.shared_work import SharedWork

SETTLED_NS: Final = 2_000_000_000
"""Least age of the last change of both files before they are compared: not after each write of a slow compressor, and
not while a second change could leave the same times."""
LARGEST_COMPARED: Final = 268_435_456
"""Bytes of an original, about a second of work. A larger one is not compared: its sibling needs the same mtime."""

_REMEMBERED: Final = 16384

_Pair = tuple[FileIdentity, FileIdentity]


class Siblings:
    """One site's verdicts."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Pair, bool] = OrderedDict()
        self._comparing = SharedWork[_Pair]()
        self._limiter = trio.CapacityLimiter(2)

    async def belong(self, original: OpenFile, sibling: OpenFile, coding: Coding) -> bool:
        """True if `sibling` certainly is the whole of `original` in this coding. Both are left open."""
        identity, other = original.identity, sibling.identity
        if identity[:2] == other[:2]:
            # A link to the original itself.
            return False
        if has_its_times(identity, other):
            return True
        if original.waits or sibling.waits:
            # Reading both whole from another machine may take minutes: too long for a request.
            return False
        if max(original.ctime_ns, sibling.ctime_ns) > time.time_ns() - SETTLED_NS:
            return False
        if original.size > LARGEST_COMPARED:
            return sibling.size > 0 and sibling.mtime_ns == original.mtime_ns
        pair = identity, other
        while pair not in self._known:
            needs_task()
            if not await self._comparing.ended_elsewhere(pair):
                return await self._compare(pair, original, sibling, coding)
        self._known.move_to_end(pair)
        return self._known[pair]

    async def _compare(self, pair: _Pair, original: OpenFile, sibling: OpenFile, coding: Coding) -> bool:
        try:
            with self._comparing.doing(pair):
                verdict = await trio.to_thread.run_sync(_is_packed, original, sibling, coding, limiter=self._limiter)
        except OSError:
            # An unreadable sibling is one more reason to send the original.
            return False
        # A file that was written to meanwhile is another version, for which this verdict does not hold.
        if tuple(identify(file.descriptor) for file in (original, sibling)) != pair:
            return False
        self._known[pair] = verdict
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return verdict


def has_its_times(original: FileIdentity, sibling: FileIdentity) -> bool:
    """True if the times of a sibling prove that it is whole and of this version.

    Not with a mtime that is that of the sibling's last write: within one tick of the clock both files can be written,
    and the sibling go on growing. Nor if the original was changed after it: reproducible builds give every version
    the same mtime.
    """
    *_, mtime_ns, ctime_ns = original
    *_, size, sibling_mtime_ns, sibling_ctime_ns = sibling
    equal = size > 0 and sibling_mtime_ns == mtime_ns and is_dated(mtime_ns)
    return equal and sibling_ctime_ns != mtime_ns and sibling_ctime_ns >= ctime_ns


def _is_packed(original: OpenFile, sibling: OpenFile, coding: Coding) -> bool:
    # Its libraries take a while to load, and most sites never need them.
    from ktlsd.site.decoders import is_packed

    return is_packed(original.descriptor, sibling.descriptor, coding)
