"""Deciding responses (RFC 9110 sections 8, 9, 13, 14 and 15), without files or sockets."""

from __future__ import annotations

import email.policy
from email.parser import BytesParser
from http import HTTPStatus
from typing import Final

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import (
    Miss,
    Moved,
    Representation,
    Request,
    Response,
    decide,
    options,
    refuse_head,
    refuse_method,
    short,
    whole,
)
from ktlsd.http.multipart import Multipart
from ktlsd.http.validators import coded_tag, entity_tag, http_date, is_dated, parse_http_date

NOW = 1_700_000_000.5
MTIME_NS = 784111777 * 1_000_000_000 + 5
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
BOUNDARY = "3d6b6a416f9b5e1c0a4d2f8877665544"
TAG = entity_tag(MTIME_NS, 10000, 7, MTIME_NS + 1)
CODED_TAG = coded_tag(entity_tag(MTIME_NS, 3000, 8, MTIME_NS + 2), "br")
HTML = "text/html; charset=utf-8"

PLAIN = Representation(size=10000, mtime_ns=MTIME_NS, content_type=HTML, tag=TAG)
VARIED = Representation(size=10000, mtime_ns=MTIME_NS, content_type=HTML, tag=TAG, varies=True)
CODED = Representation(size=3000, mtime_ns=MTIME_NS, content_type=HTML, tag=CODED_TAG, coding="br", varies=True)
UNDATED = Representation(size=10000, mtime_ns=1_000_000_000, content_type=HTML, tag=TAG)
LONG = Representation(size=100_000, mtime_ns=MTIME_NS, content_type=HTML, tag=TAG)
EMPTY = Representation(size=0, mtime_ns=MTIME_NS, content_type="text/plain", tag=TAG)

NAMES = ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "range"]
PIECES = [TAG, "W/", '"', '"a"', ",", " ", "*", DATE, EARLIER, "Sun", "GMT", "bytes=", "0-0", "-", "5", "99999", "\xe9"]
PIECES += ["9" * 5000]
RANGES = st.lists(
    st.builds("{}-{}".format, st.sampled_from(["", 0, 5, 900, 9999]), st.sampled_from(["", 0, 5, 950, 10**6])),
    min_size=1,
    max_size=5,
).map(lambda members: "bytes=" + ", ".join(members))
TELLING = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | RANGES
# What a field value may be made of (RFC 9110 section 5.5).
LATIN_1 = st.text([chr(code) for code in (*b"\t ", *range(0x21, 0x7F), *range(0x80, 0x100))])

Found = Representation | Moved | Miss
FOUND: Final[st.SearchStrategy[Found]] = st.one_of(
    st.builds(
        Representation,
        size=st.integers(0, 2**63 - 1) | st.integers(0, 20),
        mtime_ns=st.integers(-(2**63), 2**63 - 1),
        content_type=st.sampled_from([HTML, "image/png"]),
        tag=st.just(TAG) | st.builds(entity_tag, *[st.integers(0, 2**63 - 1)] * 4),
        coding=st.sampled_from([None, "zstd", "br", "gzip"]),
        varies=st.booleans(),
    ),
    st.sampled_from([PLAIN, VARIED, CODED]),
    st.sampled_from(list(Miss)),
    st.builds(Moved, st.just("/a/?b"), st.sampled_from([HTTPStatus(301), HTTPStatus(302), HTTPStatus(308)])),
)
CLOCK = st.floats(0, 4e9)


def fields_of(value: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(NAMES), value)


def get(fields: dict[str, str] | None = None, found: Found = PLAIN, method: str = "GET") -> Response:
    return decide(Request(method, fields or {}), found, NOW, BOUNDARY)


def ranges_of(response: Response) -> tuple[tuple[int, int], ...]:
    """The parts of the file that are sent, as offset and count."""
    body = response.body
    parts = [body] if isinstance(body, ByteRange) else [part for _, part in getattr(body, "parts", ())]
    return tuple((part.offset, part.count) for part in parts)


def body_length(response: Response) -> int:
    body = response.body
    if isinstance(body, Multipart):
        return sum(len(before) + part.count for before, part in body.parts) + len(body.tail)
    assert isinstance(body, (bytes, ByteRange))
    return body.count if isinstance(body, ByteRange) else len(body)


def text_of(status: int) -> bytes:
    return f"{status} {HTTPStatus(status).phrase}\n".encode()


def text_fields(status: int, **more: str) -> dict[str, str]:
    """The fields of a short text, with `more` by their names with underscores."""
    fields = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text_of(status)))}
    return fields | {name.replace("_", "-"): value for name, value in more.items()}


def sent_by_h11(response: Response, request: bytes = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") -> dict[str, str]:
    """The header fields as they go over the wire; h11 raises LocalProtocolError for what must not."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request)
    while connection.their_state in (h11.IDLE, h11.SEND_BODY):
        connection.next_event()
    status = response.status
    head = connection.send(
        h11.Response(status_code=status.value, headers=list(response.fields), reason=status.phrase.encode())
    )
    assert head is not None
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


# --- the decision table

VALIDATORS = {"ETag": TAG, "Last-Modified": DATE}
CODED_VALIDATORS = {"ETag": CODED_TAG, "Last-Modified": DATE}
VARY = {"Vary": "Accept-Encoding"}
OF_PLAIN = {"Content-Type": HTML, "Content-Length": "10000", "Accept-Ranges": "bytes", **VALIDATORS}
OF_VARIED = OF_PLAIN | VARY
OF_CODED = OF_PLAIN | CODED_VALIDATORS | VARY | {"Content-Length": "3000", "Content-Encoding": "br"}
OF_UNDATED = {"Content-Type": HTML, "Content-Length": "10000", "Accept-Ranges": "bytes", "ETag": TAG}
EPOCH = "Thu, 01 Jan 1970 00:00:01 GMT"
OF_EMPTY = OF_PLAIN | {"Content-Type": "text/plain", "Content-Length": "0"}
FIRST = OF_PLAIN | {"Content-Length": "1", "Content-Range": "bytes 0-0/10000"}
BEYOND = text_fields(416, Content_Range="bytes */10000", Accept_Ranges="bytes") | VALIDATORS
FAILED = text_fields(412) | VALIDATORS
ALL = ((0, 10000),)
PARTS = {"Content-Type": f"multipart/byteranges; boundary={BOUNDARY}"}

Row = tuple[dict[str, str], Found, int, dict[str, str], tuple[tuple[int, int], ...]]
TABLE: Final[list[Row]] = [
    ({}, PLAIN, 200, OF_PLAIN, ALL),
    ({}, VARIED, 200, OF_VARIED, ALL),
    ({}, CODED, 200, OF_CODED, ((0, 3000),)),
    ({}, EMPTY, 200, OF_EMPTY, ((0, 0),)),
    # one range (section 14.1.2)
    ({"range": "bytes=0-0"}, PLAIN, 206, FIRST, ((0, 1),)),
    ({"range": "bytes=500-999"}, PLAIN, 206,
     OF_PLAIN | {"Content-Length": "500", "Content-Range": "bytes 500-999/10000"}, ((500, 500),)),
    ({"range": "bytes=9500-"}, PLAIN, 206,
     OF_PLAIN | {"Content-Length": "500", "Content-Range": "bytes 9500-9999/10000"}, ((9500, 500),)),
    ({"range": "bytes=-500"}, PLAIN, 206,
     OF_PLAIN | {"Content-Length": "500", "Content-Range": "bytes 9500-9999/10000"}, ((9500, 500),)),
    ({"range": "bytes=-99999"}, PLAIN, 206, OF_PLAIN | {"Content-Range": "bytes 0-9999/10000"}, ALL),
    ({"range": "bytes=9999-99999"}, PLAIN, 206,
     OF_PLAIN | {"Content-Length": "1", "Content-Range": "bytes 9999-9999/10000"}, ((9999, 1),)),
    ({"range": "BYTES=0-0"}, PLAIN, 206, FIRST, ((0, 1),)),
    # of the coded bytes (section 8.4)
    ({"range": "bytes=2999-"}, CODED, 206,
     OF_CODED | {"Content-Length": "1", "Content-Range": "bytes 2999-2999/3000"}, ((2999, 1),)),
    ({"range": "bytes=0-0"}, VARIED, 206, FIRST | VARY, ((0, 1),)),
    # several
    ({"range": "bytes=0-0,5000-5001"}, PLAIN, 206, OF_PLAIN | PARTS | {"Content-Length": "273"}, ((0, 1), (5000, 2))),
    ({"range": "bytes=5000-5001, 0-0"}, PLAIN, 206, OF_PLAIN | PARTS | {"Content-Length": "273"}, ((5000, 2), (0, 1))),
    ({"range": "bytes=0-0,2000-"}, CODED, 206, OF_CODED | PARTS | {"Content-Length": "1269"}, ((0, 1), (2000, 1000))),
    ({"range": "bytes=0-0,10000-,5000-5001"}, PLAIN, 206,
     OF_PLAIN | PARTS | {"Content-Length": "273"}, ((0, 1), (5000, 2))),
    # several that come down to one
    ({"range": "bytes=0-0,5-6"}, PLAIN, 206,
     OF_PLAIN | {"Content-Length": "7", "Content-Range": "bytes 0-6/10000"}, ((0, 7),)),
    ({"range": "bytes=0-,0-,0-"}, PLAIN, 206, OF_PLAIN | {"Content-Range": "bytes 0-9999/10000"}, ALL),
    ({"range": "bytes=0-0,10000-"}, PLAIN, 206, FIRST, ((0, 1),)),
    # ignored (section 14.2)
    ({"range": "lines=0-0"}, PLAIN, 200, OF_PLAIN, ALL),
    ({"range": "bytes=5-4"}, PLAIN, 200, OF_PLAIN, ALL),
    ({"range": "bytes=0-0,x"}, PLAIN, 200, OF_PLAIN, ALL),
    ({"range": "bytes=" + ",".join(f"{200 * number}-{200 * number}" for number in range(257))}, LONG, 200,
     OF_PLAIN | {"Content-Length": "100000"}, ((0, 100_000),)),
    ({"range": ""}, PLAIN, 200, OF_PLAIN, ALL),
    # not satisfiable
    ({"range": "bytes=10000-"}, PLAIN, 416, BEYOND, ()),
    ({"range": "bytes=10000-,20000-"}, PLAIN, 416, BEYOND, ()),
    ({"range": "bytes=-0"}, PLAIN, 416, BEYOND, ()),
    ({"range": "bytes=10000-"}, VARIED, 416, BEYOND | VARY, ()),
    ({"range": "bytes=3000-"}, CODED, 416,
     BEYOND | CODED_VALIDATORS | VARY | {"Content-Range": "bytes */3000"}, ()),
    # No range of nothing is refused: a cache that fetches slices asks for one unasked.
    ({"range": "bytes=0-"}, EMPTY, 200, OF_EMPTY, ((0, 0),)),
    ({"range": "bytes=-0"}, EMPTY, 200, OF_EMPTY, ((0, 0),)),
    ({"range": "bytes=0-1048575", "if-range": TAG}, EMPTY, 200, OF_EMPTY, ((0, 0),)),
    ({"range": "bytes=-5"}, EMPTY, 200, OF_EMPTY, ((0, 0),)),
    # If-Range (section 13.1.5): a mismatch gives the whole, and an unsatisfiable range no longer matters
    ({"range": "bytes=0-0", "if-range": TAG}, PLAIN, 206, FIRST, ((0, 1),)),
    ({"range": "bytes=0-0", "if-range": DATE}, PLAIN, 206, FIRST, ((0, 1),)),
    ({"range": "bytes=0-0", "if-range": '"other"'}, PLAIN, 200, OF_PLAIN, ALL),
    ({"range": "bytes=0-0", "if-range": f"W/{TAG}"}, PLAIN, 200, OF_PLAIN, ALL),
    ({"range": "bytes=0-0", "if-range": EARLIER}, PLAIN, 200, OF_PLAIN, ALL),
    ({"range": "bytes=0-0", "if-range": LATER}, PLAIN, 200, OF_PLAIN, ALL),
    ({"range": "bytes=10000-", "if-range": '"other"'}, PLAIN, 200, OF_PLAIN, ALL),
    ({"range": "bytes=10000-", "if-range": TAG}, PLAIN, 416, BEYOND, ()),
    ({"if-range": '"other"'}, PLAIN, 200, OF_PLAIN, ALL),
    # A file without a date has a tag as its only validator.
    ({}, UNDATED, 200, OF_UNDATED, ALL),
    ({"range": "bytes=0-0", "if-range": TAG}, UNDATED, 206,
     OF_UNDATED | {"Content-Length": "1", "Content-Range": "bytes 0-0/10000"}, ((0, 1),)),
    ({"range": "bytes=0-0", "if-range": EPOCH}, UNDATED, 200, OF_UNDATED, ALL),
    ({"range": "bytes=10000-"}, UNDATED, 416,
     text_fields(416, Content_Range="bytes */10000", Accept_Ranges="bytes", ETag=TAG), ()),
    ({"if-modified-since": EPOCH}, UNDATED, 200, OF_UNDATED, ALL),
    ({"if-modified-since": DATE}, UNDATED, 200, OF_UNDATED, ALL),
    ({"if-unmodified-since": "Thu, 01 Jan 1970 00:00:00 GMT"}, UNDATED, 200, OF_UNDATED, ALL),
    ({"if-none-match": TAG}, UNDATED, 304, {"ETag": TAG}, ()),
    ({"if-match": '"other"'}, UNDATED, 412, text_fields(412, ETag=TAG), ()),
    # A download that began in another coding must not be resumed in this one.
    ({"range": "bytes=0-0", "if-range": TAG}, CODED, 200, OF_CODED, ((0, 3000),)),
    ({"range": "bytes=0-,5000-", "if-range": '"other"'}, PLAIN, 200, OF_PLAIN, ALL),
    # 304 and 412, in the order of section 13.2.2
    ({"if-none-match": TAG}, PLAIN, 304, VALIDATORS, ()),
    ({"if-none-match": f'"other", W/{TAG}'}, PLAIN, 304, VALIDATORS, ()),
    ({"if-none-match": "*"}, PLAIN, 304, VALIDATORS, ()),
    ({"if-none-match": TAG}, VARIED, 304, VALIDATORS | VARY, ()),
    ({"if-none-match": CODED_TAG}, CODED, 304, CODED_VALIDATORS | VARY, ()),
    ({"if-none-match": TAG}, CODED, 200, OF_CODED, ((0, 3000),)),
    ({"if-none-match": '"other"'}, PLAIN, 200, OF_PLAIN, ALL),
    ({"if-modified-since": DATE}, PLAIN, 304, VALIDATORS, ()),
    ({"if-modified-since": LATER}, PLAIN, 304, VALIDATORS, ()),
    ({"if-modified-since": EARLIER}, PLAIN, 200, OF_PLAIN, ALL),
    ({"if-modified-since": "yesterday"}, PLAIN, 200, OF_PLAIN, ALL),
    ({"if-none-match": '"other"', "if-modified-since": DATE}, PLAIN, 200, OF_PLAIN, ALL),
    ({"if-none-match": TAG, "if-modified-since": EARLIER}, PLAIN, 304, VALIDATORS, ()),
    ({"if-match": '"other"'}, PLAIN, 412, FAILED, ()),
    ({"if-match": f"W/{TAG}"}, PLAIN, 412, FAILED, ()),
    ({"if-match": f'"other", {TAG}'}, PLAIN, 200, OF_PLAIN, ALL),
    ({"if-match": "*"}, PLAIN, 200, OF_PLAIN, ALL),
    ({"if-match": '"other"'}, CODED, 412, FAILED | CODED_VALIDATORS | VARY, ()),
    ({"if-unmodified-since": EARLIER}, PLAIN, 412, FAILED, ()),
    ({"if-unmodified-since": DATE}, PLAIN, 200, OF_PLAIN, ALL),
    ({"if-match": TAG, "if-unmodified-since": EARLIER}, PLAIN, 200, OF_PLAIN, ALL),
    ({"if-match": TAG, "if-none-match": TAG}, PLAIN, 304, VALIDATORS, ()),
    ({"if-match": '"other"', "if-none-match": TAG}, PLAIN, 412, FAILED, ()),
    ({"if-unmodified-since": EARLIER, "if-none-match": TAG}, PLAIN, 412, FAILED, ()),
    # the preconditions, then the range
    ({"range": "bytes=0-0", "if-none-match": TAG}, PLAIN, 304, VALIDATORS, ()),
    ({"range": "bytes=0-0", "if-modified-since": DATE}, PLAIN, 304, VALIDATORS, ()),
    ({"range": "bytes=10000-", "if-none-match": TAG}, PLAIN, 304, VALIDATORS, ()),
    ({"range": "bytes=0-0", "if-match": '"other"'}, PLAIN, 412, FAILED, ()),
    ({"range": "bytes=10000-", "if-match": '"other"'}, PLAIN, 412, FAILED, ()),
    ({"range": "bytes=0-0", "if-unmodified-since": EARLIER}, PLAIN, 412, FAILED, ()),
    ({"range": "bytes=0-0", "if-match": TAG, "if-none-match": '"other"', "if-range": TAG}, PLAIN, 206,
     FIRST, ((0, 1),)),
    # elsewhere
    ({}, Moved("/a/?q"), 301, text_fields(301, Location="/a/?q"), ()),
    ({}, Moved("https://b/", HTTPStatus.TEMPORARY_REDIRECT), 307, text_fields(307, Location="https://b/"), ()),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "found", "status", "expected", "ranges"), TABLE)
def test_the_decision_table(
    fields: dict[str, str], found: Found, status: int, expected: dict[str, str], ranges: tuple[tuple[int, int], ...]
) -> None:
    response = get(fields, found)
    assert (response.status, dict(response.fields), ranges_of(response)) == (status, expected, ranges)
    assert len(response.fields) == len(expected)
    if not ranges:
        assert response.body == (b"" if status == 304 else text_of(status))
    assert bool(response.reason) == (status >= 400)
    assert not response.close


@pytest.mark.parametrize(("fields", "found", "status", "expected", "ranges"), TABLE)
def test_the_decision_table_for_head(
    fields: dict[str, str], found: Found, status: int, expected: dict[str, str], ranges: tuple[tuple[int, int], ...]
) -> None:
    """As for GET where the range has no say (section 14.2)."""
    response = get(fields, found, method="HEAD")
    if status in (206, 416):
        status, expected = 200, dict(get({}, found).fields)
    assert (response.status, dict(response.fields), response.body) == (status, expected, b"")


def test_the_parts_of_a_multipart_body_are_what_was_asked_for() -> None:
    content = bytes(number % 251 for number in range(10000))
    response = get({"range": "bytes=-3,0-4,700-900"})
    assert isinstance(response.body, Multipart)
    body = b"".join(before + content[part.offset : part.end] for before, part in response.body.parts)
    body += response.body.tail
    assert dict(response.fields)["Content-Length"] == str(len(body))
    head = f"Content-Type: {dict(response.fields)['Content-Type']}\r\n\r\n".encode()
    parts = list(BytesParser(policy=email.policy.HTTP).parsebytes(head + body).iter_parts())
    assert [part["Content-Range"] for part in parts] == [
        "bytes 9997-9999/10000",
        "bytes 0-4/10000",
        "bytes 700-900/10000",
    ]
    assert [(part.get_content_type(), part.get_content_charset()) for part in parts] == [("text/html", "utf-8")] * 3
    wanted = [content[9997:], content[:5], content[700:901]]
    assert [part.get_payload(decode=True) for part in parts] == wanted


def test_the_log_is_told_which_range_of_how_many_bytes() -> None:
    assert get({"range": "bytes=10000-"}).reason == "the range bytes=10000- of 10000 bytes"


@pytest.mark.parametrize("ahead", [0, 0.4, 1, 1e6, 1e12])
def test_a_file_from_the_future_was_modified_now(ahead: float) -> None:
    """Section 8.8.2.1: a Last-Modified later than Date is forbidden."""
    found = Representation(1, int((NOW + ahead) * 1_000_000_000), "text/plain", TAG)
    assert dict(get(found=found).fields)["Last-Modified"] == http_date(NOW)


def test_a_file_from_before_the_year_1_is_served() -> None:
    """utimensat(2) takes such a time on tmpfs, btrfs and others."""
    found = Representation(1, -(10**11) * 1_000_000_000, "text/plain", TAG)
    assert get(found=found).status == HTTPStatus.OK


# --- a file under a status of its own


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (PLAIN, {"Content-Type": HTML, "Content-Length": "10000", "Last-Modified": DATE}),
        (VARIED, {"Content-Type": HTML, "Content-Length": "10000", "Last-Modified": DATE} | VARY),
        (
            CODED,
            {"Content-Type": HTML, "Content-Length": "3000", "Content-Encoding": "br", "Last-Modified": DATE} | VARY,
        ),
    ],
    ids=["plain", "varied", "coded"],
)
@pytest.mark.parametrize("status", [HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE])
@pytest.mark.parametrize(
    "fields",
    [{}, {"range": "bytes=0-0"}, {"if-none-match": "*"}, {"if-match": '"other"'}, {"if-modified-since": LATER}],
)
def test_whole_knows_no_preconditions_and_ranges(
    found: Representation, expected: dict[str, str], status: HTTPStatus, fields: dict[str, str]
) -> None:
    """Without a tag or Accept-Ranges: no client is to request parts of an error."""
    response = whole(Request("GET", fields), found, status, NOW)
    assert (response.status, dict(response.fields), response.body) == (status, expected, ByteRange(0, found.size))
    head = whole(Request("HEAD", fields), found, status, NOW)
    assert (head.status, head.fields, head.body) == (status, response.fields, b"")


def test_whole_dates_nothing_in_the_future() -> None:
    found = Representation(1, int((NOW + 100) * 1e9), "text/plain", TAG)
    fields = whole(Request("GET"), found, HTTPStatus.NOT_FOUND, NOW).fields
    assert dict(fields)["Last-Modified"] == http_date(NOW)


# --- no file

STATUS_OF_A_MISS = {
    Miss.ABSENT: 404,
    Miss.DANGLING: 404,
    Miss.HIDDEN: 404,
    Miss.CONCEALED: 404,
    Miss.OUTSIDE: 404,
    Miss.FORBIDDEN: 403,
    Miss.SPECIAL: 403,
    Miss.NO_INDEX: 403,
    Miss.PROTECTED: 403,
    Miss.BUSY: 503,
    Miss.EXHAUSTED: 503,
    Miss.STALLED: 503,
    Miss.NO_ROOT: 503,
    Miss.FAILED: 500,
}


@pytest.mark.parametrize("miss", list(Miss), ids=lambda miss: miss.name)
def test_a_miss_has_its_status_and_its_reason_is_for_the_log_alone(miss: Miss) -> None:
    response, status = get(found=miss), STATUS_OF_A_MISS[miss]
    assert (response.status, response.reason, dict(response.fields)) == (status, miss.reason, text_fields(status))
    assert response.body == text_of(status)


def test_hidden_and_outside_look_like_absent() -> None:
    absent = get(found=Miss.ABSENT)
    for miss in (Miss.DANGLING, Miss.HIDDEN, Miss.CONCEALED, Miss.OUTSIDE):
        response = get(found=miss)
        assert (response.status, response.fields, response.body) == (absent.status, absent.fields, absent.body)


def test_every_miss_has_a_reason_of_its_own() -> None:
    assert len({miss.reason for miss in Miss}) == len(STATUS_OF_A_MISS)


@pytest.mark.parametrize("found", [Miss.ABSENT, Miss.FORBIDDEN, Moved("/a/")], ids=str)
@pytest.mark.parametrize("name", ["if-match", "if-none-match", "if-unmodified-since", "range"])
def test_preconditions_do_not_matter_without_a_file(name: str, found: Moved | Miss) -> None:
    """Section 13.2.1: ignored when the response without them would not be a 2xx."""
    value = {"range": "bytes=5-", "if-unmodified-since": EARLIER}.get(name, '"other"')
    assert get({name: value}, found) == get({}, found)


# --- heads that HTTP/1.1 refuses


@pytest.mark.parametrize("method", ["GET", "HEAD", "BREW"])
@pytest.mark.parametrize(
    ("version", "fields", "status"),
    [
        (b"1.1", {"host": "a"}, None),
        (b"1.0", {"host": "a"}, None),
        (b"1.0", {}, None),
        # A minor version that is not known is taken as the highest that is (section 2.5).
        (b"1.2", {"host": "a"}, None),
        (b"1.9", {"host": "a"}, None),
        (b"1.1", {}, 400),
        (b"1.2", {}, 400),
        (b"0.9", {"host": "a"}, 505),
        (b"2.0", {"host": "a"}, 505),
        (b"3.0", {}, 505),
        # Two readers could find two ends of such a body (RFC 9112 sections 6.1 and 11.2).
        (b"1.1", {"host": "a", "content-length": "5"}, None),
        (b"1.0", {"host": "a", "content-length": "5"}, None),
        (b"1.1", {"host": "a", "transfer-encoding": "chunked"}, None),
        (b"1.1", {"host": "a", "transfer-encoding": "chunked", "content-length": "5"}, 400),
        (b"1.1", {"host": "a", "transfer-encoding": "chunked", "content-length": "0"}, 400),
        (b"1.1", {"host": "a", "transfer-encoding": "", "content-length": ""}, 400),
        (b"1.0", {"host": "a", "transfer-encoding": "chunked"}, 400),
        (b"1.0", {"host": "a", "transfer-encoding": "chunked", "content-length": "5"}, 400),
        # (section 10.1.1)
        (b"1.1", {"host": "a", "expect": "100-continue"}, None),
        (b"1.1", {"host": "a", "expect": "100-Continue"}, None),
        (b"1.0", {"host": "a", "expect": "100-continue"}, None),
        (b"1.1", {"host": "a", "expect": "200-maybe"}, 417),
        (b"1.1", {"host": "a", "expect": "100-continue, 200-maybe"}, 417),
        (b"1.1", {"host": "a", "expect": "100-continue;q=1"}, 417),
        # A list, whose empty members do not count (section 5.6.1.2).
        *((b"1.1", {"host": "a", "expect": value}, None) for value in ("", ",", " , ,\t", "100-continue,")),
        *((b"1.1", {"host": "a", "expect": value}, None) for value in (", 100-continue", "100-continue,,100-Continue")),
        *(
            (b"1.1", {"host": "a", "expect": value}, 417)
            for value in (", x", "x,", "100-continue,,x", "100-continue 1")
        ),
        *((b"1.1", {"host": value}, 400) for value in ("[1]", "[:::]", "[1.2.3.4]", "[v]", "[.]", "a%", "a%zz", "a:b")),
        *((b"1.1", {"host": value}, None) for value in ("", ":80", "[::1]:80", "[v1.a:b]", "a%20:")),
        # What could be smuggling comes before what is only unknown.
        (b"1.1", {"host": "a", "expect": "x", "transfer-encoding": "chunked", "content-length": "5"}, 400),
        (b"1.1", {"host": "a b", "expect": "x"}, 400),
        (b"2.0", {"host": "a b", "expect": "x"}, 505),
    ],
)
def test_a_head_that_h11_takes_may_be_refused(
    method: str, version: bytes, fields: dict[str, str], status: int | None
) -> None:
    response = refuse_head(version, Request(method, fields))
    if status is None:
        assert response is None
        return
    assert response is not None
    assert (response.status, dict(response.fields), response.close) == (status, text_fields(status), True)
    assert response.body == (b"" if method == "HEAD" else text_of(status))
    assert response.reason


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        # An empty one is for targets that have no authority (RFC 9112 section 3.2).
        ("", True),
        ("example.org", True),
        ("EXAMPLE.org.", True),
        ("example.org:8443", True),
        ("example.org:", True),
        (":8443", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("[::1]:8443", True),
        ("[::ffff:127.0.0.1]", True),
        ("[v1.a:b]", True),
        ("under_score", True),
        ("xn--bcher-kva.example", True),
        ("caf%C3%A9.example", True),
        ("a!$&'()*+,;=~-", True),
        ("a b", False),
        ("a, b", False),
        ("a/b", False),
        ("a?b", False),
        ("a#b", False),
        ("a\\b", False),
        ("user@a", False),
        ("https://a", False),
        ("a:b", False),
        ("a:1:2", False),
        ("a:-1", False),
        ("::1", False),
        ("[::1", False),
        ("::1]", False),
        ("[]", False),
        ("[a", False),
        ("[::1]a", False),
        ("[::g]", False),
        ("a[::1]", False),
        ('a"b', False),
        ("a<b>", False),
        ("a\tb", False),
        ("a\n", False),
        ("caf\xe9", False),
    ],
)
def test_a_host_names_a_host(host: str, taken: bool) -> None:
    response = refuse_head(b"1.1", Request("GET", {"host": host}))
    assert (response is None) is taken
    assert response is None or response.status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ],
)
def test_h11_alone_takes_what_is_refused_here(request_head: bytes, status: int) -> None:
    """Requests that h11 comes to refuse need not be refused here any more."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request_head)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    fields = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
    response = refuse_head(event.http_version, Request("GET", fields))
    assert response is not None
    assert response.status == status


# --- methods


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "CONNECT", "TRACE", "PATCH"])
def test_405_carries_allow(method: str) -> None:
    response = refuse_method(method)
    assert response is not None
    assert (response.status, dict(response.fields)) == (405, text_fields(405, Allow="GET, HEAD, OPTIONS"))
    assert response.body == text_of(405)
    assert method in response.reason


@pytest.mark.parametrize("method", ["BREW", "get", "Head", "PROPFIND", ""])
def test_an_unknown_method_is_501(method: str) -> None:
    """Methods are case-sensitive (section 9.1)."""
    response = refuse_method(method)
    assert response is not None
    assert (response.status, dict(response.fields)) == (501, text_fields(501))
    assert response.body == text_of(501)
    assert method in response.reason


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_the_methods_of_allow_are_not_refused(method: str) -> None:
    assert refuse_method(method) is None
    assert method in dict(options().fields)["Allow"].split(", ")


def test_options_says_what_is_allowed_and_nothing_of_a_body() -> None:
    """No Content-Length in a 204 (section 8.6)."""
    response = options()
    assert (response.status, response.fields, response.body) == (204, (("Allow", "GET, HEAD, OPTIONS"),), b"")
    sent = sent_by_h11(response, b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert sent == {"allow": "GET, HEAD, OPTIONS"}


# --- short texts


@pytest.mark.parametrize("status", [status for status in HTTPStatus if status >= 300], ids=str)
def test_a_short_response_says_its_status(status: HTTPStatus) -> None:
    response = short(status, "why", extra=(("X", "y"),), close=True)
    assert response.body == f"{status.value} {status.phrase}\n".encode()
    assert dict(response.fields) == {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(body_length(response)),
        "X": "y",
    }
    assert (response.status, response.reason, response.close) == (status, "why", True)


# --- whatever is asked


@settings(deadline=None)
@given(fields_of(TELLING | st.text()), FOUND, CLOCK)
@example({"range": "bytes=5-"}, PLAIN, NOW)
@example({"range": "bytes=0-0,5000-"}, CODED, NOW)
@example({"if-none-match": TAG}, PLAIN, NOW)
@example({"if-none-match": TAG}, VARIED, NOW)
def test_the_length_is_that_of_the_body(fields: dict[str, str], found: Found, now: float) -> None:
    response = decide(Request("GET", fields), found, now, BOUNDARY)
    names = [name.lower() for name, _ in response.fields]
    assert len(set(names)) == len(names)
    if response.status == HTTPStatus.NOT_MODIFIED:
        assert isinstance(found, Representation)
        dated = ["last-modified"] if is_dated(found.mtime_ns) else []
        assert names == ["etag", *dated, *(["vary"] if found.varies else [])]
        assert body_length(response) == 0
    else:
        assert dict(response.fields)["Content-Length"] == str(body_length(response))
    several = isinstance(response.body, Multipart)
    assert ("content-range" in names) == (response.status == 416 or (response.status == 206 and not several))


@settings(deadline=None)
@given(RANGES, FOUND)
@example("bytes=0-0,5000-5001", PLAIN)
@example("bytes=0-,0-,0-", PLAIN)
def test_ranges_never_send_a_byte_twice_or_one_that_is_not_there(asked: str, found: Found) -> None:
    response = get({"range": asked}, found)
    sent = 0
    for offset, count in sorted(ranges_of(response)):
        assert isinstance(found, Representation)
        assert sent <= offset <= offset + count <= found.size
        assert count > 0 or found.size == 0
        sent = offset + count
    assert (response.status == 206) == (bool(ranges_of(response)) and response.status != 200)


@settings(deadline=None)
@given(fields_of(TELLING | st.text()), FOUND, CLOCK)
@example({"range": "bytes=10000-"}, PLAIN, NOW)
@example({"range": "bytes=0-0,5000-"}, PLAIN, NOW)
@example({"if-match": '"other"'}, PLAIN, NOW)
def test_head_is_get_without_body_and_range(fields: dict[str, str], found: Found, now: float) -> None:
    """Sections 9.3.2 and 14.2: Range has a meaning only for GET."""
    without_range = {name: value for name, value in fields.items() if name != "range"}
    head = decide(Request("HEAD", fields), found, now, BOUNDARY)
    all_of_it = decide(Request("GET", without_range), found, now, BOUNDARY)
    assert (head.status, head.fields, head.reason) == (all_of_it.status, all_of_it.fields, all_of_it.reason)
    assert body_length(head) == 0


@settings(deadline=None)
@given(fields_of(TELLING), FOUND)
def test_vary_is_sent_exactly_where_there_was_a_choice(fields: dict[str, str], found: Found) -> None:
    """With every status: a cache keeps a 304 and a 206, too (section 12.5.5)."""
    varies = isinstance(found, Representation) and found.varies
    assert dict(get(fields, found).fields).get("Vary") == ("Accept-Encoding" if varies else None)


@settings(deadline=None)
@given(fields_of(TELLING), FOUND)
def test_only_coded_bytes_have_a_content_encoding(fields: dict[str, str], found: Found) -> None:
    response = get(fields, found)
    coding = found.coding if isinstance(found, Representation) and response.status in (200, 206) else None
    assert dict(response.fields).get("Content-Encoding") == coding


@settings(deadline=None)
@given(fields_of(TELLING), FOUND, CLOCK)
@example({}, Representation(1, 2**62, "text/plain", TAG), 0.0)
def test_last_modified_is_never_later_than_now(fields: dict[str, str], found: Found, now: float) -> None:
    for name, value in decide(Request("GET", fields), found, now, BOUNDARY).fields:
        if name == "Last-Modified":
            seconds = parse_http_date(value)
            assert seconds is not None
            assert seconds <= now


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(2 * 10**9, 2**63 - 1), st.integers(0, 2**64 - 1))
def test_what_was_sent_validates_itself(size: int, mtime_ns: int, inode: int) -> None:
    found = Representation(size, mtime_ns, "image/png", entity_tag(mtime_ns, size, inode, mtime_ns + inode))
    now = mtime_ns / 1e9 + 10
    sent = dict(decide(Request("GET"), found, now, BOUNDARY).fields)
    tag, date = sent["ETag"], sent["Last-Modified"]

    def status(fields: dict[str, str]) -> int:
        return decide(Request("GET", fields), found, now, BOUNDARY).status

    assert status({"if-none-match": tag}) == status({"if-modified-since": date}) == 304
    assert status({"if-match": tag, "if-unmodified-since": date}) == status({"if-unmodified-since": date}) == 200
    if size:
        for validator in (tag, date):
            assert status({"range": "bytes=0-0", "if-range": validator}) == 206


@settings(deadline=None)
@given(fields_of(TELLING | LATIN_1), FOUND, CLOCK, st.sampled_from(["GET", "HEAD"]))
def test_h11_takes_every_decision(fields: dict[str, str], found: Found, now: float, method: str) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    raw = f"{method} / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode("latin-1")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    received = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
    response = decide(Request(method, received), found, now, BOUNDARY)
    sent = sent_by_h11(response, raw)
    assert {name.lower(): value for name, value in response.fields}.items() <= sent.items()
    assert "transfer-encoding" not in sent


@pytest.mark.parametrize("method", ["POST", "BREW", "get"])
def test_h11_takes_a_refused_method(method: str) -> None:
    response = refuse_method(method)
    assert response is not None
    sent = sent_by_h11(response, f"{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert sent["content-length"] == str(body_length(response))
