"""The Range field (RFC 9110 section 14): tables from the RFC, and a slow model that lists every byte."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.http.byte_range import MOST_RANGES, PART_OVERHEAD, ByteRange, Unsatisfiable, parse_range
from tests.http.test_validators import processor_seconds

MANY = "9" * 10_000
"""More digits than int() takes."""

LARGEST_FILE = 2**63 - 1


def digits(largest: int) -> st.SearchStrategy[str]:
    """A number as a client may write it: absent, or with leading zeros."""
    numbers = st.builds(lambda zeros, number: "0" * zeros + str(number), st.integers(0, 3), st.integers(0, largest))
    return st.just("") | numbers


def model(first: str, last: str, size: int) -> list[int] | None:
    """The positions that first-last names, one by one; None for what is no range. Empty: unsatisfiable."""
    positions = list(range(size))
    if first == "":
        return None if last == "" else positions[max(size - int(last), 0) :]
    if last != "" and int(last) < int(first):
        return None
    return [position for position in positions if position >= int(first) and (last == "" or position <= int(last))]


@pytest.mark.parametrize(
    ("value", "offset", "count"),
    [
        # The examples of section 14.1.2, for a representation of 10000 bytes.
        ("bytes=0-499", 0, 500),
        ("bytes=500-999", 500, 500),
        ("bytes=-500", 9500, 500),
        ("bytes=9500-", 9500, 500),
        ("bytes=0-0", 0, 1),
        ("bytes=-1", 9999, 1),
        ("bytes=9999-9999", 9999, 1),
        ("bytes=0-", 0, 10000),
        # A last position at or past the end means the end; so does a suffix longer than the whole.
        ("bytes=9999-10000", 9999, 1),
        ("bytes=0-10000", 0, 10000),
        ("bytes=-10000", 0, 10000),
        ("bytes=-10001", 0, 10000),
        ("bytes=00000000000000000000000001-0000000000000000000000002", 1, 2),
        (f"bytes=5-{MANY}", 5, 9995),
        (f"bytes=-{MANY}", 0, 10000),
        (f"bytes=-{MANY[:4301]}", 0, 10000),
        ("bytes=" + "0" * 10_000 + "7-7", 7, 1),
        # Range unit names are case-insensitive (section 14.1).
        ("BYTES=1-2", 1, 2),
        ("Bytes=1-2", 1, 2),
        ("bytes=1-2 \t", 1, 2),
        # Empty elements of a list are no elements (section 5.6.1.2).
        ("bytes=, 1-2 ,,", 1, 2),
    ],
)
def test_one_range_is_understood(value: str, offset: int, count: int) -> None:
    assert parse_range(value, 10000) == (ByteRange(offset, count),)


@pytest.mark.parametrize(
    "value",
    [
        "bytes=10000-",
        "bytes=10000-10000",
        "bytes=10000-20000",
        "bytes=-0",
        "bytes=-000",
        f"bytes={MANY}-",
        f"bytes={MANY}-{MANY}0",
        "bytes=10000-,-0, 20000-30000",
    ],
)
def test_a_range_without_a_byte_of_the_file_is_unsatisfiable(value: str) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(value, 10000)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=--1",
        "bytes=1",
        "bytes=1-2-3",
        "bytes=2-1",
        f"bytes={MANY}-1",
        f"bytes={MANY}2-{MANY}1,0-0",
        f"bytes={MANY}00-{MANY}0,0-0",
        "bytes=+1-2",
        "bytes=0x1-2",
        "bytes=1 -2",
        "bytes=1- 2",
        "bytes =1-2",
        " bytes=1-2",
        "bytes=1-2\n",
        "bytes=a-b",
        "bytes=\u0661-\u0662",
        "bytes=\xb2-",
        "bytes:1-2",
        "octets=1-2",
        "items=1-2",
        "bytes=0-0, bytes=1-1",
        # One that is none spoils the set.
        "bytes=0-0,x",
        "bytes=0-0,5-4",
        "bytes=0-0 5-6",
        "bytes=0-0;5-6",
        "bytes=20000-,-",
        "bytes=,",
        "bytes= ,\t,",
    ],
)
def test_what_is_no_set_of_byte_ranges_is_ignored(value: str) -> None:
    assert parse_range(value, 10000) == ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0,-1", [(0, 1), (9999, 1)]),
        ("bytes= 0-999, 4500-5499, -1000", [(0, 1000), (4500, 1000), (9000, 1000)]),
        # The order is the client's (section 15.3.7.2).
        ("bytes=-1,5000-5001,0-0", [(9999, 1), (5000, 2), (0, 1)]),
        # What cannot be satisfied is left out.
        ("bytes=20000-,0-0,-0,10000-10000,5000-5000", [(0, 1), (5000, 1)]),
        ("bytes=20000-,7-8", [(7, 2)]),
        # What overlaps, touches or nearly does is sent once. The examples of section 14.1.2 are the first two.
        ("bytes=500-600,601-999", [(500, 500)]),
        ("bytes=500-700,601-999", [(500, 500)]),
        ("bytes=601-999,500-700", [(500, 500)]),
        ("bytes=0-,0-,0-,0-", [(0, 10000)]),
        ("bytes=100-200,0-9999", [(0, 10000)]),
        (f"bytes=0-0,{PART_OVERHEAD}-{PART_OVERHEAD}", [(0, PART_OVERHEAD + 1)]),
        (f"bytes=0-0,{PART_OVERHEAD + 1}-", [(0, 1), (PART_OVERHEAD + 1, 9999 - PART_OVERHEAD)]),
        # A short one within a long one does not shorten it.
        ("bytes=0-999,10-20,1050-1060", [(0, 1061)]),
        # Joined ones stand where the first of them stood.
        ("bytes=5000-5001,0-0,5002-5003", [(5000, 4), (0, 1)]),
        ("bytes=5002-5003,0-0,5000-5001", [(5000, 4), (0, 1)]),
    ],
)
def test_a_set_of_ranges(value: str, expected: list[tuple[int, int]]) -> None:
    assert parse_range(value, 10000) == tuple(ByteRange(*part) for part in expected)


def test_as_many_ranges_are_taken_as_zckdl_asks_for() -> None:
    members = ",".join(f"{1000 * number}-{1000 * number}" for number in range(255))
    assert len(parse_range(f"bytes={members}", 1_000_000)) == 255


def test_a_set_may_have_so_many_ranges_and_no_more() -> None:
    members = [f"{1000 * number}-{1000 * number}" for number in range(MOST_RANGES + 1)]
    taken = parse_range("bytes=" + ",".join(members[:-1]), 1_000_000)
    assert [part.offset for part in taken] == [1000 * number for number in range(MOST_RANGES)]
    assert parse_range("bytes=" + ",".join(members), 1_000_000) == ()


@pytest.mark.parametrize(
    "rest",
    ["," * 30_000, ", " * 15_000, " \t" * 15_000, "0-," * 10_000, "0" * 30_000, "-" * 30_000, "0-0" * 10_000],
    ids=["commas", "commas and spaces", "spaces", "ranges", "digits", "hyphens", "ranges without commas"],
)
@pytest.mark.parametrize("end", ["", "x"])
def test_a_set_costs_time_in_proportion_to_its_length(rest: str, end: str) -> None:
    with processor_seconds(0.2):
        assert parse_range(f"bytes={rest}{end}", 10000) == ()


@pytest.mark.parametrize(
    "value",
    ["bytes=0-", "bytes=0-0", "bytes=1-", "bytes=-0", "bytes=-00,0-", "bytes=-1", f"bytes=-{MANY}", "bytes=0-,-1", "x"],
)
def test_a_range_of_an_empty_file_is_ignored(value: str) -> None:
    """nginx with slices asks for a range on behalf of clients that asked for none, and hands a 416 on to them."""
    assert parse_range(value, 0) == ()


@settings(deadline=None)
@given(digits(40), digits(40), st.integers(0, 30))
def test_every_range_is_what_the_model_lists(first: str, last: str, size: int) -> None:
    expected = model(first, last, size)
    try:
        parts = parse_range(f"bytes={first}-{last}", size)
    except Unsatisfiable:
        assert expected == []
        assert size > 0
        return
    if not parts:
        assert expected is None or size == 0
    else:
        assert [list(range(part.offset, part.end)) for part in parts] == [expected]


@settings(deadline=None)
@given(st.lists(st.tuples(digits(5000), digits(5000)), min_size=1, max_size=8), st.integers(1, 4000))
def test_a_set_has_every_byte_asked_for_once_and_little_else(pairs: list[tuple[str, str]], size: int) -> None:
    listed = [model(first, last, size) for first, last in pairs]
    asked: set[int] = set().union(*(positions or () for positions in listed))
    try:
        parts = parse_range("bytes=" + ",".join(f"{first}-{last}" for first, last in pairs), size)
    except Unsatisfiable:
        assert None not in listed
        assert not asked
        return
    if None in listed:
        assert parts == ()
        return
    sent = [position for part in parts for position in range(part.offset, part.end)]
    assert len(sent) == len(set(sent)) <= size
    assert asked <= set(sent)
    ascending = sorted(parts, key=lambda part: part.offset)
    assert all(after.offset - before.end >= PART_OVERHEAD for before, after in itertools.pairwise(ascending))
    filled = sorted(asked)
    gaps = sum(after - before - 1 for before, after in itertools.pairwise(filled) if after - before <= PART_OVERHEAD)
    assert len(sent) == len(asked) + gaps
    # Each part comes no later than the first member that is in it asks for.
    firsts = [
        next(n for n, found in enumerate(listed) if found and part.offset <= found[0] < part.end) for part in parts
    ]
    assert firsts == sorted(firsts)


@settings(deadline=None)
@given(
    st.text() | st.builds("bytes={}-{},{}-{}".format, *[digits(LARGEST_FILE * 100)] * 4),
    st.integers(0, LARGEST_FILE),
)
def test_a_range_never_reaches_outside_the_file(value: str, size: int) -> None:
    try:
        parts = parse_range(value, size)
    except Unsatisfiable:
        return
    assert sum(part.count for part in parts) <= size
    for part in parts:
        assert 0 <= part.offset < part.offset + part.count <= size


@settings(deadline=None)
@given(st.lists(st.integers(0, LARGEST_FILE), min_size=3, max_size=3, unique=True).map(sorted))
def test_a_content_range_asks_for_itself(numbers: list[int]) -> None:
    first, after, size = numbers
    part = ByteRange(first, after - first)
    unit, _, positions = part.content_range(size).partition(" ")
    interval, _, complete = positions.partition("/")
    assert complete == str(size)
    assert parse_range(f"{unit}={interval}", size) == (part,)


def test_content_range_is_that_of_the_rfc() -> None:
    assert ByteRange(42, 1192).content_range(1234) == "bytes 42-1233/1234"
    assert ByteRange(0, 1).content_range(1) == "bytes 0-0/1"
