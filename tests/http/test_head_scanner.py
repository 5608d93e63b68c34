"""Heads without h11: whatever is scanned is what h11 reads, and whatever is nothing but a head is scanned."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktlsd.http import head_scanner
from ktlsd.http.head_scanner import (
    LONGEST_HEAD,
    LONGEST_HOST,
    LONGEST_LINE,
    LONGEST_SECTION,
    MOST_HEADS,
    MOST_HOSTS,
    MOST_LINES,
    MOST_SECTIONS,
    MOST_SEEN,
    HeadScanner,
)
from ktlsd.http.request_fields import TrackedFields, joined
from ktlsd.http.uri_host import host_of

NAMES = st.sampled_from(
    [
        b"Host",
        b"hOst",
        b"X",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Expect",
        b"Upgrade",
        *(b"Cookie", b"cookie", b"COOKIE", b"Range", b"If-None-Match", b"X-Forwarded-For", b"x-id", b"X-"),
        b"",
        b"\xe9",
    ]
) | st.binary(max_size=3)
VALUES = st.sampled_from(
    [
        b"a",
        b"",
        b"5",
        b"5, 5",
        b"6",
        b"chunked",
        b"\xe9",
        b"\x00",
        b"a\tb ",
        b"\t a",
        b"\ra",
        b"\n",
        b"\x0b",
        b"\x01",
        b"a b",
        *(b"close", b"Keep-Alive", b"close, keep-alive", b"[::1]:8", b"a/b", b"\x7f"),
    ]
) | st.binary(max_size=4)
FIELD_LINES = st.tuples(NAMES, st.sampled_from([b": ", b":", b":\t ", b" : ", b" "]), VALUES).map(b"".join)
NO_FIELDS = st.sampled_from(
    [b" folded", b"\tfolded: a", b"X: a\r", b"X: a\nY: b", b"X: a\n b", b"\r", b"", b"GET / HTTP/1.1"]
)
REQUEST_LINES = st.tuples(
    st.sampled_from([b"GET", b"HEAD", b"G T", b"", b"get", b"G\xe9", b"P!"]),
    st.sampled_from([b" ", b"  ", b"\t", b""]),
    st.sampled_from([b"/", b"*", b"/a?b#c", b"http://a/", b"", b"/\xe9", b"/a b", b"/\x7f", b"/~"])
    | st.binary(max_size=4),
    st.sampled_from(
        [b" HTTP/1.1"] * 4 + [b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/1.1 ", b" http/1.1", b"", b" HTTP/1.11"]
    ),
).map(b"".join)
LINES = st.lists(st.just(b"Host: a") | FIELD_LINES | NO_FIELDS, max_size=5)
MORE = {b"content-length", b"transfer-encoding", b"expect", b"upgrade"}


def request_of(head: bytes) -> h11.Request | None:
    """What h11 makes of a head; None where it refuses it, or reads less than all of it."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(head)
    try:
        event = http.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) and not http.trailing_data[0] else None


def is_nothing_more(head: bytes, request: h11.Request) -> bool:
    """Whether a request is nothing but its head, and no other reader can see another one in the same bytes."""
    fields = [name for name, _ in request.headers]
    values = joined(request.headers)
    return (
        request.http_version in (b"1.0", b"1.1")
        and not MORE & set(fields)
        and host_of(values.get(b"host", b"").decode("latin-1")) is not None
        and values.get(b"connection", b"close").lower() in (b"close", b"keep-alive")
        and head.count(b"\n") == head.count(b"\r\n") == len(fields) + 2
    )


@given(st.lists(st.tuples(REQUEST_LINES, LINES), min_size=1, max_size=4))
@example([(b"GET / HTTP/1.1", [b"Host: a"]), (b"GET / HTTP/1.1", [b"Host: a", b"Host: a"])])
@example([(b"GET / HTTP/1.1", [b"Host: a", b"X: b"]), (b"GET / HTTP/1.1", [b"X: b", b"Host: a"])])
@example([(b"GET / HTTP/1.0", []), (b"GET / HTTP/1.1", [])])
@example([(b"GET / HTTP/1.0", [b"X: a"]), (b"GET / HTTP/1.1", [b"X: a"])])
@example([(b"GET / HTTP/1.1", [b"Host: a", b" folded"])])
@example([(b"GET / HTTP/1.1", [b"Host: a", b"Connection: close", b"Connection: close"])])
@example([(b"GET / HTTP/1.1", [b"Cookie: a", b"Host: a", b"X-A: b", b"Connection: close", b"Range: c"])])
@example([(b"GET / HTTP/1.1", [b"Host: a", b"Cookie: a", b"Host: a"])])
@example([(b"GET / HTTP/1.1", [b"Connection: close", b"Cookie: a", b"Host: a", b"Connection: keep-alive"])])
@example([(b"GET / HTTP/1.1", [b"Host: a", b"Cookie: a", b"Cookie: b", b"Cookie:", b" folded"])])
@example([(b"GET / HTTP/1.1", [b"Host: a", b"Cookie: a\0", b"X-B: \n"])])
@example([(b"GET / HTTP/1.1", [b"Host: a", b"Cookie: a", b"Expect: b"])])
@example([(b"GET / HTTP/1.1", [b"Cookie: a"])])
def test_what_is_scanned_is_what_h11_reads(heads: list[tuple[bytes, list[bytes]]]) -> None:
    scanner = HeadScanner()
    for request_line, lines in heads:
        head = b"\r\n".join([request_line, *lines, b"", b""])
        # The caller cuts a head at its first blank line.
        head = head[: head.index(b"\r\n\r\n") + 4]
        for _ in range(2):
            found, request = scanner.scan(head), request_of(head)
            assert (found is not None) is (request is not None and is_nothing_more(head, request))
            if found is not None and request is not None:
                assert (found.method, found.target, found.http_version) == (
                    *(request.method, request.target),
                    request.http_version,
                )
                assert list(found.headers) == list(request.headers)
                assert found.of_fields.values == joined(request.headers)
                assert found.alone
                connection = found.of_fields.values.get(b"connection", b"").lower()
                assert found.closes is (connection == b"close" or request.http_version == b"1.0")


def test_requests_with_the_same_fields_share_them() -> None:
    scanner = HeadScanner()
    # Fields that never came before are not kept.
    scanner.scan(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    first, second, other = (
        scanner.scan(b"GET /%d HTTP/1.1\r\nHost: %b\r\n\r\n" % (number, host))
        for number, host in ((1, b"a"), (2, b"a"), (3, b"b"))
    )
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.of_fields is second.of_fields
    assert first.of_fields is not other.of_fields
    assert (first.key, second.key) == (b"GET /1", b"GET /2")


def test_a_head_that_came_again_is_kept() -> None:
    scanner = HeadScanner()
    for fields in (b"", b"Cookie: a\r\n"):
        head = b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % fields
        scanner.scan(head)
        assert scanner.scan(head) is scanner.scan(head)


def test_what_comes_once_is_not_kept() -> None:
    scanner = HeadScanner()
    for number in range(MOST_SEEN + 1):
        scanner.scan(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: %d\r\nReferer: %d\r\n\r\n" % (number, number))
        assert len(scanner._seen) <= MOST_SEEN
    assert len(scanner._heads) == 0
    assert len(scanner._lines) == len(scanner._sections) == 1


@pytest.mark.parametrize("long", [b"x", b"x" * LONGEST_LINE, b"x" * LONGEST_SECTION])
def test_memory_is_bounded(long: bytes) -> None:
    scanner = HeadScanner()
    for number in range(2 * MOST_LINES):
        found = scanner.scan(b"GET / HTTP/1.1\r\nHost: a\r\nX: %b%d\r\n\r\n" % (long, number))
        assert found is not None
        assert found.headers[1] == (b"x", b"%b%d" % (long, number))
        assert len(scanner._sections) <= (0 if len(long) == LONGEST_SECTION else MOST_SECTIONS)
        assert len(scanner._lines) <= (1 if len(long) >= LONGEST_LINE else MOST_LINES)


@pytest.mark.parametrize("long", [0, LONGEST_HEAD])
def test_heads_with_long_targets_are_not_kept(long: int) -> None:
    scanner = HeadScanner()
    for number in range(4 * MOST_HEADS):
        target = b"/%b%d" % (b"x" * long, number // 2)
        found = scanner.scan(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert found is not None
        assert found.target == target
        assert len(scanner._heads) <= (0 if long else MOST_HEADS)
    # They share their fields all the same.
    assert len(scanner._sections) == 1


@pytest.mark.parametrize("long", [0, LONGEST_HOST])
def test_long_hosts_are_not_kept(long: int) -> None:
    kept = head_scanner._is_short_host
    kept.cache_clear()
    scanner = HeadScanner()
    for number in range(2 * MOST_HOSTS):
        assert scanner.scan(b"GET / HTTP/1.1\r\nHost: %b%d\r\n\r\n" % (b"x" * long, number)) is not None
    assert kept.cache_info().currsize == (0 if long else MOST_HOSTS)


def test_what_was_asked_for() -> None:
    fields = TrackedFields(joined([(b"b", b"1"), (b"a", b"2"), (b"b", b"\xe9"), (b"c", b"4")]))
    assert (fields.get("b"), fields.get("z"), "y" in fields, fields["c"]) == ("1, \xe9", None, False, "4")
    assert fields.asked_for() == (b"b", b"c", b"y", b"z")
    assert dict(fields) == {"b": "1, \xe9", "a": "2", "c": "4"}
    assert fields.asked_for() is None
