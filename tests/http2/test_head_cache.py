"""Remembered header blocks: what they mean is what decoding them anew gives, and memory is bounded."""

from __future__ import annotations

import hpack
import hpack.hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http2 import head_cache
from ktlsd.http2.errors import ConnectionFault
from ktlsd.http2.head_cache import LONGEST_BLOCK, HeadCache
from ktlsd.http2.header_table import HeaderTable
from ktlsd.http2.hpack_decoder import decode_block
from ktlsd.http2.request_fields import SharedHead, request_head
from tests.http2.blocks import GET, encoded, literals, with_fields, without

LIMIT = 65536
PATH = b"\x04\x05/file"
START = b"\x82\x87"
"""GET and https."""
HOST = b"\x41\x0bexample.org"
"""Of :authority, with indexing."""


def test_a_block_is_decoded_once() -> None:
    cache = HeadCache(LIMIT)
    block = START + HOST + PATH
    shared, head, table = cache.decode(cache.root, block)
    assert (head.key, table.entries) == (b"GET /file", ((b":authority", b"example.org"),))
    assert cache.decode(cache.root, block) is cache.root.known[block]
    assert cache.root.known[block] == (shared, head, table)
    assert cache.root.known[block][1] is head
    assert cache.entries == 1


@pytest.mark.parametrize("kind", [b"\x04", b"\x14"], ids=["without indexing", "never indexed"])
def test_another_path_shares_all_but_the_path(kind: bytes) -> None:
    cache = HeadCache(LIMIT)
    first, _, table = cache.decode(cache.root, START + kind + b"\x02/a" + HOST)
    # The last is "/1" in Huffman code.
    for string, path in ((b"\x02/b", b"/b"), (b"\x03/cc", b"/cc"), (b"\x82\x60\x3f", b"/1")):
        block = START + kind + string + HOST
        shared, head, after = cache.decode(cache.root, block)
        assert shared is first
        assert after is table
        assert (head.target, head.key, head.of_fields) == (path, b"GET " + path, first.of_fields)
        # From then on it is remembered, so that what is derived from a head is derived once.
        assert cache.root.known[block][1] is head
    assert cache.entries == 4


def test_the_place_of_the_path_is_not_shared() -> None:
    cache = HeadCache(LIMIT)
    cache.decode(cache.root, START + b"\x04\x02/a" + HOST)
    assert cache.decode(cache.root, START + HOST + b"\x04\x02/a")[0].refused is None
    # A field before :path, which is an indexed one, and one after it.
    assert cache.decode(cache.root, START + b"\x04\x02/a\x90")[0].refused is None
    assert cache.decode(cache.root, START + b"\x90\x04\x02/a")[0].refused == "a pseudo-header field after another field"


def test_connections_with_equal_histories_share_tables() -> None:
    cache = HeadCache(LIMIT)
    tables = []
    for _ in range(2):
        encoder = hpack.Encoder()
        table = cache.root
        for number in range(4):
            block = encoded(with_fields((b"user-agent", b"x"), (b"a", b"%d" % number)), encoder)
            table = cache.decode(table, block)[2]
        tables.append(table)
    assert tables[0] is tables[1]
    assert cache.entries == 4


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([b"GET", b"HEAD", b"OPTIONS", b"CONNECT"]),
        st.sampled_from([b"/", b"/a", b"/b", b"/" + b"c" * 200, b"*", b"", b"d", b"/\xff", b"/index.html"]),
        st.sampled_from(
            [(), ((b"cookie", b"a=1"),), ((b"cookie", b"b" * 50),), ((b"A", b"x"),), ((b"a", b"x" * 1100),)]
        ),
        st.booleans(),
        st.sampled_from(["indexed", "path is a literal", "path first", "never indexed", "no path"]),
        st.sampled_from([None, None, None, 0, 4096]),
    ),
    max_size=12,
)


@given(st.lists(REQUESTS, min_size=1, max_size=3))
def test_what_is_remembered_is_what_decoding_gives(connections: list[list[tuple[object, ...]]]) -> None:
    cache = HeadCache(1200)
    for requests in connections:
        encoder = hpack.Encoder()
        table = cache.root
        plain = HeaderTable()
        for method, path, more, huffman, how, size in requests:
            assert isinstance(method, bytes)
            assert isinstance(path, bytes)
            assert isinstance(more, tuple)
            if isinstance(size, int):
                encoder.header_table_size = size
            start = [(b":method", method), (b":scheme", b"https")]
            literal = hpack.NeverIndexedHeaderTuple(b":path", path)
            rest = [(b":authority", b"example.org"), *more]
            fields = {
                "indexed": [*start, (b":path", path), *rest],
                "path is a literal": [*start, literal, *rest],
                "path first": [literal, *start, *rest],
                "never indexed": [*start, literal, *(hpack.NeverIndexedHeaderTuple(*field) for field in rest)],
                "no path": [*start, *rest],
            }[str(how)]
            block = encoder.encode(fields, huffman=bool(huffman))
            expected_fields, list_bytes, plain = decode_block(plain, block, cache.strings, cache.most_list_bytes)
            shared, head, table = cache.decode(table, block)
            assert (table.entries, table.capacity, table.size) == (plain.entries, plain.capacity, plain.size)
            assert shared.too_large == (list_bytes > cache.most_list_bytes)
            if not shared.too_large:
                expected, expected_head = request_head(expected_fields, list_bytes, cache.checks)
                assert without_size(shared) == without_size(expected)
                assert (head.key, head.headers) == (expected_head.key, expected_head.headers)


def without_size(shared: SharedHead) -> tuple[object, ...]:
    of_fields = shared.of_fields
    fields = of_fields.fields, of_fields.values, of_fields.alone
    return shared.method, shared.scheme, fields, shared.content_length, shared.priority, shared.refused


@pytest.mark.parametrize(
    "block",
    [
        START * 200 + PATH,
        START + b"\x04",
        START + b"\x04\x05/fi",
        START + b"\x04\xff\xff\xff\xff\xff",
        START + b"\x04\x81\x00",
        START + b"\x04\x84\xff\xff\xff\xff",
        b"\xbe" + PATH,
        b"\x04\x7f\x00" + b"/" * 127,
        b"",
    ],
)
def test_odd_blocks_mean_what_decoding_gives(block: bytes) -> None:
    cache = HeadCache(LIMIT)
    cache.decode(cache.root, START + PATH)
    try:
        expected, _, _ = decode_block(cache.root, block, cache.strings, LIMIT)
    except ConnectionFault as fault:
        with pytest.raises(ConnectionFault, match=str(fault)):
            cache.decode(cache.root, block)
    else:
        assert (cache.decode(cache.root, block)[0].refused is None) == (len(expected) == 3)


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_large_block_is_not_remembered() -> None:
    cache = HeadCache(LIMIT)
    block = literals(GET) + literals([(b"a", b"x" * 100)]) * 12
    assert len(block) > LONGEST_BLOCK
    cache.decode(cache.root, block)
    assert cache.entries == 0


def test_a_malformed_head_is_remembered_but_shares_nothing() -> None:
    cache = HeadCache(LIMIT)
    block = literals(without(b":scheme"))
    assert cache.decode(cache.root, block)[0].refused is not None
    assert cache.decode(cache.root, block)[0] is cache.root.known[block][0]
    start = START + PATH + b"\x00\x01A\x00"
    assert cache.decode(cache.root, start)[0].refused is not None
    assert not cache.root.known_rests


def test_a_path_does_not_bring_a_shared_head_beyond_the_limit() -> None:
    cache = HeadCache(400)
    for size in (1, 100, 200, 120):
        path = b"/" * size
        block = START + b"\x04" + (b"%c" % size if size < 127 else b"\x7f%c" % (size - 127)) + path + HOST
        head, _, _ = cache.decode(cache.root, block)
        assert head.too_large == (10 + 12 + 5 + size + 21 + 4 * 32 > 400)


def test_a_path_in_huffman_code_is_as_long_as_what_it_means() -> None:
    """1,000 bytes of a block that become 1,600: the limit holds for these."""
    cache = HeadCache(2000)
    others = 10 + 12 + 5 + 21 + 4 * 32
    for size in (1, 1600, 2000 - others, 2001 - others, 1):
        code = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(b"/" + b"a" * (size - 1))
        assert len(code) > 300 or size == 1
        length = b"%c" % (0x80 | len(code)) if size == 1 else b"\xff" + hpack.hpack.encode_integer(len(code), 7)[1:]
        block = START + b"\x04" + length + code + HOST
        head, _, _ = cache.decode(cache.root, block)
        assert head.too_large == (others + size > 2000)


def test_all_is_dropped_when_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_cache, "MOST_ENTRIES", 10)
    cache = HeadCache(LIMIT)
    root = cache.root
    # A connection that stays holds its table; what that remembers goes as well.
    held = cache.decode(root, START + HOST + PATH)[2]
    for table, name in ((held, b"a"), (root, b"b")):
        for number in range(5):
            cache.decode(table, START + PATH + b"\x00\x01%b\x01%d" % (name, number))
    assert cache.entries == 1
    assert cache.root is not root
    assert not held.known
    assert not held.known_rests


def test_heavy_entries_are_fewer() -> None:
    cache = HeadCache(1 << 20)
    # Each stands for a list of 58 kB, of few bytes.
    table = cache.decode(cache.root, b"\x40\x01a\x7f\x81\x1d" + b"v" * 3840)[2]
    for number in range(400):
        cache.decode(table, START + b"\xbe" * 15 + b"\x00\x01n\x03%03d" % number)
        assert cache.entries <= head_cache.MOST_WEIGHT // (4 * 58_000)


def test_memory_of_hostile_blocks_is_bounded() -> None:
    cache = HeadCache(LIMIT)
    tables = []
    table = cache.root
    for number in range(20_000):
        # Every block is new, changes the table, and is held by a connection of its own.
        table = cache.decode(table, START + PATH + b"\x40\x01a\x06%06d" % number)[2]
        tables.append(table)
        if number % 100 == 0:
            table = cache.root
    assert cache.entries <= head_cache.MOST_ENTRIES
    assert sum(len(one.known) + len(one.known_rests) for one in [*tables, cache.root]) <= 2 * head_cache.MOST_ENTRIES
