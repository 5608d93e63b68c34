"""Decoding of header blocks (RFC 7541 sections 3, 5 and 6): pure.

Strategy: one loop over the block; table and block go in, fields and the next table come out. Huffman-coded strings that
were seen are remembered. A list beyond the limit is not kept, but decoded to its end, so that the table stays right; a
list many times that large is an attack (an "HPACK bomb") and ends the connection.
"""

from __future__ import annotations

from typing import Final

from ktlsd.http.request_fields import Field
from ktlsd.http2.errors import ConnectionFault, ErrorCode, Exceeded
from ktlsd.http2.header_table import (
    DEFAULT_CAPACITY,
    ENTRY_OVERHEAD,
    FIRST_DYNAMIC,
    STATIC,
    HeaderTable,
    evicted,
)
from ktlsd.http2.huffman import HuffmanError
from ktlsd.http2.huffman import decode as decode_huffman

BOMB_FACTOR: Final = 4
"""A header list of more than this many times the limit is a connection error."""

MOST_STRING_BYTES: Final = 8 << 20
"""Memory of all strings that are kept, as _STRING_BYTES and _BYTES_OF_EACH estimate it."""
_STRING_BYTES: Final = 160
"""Of the objects of a string."""
_BYTES_OF_EACH: Final = 3
"""Of each byte of a coded string, with what it means: codes have 5 bits or more."""
_LONGEST_KEPT: Final = 256
"""Bytes of a coded string that is kept."""
_LARGEST_SHIFT: Final = 21
"""Bits: an integer has at most four bytes after its prefix, more than any length or index needs."""


class HuffmanCache:
    """Decoded strings by their coded bytes, those of one process."""

    def __init__(self) -> None:
        self._strings: dict[bytes, bytes] = {}
        self._bytes = 0

    @property
    def entries(self) -> int:
        """Strings that are remembered."""
        return len(self._strings)

    def decode(self, coded: bytes) -> bytes:
        """The string. Raises HuffmanError."""
        found = self._strings.get(coded)
        if found is None:
            found = decode_huffman(coded)
            if len(coded) <= _LONGEST_KEPT:
                self._bytes += _STRING_BYTES + _BYTES_OF_EACH * len(coded)
                if self._bytes > MOST_STRING_BYTES:
                    self._strings.clear()
                    self._bytes = 0
                self._strings[coded] = found
        return found


def decode_block(
    table: HeaderTable, block: bytes, strings: HuffmanCache, most_bytes: int
) -> tuple[list[Field], int, HeaderTable]:
    """The fields of a block, the size of its header list, and the table after it. Raises ConnectionFault.

    The size is that of RFC 9113 section 6.5.2: 32 bytes for each field beside name and value. If it is more than
    `most_bytes`, fields are missing from the list.
    """
    try:
        return _decode(table, block, strings, most_bytes)
    except IndexError:
        raise _fault("a header block that is cut short, or an index that is not in the table") from None
    except HuffmanError as error:
        raise _fault(str(error)) from None


def _decode(
    table: HeaderTable, block: bytes, strings: HuffmanCache, most_bytes: int
) -> tuple[list[Field], int, HeaderTable]:
    entries, size, capacity = table.entries, table.size, table.capacity
    changed = False
    fields: list[Field] = []
    list_bytes = 0
    position, end = 0, len(block)
    while position < end:
        first = block[position]
        position += 1
        if first & 0x80:
            # An indexed field.
            index = first & 0x7F
            if index == 0x7F:
                index, position = read_integer(block, position, 0x7F)
            # _at(), without a call.
            if index >= FIRST_DYNAMIC:
                field = entries[index - FIRST_DYNAMIC]
            else:
                field = STATIC[index - 1] if index else _at(index, entries)
        elif first & 0xE0 == 0x20:
            new_capacity = first & 0x1F
            if new_capacity == 0x1F:
                new_capacity, position = read_integer(block, position, 0x1F)
            if new_capacity > DEFAULT_CAPACITY or list_bytes:
                raise _fault("a dynamic table size update beyond the limit, or after a field")
            capacity, changed = new_capacity, True
            entries, size = evicted(entries, size, capacity)
            continue
        else:
            indexed = first & 0x40
            largest = 0x3F if indexed else 0x0F
            index = first & largest
            if index == largest:
                index, position = read_integer(block, position, largest)
            if index:
                name = _at(index, entries)[0]
            else:
                name, position = read_string(block, position, strings)
            value, position = read_string(block, position, strings)
            field = name, value
            if indexed:
                changed = True
                need = len(name) + len(value) + ENTRY_OVERHEAD
                if need > capacity:
                    # That is no error: it empties the table (section 4.4).
                    entries, size = (), 0
                else:
                    entries, size = (field, *entries), size + need
                    if size > capacity:
                        entries, size = evicted(entries, size, capacity)
        list_bytes += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
        if list_bytes <= most_bytes:
            fields.append(field)
        elif list_bytes > BOMB_FACTOR * most_bytes:
            reason = f"a header list of more than {BOMB_FACTOR * most_bytes} bytes"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, reason, Exceeded.HEADER_LIST)
    return fields, list_bytes, HeaderTable(entries, size, capacity) if changed else table


def _at(index: int, entries: tuple[Field, ...]) -> Field:
    """The field with this index. Raises IndexError, ConnectionFault."""
    if index >= FIRST_DYNAMIC:
        return entries[index - FIRST_DYNAMIC]
    if not index:
        raise _fault("index 0")
    return STATIC[index - 1]


def read_integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    """An integer whose prefix had the largest `value`, and the position after it (RFC 7541 section 5.1).

    Raises IndexError if the block ends before, ConnectionFault for an integer that is too long.
    """
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > _LARGEST_SHIFT:
            raise _fault("an integer of too many bytes")


def read_string(block: bytes, position: int, strings: HuffmanCache) -> tuple[bytes, int]:
    """A string and the position after it (RFC 7541 section 5.2). Raises as read_integer(), and HuffmanError."""
    first = block[position]
    position += 1
    length = first & 0x7F
    if length == 0x7F:
        length, position = read_integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise _fault("a string beyond the end of its header block")
    text = block[position:end]
    return strings.decode(text) if first & 0x80 else text, end


def _fault(reason: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, reason)
