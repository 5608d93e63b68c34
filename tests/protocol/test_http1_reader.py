"""Heads through h11: which bytes become requests, in whatever pieces they come, and which are refused."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.http.empty_lines import EmptyLines
from ktlsd.protocol.http1_reader import HeadReader

MOST = 200
HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


def reader(received: bytes = b"") -> HeadReader:
    made = HeadReader(MOST, EmptyLines())
    made.receive(received)
    return made


@settings(deadline=None)
@given(st.lists(st.integers(0, len(HEAD)), max_size=5).map(sorted))
def test_a_head_in_pieces_is_the_same_request(cuts: list[int]) -> None:
    made = HeadReader(MOST, EmptyLines())
    request = None
    for start, end in zip([0, *cuts], [*cuts, len(HEAD)], strict=True):
        if start < end:
            made.receive(HEAD[start:end])
            assert made.begins() or request is h11.NEED_DATA
            request = made.next_request()
            assert (request is h11.NEED_DATA) is (end < len(HEAD))
    assert isinstance(request, h11.Request)
    assert (request.target, made.head) == (b"/a", HEAD)


def test_empty_lines_before_a_head_are_no_part_of_it() -> None:
    made = reader(b"\r\n\r\n" + HEAD + b"rest")
    assert made.begins()
    assert isinstance(made.next_request(), h11.Request)
    assert made.head == HEAD


def test_empty_lines_alone_begin_nothing() -> None:
    made = reader(b"\r\n\r")
    assert not made.begins()
    assert made.http.trailing_data == (b"", False)


def test_the_end_of_the_stream_is_no_request() -> None:
    made = reader()
    made.receive(b"")
    assert made.next_request() is None


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /a HTTP/1.1\nHost: a\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: a\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", 400),
        (b"nothing\r\n\r\n", 400),
        (b"GET /" + b"a" * MOST, 414),
        (HEAD.removesuffix(b"\r\n") + b"A: " + b"a" * MOST, 431),
        (HEAD.removesuffix(b"\r\n") + b"A: " + b"a" * MOST + b"\r\n\r\n", 431),
    ],
)
def test_a_head_that_others_may_read_otherwise_or_that_is_too_large_is_refused(head: bytes, status: int) -> None:
    made = reader(head)
    assert made.begins()
    with pytest.raises(h11.RemoteProtocolError) as raised:
        made.next_request()
    response = made.refusal(raised.value, None)
    assert (response.status, response.close) == (status, True)
    assert response.reason
