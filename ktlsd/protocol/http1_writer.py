"""Responses as bytes of HTTP/1.1: sans-IO.

Strategy: the status line and the fields come first, since they can be remembered; Date and what the request decides
follow. A body without a known length goes out in chunks (RFC 9112 section 7.1), to HTTP/1.0 until the end of the
connection. h11 would write the same bytes, as tests hold.
"""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from typing import Final

from ktlsd.http.fields import Fields

CLOSE: Final = b"Connection: close\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_WITHOUT_BODY: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_STATUS_LINES: Final = {status: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


def beginning(status: HTTPStatus, fields: Fields) -> bytes:
    """The status line and these fields. Raises ValueError for a line end in a field."""
    text = _STATUS_LINES[status] + "".join([f"{name}: {value}\r\n" for name, value in fields])
    lines = len(fields) + 1
    if text.count("\n") != lines or text.count("\r") != lines:
        # Every value is checked where it is made; no fault there can split a response in two.
        raise ValueError(f"a line end in the fields {fields}")
    return text.encode("ascii")


# All responses of a second have the same.
@lru_cache(maxsize=8)
def end(date: bytes, *, closes: bool = False, chunked: bool = False) -> bytes:
    """The fields that follow beginning(), and the blank line; `date` is the value of Date."""
    return b"Date: %b\r\n%b%b\r\n" % (date, _CHUNKED if chunked else b"", CLOSE if closes else b"")


def is_chunked(status: HTTPStatus, fields: Fields, version: bytes) -> bool:
    """Whether the body is sent in chunks to a client of this version of HTTP; for a request with HEAD, whether it would
    be."""
    return status not in _WITHOUT_BODY and version != b"1.0" and all(name != "Content-Length" for name, _ in fields)


def chunk(data: bytes) -> bytes:
    """Bytes of a body, not empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
