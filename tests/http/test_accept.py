"""The Accept field: JSON or HTML, and whether HTML is named at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.accept import LONGEST, accepts_anything, names_a_page, preference, wants_json


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/json", True),
        ("APPLICATION/JSON", True),
        ("application/json, text/plain, */*", True),
        ("application/json;q=0.5, */*;q=0.5", True),
        ("application/json;q=0.4, */*;q=0.5", False),
        ("application/*", True),
        ("application/*, text/html;q=0.9", True),
        ("application/json, text/html", False),
        ("application/json;q=0.9, text/html", False),
        ("application/json, text/html ; q=0.9", True),
        ("application/json;q=0", False),
        ("application/json;q=0, text/html;q=0", False),
        ("application/json;charset=utf-8;q=0.8, text/html;q=0.7", True),
        ('text/html;x="a,application/json"', False),
        ("image/png", False),
        ('"', False),
    ],
)
def test_accept(accept: str | None, expected: bool) -> None:
    assert wants_json(accept) is expected


@pytest.mark.parametrize(
    ("accept", "page", "anything"),
    [
        (None, False, True),
        ("", False, True),
        ("*/*", False, True),
        ("text/html,*/*;q=0.8", True, False),
        ("application/xhtml+xml", True, False),
        ("text/html;q=0, */*", False, False),
        ("text/*", False, False),
        ("text/css,*/*;q=0.1", False, False),
        ("text/html," + "x" * LONGEST, False, False),
    ],
)
def test_a_page_or_anything(accept: str | None, page: bool, anything: bool) -> None:
    assert (names_a_page(accept), accepts_anything(accept)) == (page, anything)


@given(st.text(max_size=60))
def test_any_text_has_a_preference(accept: str) -> None:
    weight, exactness = preference(accept, "text/html")
    assert 0 <= weight < 2
    assert exactness in (0, 1, 2)
