"""Fields to header blocks, which hpack's decoder and ours read; blocks have no state."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.request_fields import Field
from ktlsd.http2.header_table import STATIC, HeaderTable
from ktlsd.http2.hpack_decoder import HuffmanCache, decode_block
from ktlsd.http2.hpack_encoder import TABLE_SIZE_ZERO, encode, encode_field

NAMES = st.one_of(st.sampled_from([name for name, _ in STATIC]), st.binary(min_size=1, max_size=200))
VALUES = st.one_of(st.sampled_from([value for _, value in STATIC]), st.binary(max_size=400))
LISTS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


@given(LISTS)
def test_both_decoders_read_it_and_keep_nothing(fields: list[Field]) -> None:
    block = encode(fields)
    decoder = hpack.Decoder()
    assert [tuple(field) for field in decoder.decode(block, raw=True)] == fields
    assert not decoder.header_table.dynamic_entries
    empty = HeaderTable()
    found, _, table = decode_block(empty, block, HuffmanCache(), 1 << 20)
    assert found == fields
    assert table is empty


@given(LISTS, LISTS)
def test_blocks_can_be_put_together(first: list[Field], second: list[Field]) -> None:
    assert encode(first) + encode(second) == encode(first + second)


@pytest.mark.parametrize(
    ("field", "block"),
    [
        ((b":status", b"200"), "88"),
        ((b":status", b"301"), "0803333031"),
        ((b"vary", b"accept-encoding"), "0f2c0f6163636570742d656e636f64696e67"),
        ((b"accept-encoding", b""), "0f0100"),
        ((b"x-a", b"b"), "0003782d610162"),
        ((b"set-cookie", b"a"), "1f280161"),
        ((b"location", b"/" * 127), "0f1f7f00" + "2f" * 127),
        ((b"location", b"/" * 300), "0f1f7fad01" + "2f" * 300),
    ],
)
def test_the_representation_of_a_field(field: Field, block: str) -> None:
    assert encode_field(field) == bytes.fromhex(block)


def test_cookies_are_never_indexed() -> None:
    (field,) = hpack.Decoder().decode(encode_field((b"set-cookie", b"a")), raw=True)
    assert not field.indexable
    (field,) = hpack.Decoder().decode(encode_field((b"server", b"a")), raw=True)
    assert field.indexable


def test_a_block_after_a_smaller_table_was_announced() -> None:
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    assert decoder.decode(TABLE_SIZE_ZERO + encode([(b":status", b"204")]), raw=True) == [(b":status", b"204")]
