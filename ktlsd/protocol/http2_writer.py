"""Heads of responses as header blocks of HTTP/2: sans-IO.

Strategy: the encoder has no state (http2/hpack_encoder.py), so that the block of a remembered response is kept with it,
and Date, which is encoded once a second, follows it. A block is written as text, all of its fields at once: what goes
before a value is a function of the name and the length of the value.
"""

from __future__ import annotations

import functools
from http import HTTPStatus
from operator import add
from typing import Final

from ktlsd.http.fields import Fields
from ktlsd.http2.hpack_encoder import encode_field, literal
from ktlsd.protocol.shared import Clock

_STATUS: Final = {status: encode_field((b":status", b"%d" % status)) for status in HTTPStatus}


@functools.lru_cache(maxsize=4096)
def _literal(name: str, size: int) -> str:
    """literal(), its bytes as characters."""
    return literal(name.lower().encode("ascii"), size).decode("latin-1")


def beginning(status: HTTPStatus, fields: Fields) -> bytes:
    """The status and these fields. Raises ValueError for a line end in a field, or one that is not ASCII."""
    names, values = zip(*fields, strict=True) if fields else ((), ())
    text = "".join(values)
    if not text.isascii() or "\n" in text or "\r" in text or "\0" in text:
        # Every value is checked where it is made; proxies that speak HTTP/1.1 count on it.
        raise ValueError(f"a line end in the fields {fields}, or no ASCII")
    return _STATUS[status] + "".join(map(add, map(_literal, names, map(len, values)), values)).encode("latin-1")


class DateField:
    """The encoded field Date of one connection."""

    __slots__ = ("_block", "_clock", "_date")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._date = self._block = b""

    def block(self) -> bytes:
        """To follow beginning()."""
        date = self._clock.date()
        if date is not self._date:
            self._date, self._block = date, encode_field((b"date", date))
        return self._block
