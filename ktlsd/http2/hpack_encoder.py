"""Encoding of header blocks without state (RFC 7541 sections 5 and 6): pure.

Strategy: static names and fields, literals without indexing, no dynamic table and no Huffman code. So one block serves
every connection, can be remembered with its response, and a field can be put behind it or be replaced in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ktlsd.http.request_fields import Field
from ktlsd.http2.header_table import STATIC

TABLE_SIZE_ZERO: Final = b"\x20"
"""A dynamic table size update to 0: it has to begin the first block after a peer announced a smaller table."""

_FIELDS: Final = {field: index for index, field in enumerate(STATIC, 1) if field[1]}
_NAMES: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}
_SECRET: Final = frozenset((b"set-cookie", b"www-authenticate", b"proxy-authenticate", b"authentication-info"))
"""Names whose values no intermediary may put into a table (RFC 7541 section 7.1.3)."""


def encode(fields: Iterable[Field]) -> bytes:
    """The header block of these fields, whose names are in lower case."""
    return b"".join(map(encode_field, fields))


def encode_field(field: Field) -> bytes:
    """One field; a literal ends with its value as it is, after the length of it."""
    index = _FIELDS.get(field)
    if index is not None:
        return _integer(0x80, 7, index)
    name, value = field
    return literal(name, len(value)) + value


def literal(name: bytes, size: int) -> bytes:
    """A literal with this name, but for its value of so many bytes, which follows as it is."""
    pattern = 0x10 if name in _SECRET else 0
    index = _NAMES.get(name)
    named = _integer(pattern, 4, index) if index is not None else _integer(pattern, 4, 0) + _string(name)
    return named + _length(size)


def _string(text: bytes) -> bytes:
    return _length(len(text)) + text


def _length(count: int) -> bytes:
    """The length of a string."""
    return _integer(0, 7, count)


def _integer(pattern: int, bits: int, value: int) -> bytes:
    """An integer with a prefix of so many bits (RFC 7541 section 5.1)."""
    largest = (1 << bits) - 1
    if value < largest:
        return bytes((pattern | value,))
    encoded = bytearray((pattern | largest,))
    value -= largest
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
