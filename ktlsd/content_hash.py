"""Hashes of files' contents, for entity tags that are the same on every server that has the same bytes.

Strategy: a thread reads and hashes a file once; the digest is kept under what changes when the file does. Few
representations are asked for often, so a bounded cache in the order of use is enough.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import Final

import trio

from ktlsd.lookup import Identity, OpenFile, identify

DIGEST_BYTES: Final = 16
_REMEMBERED: Final = 16384
_BLOCK: Final = 262144


class ContentHashes:
    """One site's digests."""

    def __init__(self) -> None:
        self._known: OrderedDict[Identity, bytes] = OrderedDict()
        self._lanes = trio.CapacityLimiter(2)

    async def digest(self, opened: OpenFile) -> bytes:
        """DIGEST_BYTES bytes of the content. Raises OSError when it cannot be read."""
        key = opened.identity()
        known = self._known.get(key)
        if known is None:
            known = await trio.to_thread.run_sync(_hash, opened.descriptor, limiter=self._lanes)
            # Written to while it was read, it has another identity now, and this digest belongs to none.
            status = os.fstat(opened.descriptor)
            if identify(status) == key:
                self._known[key] = known
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return known


def _hash(descriptor: int) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        digest.update(block)
        offset += len(block)
    return digest.digest()
