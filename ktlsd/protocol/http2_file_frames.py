"""The frames of a turn as the kernel is to send them: headers and bytes from memory, and parts of the open file.

Strategy: two checks come before the first frame, while the stream can still be postponed or reset by itself: whether a
disk has to be waited for, and whether the file is still large enough.
"""

from __future__ import annotations

import os

from ktlsd.connection.file_frames import FileSlice
from ktlsd.connection.page_cache import PageCache, Window
from ktlsd.connection.transport import FileShrank
from ktlsd.http.byte_range import ByteRange
from ktlsd.http2.turns import Turn
from ktlsd.protocol.http2_body import Body


def file_frames(body: Body, turn: Turn, page_cache: PageCache) -> list[bytes | FileSlice] | int:
    """What is to be sent; or the begin of a part of the file that a disk has to be waited for.

    Takes the bytes from the body. Raises FileShrank, OSError.
    """
    frames = body.frames(turn)
    windows = _windows([frame for frame in frames if isinstance(frame, ByteRange)], body.descriptor, page_cache)
    if isinstance(windows, int):
        return windows
    left = iter(windows)
    return [
        FileSlice(next(left), body.descriptor, frame.offset, frame.count) if isinstance(frame, ByteRange) else frame
        for frame in frames
    ]


def _windows(parts: list[ByteRange], descriptor: int, page_cache: PageCache) -> list[Window] | int:
    """The knowledge of the page cache for each part; parts that follow each other share it."""
    if parts and os.fstat(descriptor).st_size < max(part.end for part in parts):
        raise FileShrank
    windows: list[Window] = []
    index = 0
    while index < len(parts):
        begin, end = parts[index].offset, parts[index].end
        first = index
        index += 1
        while index < len(parts) and parts[index].offset == end:
            end = parts[index].end
            index += 1
        window = Window(page_cache, descriptor, end)
        if window.size(begin) < end - begin:
            return begin
        windows += [window] * (index - first)
    return windows
