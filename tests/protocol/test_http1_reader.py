"""Heads through h11: which bytes become requests, in whatever pieces they come, and which are refused."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.http.empty_lines import EmptyLines
from ktlsd.http.head_scanner import HeadScanner
from ktlsd.http.request_head import RequestHead
from ktlsd.protocol.http1_reader import HeadReader

MOST = 200
HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


def reader(received: bytes = b"") -> HeadReader:
    made = HeadReader(MOST, EmptyLines(), HeadScanner())
    made.receive(received)
    return made


@settings(deadline=None)
@given(st.lists(st.integers(0, len(HEAD)), max_size=5).map(sorted))
def test_a_head_in_pieces_is_the_same_request(cuts: list[int]) -> None:
    made = HeadReader(MOST, EmptyLines(), HeadScanner())
    request = None
    for start, end in zip([0, *cuts], [*cuts, len(HEAD)], strict=True):
        if start < end:
            made.receive(HEAD[start:end])
            assert made.begins() or request is h11.NEED_DATA
            request = made.next_request()
            assert (request is h11.NEED_DATA) is (end < len(HEAD))
    assert isinstance(request, RequestHead)
    assert made.body is None
    assert (request.target, made.head) == (b"/a", HEAD)


def test_empty_lines_before_a_head_are_no_part_of_it() -> None:
    made = reader(b"\r\n\r\n" + HEAD + b"rest")
    assert made.begins()
    assert isinstance(made.next_request(), RequestHead)
    assert made.head == HEAD


def test_empty_lines_alone_begin_nothing() -> None:
    made = reader(b"\r\n\r")
    assert not made.begins()
    assert made.received == b""


@pytest.mark.parametrize("cut", [len(HEAD), len(HEAD) - 5])
@pytest.mark.parametrize("more", [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b""])
def test_requests_follow_each_other(more: bytes, cut: int) -> None:
    head = HEAD.removesuffix(b"\r\n") + more + b"\r\n"
    body = {b"C": b"abc", b"T": b"3\r\nabc\r\n0\r\n\r\n", b"": b""}[more[:1]]
    made = reader(head[:cut])
    assert made.begins()
    if cut < len(head):
        assert made.next_request() is h11.NEED_DATA
    made.receive(head[cut:] + body + HEAD + HEAD)
    for expected in (more, b"", b""):
        request = made.next_request()
        assert isinstance(request, RequestHead)
        assert (request.target, request.alone, made.body is None) == (b"/a", not expected, not expected)
        if made.body is not None:
            made.body.look()
            assert made.body.whole
        begun = made.begins()
    assert not begun
    made.receive(b"")
    assert made.next_request() is None


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
