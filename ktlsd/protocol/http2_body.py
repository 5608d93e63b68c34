"""The body of one response of HTTP/2 on its way: bytes from memory and parts of a file, cut into frames of any size.

Strategy: a queue of pieces, of which the sender takes as many bytes as windows allow. Bytes from memory are copied
between the headers of frames; parts of the file are read there by the connection, which knows whether that would wait.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from ktlsd.file_identity import FileIdentity
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.byte_rate import Pace
from ktlsd.http.rate_check import InProgress
from ktlsd.http2.frames import HEADER_BYTES
from ktlsd.http2.turns import Turn, places
from ktlsd.metrics.response_counts import ResponseCounts
from ktlsd.metrics.site_names import NO_SITE
from ktlsd.site.lookup import OpenFile

if TYPE_CHECKING:
    # It is imported only if there is an access log.
    from ktlsd.logs.exchange_log import RequestLog


Mark = deque[memoryview | ByteRange]
"""The pieces of a body at a time."""


class FileRead(NamedTuple):
    """A part of the file, and its places in a turn of frames: begin and end of each, in bytes from its begin on."""

    offset: int
    places: Sequence[tuple[int, int]]

    def views(self, memory: memoryview) -> list[memoryview]:
        """The places; `memory` is that of the turn."""
        return [memory[begin:end] for begin, end in self.places]


class Body:
    """One response's, and what the access log counts of it (exchange_log.Sending)."""

    __slots__ = (
        "_close",
        "_drained",
        "_ended",
        "_holds",
        "_pieces",
        "arrived",
        "cold_at",
        "counts",
        "descriptor",
        "identity",
        "in_progress",
        "log",
        "noted",
        "noted_at",
        "noted_moved",
        "sent",
        "site",
    )

    def __init__(self, arrived: float) -> None:
        """`arrived` is when the request came (time.monotonic())."""
        self.arrived = arrived
        self.counts: ResponseCounts | None = None
        """Counts the response when it ends."""
        self.site = NO_SITE
        """The number of the site of the response."""
        self.sent = 0
        """Bytes that were sent."""
        self.log: RequestLog | None = None
        self.in_progress: InProgress | None = None
        """The response, if rates count it."""
        self.descriptor = -1
        self.identity: FileIdentity | None = None
        """Of the file, if known."""
        self.cold_at = -1
        """The place in the file that a disk was last waited for."""
        self.noted = 0
        """The value of `sent` at the time `noted_at`."""
        self.noted_moved = 0
        """The same of all bodies of the connection."""
        self.noted_at: float | None = None
        """When the connection found for the first time, or again after a while, that the client's windows are full."""
        self._pieces: Mark = deque()
        self._close: Callable[[], None] | None = None
        self._drained: trio.Event | None = None
        self._ended = False
        self._holds = 0

    @property
    def pace(self) -> Pace | None:
        """That of the response, if it has one."""
        return None if self.in_progress is None else self.in_progress.pace

    def use_descriptor(self, descriptor: int, identity: FileIdentity | None) -> None:
        """Take the descriptor of the file over."""
        self.descriptor, self.identity = descriptor, identity
        self._close = partial(os.close, descriptor)

    def use_file(self, opened: OpenFile) -> None:
        """Take the open file over."""
        self.descriptor, self.identity = opened.descriptor, opened.identity
        self._close = opened.close

    def push(self, piece: bytes | bytearray | ByteRange) -> None:
        """The next piece, not empty."""
        self._pieces.append(piece if isinstance(piece, ByteRange) else memoryview(piece))

    @property
    def waits(self) -> bool:
        """Whether there are bytes to be sent."""
        return bool(self._pieces)

    async def drained(self) -> None:
        """Wait until all pieces were sent, or the stream has ended."""
        if self._pieces:
            self._drained = trio.Event()
            await self._drained.wait()

    def note_sent(self, count: int) -> None:
        """So many bytes were sent."""
        self.sent += count
        if not self._pieces:
            self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    def mark(self) -> Mark:
        """The pieces as they are now, for rewind()."""
        return self._pieces.copy()

    def rewind(self, mark: Mark) -> None:
        """Forget what fill() did since then."""
        self._pieces = mark

    def part_at(self, offset: int) -> ByteRange:
        """The part of the file that begins there."""
        return next(piece for piece in self._pieces if isinstance(piece, ByteRange) and piece.offset == offset)

    def replace(self, part: ByteRange, data: memoryview) -> None:
        """The first bytes of this part were read."""
        index, count = self._pieces.index(part), len(data)
        self._pieces[index] = data
        if count < part.count:
            self._pieces.insert(index + 1, ByteRange(part.offset + count, part.count - count))

    def fill(self, memory: memoryview, sizes: tuple[int, ...]) -> list[FileRead]:
        """Put the next bytes into frames of these sizes, whose headers are in `memory`; what is to be read of the file
        for the rest of them."""
        pieces = self._pieces
        first, count = pieces[0], sum(sizes)
        if isinstance(first, ByteRange) and first.count >= count:
            # As most turns are: all of it is one part of the file.
            if first.count > count:
                pieces[0] = ByteRange(first.offset + count, first.count - count)
            else:
                pieces.popleft()
            return [FileRead(first.offset, places(sizes))]
        reads: list[FileRead] = []
        found: list[tuple[int, int]] = []
        position = 0
        read_end = -1
        for size in sizes:
            position += HEADER_BYTES
            end = position + size
            while position < end:
                piece = pieces[0]
                if isinstance(piece, memoryview):
                    count = min(len(piece), end - position)
                    memory[position : position + count] = piece[:count]
                    rest: memoryview | ByteRange = piece[count:]
                    left = len(piece) - count
                else:
                    count = min(piece.count, end - position)
                    if piece.offset != read_end:
                        found = []
                        reads.append(FileRead(piece.offset, found))
                    found.append((position, position + count))
                    read_end = piece.offset + count
                    left = piece.count - count
                    rest = ByteRange(read_end, left)
                if left:
                    pieces[0] = rest
                else:
                    pieces.popleft()
                position += count
        return reads

    def frames(self, turn: Turn) -> list[bytes | ByteRange]:
        """The next bytes in the turn's frames: their headers, bytes from memory, and parts of the file."""
        pieces = self._pieces
        found: list[bytes | ByteRange] = []
        for header, size in zip(turn.headers(), turn.sizes, strict=True):
            found.append(header)
            left = size
            while left:
                piece = pieces.popleft()
                if isinstance(piece, memoryview):
                    count = min(len(piece), left)
                    found.append(bytes(piece[:count]))
                    if count < len(piece):
                        pieces.appendleft(piece[count:])
                else:
                    count = min(piece.count, left)
                    found.append(ByteRange(piece.offset, count))
                    if count < piece.count:
                        pieces.appendleft(ByteRange(piece.offset + count, piece.count - count))
                left -= count
        return found

    def hold(self) -> None:
        """Keep the file open until let_go(), even if the response ends earlier: the kernel is to send parts of it."""
        self._holds += 1

    def let_go(self) -> None:
        """The end of a hold()."""
        self._holds -= 1
        if self._ended and not self._holds:
            self._close_file()

    def _close_file(self) -> None:
        close, self._close = self._close, None
        if close is not None:
            close()

    def end(self, *, complete: bool) -> None:
        """Nothing more is sent; `complete` if that was all."""
        self._pieces.clear()
        self._wake()
        self._ended = True
        if not self._holds:
            self._close_file()
        if self.in_progress is not None:
            self.in_progress.end()
        counts, self.counts = self.counts, None
        if counts is not None:
            counts.count(self.arrived, (self.sent,), (self.site,))
        log, self.log = self.log, None
        if log is not None:
            log.end(complete=complete)
