"""Frames: types, flags, and how they are read and written (RFC 9113 sections 4 and 6): pure.

Strategy: numbers and small functions over bytes; nothing here knows a connection. Reading raises ConnectionFault for
what is wrong with a frame by itself; what a frame does at its time is connection.py's to judge.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from ktlsd.http2.errors import ConnectionFault, ErrorCode

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
LARGEST_NUMBER: Final = 0x7FFFFFFF
"""The largest stream identifier, and the largest window."""
DEFAULT_FRAME_BYTES: Final = 16384
"""SETTINGS_MAX_FRAME_SIZE of a peer that announces none, and what is accepted here."""
DEFAULT_WINDOW: Final = 65535

HEADER: Final = struct.Struct(">IBI")
"""Length and type, flags, stream: `length << 8 | type` is one number."""
RECEIVED: Final = struct.Struct(">BHHI")
"""The same to be read: the length in two numbers, and `type << 8 | flags` is one."""
_NUMBER: Final = struct.Struct(">I")
_TWO_NUMBERS: Final = struct.Struct(">II")


class FrameType(enum.IntEnum):
    """RFC 9113 section 6, RFC 9218 section 7.1."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9
    PRIORITY_UPDATE = 0x10


ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20

# Enum members as plain numbers: what is packed most often.
_DATA, _HEADERS, _CONTINUATION = int(FrameType.DATA), int(FrameType.HEADERS), int(FrameType.CONTINUATION)


# --- reading ---------------------------------------------------------------------------------------------------------


def size_fault(frame: FrameType) -> ConnectionFault:
    """A frame of a length that its type cannot have."""
    return ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"the length of {frame.name}")


def unpadded(data: bytes, start: int, stop: int, flags: int, frame: FrameType) -> tuple[int, int]:
    """Where a DATA or HEADERS frame's content is without its padding. Raises ConnectionFault."""
    if not flags & PADDED:
        return start, stop
    if start == stop:
        raise size_fault(frame)
    padding = data[start]
    start += 1
    if padding > stop - start:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"padding of {frame.name} beyond its end")
    return start, stop - padding


def header_block(data: bytes, start: int, stop: int, flags: int) -> tuple[int, int, int]:
    """Where the fragment in a HEADERS frame begins and ends, and the stream that it depends on, 0 if it tells none.

    Raises ConnectionFault. The priority of RFC 7540 is passed over (RFC 9113 section 5.3.2).
    """
    start, stop = unpadded(data, start, stop, flags, FrameType.HEADERS)
    dependency = 0
    if flags & PRIORITY:
        if stop - start < 5:
            raise size_fault(FrameType.HEADERS)
        dependency = number_at(data, start)
        start += 5
    return start, stop, dependency


def number_at(data: bytes, position: int) -> int:
    """A stream identifier or a window increment: 31 bits."""
    number: int = _NUMBER.unpack_from(data, position)[0]
    return number & LARGEST_NUMBER


def code_at(data: bytes, position: int) -> int:
    """An error code: 32 bits, of which any value can come."""
    code: int = _NUMBER.unpack_from(data, position)[0]
    return code


# --- writing ---------------------------------------------------------------------------------------------------------


def frame(kind: FrameType, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def data_header(length: int, stream_id: int, *, end: bool) -> bytes:
    """The header of a DATA frame with so many bytes; `end` is END_STREAM."""
    return HEADER.pack(length << 8 | _DATA, END_STREAM if end else 0, stream_id)


def headers_frames(block: bytes, stream_id: int, most_bytes: int, *, end: bool) -> bytes:
    """A header block as a HEADERS frame, and CONTINUATION frames if it is larger than `most_bytes`."""
    flags = END_STREAM if end else 0
    size = len(block)
    if size <= most_bytes:
        return HEADER.pack(size << 8 | _HEADERS, flags | END_HEADERS, stream_id) + block
    pieces = [HEADER.pack(most_bytes << 8 | _HEADERS, flags, stream_id), block[:most_bytes]]
    for start in range(most_bytes, size, most_bytes):
        piece = block[start : start + most_bytes]
        last = start + most_bytes >= size
        pieces += (HEADER.pack(len(piece) << 8 | _CONTINUATION, END_HEADERS if last else 0, stream_id), piece)
    return b"".join(pieces)


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    return frame(FrameType.RST_STREAM, 0, stream_id, _NUMBER.pack(code))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(FrameType.WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(increment))


def goaway(last_stream_id: int, code: ErrorCode) -> bytes:
    return frame(FrameType.GOAWAY, 0, 0, _TWO_NUMBERS.pack(last_stream_id, code))


def ping(payload: bytes, *, ack: bool) -> bytes:
    """`payload` has eight bytes."""
    return frame(FrameType.PING, ACK if ack else 0, 0, payload)
