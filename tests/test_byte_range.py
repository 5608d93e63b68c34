"""The Range field (RFC 9110 section 14): a table from the RFC, and a slow model that lists every byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.byte_range import ByteRange, Unsatisfiable, parse_range

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
    ],
)
def test_one_range_is_understood(value: str, offset: int, count: int) -> None:
    assert parse_range(value, 10000) == ByteRange(offset, count)


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
        "bytes=0-0,-1",
        "bytes=500-600,601-999",
        "bytes=0-0, bytes=1-1",
    ],
)
def test_what_is_not_one_range_of_bytes_is_ignored(value: str) -> None:
    assert parse_range(value, 10000) is None


@pytest.mark.parametrize("value", ["bytes=0-", "bytes=0-0", "bytes=1-", "bytes=-0"])
def test_an_empty_file_has_no_first_byte(value: str) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(value, 0)


@pytest.mark.parametrize("value", ["bytes=-1", f"bytes=-{MANY}"])
def test_a_suffix_of_an_empty_file_is_the_whole(value: str) -> None:
    """Satisfiable (section 14.1.2), but no Content-Range can say so: the whole goes out."""
    assert parse_range(value, 0) is None


@settings(deadline=None)
@given(digits(40), digits(40), st.integers(0, 30))
def test_every_range_is_what_the_model_lists(first: str, last: str, size: int) -> None:
    expected = model(first, last, size)
    try:
        part = parse_range(f"bytes={first}-{last}", size)
    except Unsatisfiable:
        assert expected == []
        return
    if part is None:
        assert expected is None or (size == 0 and first == "")
    else:
        assert list(range(part.offset, part.offset + part.count)) == expected


@settings(deadline=None)
@given(
    st.text() | st.builds("bytes={}-{}".format, digits(LARGEST_FILE * 100), digits(LARGEST_FILE * 100)),
    st.integers(0, LARGEST_FILE),
)
def test_a_range_never_reaches_outside_the_file(value: str, size: int) -> None:
    try:
        part = parse_range(value, size)
    except Unsatisfiable:
        return
    if part is not None:
        assert 0 <= part.offset < part.offset + part.count <= size


@settings(deadline=None)
@given(st.lists(st.integers(0, LARGEST_FILE), min_size=3, max_size=3, unique=True).map(sorted))
def test_a_content_range_asks_for_itself(numbers: list[int]) -> None:
    first, after, size = numbers
    part = ByteRange(first, after - first)
    unit, _, positions = part.content_range(size).partition(" ")
    interval, _, complete = positions.partition("/")
    assert complete == str(size)
    assert parse_range(f"{unit}={interval}", size) == part


def test_content_range_is_that_of_the_rfc() -> None:
    assert ByteRange(42, 1192).content_range(1234) == "bytes 42-1233/1234"
    assert ByteRange(0, 1).content_range(1) == "bytes 0-0/1"
