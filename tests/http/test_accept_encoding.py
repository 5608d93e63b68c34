"""Accept-Encoding (RFC 9110 section 12.5.3): a table from the RFC and from what browsers send, and a slow model."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.config.values import Coding
from ktlsd.http.accept_encoding import LONGEST, SUFFIXES, preferred
from tests.http.test_validators import processor_seconds

ALL: tuple[Coding, ...] = ("zstd", "br", "gzip")


def test_every_coding_has_a_suffix() -> None:
    assert SUFFIXES == {"zstd": b".zst", "br": b".br", "gzip": b".gz"}
    assert set(SUFFIXES) == set(get_args(Coding))


@pytest.mark.parametrize(
    ("field", "codings", "identity"),
    [
        # Absent: anything goes, and the plain representation is sent; empty: nothing else.
        (None, "", True),
        ("", "", True),
        (" ", "", True),
        (",", "", True),
        # Browsers and tools.
        ("gzip, deflate, br, zstd", "zstd br gzip", True),
        ("gzip, deflate, br", "br gzip", True),
        ("gzip, deflate", "gzip", True),
        ("identity", "", True),
        ("deflate", "", True),
        # The examples of section 12.5.3.
        ("compress, gzip", "gzip", True),
        ("*", "zstd br gzip", True),
        ("compress;q=0.5, gzip;q=1.0", "gzip", True),
        ("gzip;q=1.0, identity; q=0.5, *;q=0", "gzip", True),
        # Weights, with the server's order among equals.
        ("gzip;q=1, br;q=0.9, zstd;q=0.8", "gzip br zstd", True),
        ("zstd;q=0.5, br;q=0.501, gzip;q=0.5", "br zstd gzip", True),
        ("gzip;q=0.001", "gzip", True),
        ("gzip;q=0", "", True),
        ("gzip;q=0.000, br", "br", True),
        ("br;q=1.000", "br", True),
        ("br;q=1.", "br", True),
        ("br;q=0.", "", True),
        ("*;q=0.5, gzip", "gzip zstd br", True),
        ("*, gzip;q=0", "zstd br", True),
        ("*;q=0, br", "br", False),
        # The plain representation: the last resort, unless it is refused or liked better.
        ("identity;q=0", "", False),
        ("identity;q=0, gzip", "gzip", False),
        ("*;q=0", "", False),
        ("*;q=0, identity;q=0.1", "", True),
        ("identity;q=0, *", "zstd br gzip", False),
        ("identity, gzip", "gzip", True),
        ("identity, gzip;q=0.5", "", True),
        ("identity;q=0.5, gzip;q=0.5, br;q=0.4", "gzip", True),
        # Case, spaces, empty elements, the old name.
        ("GZIP;Q=0.5, Br", "br gzip", True),
        ("x-gzip", "gzip", True),
        ("X-GZip;q=0", "", True),
        ("gzip \t; \tq=0.5,br", "br gzip", True),
        (",, gzip ,\t,", "gzip", True),
        # The first of several with one coding.
        ("gzip;q=0, gzip", "", True),
        ("gzip, x-gzip;q=0", "gzip", True),
        # Malformed members are ignored, the others count.
        ("br;q=2, gzip", "gzip", True),
        ("br;q=1.001, gzip", "gzip", True),
        ("br;q=0.1234, gzip", "gzip", True),
        ("br;q=.5, gzip", "gzip", True),
        ("br;q=-1, gzip", "gzip", True),
        ("br;q=, gzip", "gzip", True),
        ("br;q, gzip", "gzip", True),
        ("br;, gzip", "gzip", True),
        ("br;q =0.5, gzip", "gzip", True),
        ("br;q= 0.5, gzip", "gzip", True),
        ("br;level=5, gzip", "gzip", True),
        ("br;q=1;q=1, gzip", "gzip", True),
        ("br zstd, gzip", "gzip", True),
        ('"br", gzip', "gzip", True),
        ("br/1, gzip", "gzip", True),
        ("br;q=\u0661, gzip", "gzip", True),
        ("\xa0br, gzip", "gzip", True),
        ("*;q=x", "", True),
        ("identity;q=zero, gzip", "gzip", True),
        ("gzipped, brotli, br2", "", True),
    ],
)
def test_what_a_client_takes(field: str | None, codings: str, identity: bool) -> None:
    assert preferred(field, ALL) == (tuple(codings.split()), identity)


@pytest.mark.parametrize(
    ("available", "codings"),
    [((), ()), (("gzip",), ("gzip",)), (("gzip", "br"), ("gzip", "br")), (("br", "gzip"), ("br", "gzip"))],
)
def test_only_what_there_is_in_the_servers_order(available: tuple[Coding, ...], codings: tuple[Coding, ...]) -> None:
    assert preferred("br, zstd, gzip", available) == (codings, True)


WEIGHT = st.none() | st.integers(0, 1000)
NAMES = ["gzip", "br", "zstd", "identity", "*", "deflate"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), WEIGHT), st.permutations(ALL))
def test_every_field_is_weighed_as_the_model_does(members: dict[str, int | None], available: list[Coding]) -> None:
    field = ", ".join(
        name if weight is None else f"{name};q={weight // 1000}.{weight % 1000:03}" for name, weight in members.items()
    )
    weights = {name: 1000 if weight is None else weight for name, weight in members.items()}
    plain = weights.get("identity", 0)
    taken = {coding: weights.get(coding, weights.get("*", 0)) for coding in available}
    expected = [
        coding
        for level in range(1000, 0, -1)
        for coding in available
        if taken[coding] == level and taken[coding] >= plain
    ]
    refused = weights.get("identity") == 0 or ("identity" not in weights and weights.get("*") == 0)
    assert preferred(field, tuple(available)) == (tuple(expected), not refused)


@settings(deadline=None)
@given(st.text() | st.text("gzipbr;q=01.*, \t"))
def test_no_text_breaks_the_negotiation(field: str) -> None:
    codings, _ = preferred(field, ALL)
    assert set(codings) <= set(ALL)
    assert len(codings) == len(set(codings))


def test_a_very_long_field_counts_as_empty() -> None:
    field = "gzip" + "," * (LONGEST - 4)
    assert preferred(field, ALL) == (("gzip",), True)
    assert preferred(field + ",", ALL) == ((), True)


@pytest.mark.parametrize("member", ["a", "br;", "br ", "br\t;\t", "q=0.", ",", "br;q=0.5 "])
def test_a_field_costs_time_in_proportion_to_its_length(member: str) -> None:
    """1000 fields, each of the greatest length that is read."""
    with processor_seconds(1):
        for number in range(1000):
            preferred((f"{number}," + member * LONGEST)[: LONGEST - 1] + "!", ALL)
