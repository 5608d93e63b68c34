"""Lifetimes of files in caches."""

from __future__ import annotations

import pytest

from ktlsd.http.lifetimes import Lifetime, parse_lifetime


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [
        ("7d", Lifetime(604_800, False)),
        ("0s", Lifetime(0, False)),
        ("1h30m", Lifetime(5_400, False)),
        ("1y2w3d4h5m6s", Lifetime(31_536_000 + 1_209_600 + 259_200 + 14_400 + 306, False)),
        ("modified+1w", Lifetime(604_800, True)),
    ],
)
def test_a_lifetime(text: str, lifetime: Lifetime) -> None:
    assert parse_lifetime(text) == lifetime


@pytest.mark.parametrize("text", ["69y", "999999999y", "modified+68y40d", "999999999s999999999s999999999s"])
def test_a_lifetime_that_no_cache_can_count(text: str) -> None:
    with pytest.raises(ValueError, match="is more than 2147483647 seconds"):
        parse_lifetime(text)
