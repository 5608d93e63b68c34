"""Thumbnails of pictures for listings: made once by a process of their own (thumbnail_maker.py), and kept in memory.

Strategy: one picture at a time, so that other work keeps its cores; requests for the same picture wait for one process.
The versions of files are keys, so that a changed picture gets a new thumbnail. A failure is remembered, too, but for a
lack of processes.
"""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from typing import Final

import trio

from ktlsd.attempt import needs_task
from ktlsd.file_identity import FileIdentity
from ktlsd.site.lookup import OpenFile
from ktlsd.site.shared_work import SharedWork

QUERY: Final = b"?thumbnail"
TYPES: Final = frozenset("image/" + name for name in ("bmp", "gif", "jpeg", "png", "webp"))
"""Media types of pictures that thumbnails are made of."""
MEDIA_TYPE: Final = "image/webp"
MOST_SECONDS: Final = 15.0
"""Time for one picture."""
MOST_WAITING: Final = 64
"""Requests that wait for a process at a time."""
MOST_BYTES: Final = 16_777_216
"""Bytes of all thumbnails that are kept."""
LARGEST: Final = 1_048_576
"""Bytes of one."""
_ENTRY_BYTES: Final = 512


class Thumbnails:
    """One site's."""

    def __init__(self) -> None:
        self._known: OrderedDict[FileIdentity, bytes] = OrderedDict()
        self._bytes = 0
        self._making = SharedWork[FileIdentity]()
        self._limiter = trio.CapacityLimiter(1)

    async def made(self, opened: OpenFile) -> bytes | None:
        """The thumbnail of an open picture, b"" if none can be made; None if there is no process for it now."""
        identity = opened.identity
        while identity not in self._known:
            needs_task()
            if await self._making.ended_elsewhere(identity):
                continue
            if len(self._making) >= MOST_WAITING:
                return None
            with self._making.doing(identity):
                async with self._limiter:
                    data = await _make(opened.descriptor)
                if data is None:
                    return None
                self._keep(identity, data)
        self._known.move_to_end(identity)
        return self._known[identity]

    def _keep(self, identity: FileIdentity, data: bytes) -> None:
        self._known[identity] = data
        self._bytes += len(data) + _ENTRY_BYTES
        while self._bytes > MOST_BYTES:
            _, oldest = self._known.popitem(last=False)
            self._bytes -= len(oldest) + _ENTRY_BYTES


async def _make(descriptor: int) -> bytes | None:
    command = [sys.executable, "-P", "-m", "ktlsd.site.thumbnail_maker"]
    try:
        with trio.move_on_after(MOST_SECONDS):
            ended = await trio.run_process(
                command, stdin=descriptor, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
            )
            if ended.returncode == 0 and len(ended.stdout) <= LARGEST:
                return ended.stdout
    except OSError:
        # No process or memory left.
        return None
    return b""
