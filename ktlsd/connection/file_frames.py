"""A batch of HTTP/2 frames whose payloads the kernel takes from files: bytes and parts of files, sent in their order.

Strategy: where a NIC encrypts, a file that is read into memory first is copied once more than a file that the kernel
sends. So frame headers are bytes that wait in an open TLS record (MSG_MORE) for the part of a file behind them. The
record ends with the part: frames that fill records (http2/turns.py) keep them full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from msgspec import Struct

from ktlsd.connection.page_cache import Window


class FileSlice(Struct):
    """`count` bytes of an open file, from `offset` on."""

    window: Window
    descriptor: int
    offset: int
    count: int


class FileFrames:
    """What is left of a batch; false if that is nothing. Its files have to stay open."""

    __slots__ = ("_parts",)

    def __init__(self, data: bytes) -> None:
        """`data` goes before all else."""
        self._parts: deque[bytes | FileSlice] = deque([data] if data else ())

    def __bool__(self) -> bool:
        return bool(self._parts)

    def extend(self, parts: Iterable[bytes | FileSlice]) -> None:
        """Send these afterwards."""
        for part in parts:
            if self._parts and isinstance(part, bytes) and isinstance(self._parts[-1], bytes):
                self._parts[-1] += part
            else:
                self._parts.append(part)

    @property
    def open_bytes(self) -> int:
        """The bytes at the end that the next ones share TLS records with."""
        last = self._parts[-1] if self._parts else b""
        return len(last) if isinstance(last, bytes) else 0

    @property
    def first(self) -> bytes | FileSlice:
        """What is sent next."""
        return self._parts[0]

    @property
    def more(self) -> bool:
        """Whether something follows the first."""
        return len(self._parts) > 1

    def sent(self, count: int) -> None:
        """So many bytes of the first were sent."""
        part = self._parts[0]
        if isinstance(part, bytes):
            if count < len(part):
                self._parts[0] = part[count:]
            else:
                self._parts.popleft()
        elif count < part.count:
            part.offset += count
            part.count -= count
        else:
            self._parts.popleft()
