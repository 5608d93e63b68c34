"""decide() as a whole: the status, the fields and the very bytes of the body are those that the request has a right to.

Strategy: an input is a line `METHOD SIZE AGE [CODING] [varies]` and lines of fields; the file has bytes that tell their
position. What comes out is put together as the server sends it and read as a client does.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final, cast

from fuzz.targets import byte_range, validators
from ktlsd.config.values import Coding
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Miss, Moved, Representation, Request, Response, decide, refuse_head, refuse_method, whole
from ktlsd.http.multipart import Multipart
from ktlsd.http.validators import Verdict, http_date

TOKENS: Final = (
    *byte_range.TOKENS,
    *validators.TOKENS,
    b"GET 100 99\n",
    b"HEAD 0 0\n",
    b"range: ",
    b" gzip",
    b" varies",
)

_NOW: Final = 1_700_000_000.25
_TAG: Final = '"a"'
_TYPE: Final = "text/plain; charset=utf-8"
_BOUNDARY: Final = "0123456789abcdef"
_CONTENT: Final = b"".join(b"%04x" % number for number in range(byte_range.LARGEST // 4))
_CODINGS: Final = ("zstd", "br", "gzip")
_NO_FILE: Final = (*Miss, Moved("/elsewhere/"), Moved("/%0d%0a", HTTPStatus.TEMPORARY_REDIRECT))
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def check(data: bytes) -> None:
    first, _, rest = data.decode("latin-1").partition("\n")
    words = first.split(" ")
    fields = validators.fields_of(rest)
    if len(words) < 3 or not all(word.isascii() and word.isdigit() and len(word) < 12 for word in words[1:3]):
        return
    request = Request(words[0], fields)
    refused = [refuse_head(b"1.1", request), refuse_method(request.method)]
    for response in filter(None, refused):
        _check_short(response, head=request.method == "HEAD")
    if request.method not in ("GET", "HEAD"):
        assert refused[1] is not None or request.method == "OPTIONS"
        return
    size, age = int(words[1]) % (len(_CONTENT) + 1), int(words[2])
    modified = int(_NOW) - age
    coding = cast(Coding, words[3]) if len(words) > 3 and words[3] in _CODINGS else None
    found = Representation(size, modified * 1_000_000_000, _TYPE, _TAG, coding, words[-1] == "varies")
    _check_representation(request, found, decide(request, found, _NOW, _BOUNDARY))
    missing = _NO_FILE[age % len(_NO_FILE)]
    response = decide(request, missing, _NOW, "")
    _check_short(response, head=request.method == "HEAD")
    assert response.status == missing.status
    page = whole(request, found, HTTPStatus.NOT_FOUND, _NOW)
    assert _sent(page) == (b"" if request.method == "HEAD" else _CONTENT[:size])
    assert dict(page.fields)["Content-Length"] == str(size)


def _check_representation(request: Request, found: Representation, response: Response) -> None:
    head, size = request.method == "HEAD", found.size
    fields = _distinct(response)
    modified = found.mtime_ns // 1_000_000_000
    dated = modified not in (0, 1)
    verdict = validators.expected(request.fields, _TAG, found.mtime_ns)
    wanted: tuple[ByteRange, ...] | None = ()
    if_range = request.fields.get("if-range")
    # A date that has one second at least between itself and now is strong.
    named = if_range in (None, _TAG) or (dated and modified < int(_NOW) and if_range == http_date(modified))
    if "range" in request.fields and not head and named:
        wanted = byte_range.expected(request.fields["range"], size)
    status = {
        Verdict.PRECONDITION_FAILED: HTTPStatus.PRECONDITION_FAILED,
        Verdict.NOT_MODIFIED: HTTPStatus.NOT_MODIFIED,
        Verdict.PROCEED: HTTPStatus.OK,
    }[verdict]
    if verdict is Verdict.PROCEED and wanted != ():
        status = HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    assert response.status == status
    assert fields["etag"] == _TAG
    assert fields.get("last-modified") == (http_date(min(modified, _NOW)) if dated else None)
    assert fields.get("vary") == ("Accept-Encoding" if found.varies else None)
    body = _sent(response)
    if status is HTTPStatus.NOT_MODIFIED:
        assert body == b""
        assert fields.keys().isdisjoint({"content-length", "content-type", "content-encoding", "content-range"})
        return
    assert len(body) == (0 if head else int(fields["content-length"]))
    if status in (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        assert "content-encoding" not in fields
        expected = f"bytes */{size}" if status is HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE else None
        assert fields.get("content-range") == expected
        return
    assert fields.get("content-encoding") == found.coding
    assert fields["accept-ranges"] == "bytes"
    if status is HTTPStatus.OK:
        assert "content-range" not in fields
        assert int(fields["content-length"]) == size
        assert head or body == _CONTENT[:size]
        return
    assert wanted
    if len(wanted) == 1:
        assert [(fields["content-range"], body)] == [_as_part(part, size) for part in wanted]
    else:
        assert "content-range" not in fields
        assert _parts_of(body, fields["content-type"]) == [_as_part(part, size) for part in wanted]


def _as_part(part: ByteRange, size: int) -> tuple[str, bytes]:
    return f"bytes {part.offset}-{part.end - 1}/{size}", _CONTENT[part.offset : part.end]


def _parts_of(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """The parts of a multipart/byteranges (RFC 2046 section 5.1.1): Content-Range and content of each."""
    kind, _, boundary = content_type.partition("; boundary=")
    assert kind == "multipart/byteranges"
    delimiter = b"\r\n--" + boundary.encode("ascii")
    preamble, *parts, last = body.split(delimiter)
    assert (preamble, last) == (b"", b"--\r\n")
    read = []
    for part in parts:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n"))
        assert fields.keys() == {"Content-Type", "Content-Range"}
        assert fields["Content-Type"] == _TYPE
        assert _RANGE.fullmatch(fields["Content-Range"])
        read.append((fields["Content-Range"], content))
    return read


def _check_short(response: Response, *, head: bool) -> None:
    fields = _distinct(response)
    assert isinstance(response.body, bytes)
    assert int(fields["content-length"]) > 0
    assert response.body == b"" if head else len(response.body) == int(fields["content-length"])


def _distinct(response: Response) -> dict[str, str]:
    """The fields by lower-case names, none of which comes twice or could end its line."""
    fields = {name.lower(): value for name, value in response.fields}
    assert len(fields) == len(response.fields)
    for name, value in response.fields:
        assert re.fullmatch(r"[A-Za-z-]+", name)
        assert re.fullmatch(r"[ -~]+", value)
    return fields


def _sent(response: Response) -> bytes:
    """The bytes of a body."""
    body = response.body
    if isinstance(body, ByteRange):
        return _CONTENT[body.offset : body.end]
    if isinstance(body, Multipart):
        parts = (before + _CONTENT[part.offset : part.end] for before, part in body.parts)
        return b"".join(parts) + body.tail
    assert isinstance(body, bytes)
    return body
