"""SETTINGS: those of this server, and those of a client (RFC 9113 section 6.5, RFC 9218 section 2.1): pure.

Strategy: a list of numbers and values is read and written as it is; each value is judged by itself. Of a client's
settings three count here, the others belong to what a static server does not send.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Iterable
from typing import Final

from ktlsd.http2.errors import ConnectionFault, ErrorCode
from ktlsd.http2.frames import ACK, DEFAULT_FRAME_BYTES, LARGEST_NUMBER, FrameType, frame

_ENTRY: Final = struct.Struct(">HI")


class Setting(enum.IntEnum):
    """RFC 9113 section 6.5.2, RFC 9218 section 2.1."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    NO_RFC7540_PRIORITIES = 0x9


# The least and the largest value, and the code of an error (RFC 9113 section 6.5.2).
_ANY: Final = (0, 0xFFFFFFFF, ErrorCode.PROTOCOL_ERROR)
_VALUES: Final[dict[int, tuple[int, int, ErrorCode]]] = {
    Setting.ENABLE_PUSH: (0, 1, ErrorCode.PROTOCOL_ERROR),
    Setting.INITIAL_WINDOW_SIZE: (0, LARGEST_NUMBER, ErrorCode.FLOW_CONTROL_ERROR),
    Setting.MAX_FRAME_SIZE: (DEFAULT_FRAME_BYTES, (1 << 24) - 1, ErrorCode.PROTOCOL_ERROR),
    Setting.NO_RFC7540_PRIORITIES: (0, 1, ErrorCode.PROTOCOL_ERROR),
}

SETTINGS_ACK: Final = frame(FrameType.SETTINGS, ACK, 0)


def settings_frame(settings: Iterable[tuple[Setting, int]]) -> bytes:
    return frame(FrameType.SETTINGS, 0, 0, b"".join(_ENTRY.pack(*setting) for setting in settings))


@functools.cache
def server_settings(concurrent_streams: int, header_list_bytes: int) -> bytes:
    """The SETTINGS frame that begins a server's side.

    The window for request bodies and the size of frames stay at their defaults, which are the smallest that every
    client begins with.
    """
    return settings_frame(
        (
            (Setting.MAX_CONCURRENT_STREAMS, concurrent_streams),
            (Setting.MAX_HEADER_LIST_SIZE, header_list_bytes),
            (Setting.NO_RFC7540_PRIORITIES, 1),
        )
    )


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Numbers and values of a SETTINGS frame in their order, unknown ones too. Raises ConnectionFault."""
    if len(payload) % _ENTRY.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "the length of SETTINGS")
    settings = list(_ENTRY.iter_unpack(payload))
    for number, value in settings:
        least, most, code = _VALUES.get(number, _ANY)
        if not least <= value <= most:
            raise ConnectionFault(code, f"SETTINGS_{Setting(number).name} of {value}")
    return settings
