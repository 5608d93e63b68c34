"""Lines of heads: whatever is read from memory is what h11 makes of the whole head."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktlsd.http.header_line_cache import LONGEST_LINE, MOST_LINES, HeaderLineCache, takes_query, without_query
from ktlsd.http.request_fields import TrackedFields, joined

NAMES = st.sampled_from([b"Host", b"hOst", b"X", b"Content-Length", b"Transfer-Encoding", b"", b"\xe9", b"a b"])
VALUES = st.sampled_from(
    [b"a", b"", b"5", b"5, 5", b"6", b"chunked", b"\xe9", b"\x00", b"a\tb ", b"\t a", b"\ra", b"\n"]
)
FIELD_LINES = st.tuples(NAMES, st.sampled_from([b": ", b":", b" : ", b" "]), VALUES).map(b"".join)
NO_FIELDS = st.sampled_from(
    [b" folded", b"\tfolded: a", b"X: a\r", b"X: a\nY: b", b"X: a\n b", b"\r", b"GET / HTTP/1.1"]
)
ANY = st.binary(min_size=1, max_size=8).filter(lambda line: b"\r\n" not in line)
LINES = st.lists(FIELD_LINES | NO_FIELDS | ANY, max_size=5)
TOGETHER = {b"host", b"content-length", b"transfer-encoding"}
"""Fields that h11 refuses for what else there is."""


def request_of(*lines: bytes) -> h11.Request | None:
    """What h11 makes of a head with these lines; None where it refuses it."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(b"\r\n".join([*lines, b"", b""]))
    try:
        event = http.next_event()
    except h11.RemoteProtocolError:
        return None
    assert isinstance(event, h11.Request)
    return event


@given(st.lists(LINES, min_size=1, max_size=4))
@example([[b"Host: a", b"X: b"], [b"X: b", b"Host: a"], [b"Host: a", b"Host: a"]])
@example([[b"Content-Length: 5"], [b"Content-Length: 5", b"Content-Length: 5"]])
@example([[b"X: a"], [b"X: a", b" folded"]])
def test_what_is_known_is_what_h11_reads(heads: list[list[bytes]]) -> None:
    known = HeaderLineCache()
    for lines in heads:
        fields, request = known.read(lines), request_of(b"GET / HTTP/1.0", *lines)
        expected = None if request is None else list(request.headers)
        if fields is None:
            assert expected is None or any(line.startswith((b" ", b"\t")) or b"\n" in line for line in lines)
        elif expected is None:
            assert TOGETHER & {name for name, _ in fields}
        elif len(expected) < len(lines):
            # Equal lengths of a body are one to it.
            assert set(expected) == set(fields)
            assert b"content-length" in dict(fields)
        else:
            assert fields == expected


def test_lines_that_are_known_are_not_asked_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known, asked = HeaderLineCache(), []
    event = h11.EndOfMessage

    def noted(headers: list[tuple[bytes, bytes]]) -> h11.EndOfMessage:
        asked.append(headers)
        return event(headers=headers)

    monkeypatch.setattr(h11, "EndOfMessage", noted)
    assert known.read([b"A: 1", b"B:2 "]) == [(b"a", b"1"), (b"b", b"2")]
    assert known.read([b"B:2 ", b"C: 3", b"A: 1"]) == [(b"b", b"2"), (b"c", b"3"), (b"a", b"1")]
    assert asked == [[(b"A", b"1")], [(b"B", b"2")], [(b"C", b"3")]]


TARGETS = [
    "/",
    "/a",
    "/a?",
    "/a?b",
    "/a?b?c",
    "/a?b c",
    "/a? ",
    "?",
    "/a?\xe9",
    "/a?\t",
    "/a?b\n",
    "*",
    "http://a/b?c",
    "http://a?c",
]


@given(
    st.sampled_from(["GET", "HEAD", "G?T", "G T", "", "GET "]),
    st.sampled_from(TARGETS) | st.text(st.characters(max_codepoint=255), max_size=4).map("/?{}".format),
    st.sampled_from(["HTTP/1.1", "HTTP/1.?1", "HTTP/1.1 ", "?HTTP/1.1", "HTTP/1.1?", "?"]),
)
@example("GET", "/a", "HTTP/1.?1")
def test_a_request_line_with_another_query_is_judged_as_h11_does(method: str, target: str, version: str) -> None:
    line = f"{method} {target} {version}".encode("latin-1")
    bare = without_query(line)
    known, expected = request_of(bare, b"Host: a"), request_of(line, b"Host: a")
    if known is None:
        return  # It is never known.
    assert (line == bare or takes_query(line)) is (expected is not None)
    if expected is not None:
        assert (expected.method, expected.http_version) == (known.method, known.http_version)
        assert expected.target.partition(b"?")[0] == known.target


def test_memory_is_bounded() -> None:
    known = HeaderLineCache()
    for number in range(3 * MOST_LINES):
        assert known.read([b"Host: a", b"X: %d" % number]) == [(b"host", b"a"), (b"x", b"%d" % number)]
        assert 0 < len(known) <= MOST_LINES
    before = len(known)
    long = b"X: " + b"x" * LONGEST_LINE
    assert known.read([long]) == [(b"x", long[3:])]
    assert len(known) == before


def test_what_was_asked_for() -> None:
    fields = TrackedFields(joined([(b"b", b"1"), (b"a", b"2"), (b"b", b"\xe9"), (b"c", b"4")]))
    assert (fields.get("b"), fields.get("z"), "y" in fields, fields["c"]) == ("1, \xe9", None, False, "4")
    assert fields.asked_for() == (b"b", b"c", b"y", b"z")
    assert dict(fields) == {"b": "1, \xe9", "a": "2", "c": "4"}
    assert fields.asked_for() is None
