"""Request heads (RFC 9113 sections 8.2 and 8.3): which fields make one, and what is malformed."""

from __future__ import annotations

import h2.utilities
import h11
import pytest
from h2.exceptions import ProtocolError
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.request_fields import Field
from ktlsd.http.request_head import RequestHead
from ktlsd.http2.priority import NO_SIGNAL, Priority
from ktlsd.http2.request_fields import NO_REQUEST, FieldChecks, SharedHead, oversized_head, request_head, wrong_trailers
from tests.http2.blocks import GET, with_fields, without


def head_of(fields: tuple[Field, ...]) -> tuple[SharedHead, RequestHead]:
    return request_head(fields, sum(len(name) + len(value) + 32 for name, value in fields), FieldChecks())


def test_a_request_without_fields() -> None:
    shared, head = head_of(GET)
    assert (head.method, head.target, head.http_version, head.key) == (b"GET", b"/file", b"2.0", b"GET /file")
    assert (head.headers, head.of_fields.values) == (((b"host", b"example.org"),), {b"host": b"example.org"})
    assert (head.alone, head.closes, head.of_fields.closes) == (True, False, False)
    assert (shared.method, shared.scheme, shared.of_fields) == (b"GET", b"https", head.of_fields)
    assert (shared.content_length, shared.priority, shared.refused, shared.too_large) == (None, NO_SIGNAL, None, False)
    assert shared.list_bytes == 10 + 12 + 21 + 10 + 4 * 32


@pytest.mark.parametrize(
    ("field", "alone"),
    [((b"content-length", b"0"), False), ((b"expect", b"100-continue"), False), ((b"range", b"bytes=0-"), True)],
)
def test_a_request_that_is_nothing_but_its_head(field: Field, alone: bool) -> None:
    assert head_of(with_fields(field))[1].alone == alone


def test_fields_keep_their_order_behind_the_host() -> None:
    _, head = head_of(with_fields((b"b", b"2"), (b"a", b"1"), (b"b", b"")))
    assert head.of_fields.values == {b"host": b"example.org", b"b": b"2, ", b"a": b"1"}
    assert head.headers == ((b"host", b"example.org"), (b"b", b"2"), (b"a", b"1"), (b"b", b""))


def test_cookies_are_joined_where_the_first_is() -> None:
    fields = with_fields((b"cookie", b"a=1"), (b"range", b"bytes=0-"), (b"cookie", b"b=2"), (b"cookie", b"c"))
    assert head_of(fields)[1].headers[1:] == ((b"cookie", b"a=1; b=2; c"), (b"range", b"bytes=0-"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (without(b":authority"), ()),
        ((*without(b":authority"), (b"a", b"1"), (b"host", b"other.org")), ((b"host", b"other.org"), (b"a", b"1"))),
        (with_fields((b"host", b"EXAMPLE.org")), ((b"host", b"example.org"),)),
        (with_fields((b"a", b"1"), (b"host", b"example.org")), ((b"host", b"example.org"), (b"a", b"1"))),
    ],
)
def test_host_and_authority(fields: tuple[Field, ...], expected: tuple[Field, ...]) -> None:
    assert head_of(fields)[1].headers == expected


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ((), NO_SIGNAL),
        (((b"priority", b"u=1"),), Priority(1)),
        (((b"priority", b"u=1"), (b"priority", b"i")), Priority(1, incremental=True)),
        (((b"priority", b""),), Priority(3)),
        (((b"priority", b"u=1, ?"),), NO_SIGNAL),
    ],
)
def test_the_priority_of_a_request(fields: tuple[Field, ...], priority: Priority) -> None:
    assert head_of(with_fields(*fields))[0].priority == priority


@pytest.mark.parametrize(
    ("fields", "method", "target"),
    [
        (((b":method", b"OPTIONS"), *without(b":method", b":path"), (b":path", b"*")), b"OPTIONS", b"*"),
        (((b":authority", b"example.org:443"), (b":method", b"CONNECT")), b"CONNECT", b"example.org:443"),
        (((b":method", b"brew"), *without(b":method")), b"brew", b"/file"),
        ((*without(b":path"), (b":path", b"/?q=%20#x")), b"GET", b"/?q=%20#x"),
        (tuple(reversed(GET)), b"GET", b"/file"),
    ],
)
def test_other_forms(fields: tuple[Field, ...], method: bytes, target: bytes) -> None:
    shared, head = head_of(fields)
    assert shared.refused is None
    assert (head.method, head.target) == (method, target)


@pytest.mark.parametrize(
    ("fields", "content_length"), [((), None), (((b"content-length", b"0"),), 0), (((b"content-length", b"010"),), 10)]
)
def test_the_length_of_a_body(fields: tuple[Field, ...], content_length: int | None) -> None:
    assert head_of(with_fields(*fields))[0].content_length == content_length


MALFORMED: list[tuple[tuple[Field, ...], str]] = [
    # pseudo-header fields: missing, double, out of place, unknown, empty
    ((), ":method"),
    (without(b":method"), ":method"),
    (without(b":scheme"), ":scheme"),
    (without(b":path"), ":path"),
    *(((*GET, field), "twice") for field in GET),
    (((b"accept", b"*/*"), *GET), "after another field"),
    (((b"host", b"example.org"), *GET), "after another field"),
    ((*without(b":path"), (b"a", b"b"), (b":path", b"/")), "after another field"),
    (((b":status", b"200"), *GET), "unknown pseudo"),
    (((b":protocol", b"websocket"), *GET), "unknown pseudo"),
    (((b":", b"x"), *GET), "unknown pseudo"),
    (((b":Path", b"/"), *without(b":path")), "unknown pseudo"),
    ((*without(b":method"), (b":method", b"")), ":method"),
    ((*without(b":method"), (b":method", b"GET /")), ":method"),
    ((*without(b":scheme"), (b":scheme", b"")), ":scheme"),
    ((*without(b":scheme"), (b":scheme", b"1https")), ":scheme"),
    ((*without(b":path"), (b":path", b"")), ":path"),
    ((*without(b":path"), (b":path", b"file")), ":path"),
    ((*without(b":path"), (b":path", b"*")), ":path"),
    ((*without(b":path"), (b":path", b"https://example.org/")), ":path"),
    ((*without(b":path"), (b":path", b"/a b")), ":path"),
    ((*without(b":path"), (b":path", b"/\xc3\xa4")), ":path"),
    ((*without(b":path"), (b":path", b"/a\r\nx: y")), "field value"),
    ((*without(b":authority"), (b":authority", b"")), ":authority"),
    ((*without(b":authority"), (b":authority", b"user@example.org")), ":authority"),
    ((*without(b":authority"), (b":authority", b"a b")), ":authority"),
    ((*without(b":authority"), (b":authority", b":443")), ":authority"),
    ((*without(b":authority"), (b":authority", b"[::1")), ":authority"),
    ((*without(b":authority"), (b":authority", b"example.org:x")), ":authority"),
    # Host
    (with_fields((b"host", b"other.org")), "Host differs"),
    ((*without(b":authority"), (b"host", b"")), "no valid Host"),
    ((*without(b":authority"), (b"host", b"user@example.org")), "no valid Host"),
    (with_fields((b"host", b"example.org"), (b"host", b"example.org")), "Host twice"),
    # CONNECT (section 8.5)
    (((b":method", b"CONNECT"),), "CONNECT"),
    (((b":method", b"CONNECT"), (b":authority", b"a:1"), (b":scheme", b"https")), "CONNECT"),
    (((b":method", b"CONNECT"), (b":authority", b"a:1"), (b":path", b"/")), "CONNECT"),
    # names
    (with_fields((b"Accept", b"*/*")), "field name"),
    (with_fields((b"accepT", b"*/*")), "field name"),
    (with_fields((b"", b"x")), "field name"),
    (with_fields((b"a b", b"x")), "field name"),
    (with_fields((b"a:b", b"x")), "field name"),
    (with_fields((b"a\n", b"x")), "field name"),
    (with_fields((b"\xe4", b"x")), "field name"),
    (with_fields((b"a\x7f", b"x")), "field name"),
    # values
    *((with_fields((b"a", value)), "field value") for value in (b" x", b"x ", b"\tx", b"x\t", b"x\0", b"\nx", b"x\r")),
    *((with_fields((b"a", value)), "field value") for value in (b"x\ny", b"x\vy", b"x\fy", b"x\n", b" ")),
    # connection-specific fields
    (with_fields((b"connection", b"close")), "connection-specific field connection"),
    (with_fields((b"keep-alive", b"5")), "connection-specific"),
    (with_fields((b"proxy-connection", b"close")), "connection-specific"),
    (with_fields((b"transfer-encoding", b"chunked")), "connection-specific"),
    (with_fields((b"upgrade", b"h2c")), "connection-specific"),
    (with_fields((b"te", b"gzip")), "connection-specific"),
    (with_fields((b"te", b"trailers, gzip")), "connection-specific"),
    (with_fields((b"te", b"")), "connection-specific"),
    # content-length
    *((with_fields((b"content-length", value)), "content-length") for value in (b"", b"-1", b"+1", b"1, 1", b"1_0")),
    (with_fields((b"content-length", b"1" * 21)), "content-length"),
    (with_fields((b"content-length", "\u0663".encode())), "content-length"),
    (with_fields((b"content-length", b"1"), (b"content-length", b"1")), "Content-Length twice"),
]


@pytest.mark.parametrize(("fields", "reason"), MALFORMED)
def test_what_is_malformed(fields: tuple[Field, ...], reason: str) -> None:
    shared, head = head_of(fields)
    assert shared.refused is not None
    assert reason in shared.refused
    assert (head, shared.method, shared.too_large) == (NO_REQUEST, b"", False)


def test_te_trailers_is_allowed() -> None:
    assert head_of(with_fields((b"te", b"trailers")))[0].refused is None


# --- second implementations ------------------------------------------------------------------------------------------

NAME_BYTES = st.sampled_from([bytes((byte,)) for byte in range(256)])
ODD_BYTES = st.sampled_from(
    [b"a", b"Z", b"0", b"-", b":", b" ", b"\t", b"\n", b"\r", b"\0", b"\v", b"\f", b"\x1c", b"\x7f"]
)


@given(st.lists(st.one_of(NAME_BYTES, ODD_BYTES), max_size=4).map(b"".join))
def test_values_are_those_that_h11_takes(value: bytes) -> None:
    try:
        h11.EndOfMessage(headers=[(b"x", value)])
    except h11.LocalProtocolError:
        valid = False
    else:
        valid = True
    assert (FieldChecks().wrong((b"x", value)) is None) == valid


@given(st.lists(st.one_of(NAME_BYTES, ODD_BYTES), max_size=3).map(b"".join))
def test_names_are_those_that_h11_takes_in_lower_case(name: bytes) -> None:
    try:
        h11.EndOfMessage(headers=[(name, b"trailers")])
    except h11.LocalProtocolError:
        valid = False
    else:
        valid = name == name.lower()
    assert (FieldChecks().wrong((name, b"trailers")) is None) == valid


FIELDS = st.one_of(
    st.sampled_from(GET),
    st.sampled_from(
        [
            *((b":method", b"CONNECT"), (b":path", b""), (b":status", b"200"), (b":protocol", b"x"), (b":scheme", b"")),
            *((b"host", b"example.org"), (b"host", b"x"), (b"te", b"trailers"), (b"te", b"gzip"), (b"upgrade", b"x")),
            *((b"connection", b"close"), (b"Upper", b"x"), (b"a", b" x"), (b"a", b"x\0"), (b"a", b"x"), (b"", b"x")),
            (b"cookie", b"a=b"),
        ]
    ),
)
FLAGS = h2.utilities.HeaderValidationFlags(
    is_client=False, is_trailer=False, is_response_header=False, is_push_promise=False
)


@given(st.one_of(st.lists(FIELDS, max_size=8), st.permutations(GET), st.lists(FIELDS).map(lambda more: [*GET, *more])))
def test_what_h2_refuses_is_refused(fields: list[Field]) -> None:
    try:
        list(h2.utilities.validate_headers(fields, FLAGS))
    except ProtocolError:
        assert head_of(tuple(fields))[0].refused is not None


# --- trailers, limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([], None),
        ([(b"a", b"b"), (b"digest", b"x")], None),
        ([(b"a", b"b"), (b":path", b"/")], "trailer section"),
        ([(b"A", b"b")], "field name"),
        ([(b"connection", b"close")], "connection-specific"),
        ([(b":x", b"")], "unknown pseudo"),
    ],
)
def test_trailers(fields: list[Field], reason: str | None) -> None:
    found = wrong_trailers(fields, FieldChecks())
    assert found == reason if reason is None or found is None else reason in found


@pytest.mark.parametrize(("fields", "method"), [(GET, b"GET"), ((), b""), (((b":method", b"\0"),), b"")])
def test_a_head_beyond_the_limit(fields: tuple[Field, ...], method: bytes) -> None:
    head = oversized_head(fields, 70_000)
    assert (head.method, head.too_large, head.refused) == (method, True, "a header list of 70000 bytes")


def test_the_memory_of_judgements_is_bounded() -> None:
    checks = FieldChecks()
    for number in range(5000):
        assert checks.wrong((b"a", b"%d" % number)) is None
    assert 0 < len(checks.valid) <= 4096
    before = len(checks.valid)
    assert checks.wrong((b"a", b"x" * 600)) is None
    assert checks.wrong((b"A", b"x")) is not None
    assert len(checks.valid) == before
