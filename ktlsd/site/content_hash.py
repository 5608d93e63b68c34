"""Hashes of files' contents, for entity tags that are the same on every server that has the same bytes.

Strategy: a thread reads and hashes a file once, part by part; the digest is cached by the file's identity.
Few representations are requested often, so a bounded cache in the order of use is enough.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from functools import partial
from typing import Final

from ktlsd.file_identity import FileIdentity, identify
from ktlsd.file_threads import JobLimiter
from ktlsd.site.lookup import OpenFile

DIGEST_BYTES: Final = 16
_REMEMBERED: Final = 16384
_BLOCK: Final = 262144
# One call of a thread: it has a deadline (file_threads.py), and a slow disk reads this much in time.
_PART: Final = 4 << 20


class ContentHashes:
    """One site's digests."""

    def __init__(self) -> None:
        self._known: OrderedDict[FileIdentity, bytes] = OrderedDict()
        self._limiter = JobLimiter(2)

    async def digest(self, opened: OpenFile) -> bytes:
        """DIGEST_BYTES bytes of the content. Raises OSError when it cannot be read."""
        key = opened.identity
        known = self._known.get(key)
        if known is None:
            known, read = await self._hash(opened)
            # If it was written to meanwhile, it has another identity, and this digest belongs to neither.
            if read == key:
                self._known[key] = known
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return known

    async def _hash(self, opened: OpenFile) -> tuple[bytes, FileIdentity]:
        """The digest, and the identity of the file once it was read."""
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        async with self._limiter.one(opened.root.threads.seconds, waits=opened.waits):
            offset, more = 0, True
            while more:
                offset, more = await opened.run(partial(_add, digest, offset))
            return digest.digest(), await opened.run(identify)


def hash_of(data: bytes) -> bytes:
    """The digest of bytes in memory."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _add(digest: hashlib.blake2b, offset: int, descriptor: int) -> tuple[int, bool]:
    """Add the next part of a file to the digest; up to where, and whether there may be more."""
    end = offset + _PART
    while offset < end:
        block = os.pread(descriptor, _BLOCK, offset)
        if not block:
            return offset, False
        digest.update(block)
        offset += len(block)
    return offset, True
