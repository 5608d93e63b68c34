"""Header blocks that were seen, and the request heads that they mean: pure.

Strategy: what a block means is a function of the table before it, so each table remembers blocks with their head, path
and next table: exact also for blocks that change the table, and validation is remembered as well. Most blocks differ
from one before in a :path literal, which leaves the table alone: a second look-up goes without it. All that is
remembered is dropped at once when it is too much.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from ktlsd.http.request_fields import Field
from ktlsd.http.request_head import RequestHead
from ktlsd.http2.header_table import ENTRY_OVERHEAD, HeaderTable
from ktlsd.http2.hpack_decoder import HuffmanCache, decode_block
from ktlsd.http2.huffman import HuffmanError
from ktlsd.http2.huffman import decode as decode_huffman
from ktlsd.http2.request_fields import NO_REQUEST, FieldChecks, SharedHead, is_path, oversized_head, request_head

Decoded = tuple[SharedHead, RequestHead, HeaderTable]
"""The meaning of a block, as request_head() gives it, and the table after the block."""

MOST_ENTRIES: Final = 8192
MOST_OF_TABLE: Final = 256
"""Entries of one table: a client whose blocks are all new does not displace those of others."""
MOST_WEIGHT: Final = 16 << 20
"""Bytes, as _weight() estimates them."""
LONGEST_BLOCK: Final = 1024
"""Bytes of a block that is remembered."""

_WEIGHT: Final = 1024
"""Bytes of the objects of an entry."""
_BEFORE_PATH: Final = re.compile(rb"[\x81-\xfe]{0,8}[\x04\x14][^\x7f\xff]", re.DOTALL)
"""Up to eight indexed fields, and the beginning of :path with a literal value up to the length of its string: without
indexing or never indexed, as clients write a path of their own."""


@functools.lru_cache(maxsize=8192)
def _path(string: bytes) -> bytes | None:
    """The path in a string literal of up to 126 bytes (RFC 7541 section 5.2); None if it is no valid one."""
    path = string[1:]
    if string[0] & 0x80:
        try:
            path = decode_huffman(path)
        except HuffmanError:
            return None
    return path if is_path(path) else None


class HeadCache:
    """One process's memory of header blocks; one for each limit of header lists."""

    def __init__(self, most_list_bytes: int) -> None:
        """`most_list_bytes` is the limit of a header list; a larger one is decoded, but its head lacks fields."""
        self.most_list_bytes = most_list_bytes
        self.strings = HuffmanCache()
        self.checks = FieldChecks()
        self.root = HeaderTable()
        """The table of every new connection."""
        self._entries = 0
        self._weight = 0
        self._tables: dict[int, HeaderTable] = {}
        """Those that remember something, by id(): dropping must reach also those that a connection holds."""

    @property
    def entries(self) -> int:
        """Blocks that are remembered."""
        return self._entries

    def decode(self, table: HeaderTable, block: bytes) -> Decoded:
        """The meaning of a block after this table. Raises ConnectionFault."""
        return table.known.get(block) or self.decode_new(table, block)

    def decode_new(self, table: HeaderTable, block: bytes) -> Decoded:
        """The same for a block that `table.known`, where it is remembered, does not have."""
        literal = _BEFORE_PATH.match(block) if len(block) <= LONGEST_BLOCK else None
        rest = None
        if literal is not None:
            # The :path literal ends with a string of up to 126 bytes, in Huffman code or not.
            begin = literal.end()
            end = begin + (block[begin - 1] & 0x7F)
            rest = block[: begin - 1] + block[end:]
            known = table.known_rests.get(rest)
            if known is not None and end <= len(block):
                shared, after, others = known
                path = _path(block[begin - 1 : end])
                # With another path the list may be beyond the limit.
                if path is not None and others + len(path) <= self.most_list_bytes:
                    found = shared, shared.head(path), after
                    self._remember(table, block, found, _WEIGHT + 3 * len(block))
                    return found
        found = self._meaning(table, block)
        if len(block) <= LONGEST_BLOCK:
            self._remember(table, block, found, _weight(block, found))
            shared, head, after = found
            if rest is not None and shared.refused is None:
                table.known_rests[rest] = shared, after, shared.list_bytes - len(head.target)
        return found

    def decode_fields(self, table: HeaderTable, block: bytes) -> tuple[list[Field], HeaderTable]:
        """The fields of a block that is no request's, and the table after it. Raises ConnectionFault."""
        fields, _, after = decode_block(table, block, self.strings, self.most_list_bytes)
        return fields, after

    def _meaning(self, table: HeaderTable, block: bytes) -> Decoded:
        fields, list_bytes, after = decode_block(table, block, self.strings, self.most_list_bytes)
        if list_bytes > self.most_list_bytes:
            return oversized_head(fields, list_bytes), NO_REQUEST, after
        return *request_head(fields, list_bytes, self.checks), after

    def _remember(self, table: HeaderTable, block: bytes, found: Decoded, weight: int) -> None:
        if self._entries >= MOST_ENTRIES or self._weight + weight > MOST_WEIGHT:
            for one in self._tables.values():
                self._forget(one)
            self._tables.clear()
            self.root = HeaderTable()
        elif len(table.known) >= MOST_OF_TABLE:
            self._forget(table)
        self._entries += 1
        self._weight += weight
        if not table.known:
            self._tables[id(table)] = table
        table.known[block] = found
        table.known_weight += weight

    def _forget(self, table: HeaderTable) -> None:
        """Forget what this table remembers; it may still be a connection's."""
        self._entries -= len(table.known)
        self._weight -= table.known_weight
        table.known.clear()
        table.known_rests.clear()
        table.known_weight = 0


def _weight(block: bytes, found: Decoded) -> int:
    """Bytes that an entry takes, at most: the block, its fields, the next table and the objects around them."""
    head, _, after = found
    return _WEIGHT + 3 * len(block) + 4 * head.list_bytes + 2 * ENTRY_OVERHEAD * len(after.entries)
