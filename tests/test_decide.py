"""Deciding responses (RFC 9110 sections 8, 9, 13, 14 and 15), without files or sockets."""

from __future__ import annotations

from http import HTTPStatus

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktlsd.byte_range import ByteRange
from ktlsd.decide import FileFacts, Miss, Moved, Request, Response, decide, refuse_method, short
from ktlsd.validators import entity_tag, http_date, parse_http_date

NOW = 1_700_000_000.5
MTIME = 784111777
FACTS = FileFacts(size=10000, mtime_ns=MTIME * 1_000_000_000 + 5, inode=7, content_type="text/html; charset=utf-8")
TAG = entity_tag(FACTS.mtime_ns, FACTS.size, FACTS.inode)
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"

NAMES = ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "range"]
PIECES = [TAG, "W/", '"', '"a"', ",", " ", "*", DATE, EARLIER, "Sun", "GMT", "bytes=", "0-0", "-", "5", "99999", "\xe9"]
PIECES += ["9" * 5000]
TELLING = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
# What a field value may be made of (RFC 9110 section 5.5).
LATIN_1 = st.text([chr(code) for code in (*b"\t ", *range(0x21, 0x7F), *range(0x80, 0x100))])

FOUND = st.one_of(
    st.builds(
        FileFacts,
        size=st.integers(0, 2**63 - 1) | st.integers(0, 20),
        mtime_ns=st.integers(-(2**63), 2**63 - 1),
        inode=st.integers(0, 2**64 - 1),
        content_type=st.sampled_from(["text/html; charset=utf-8", "image/png"]),
    ),
    st.just(FACTS),
    st.sampled_from(list(Miss)),
    st.just(Moved("/a/?b")),
)
CLOCK = st.floats(0, 4e9)


def fields_of(value: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(NAMES), value)


def get(fields: dict[str, str] | None = None, found: FileFacts | Moved | Miss = FACTS, method: str = "GET") -> Response:
    return decide(Request(method, fields or {}), found, NOW)


def body_length(response: Response) -> int:
    return response.body.count if isinstance(response.body, ByteRange) else len(response.body)


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


# --- a file


def test_a_file_goes_out_whole_with_its_metadata() -> None:
    response = get()
    assert (response.status, response.body, response.close) == (HTTPStatus.OK, ByteRange(0, 10000), False)
    assert dict(response.fields) == {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Length": "10000",
        "Accept-Ranges": "bytes",
        "ETag": TAG,
        "Last-Modified": DATE,
    }


def test_an_empty_file_has_length_0() -> None:
    response = get(found=FileFacts(0, 0, 1, "text/plain"))
    assert (response.status, body_length(response), dict(response.fields)["Content-Length"]) == (HTTPStatus.OK, 0, "0")


def test_a_range_goes_out_as_206() -> None:
    response = get({"range": "bytes=500-999"})
    assert (response.status, response.body) == (HTTPStatus.PARTIAL_CONTENT, ByteRange(500, 500))
    assert dict(response.fields) == {
        **dict(get().fields),
        "Content-Length": "500",
        "Content-Range": "bytes 500-999/10000",
    }


def test_a_range_outside_is_416_with_the_size() -> None:
    response = get({"range": "bytes=10000-"})
    assert response.status == 416
    fields = dict(response.fields)
    assert fields["Content-Range"] == "bytes */10000"
    assert fields["ETag"] == TAG
    assert response.body == f"416 {response.status.phrase}\n".encode()
    assert fields["Content-Length"] == str(body_length(response))
    assert "10000" in response.reason


def test_304_carries_the_validators_and_nothing_of_a_body() -> None:
    response = get({"if-none-match": TAG})
    assert (response.status, response.body) == (HTTPStatus.NOT_MODIFIED, b"")
    assert dict(response.fields) == {"ETag": TAG, "Last-Modified": DATE}


def test_412_says_what_the_file_is_now() -> None:
    response = get({"if-match": '"other"'})
    assert response.status == HTTPStatus.PRECONDITION_FAILED
    assert dict(response.fields)["ETag"] == TAG
    assert response.body == b"412 Precondition Failed\n"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("fields", "for_get", "for_head"),
    [
        ({"range": "bytes=0-0"}, 206, 200),
        ({"range": "bytes=10000-"}, 416, 200),
        ({"range": "bytes=0-0,5-6"}, 200, 200),
        ({"range": "lines=0-0"}, 200, 200),
        # If-Range (section 13.1.5): a mismatch gives the whole, and an unsatisfiable range no longer matters.
        ({"range": "bytes=0-0", "if-range": TAG}, 206, 200),
        ({"range": "bytes=0-0", "if-range": DATE}, 206, 200),
        ({"range": "bytes=0-0", "if-range": '"other"'}, 200, 200),
        ({"range": "bytes=0-0", "if-range": f"W/{TAG}"}, 200, 200),
        ({"range": "bytes=0-0", "if-range": EARLIER}, 200, 200),
        ({"range": "bytes=10000-", "if-range": '"other"'}, 200, 200),
        ({"range": "bytes=10000-", "if-range": TAG}, 416, 200),
        ({"if-range": '"other"'}, 200, 200),
        # The other preconditions come before the range (section 13.2.2).
        ({"range": "bytes=0-0", "if-none-match": TAG}, 304, 304),
        ({"range": "bytes=0-0", "if-modified-since": DATE}, 304, 304),
        ({"range": "bytes=10000-", "if-none-match": TAG}, 304, 304),
        ({"range": "bytes=0-0", "if-match": '"other"'}, 412, 412),
        ({"range": "bytes=0-0", "if-unmodified-since": EARLIER}, 412, 412),
        ({"range": "bytes=0-0", "if-match": TAG, "if-none-match": '"other"', "if-range": TAG}, 206, 200),
        ({"if-match": TAG, "if-none-match": TAG}, 304, 304),
        ({"if-match": '"other"', "if-none-match": TAG}, 412, 412),
        ({"if-match": TAG, "if-unmodified-since": EARLIER}, 200, 200),
        ({"if-none-match": '"other"', "if-modified-since": DATE}, 200, 200),
    ],
)
def test_preconditions_then_range(method: str, fields: dict[str, str], for_get: int, for_head: int) -> None:
    assert get(fields, method=method).status == (for_get if method == "GET" else for_head)


@pytest.mark.parametrize(("asked", "status"), [("bytes=0-", 416), ("bytes=-5", 200), ("bytes=-0", 416)])
def test_a_range_of_an_empty_file(asked: str, status: int) -> None:
    response = get({"range": asked}, FileFacts(0, 0, 1, "text/plain"))
    assert response.status == status
    assert dict(response.fields).get("Content-Range") == ("bytes */0" if status == 416 else None)


@pytest.mark.parametrize("ahead", [0, 0.4, 1, 1e6, 1e12])
def test_a_file_from_the_future_was_modified_now(ahead: float) -> None:
    """Section 8.8.2.1: a Last-Modified later than Date is forbidden."""
    facts = FileFacts(1, int((NOW + ahead) * 1_000_000_000), 1, "text/plain")
    assert dict(get(found=facts).fields)["Last-Modified"] == http_date(NOW)


def test_a_file_from_before_the_year_1_is_served() -> None:
    """utimensat(2) takes such a time on tmpfs, btrfs and others."""
    facts = FileFacts(1, -(10**11) * 1_000_000_000, 1, "text/plain")
    assert get(found=facts).status == HTTPStatus.OK


# --- no file


@pytest.mark.parametrize(
    ("miss", "status"),
    [
        (Miss.ABSENT, 404),
        (Miss.HIDDEN, 404),
        (Miss.OUTSIDE, 404),
        (Miss.FORBIDDEN, 403),
        (Miss.SPECIAL, 403),
        (Miss.NO_INDEX, 403),
        (Miss.EXHAUSTED, 503),
        (Miss.FAILED, 500),
    ],
)
def test_a_miss_has_its_status_and_its_reason_is_for_the_log_alone(miss: Miss, status: int) -> None:
    response = get(found=miss)
    assert (response.status, response.reason) == (status, miss.reason)
    assert response.body == f"{status} {response.status.phrase}\n".encode()


def test_hidden_and_outside_look_like_absent() -> None:
    absent = get(found=Miss.ABSENT)
    for miss in (Miss.HIDDEN, Miss.OUTSIDE):
        response = get(found=miss)
        assert (response.status, response.fields, response.body) == (absent.status, absent.fields, absent.body)


def test_a_folder_without_its_slash_moves() -> None:
    response = get(found=Moved("/a/?q"))
    assert response.status == HTTPStatus.MOVED_PERMANENTLY
    assert dict(response.fields)["Location"] == "/a/?q"


@pytest.mark.parametrize("found", [Miss.ABSENT, Miss.FORBIDDEN, Moved("/a/")], ids=str)
@pytest.mark.parametrize("name", ["if-match", "if-none-match", "if-unmodified-since", "range"])
def test_preconditions_do_not_matter_without_a_file(name: str, found: Moved | Miss) -> None:
    """Section 13.2.1: ignored when the response without them would not be a 2xx."""
    value = {"range": "bytes=5-", "if-unmodified-since": EARLIER}.get(name, '"other"')
    assert get({name: value}, found) == get({}, found)


# --- methods


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"])
def test_405_carries_allow(method: str) -> None:
    response = refuse_method(method)
    assert response is not None
    assert (response.status, dict(response.fields)["Allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET, HEAD")
    assert method in response.reason


@pytest.mark.parametrize("method", ["BREW", "get", "Head", "PROPFIND", ""])
def test_an_unknown_method_is_501(method: str) -> None:
    """Methods are case-sensitive (section 9.1)."""
    response = refuse_method(method)
    assert response is not None
    assert response.status == HTTPStatus.NOT_IMPLEMENTED


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_get_and_head_are_not_refused(method: str) -> None:
    assert refuse_method(method) is None


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
@example({"range": "bytes=5-"}, FACTS, NOW)
@example({"if-none-match": TAG}, FACTS, NOW)
def test_the_length_is_that_of_the_body(fields: dict[str, str], found: FileFacts | Moved | Miss, now: float) -> None:
    response = decide(Request("GET", fields), found, now)
    names = [name.lower() for name, _ in response.fields]
    assert len(set(names)) == len(names)
    if response.status == HTTPStatus.NOT_MODIFIED:
        assert names == ["etag", "last-modified"]
        assert body_length(response) == 0
    else:
        assert dict(response.fields)["Content-Length"] == str(body_length(response))
    assert ("content-range" in names) == (response.status in (206, 416))


@settings(deadline=None)
@given(fields_of(TELLING | st.text()), FOUND, CLOCK)
@example({"range": "bytes=10000-"}, FACTS, NOW)
@example({"if-match": '"other"'}, FACTS, NOW)
def test_head_is_get_without_body_and_range(
    fields: dict[str, str], found: FileFacts | Moved | Miss, now: float
) -> None:
    """Sections 9.3.2 and 14.2: Range has a meaning for GET alone."""
    without_range = {name: value for name, value in fields.items() if name != "range"}
    head, whole = decide(Request("HEAD", fields), found, now), decide(Request("GET", without_range), found, now)
    assert (head.status, head.fields, head.reason) == (whole.status, whole.fields, whole.reason)
    assert body_length(head) == 0


@settings(deadline=None)
@given(fields_of(TELLING), FOUND, CLOCK)
@example({}, FileFacts(1, 2**62, 1, "text/plain"), 0.0)
def test_last_modified_is_never_later_than_now(
    fields: dict[str, str], found: FileFacts | Moved | Miss, now: float
) -> None:
    for name, value in decide(Request("GET", fields), found, now).fields:
        if name == "Last-Modified":
            seconds = parse_http_date(value)
            assert seconds is not None
            assert seconds <= now


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1))
def test_what_was_sent_validates_itself(size: int, mtime_ns: int, inode: int) -> None:
    facts = FileFacts(size, mtime_ns, inode, "image/png")
    now = mtime_ns / 1e9 + 10
    sent = dict(decide(Request("GET"), facts, now).fields)
    tag, date = sent["ETag"], sent["Last-Modified"]

    def status(fields: dict[str, str]) -> int:
        return decide(Request("GET", fields), facts, now).status

    assert status({"if-none-match": tag}) == status({"if-modified-since": date}) == 304
    assert status({"if-match": tag, "if-unmodified-since": date}) == status({"if-unmodified-since": date}) == 200
    if size:
        for validator in (tag, date):
            assert status({"range": "bytes=0-0", "if-range": validator}) == 206


@settings(deadline=None)
@given(fields_of(TELLING | LATIN_1), FOUND, CLOCK, st.sampled_from(["GET", "HEAD"]))
def test_h11_takes_every_decision(
    fields: dict[str, str], found: FileFacts | Moved | Miss, now: float, method: str
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    raw = f"{method} / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode("latin-1")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    received = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
    response = decide(Request(method, received), found, now)
    sent = sent_by_h11(response, raw)
    assert {name.lower(): value for name, value in response.fields}.items() <= sent.items()
    assert "transfer-encoding" not in sent


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "BREW", "get"])
def test_h11_takes_a_refused_method(method: str) -> None:
    response = refuse_method(method)
    assert response is not None
    sent = sent_by_h11(response, f"{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert sent["content-length"] == str(body_length(response))
