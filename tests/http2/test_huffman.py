"""Huffman-coded strings (RFC 7541 section 5.2), beside hpack's coder."""

from __future__ import annotations

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http2.huffman import HuffmanError, decode

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@given(st.binary(max_size=64))
def test_every_string_comes_back(text: bytes) -> None:
    assert decode(ENCODER.encode(text)) == text


@pytest.mark.parametrize("symbol", range(256))
def test_every_symbol_at_every_place_of_a_byte(symbol: int) -> None:
    for before in range(8):
        # "0" has 5 bits: eight of them are at all places.
        text = b"0" * before + bytes((symbol,)) + b"0"
        assert decode(ENCODER.encode(text)) == text


@given(st.binary(max_size=24))
def test_any_bytes_are_judged_as_hpack_judges_them(coded: bytes) -> None:
    try:
        expected = decode_huffman(coded)
    except HPACKDecodingError:
        with pytest.raises(HuffmanError):
            decode(coded)
    else:
        assert decode(coded) == expected


@pytest.mark.parametrize(
    ("coded", "reason"),
    [
        ("ffffffff", "EOS"),
        ("fffffffc", "EOS"),
        ("1fff", "padding"),  # "a" and a whole byte of padding
        ("1e", "padding"),  # "a" and padding that is not all ones
        ("ff", "padding"),
    ],
)
def test_what_is_no_string_is_refused(coded: str, reason: str) -> None:
    with pytest.raises(HuffmanError, match=reason):
        decode(bytes.fromhex(coded))


@pytest.mark.parametrize("padding", range(8))
def test_padding_of_up_to_seven_bits(padding: int) -> None:
    # So many symbols of 5 bits leave that much.
    count = next(count for count in range(1, 9) if -5 * count % 8 == padding)
    coded = ENCODER.encode(b"0" * count)
    assert decode(coded) == b"0" * count
