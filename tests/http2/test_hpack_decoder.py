"""Header blocks to fields: RFC 7541 appendix C, public interoperability stories, and hpack's decoder."""

from __future__ import annotations

import json
from pathlib import Path

import hpack
import pytest
from hpack.exceptions import HPACKError
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.request_fields import Field
from ktlsd.http2 import hpack_decoder
from ktlsd.http2.errors import ConnectionFault, ErrorCode, Exceeded
from ktlsd.http2.header_table import STATIC, HeaderTable
from ktlsd.http2.hpack_decoder import BOMB_FACTOR, HuffmanCache, decode_block

STORIES = json.loads((Path(__file__).parent / "hpack_stories.json").read_text(encoding="utf-8"))
LIMIT = 65536


def decode(table: HeaderTable, block: bytes | str, most_bytes: int = LIMIT) -> tuple[list[Field], int, HeaderTable]:
    block = bytes.fromhex(block) if isinstance(block, str) else block
    return decode_block(table, block, HuffmanCache(), most_bytes)


def fields_of(text: str) -> list[Field]:
    """One field a line, as RFC 7541 writes them."""
    split = [(line[0] + name, value) for line in text.split("\n") for name, _, value in [line[1:].partition(": ")]]
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in split]


# --- RFC 7541 appendix C ---------------------------------------------------------------------------------------------

FIRST_GET = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com"
SECOND_GET = f"{FIRST_GET}\ncache-control: no-cache"
THIRD_GET = ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value"
FIRST_302 = (
    ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com"
)
SECOND_307 = FIRST_302.replace("302", "307")
COOKIE = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
THIRD_200 = (
    ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\nlocation: https://www.example.com\n"
    f"content-encoding: gzip\nset-cookie: {COOKIE}"
)
GET_TABLES = (
    ":authority: www.example.com",
    "cache-control: no-cache\n:authority: www.example.com",
    "custom-key: custom-value\ncache-control: no-cache\n:authority: www.example.com",
)
ANSWER_TABLES = (
    "location: https://www.example.com\ndate: Mon, 21 Oct 2013 20:13:21 GMT\ncache-control: private\n:status: 302",
    ":status: 307\nlocation: https://www.example.com\ndate: Mon, 21 Oct 2013 20:13:21 GMT\ncache-control: private",
    f"set-cookie: {COOKIE}\ncontent-encoding: gzip\ndate: Mon, 21 Oct 2013 20:13:22 GMT",
)


@pytest.mark.parametrize(
    ("capacity", "blocks", "lists", "tables", "sizes"),
    [
        (
            4096,
            ["400a637573746f6d2d6b65790d637573746f6d2d686561646572"],
            ["custom-key: custom-header"],
            ["custom-key: custom-header"],
            [55],
        ),
        (4096, ["040c2f73616d706c652f70617468"], [":path: /sample/path"], [""], [0]),
        (4096, ["100870617373776f726406736563726574"], ["password: secret"], [""], [0]),
        (4096, ["82"], [":method: GET"], [""], [0]),
        (
            4096,
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            [FIRST_GET, SECOND_GET, THIRD_GET],
            GET_TABLES,
            [57, 110, 164],
        ),
        (
            4096,
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            [FIRST_GET, SECOND_GET, THIRD_GET],
            GET_TABLES,
            [57, 110, 164],
        ),
        (
            256,
            [
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
                "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
                "4803333037c1c0bf",
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f"
                "3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076"
                "657273696f6e3d31",
            ],
            [FIRST_302, SECOND_307, THIRD_200],
            ANSWER_TABLES,
            [222, 222, 215],
        ),
        (
            256,
            [
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f"
                "0b97c8e9ae82ae43d3",
                "4883640effc1c0bf",
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335df"
                "dfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ],
            [FIRST_302, SECOND_307, THIRD_200],
            ANSWER_TABLES,
            [222, 222, 215],
        ),
    ],
    ids=["C.2.1", "C.2.2", "C.2.3", "C.2.4", "C.3", "C.4", "C.5", "C.6"],
)
def test_appendix_c(capacity: int, blocks: list[str], lists: list[str], tables: list[str], sizes: list[int]) -> None:
    table = HeaderTable(capacity=capacity)
    for block, expected, entries, size in zip(blocks, lists, tables, sizes, strict=True):
        fields, _, table = decode(table, block)
        assert fields == fields_of(expected)
        assert list(table.entries) == (fields_of(entries) if entries else [])
        assert table.size == size


# --- the second implementation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", STORIES["wires"])
def test_the_interoperability_stories(encoder: str) -> None:
    table = HeaderTable()
    for wire, headers in zip(STORIES["wires"][encoder], STORIES["headers"], strict=True):
        fields, _, table = decode(table, wire)
        assert fields == [(name.encode(), value.encode()) for name, value in headers]


NAMES = st.sampled_from([name for name, _ in STATIC] + [b"x-a", b"x-" + b"long" * 40])
VALUES = st.one_of(st.binary(max_size=12), st.sampled_from([value for _, value in STATIC] + [b"v" * 200, b"w" * 3000]))
LISTS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
TABLE_SIZES = st.sampled_from([None, None, 0, 64, 100, 1000, 4096])


@given(st.lists(st.tuples(LISTS, st.booleans(), TABLE_SIZES), max_size=6))
def test_what_hpack_encodes_comes_back(blocks: list[tuple[list[Field], bool, int | None]]) -> None:
    encoder = hpack.Encoder()
    table = HeaderTable()
    for fields, huffman, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(list(fields), huffman=huffman)
        found, list_bytes, table = decode(table, block)
        assert found == fields
        assert list_bytes == sum(len(name) + len(value) + 32 for name, value in fields)
        theirs = encoder.header_table
        assert table.entries == tuple(theirs.dynamic_entries)
        assert table.size == sum(len(name) + len(value) + 32 for name, value in table.entries) <= table.capacity


PIECES = st.sampled_from(
    [
        *(bytes((byte,)) for byte in (0x80, 0x82, 0xBE, 0xBF, 0xC8, 0xFE, 0xFF, 0x20, 0x21, 0x3F, 0x40, 0x41, 0x7E)),
        *(b"\x3f\xe1\x1f", b"\x3f\xe2\x1f", b"\x3f\x45", b"\x3f\x00", b"\x7f\x00", b"\x0f\x01", b"\x1f\x10", b"\x00"),
        *(
            b"\x01a",
            b"\x03x-b",
            b"\x00",
            b"\x82\x1f\xff",
            b"\x81\x1f",
            b"\x84\xff\xff\xff\xff",
            b"\x7f\x01" + b"c" * 128,
        ),
        *(b"\x40\x01a\x01b", b"\x41\x01c", b"\x04\x02/d", b"\x14\x02/e", b"\x10\x01f\x01g"),
    ]
)
ANY_BLOCKS = st.lists(st.one_of(PIECES, st.binary(max_size=4)), max_size=12).map(b"".join)


@given(st.lists(ANY_BLOCKS, min_size=1, max_size=4))
def test_any_blocks_are_judged_as_hpack_judges_them(blocks: list[bytes]) -> None:
    decoder = hpack.Decoder()
    table = HeaderTable()
    for block in blocks:
        try:
            expected = decoder.decode(block, raw=True)
        except HPACKError:
            with pytest.raises(ConnectionFault) as caught:
                decode(table, block)
            assert caught.value.code is ErrorCode.COMPRESSION_ERROR
            return
        try:
            fields, _, table = decode(table, block)
        except ConnectionFault as fault:
            # hpack takes integers of any length.
            if fault.reason == "an integer of too many bytes":
                return
            raise
        assert fields == [tuple(field) for field in expected]
        assert table.entries == tuple(decoder.header_table.dynamic_entries)


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_table_never_changes() -> None:
    _, _, first = decode(HeaderTable(), "4001610162")
    _, _, second = decode(first, "4001630164")
    assert first.entries == ((b"a", b"b"),)
    assert second.entries == ((b"c", b"d"), (b"a", b"b"))
    assert decode(second, "be")[2] is second


def test_a_table_keeps_the_newest_entries_that_fit() -> None:
    table = HeaderTable()
    _, _, table = decode(table, b"\x3f\x29" + b"".join(b"\x40\x01%c\x01v" % name for name in b"abcd"))
    assert table.capacity == 72
    assert table.entries == ((b"d", b"v"), (b"c", b"v"))
    assert table.size == 68


def test_an_entry_larger_than_the_table_empties_it() -> None:
    _, _, table = decode(HeaderTable(), b"\x3f\x29\x40\x01a\x01v")
    assert table.size == 34
    fields, _, table = decode(table, b"\x40\x01b\x28" + b"w" * 40)
    assert fields == [(b"b", b"w" * 40)]
    assert (table.entries, table.size, table.capacity) == ((), 0, 72)


def test_a_name_can_come_from_the_entry_that_its_field_evicts() -> None:
    # RFC 7541 section 4.4.
    _, _, table = decode(HeaderTable(), b"\x3f\x10\x40\x02xy\x01v")
    assert table.entries == ((b"xy", b"v"),)
    fields, _, table = decode(table, b"\x7e\x01w")
    assert fields == [(b"xy", b"w")]
    assert table.entries == ((b"xy", b"w"),)


def test_size_updates_begin_a_block() -> None:
    _, _, table = decode(HeaderTable(), "400161016282")
    _, _, table = decode(table, "203fe11f82")
    assert (table.entries, table.capacity) == ((), 4096)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("80", "index 0"),
        ("be", "not in the table"),
        ("ff80808000", "not in the table"),
        ("ff8080808000", "integer"),
        ("ffffffffff7f", "integer"),
        ("8220", "size update"),
        ("3fe21f", "size update"),
        ("3fffffffff7f", "integer"),
        ("ff", "cut short"),
        ("40", "cut short"),
        ("4001", "beyond the end"),
        ("400161", "cut short"),
        ("40016105", "beyond the end"),
        ("007fffffff7f", "beyond the end"),
        ("0081ff00", "padding"),
        ("0084ffffffff00", "EOS"),
        ("7e0161", "not in the table"),
    ],
)
def test_what_is_no_block_is_a_connection_error(block: str, reason: str) -> None:
    with pytest.raises(ConnectionFault, match=reason) as caught:
        decode(HeaderTable(), block)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR
    assert caught.value.exceeded is None


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_list_beyond_the_limit_is_decoded_but_not_kept() -> None:
    block = b"\x82" + b"\x40\x01a\x64" + b"v" * 100 + b"\xbe" * 3
    fields, list_bytes, table = decode(HeaderTable(), block, most_bytes=300)
    assert list_bytes == 42 + 4 * 133
    assert fields == [(b":method", b"GET"), (b"a", b"v" * 100)]
    assert len(table.entries) == 1


def test_a_bomb_ends_the_connection() -> None:
    entry = b"\x40\x01a\x7f\xc9\x1e" + b"v" * (0x7F + 0x49 + 0x1E * 128)
    _, size, table = decode(HeaderTable(), entry)
    assert table.size == size == 4073
    with pytest.raises(ConnectionFault) as caught:
        decode(table, b"\xbe" * (BOMB_FACTOR * LIMIT // size + 1))
    assert (caught.value.code, caught.value.exceeded) == (ErrorCode.ENHANCE_YOUR_CALM, Exceeded.HEADER_LIST)
    assert decode(table, b"\xbe" * (BOMB_FACTOR * LIMIT // size))[1] <= BOMB_FACTOR * LIMIT


def test_the_memory_of_strings_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpack_decoder, "MOST_STRING_BYTES", 1 << 20)
    strings = HuffmanCache()
    most = 0
    # 16 bits and no padding: three symbols of 5 and 6 bits, in all ways.
    five, six = [0b00000 + symbol for symbol in range(10)], [0b010100 + symbol for symbol in range(26)]
    for first in six:
        for second in five:
            for third in five:
                coded = (first << 10 | second << 5 | third).to_bytes(2)
                for times in range(1, 5):
                    strings.decode(coded * times)
                    most = max(most, strings.entries)
    # Each takes two objects of 33 bytes, its bytes and a place in the dictionary.
    assert 5_000 < most < 7_000
    assert 0 < strings.entries < most
    before = strings.entries
    strings.decode(b"\x00\x1f" * 200)
    assert strings.entries == before
