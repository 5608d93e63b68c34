"""Extensible priorities (RFC 9218 section 4): the priority field's value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http2.priority import DEFAULT, Priority, parse_priority


@pytest.mark.parametrize(
    ("value", "urgency", "incremental"),
    [
        ("", 3, False),
        ("u=0", 0, False),
        ("u=7", 7, False),
        ("i", 3, True),
        ("i=?1", 3, True),
        ("i=?0", 3, False),
        ("u=5, i", 5, True),
        ("i,u=5", 5, True),
        ("  u=5\t ,\ti  ", 5, True),
        # unknown parameters, and parameters of parameters
        ('u=1, x="a, u=2;\\"", i', 1, True),
        ("u=1;a;b=1.5, y=(u;i=1 2), i;q=:YQ==:", 1, True),
        ('u=1, x=@17, z=%"%c3", t=a/b:c, *k=?0, l=( 1  2.5;p ), m=()', 1, False),
        # out of range, or of another type
        ("u=8", 3, False),
        ("u=-1", 3, False),
        ("u=1.0", 3, False),
        ("u=?1", 3, False),
        ("u", 3, False),
        ("u=(1)", 3, False),
        ("i=1", 3, False),
        ("i=yes", 3, False),
        # the last counts
        ("u=1, u=2", 2, False),
        ("u=1, u=9", 3, False),
        ("i, i=?0", 3, False),
        ("u=007", 7, False),
        ("u=-0", 0, False),
        ("u=-00;a", 0, False),
        ("u=-01", 3, False),
    ],
)
def test_a_value(value: str, urgency: int, incremental: bool) -> None:
    assert parse_priority(value.encode("ascii")) == Priority(urgency, incremental)


@pytest.mark.parametrize(
    "value",
    [
        *("u=1,", ",u=1", "u=1,,i", "u=1 i", "u = 1", "u=", "U=1", "=1", "1", "u=1;", "u=(1", 'u="', 'u="\\a"', "i=?2"),
        *("u=1, \xe4", "u=1\n", "\tu=1", "a=:b", "u=1234567890123456", "u=1.2345", "a=(1,2)", "x" * 257, "\0", "a=@"),
    ],
)
def test_what_is_no_dictionary_counts_for_nothing(value: str) -> None:
    assert parse_priority(value.encode("latin-1")) is None


PIECES = st.sampled_from(
    ["u", "i", "=", "1", "9", "?1", ",", " ", ";", "a", "(", ")", '"', "\\", ":", "*", "-", ".", "\t", "\xff"]
)


@given(st.lists(PIECES, max_size=16).map("".join))
def test_any_value_gives_a_priority_or_none(value: str) -> None:
    priority = parse_priority(value.encode("latin-1"))
    assert priority is None or 0 <= priority.urgency <= 7
    if priority not in (None, DEFAULT):
        assert "u" in value or "i" in value


def test_a_value_made_to_take_long() -> None:
    # Each ends soon or the test run does not.
    for piece in ("a=", "a,", "(", "( ", "((", "a=( ", ";a", "1", '"\\"', "a=(1 ", " ", "a;", "a=1;b "):
        parse_priority((piece * 256)[:256].encode("ascii"))
