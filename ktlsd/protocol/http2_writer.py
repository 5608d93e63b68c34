"""Heads of responses as header blocks of HTTP/2: sans-IO.

Strategy: the encoder has no state (http2/hpack_encoder.py), so that the block of a remembered response is kept with it,
and Date, which is encoded once a second, follows it.
"""

from __future__ import annotations

import functools
import re
from http import HTTPStatus
from typing import Final

from ktlsd.http.fields import Fields
from ktlsd.http2.hpack_encoder import encode, encode_field
from ktlsd.protocol.shared import Clock

_LINE_END: Final = re.compile(rb"[\r\n\0]")
_STATUS: Final = {status: encode_field((b":status", b"%d" % status)) for status in HTTPStatus}


@functools.lru_cache(maxsize=256)
def _name(name: str) -> bytes:
    return name.lower().encode("ascii")


def beginning(status: HTTPStatus, fields: Fields) -> bytes:
    """The status and these fields. Raises ValueError for a line end in a field."""
    encoded = [(_name(name), value.encode("ascii")) for name, value in fields]
    block = _STATUS[status] + encode(encoded)
    if _LINE_END.search(b" ".join([value for _, value in encoded])):
        # Every value is checked where it is made; proxies that speak HTTP/1.1 count on it.
        raise ValueError(f"a line end in the fields {fields}")
    return block


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
