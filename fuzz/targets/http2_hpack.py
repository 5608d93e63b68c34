"""Header blocks: fields and table are those of hpack's decoder, and what is remembered is what decoding anew gives.

Strategy: an input is blocks, each behind a byte with its length, on one connection. hpack takes integers of any length,
the one thing in which it differs. Every prefix of a block that is none is none, or a block.
"""

from __future__ import annotations

from typing import Final

import hpack
from hpack.exceptions import HPACKError

from ktlsd.http2.errors import ConnectionFault, ErrorCode
from ktlsd.http2.head_cache import HeadCache
from ktlsd.http2.header_table import HeaderTable
from ktlsd.http2.hpack_decoder import HuffmanCache, decode_block
from ktlsd.http2.hpack_encoder import encode
from ktlsd.http2.request_fields import FieldChecks, SharedHead, request_head

TOKENS: Final = (
    b"\x82\x87\x84",
    b"\x41\x0bexample.org",
    b"\x04\x02/a",
    b"\x14\x02/b",
    b"\x44\x82\x60\x3f",
    b"\x40\x01a\x01b",
    b"\x10\x01a\x01b",
    b"\x60\x05a=b;c",
    b"\xbe",
    b"\xbf",
    b"\x3f\xe1\x1f",
    b"\x3f\xe2\x1f",
    b"\x20",
    b"\x7f\x00",
    b"\xff\x80\x80\x80\x00",
    b"\x0f\x0d\x015",
)
LIMIT: Final = 4096


def check(data: bytes) -> None:
    decoder = hpack.Decoder(max_header_list_size=1 << 30)
    table = HeaderTable()
    cache = HeadCache(LIMIT)
    cached = cache.root
    strings = HuffmanCache()
    position = 0
    while position < len(data):
        block = data[position + 1 : position + 1 + data[position]]
        position += 1 + data[position]
        try:
            fields, list_bytes, table = decode_block(table, block, strings, 1 << 20)
        except ConnectionFault as fault:
            _check_refused(decoder, block, fault)
            return
        assert fields == [tuple(field) for field in decoder.decode(block, raw=True)]
        assert table.entries == tuple(decoder.header_table.dynamic_entries)
        assert list_bytes == sum(len(name) + len(value) + 32 for name, value in fields)
        assert decode_block(HeaderTable(), encode(fields), strings, 1 << 20)[0] == fields
        _check_cache(cache, cached, block, fields, list_bytes)
        try:
            cached = cache.decode(cached, block)[2]
        except ConnectionFault:
            # A list that is many times the limit.
            assert list_bytes > 4 * LIMIT
            return
        assert (cached.entries, cached.size, cached.capacity) == (table.entries, table.size, table.capacity)


def _check_refused(decoder: hpack.Decoder, block: bytes, fault: ConnectionFault) -> None:
    assert fault.code is ErrorCode.COMPRESSION_ERROR
    try:
        decoder.decode(block, raw=True)
    except HPACKError:
        return
    assert fault.reason == "an integer of too many bytes"


def _check_cache(
    cache: HeadCache, table: HeaderTable, block: bytes, fields: list[tuple[bytes, bytes]], list_bytes: int
) -> None:
    if list_bytes > LIMIT:
        return
    expected, expected_head = request_head(fields, list_bytes, FieldChecks())
    for _ in range(2):
        shared, head, _ = cache.decode(table, block)
        assert _facts(shared) == _facts(expected)
        assert (head.key, head.headers) == (expected_head.key, expected_head.headers)


def _facts(shared: SharedHead) -> tuple[object, ...]:
    fields = shared.of_fields
    facts = shared.method, shared.scheme, shared.content_length, shared.priority, shared.refused, shared.too_large
    return *facts, fields.fields, fields.values, fields.alone
