"""Merging response header fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.fields import Fields, add_vary, merge, without

TYPE = ("Content-Type", "text/html")


@pytest.mark.parametrize(
    ("fields", "names", "merged"),
    [
        ((), ("Origin",), (("Vary", "Origin"),)),
        ((TYPE,), ("Origin",), (TYPE, ("Vary", "Origin"))),
        ((("Vary", "Accept-Encoding"), TYPE), ("Origin",), (TYPE, ("Vary", "Accept-Encoding, Origin"))),
        ((("Vary", "origin"), TYPE), ("Origin",), (("Vary", "origin"), TYPE)),
        ((("vary", "a,b"), ("Vary", "B , c")), ("A", "d"), (("Vary", "a, b, c, d"),)),
        ((("Vary", "a"), ("Vary", "b")), (), (("Vary", "a, b"),)),
        ((("Vary", "*"),), ("Origin",), (("Vary", "*"),)),
        ((("Vary", "a"),), ("*",), (("Vary", "*"),)),
        ((), ("a, b", "b, c"), (("Vary", "a, b, c"),)),
        ((TYPE,), (), (TYPE,)),
    ],
)
def test_there_is_one_vary(fields: Fields, names: tuple[str, ...], merged: Fields) -> None:
    assert add_vary(fields, *names) == merged


@pytest.mark.parametrize(
    ("fields", "news", "result"),
    [
        ((TYPE,), (("content-type", "a/b"),), (("content-type", "a/b"),)),
        ((TYPE,), (("A", "1"), ("a", "2")), (TYPE, ("A", "1"), ("a", "2"))),
        ((("Vary", "A"), TYPE), (("vary", "B"),), (TYPE, ("Vary", "A, B"))),
        ((TYPE,), (), (TYPE,)),
    ],
)
def test_new_fields_take_the_place_of_old_ones(fields: Fields, news: Fields, result: Fields) -> None:
    assert merge(fields, news) == result


def test_names_are_dropped_in_any_case() -> None:
    assert without((TYPE, ("ETag", "1"), ("etag", "2")), {"etag"}) == (TYPE,)


NAMES = st.lists(st.sampled_from(["A", "a", "b", "c-d", "*"]))


@given(NAMES, NAMES)
def test_a_name_is_in_a_vary_once(first: list[str], second: list[str]) -> None:
    fields = add_vary(add_vary((), *first), *second)
    named = {name.lower() for name in (*first, *second)}
    members = [member for _, value in fields for member in value.lower().split(", ")]
    assert sorted(members) == (["*"] if "*" in named else sorted(named))
    assert add_vary(fields, *first) == fields
