"""Empty lines before a request line: whole ones go, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.http.empty_lines import HALF, EmptyLines, from_request_line


@pytest.mark.parametrize(
    ("received", "rest"),
    [
        (b"", b""),
        (b"GET", b"GET"),
        (b"\r\n", b""),
        (b"\r\n\r\nGET /\r\n\r\n", b"GET /\r\n\r\n"),
        (b"\r", HALF),
        (b"\r\n\r", HALF),
        (b"\r\r\n", b"\r\r\n"),
        (b"\r\n\rG", b"\rG"),
        (b"\n", b"\n"),
        (b"\r\n\n", b"\n"),
        (b"\n\r\n", b"\n\r\n"),
        (b" \r\n", b" \r\n"),
    ],
)
def test_only_whole_empty_lines_go(received: bytes, rest: bytes) -> None:
    assert from_request_line(received) == rest


@settings(deadline=None)
@given(st.text("\r\nG").map(str.encode))
def test_it_is_what_a_loop_finds(received: bytes) -> None:
    rest = received
    while rest[:2] == b"\r\n":
        rest = rest[2:]
    assert from_request_line(received) == rest


@settings(deadline=None)
@given(st.lists(st.text("\r\nG").map(str.encode)))
def test_pieces_come_to_the_same_as_the_whole(received: list[bytes]) -> None:
    lines, rest = EmptyLines(), b""
    for number, piece in enumerate(received):
        rest = lines.without_them(lines.joined(piece))
        if rest:
            # From a request line on nothing is removed.
            rest += b"".join(received[number + 1 :])
            break
    whole = from_request_line(b"".join(received))
    assert (rest or HALF if lines.half else rest) == whole
