"""Responses as bytes of HTTP/1.1, through h11: sans-IO.

Strategy: h11 writes heads and frames bodies, in chunks if there is no length (RFC 9112 section 6). Parts of files go
past it: it counts their bytes against Content-Length without seeing them.
"""

from __future__ import annotations

from typing import cast

import h11

from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Response
from ktlsd.http.fields import Fields


def head(http: h11.Connection, response: Response, fields: Fields) -> bytes:
    """The head of a response with these fields."""
    closing = (("Connection", "close"),) if response.close else ()
    status = response.status
    event = h11.Response(status_code=status.value, headers=[*fields, *closing], reason=status.phrase.encode())
    return http.send(event) or b""


def framed(http: h11.Connection, piece: bytes) -> bytes:
    """Bytes of a body, not empty, as they are sent."""
    return http.send(h11.Data(data=piece)) or b""


def count_part(http: h11.Connection, part: ByteRange) -> None:
    """The part of a file that is sent next, without a frame of its own: the body has a known length."""
    http.send_with_data_passthrough(h11.Data(data=cast(bytes, _Placeholder(part))))


def end(http: h11.Connection) -> bytes:
    """The end of a body."""
    return http.send(h11.EndOfMessage()) or b""


class _Placeholder:
    """Stands for the bytes of a part: h11 wants to know their number only."""

    def __init__(self, part: ByteRange) -> None:
        self._part = part

    def __len__(self) -> int:
        return self._part.count
