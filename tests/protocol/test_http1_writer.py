"""Responses as bytes: what is written is what h11 would write, and what h11 reads as a client."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.fields import Fields
from ktlsd.protocol import http1_writer as writer

DATE = b"Mon, 01 Jan 2024 00:00:00 GMT"
STATUSES = [HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED, HTTPStatus.NOT_FOUND, HTTPStatus.FOUND]
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=4)
FIELDS = st.lists(st.tuples(st.sampled_from(["ETag", "Vary", "X-Any", "Location"]), VALUES), max_size=4)
PIECES = st.lists(st.binary(min_size=1, max_size=20), max_size=4)


def written(
    method: bytes, version: bytes, status: HTTPStatus, fields: Fields, pieces: Sequence[bytes], close: bool
) -> bytes:
    """A whole response, to a request that does not ask for the end of its connection."""
    chunked = writer.is_chunked(status, fields, version)
    closes = close or version == b"1.0"
    data = writer.beginning(status, fields) + writer.end(DATE, closes=closes, chunked=chunked)
    if method == b"HEAD" or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return data
    body = b"".join(writer.chunk(piece) if chunked else piece for piece in pieces)
    return data + body + (writer.LAST_CHUNK if chunked else b"")


def written_by_h11(
    method: bytes, version: bytes, status: HTTPStatus, fields: Fields, pieces: Sequence[bytes], close: bool
) -> bytes:
    http = h11.Connection(h11.SERVER)
    http.receive_data(
        b"%b / HTTP/%b\r\nHost: a\r\n%b\r\n" % (method, version, b"Connection: close\r\n" if close else b"")
    )
    assert isinstance(http.next_event(), h11.Request)
    headers = [*fields, ("Date", DATE.decode())]
    data = http.send(h11.Response(status_code=status.value, headers=headers, reason=status.phrase.encode())) or b""
    if method != b"HEAD" and status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        for piece in pieces:
            data += http.send(h11.Data(data=piece)) or b""
    return data + (http.send(h11.EndOfMessage()) or b"")


@given(
    st.sampled_from([b"GET", b"HEAD", b"OPTIONS"]),
    st.sampled_from([b"1.0", b"1.1"]),
    st.sampled_from(STATUSES),
    FIELDS,
    PIECES,
    st.booleans(),
    st.booleans(),
)
def test_the_bytes_are_those_of_h11(
    method: bytes,
    version: bytes,
    status: HTTPStatus,
    fields: list[tuple[str, str]],
    pieces: list[bytes],
    close: bool,
    counted: bool,
) -> None:
    length = (("Content-Length", str(sum(map(len, pieces)))),) if counted else ()
    whole: Fields = (*length, *fields)
    assert written(method, version, status, whole, pieces, close) == written_by_h11(
        *(method, version, status, whole, pieces, close)
    )


@given(PIECES, st.booleans())
def test_a_client_reads_what_was_sent(pieces: list[bytes], counted: bool) -> None:
    fields: Fields = (("Content-Length", str(sum(map(len, pieces)))),) if counted else ()
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    http.send(h11.EndOfMessage())
    http.receive_data(written(b"GET", b"1.1", HTTPStatus.OK, fields, pieces, False))
    response = http.next_event()
    assert isinstance(response, h11.Response)
    assert (response.status_code, response.reason) == (200, b"OK")
    body = b""
    while isinstance(event := http.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert body == b"".join(pieces)
    assert http.trailing_data == (b"", False)


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "\r\n"])
def test_no_field_splits_a_response(value: str) -> None:
    with pytest.raises(ValueError, match="a line end in the fields"):
        writer.beginning(HTTPStatus.OK, (("Location", value),))
    with pytest.raises(ValueError, match="a line end in the fields"):
        writer.beginning(HTTPStatus.OK, ((value, "a"),))
