"""Bodies that are thrown away: where they end, and which end their connection."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.protocol.request_body import LARGEST, RequestBody, TooLarge

LENGTH, CHUNKED = b"Content-Length: %d\r\n", b"Transfer-Encoding: chunked\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


def begin(fields: bytes, received: bytes = b"", version: bytes = b"1.1") -> tuple[h11.Connection, RequestBody]:
    http = h11.Connection(h11.SERVER)
    http.receive_data(b"POST / HTTP/%b\r\nHost: a\r\n%b\r\n" % (version, fields) + received)
    request = http.next_event()
    assert isinstance(request, h11.Request)
    return http, RequestBody(http, request)


@pytest.mark.parametrize(
    ("fields", "unwanted"),
    [
        (b"", False),
        (LENGTH % 0, False),
        (LENGTH % LARGEST, False),
        (LENGTH % (LARGEST + 1), True),
        (LENGTH % 10**19, True),
        (CHUNKED, False),
        (b"Expect: 100-continue\r\n", False),
        (b"Expect: 100-continue\r\n" + LENGTH % 0, False),
        (b"Expect: 100-continue\r\n" + LENGTH % 1, True),
        (b"Expect: ,100-Continue,\r\n" + CHUNKED, True),
        (b"Expect:\r\n" + CHUNKED, False),
    ],
)
def test_what_the_head_says_of_it(fields: bytes, unwanted: bool) -> None:
    assert begin(fields)[1].unwanted is unwanted


def test_http_1_0_waits_for_no_100() -> None:
    assert not begin(b"Expect: 100-continue\r\n" + LENGTH % 1, version=b"1.0")[1].unwanted


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"", b""),
        (LENGTH % 5, b"abcde"),
        (CHUNKED, b"0\r\n\r\n"),
        (CHUNKED, b"3;x=y\r\nabc\r\n2\r\n\r\n\r\n0;z\r\nX: y\r\n\r\n"),
    ],
)
@settings(deadline=None)
@given(data=st.data())
def test_its_end_is_found_however_it_comes(fields: bytes, body: bytes, data: st.DataObject) -> None:
    stream = body + NEXT
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=5)) | {0, len(stream)})
    pieces = [stream[start:end] for start, end in itertools.pairwise(cuts)]
    http, wanted = begin(fields, pieces.pop(0))
    wanted.look()
    while not wanted.whole:
        wanted.receive(pieces.pop(0))
    assert http.trailing_data[0] + b"".join(pieces) == NEXT


@pytest.mark.parametrize(
    "body",
    [b"1;x\ry\r\na\r\n0\r\n\r\n", b"1\r\na\r\n0\r\nX: y\rZ: y\r\n\r\n", b"1\r\na\r\n0\r\nX: y\n\r\n", b"0\r\n\n"],
)
@pytest.mark.parametrize("arrived", [0, 1, 4, 100])
def test_what_another_reader_may_see_otherwise_is_refused(body: bytes, arrived: int) -> None:
    def read() -> None:
        _, wanted = begin(CHUNKED, body[:arrived])
        wanted.look()
        if rest := body[arrived:]:
            wanted.receive(rest + NEXT)

    with pytest.raises(h11.RemoteProtocolError, match=r"bare line end|illegal"):
        read()


def test_an_end_in_the_middle_of_it_is_an_error() -> None:
    _, wanted = begin(LENGTH % 5, b"abc")
    wanted.look()
    with pytest.raises(h11.RemoteProtocolError):
        wanted.receive(b"")


@pytest.mark.parametrize("piece", [b"1\r\na\r\n", b"10\r\n0123456789abcdef\r\n"])
def test_chunks_without_an_end_are_too_large(piece: bytes) -> None:
    _, wanted = begin(CHUNKED)
    received = 0

    def flood() -> None:
        nonlocal received
        while True:
            wanted.receive(piece)
            received += len(piece)

    with pytest.raises(TooLarge, match="65536"):
        flood()
    assert LARGEST - len(piece) < received <= LARGEST
