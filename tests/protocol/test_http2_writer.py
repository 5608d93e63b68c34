"""Heads of responses of HTTP/2 are what the encoder of header blocks makes of their fields."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http2.hpack_encoder import encode
from ktlsd.protocol import http2_writer as writer

NAMES = st.sampled_from(["Content-Type", "ETag", "Set-Cookie", "X-Own", "Server", "x" * 200])
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=400)


@given(st.sampled_from(HTTPStatus), st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_a_head_is_a_block_of_its_fields(status: HTTPStatus, fields: list[tuple[str, str]]) -> None:
    lower = [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in fields]
    assert writer.beginning(status, tuple(fields)) == encode([(b":status", b"%d" % status), *lower])


@pytest.mark.parametrize("value", ["/a\r\nSet-Cookie: b", "/a\n", "/a\r", "/a\0b", "/ä", "/\u20ac"])
def test_a_line_end_is_never_written(value: str) -> None:
    with pytest.raises(ValueError, match="a line end in the fields"):
        writer.beginning(HTTPStatus.OK, (("Location", value),))
    with pytest.raises(ValueError, match="ascii"):
        writer.beginning(HTTPStatus.OK, (("Location-ä", "/"),))
