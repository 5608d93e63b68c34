"""DATA frames of one turn, cut so that TLS records stay full: pure.

Strategy: 16,375 bytes of DATA and the frame's header fill one TLS record. Bytes that go before the first frame, such as
a HEADERS frame, shorten it. A client that takes larger frames gets frames of several whole records.
"""

from __future__ import annotations

import functools
from typing import Final

from msgspec import Struct

from ktlsd.http2.frames import HEADER_BYTES, data_header

RECORD_BYTES: Final = 16384
"""Of the largest TLS record."""


class Turn(Struct, frozen=True, gc=False):
    """Bytes of one response that can be sent now, in DATA frames: the next ones of it."""

    stream_id: int
    sizes: tuple[int, ...]
    """Of the frames, without their headers."""
    last: bool
    """Whether the response ends with them."""

    @property
    def count(self) -> int:
        """Bytes of the response."""
        return sum(self.sizes)

    @property
    def frame_bytes(self) -> int:
        """Bytes with the headers."""
        return sum(self.sizes) + HEADER_BYTES * len(self.sizes)

    def headers(self, *, end: bool = True) -> list[bytes]:
        """The header that goes before each piece; the last of a response has END_STREAM if `end` is true."""
        final = len(self.sizes) - 1 if self.last and end else -1
        return [data_header(size, self.stream_id, end=index == final) for index, size in enumerate(self.sizes)]

    def write_headers(self, memory: memoryview, start: int, *, end: bool = True) -> None:
        """Write the headers into memory, whose next `frame_bytes` from `start` on are used; places() has the gaps."""
        # Most frames of a turn have one size.
        header, of_size = b"", -1
        for size in self.sizes:
            if size != of_size:
                header, of_size = data_header(size, self.stream_id, end=False), size
            piece = start + HEADER_BYTES
            memory[start:piece] = header
            start = piece + size
        if self.last and end:
            start -= self.sizes[-1]
            memory[start - HEADER_BYTES : start] = data_header(self.sizes[-1], self.stream_id, end=True)


@functools.lru_cache(maxsize=64)
def places(sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Begin and end of each frame's payload, from the begin of the turn on."""
    found = []
    end = 0
    for size in sizes:
        begin = end + HEADER_BYTES
        end = begin + size
        found.append((begin, end))
    return tuple(found)


def largest_payload(most_frame_bytes: int) -> int:
    """The payload of a frame that is whole records with its header and within SETTINGS_MAX_FRAME_SIZE."""
    return most_frame_bytes // RECORD_BYTES * RECORD_BYTES - HEADER_BYTES


@functools.lru_cache(maxsize=64)
def frame_sizes(count: int, room: int, before: int, largest: int) -> tuple[int, ...]:
    """The sizes of frames for `count` bytes or less, with their headers in `room` bytes or less.

    `before` bytes go before them, counted from the begin of a record; `largest` is a largest_payload().
    """
    rest = RECORD_BYTES - before % RECORD_BYTES
    # The rest of the record may be too little for a frame. `largest` leaves room for as much in a frame.
    size = rest - HEADER_BYTES if rest > HEADER_BYTES else rest + RECORD_BYTES - HEADER_BYTES
    size += largest + HEADER_BYTES - RECORD_BYTES
    sizes = []
    while count and room > HEADER_BYTES:
        size = min(size, count, room - HEADER_BYTES)
        sizes.append(size)
        count -= size
        room -= size + HEADER_BYTES
        size = largest
    return tuple(sizes)
