"""Content codings of pages that are made while they are sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.config.values import Coding
from ktlsd.site.decoders import unpack
from ktlsd.site.packing import CODINGS, is_text, packed, packed_fields


@pytest.mark.parametrize("coding", CODINGS)
@given(pieces=st.lists(st.binary(max_size=200), max_size=10))
def test_every_piece_has_one_and_all_come_back(coding: Coding, pieces: list[bytes]) -> None:
    made = list(packed(iter(pieces), coding))
    assert len(made) == len(pieces) + 1
    assert b"".join(unpack(coding, made)) == b"".join(pieces)


def test_as_it_is() -> None:
    assert list(packed(iter([b"a", b"", b"b"]), None)) == [b"a", b"", b"b"]


@pytest.mark.parametrize(("coding", "more"), [(None, {}), ("gzip", {"Content-Encoding": "gzip"})])
def test_fields(coding: Coding | None, more: dict[str, str]) -> None:
    found = packed_fields((("Content-Type", "text/html"), ("Vary", "Accept")), coding)
    assert dict(found) == {"Content-Type": "text/html", "Vary": "Accept, Accept-Encoding"} | more


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text/html; charset=utf-8", True),
        ("image/svg+xml", True),
        ("Application/JSON", True),
        ("application/wasm", True),
        ("application/octet-stream", False),
        ("image/png", False),
        ("application/zip", False),
    ],
)
def test_types(kind: str, expected: bool) -> None:
    assert is_text(kind) is expected
