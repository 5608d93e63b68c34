"""The events of a connection: requests, bodies, resets, draining, and RFC 9113's error for each violation."""

from __future__ import annotations

import pytest

from ktlsd.http.request_fields import Field
from ktlsd.http2.errors import ErrorCode, Exceeded
from ktlsd.http2.events import (
    BodyReceived,
    BodyTooLarge,
    ConnectionFailed,
    GoawayReceived,
    HeadTooLarge,
    Request,
    RequestEnded,
    StreamReset,
)
from ktlsd.http2.frames import PREFACE, FrameType, frame, goaway, ping
from ktlsd.http2.head_cache import HeadCache
from ktlsd.http2.limits import Http2Limits
from tests.http2.blocks import GET, literals, with_fields, without
from tests.http2.client import (
    ACK,
    END_HEADERS,
    END_STREAM,
    OK_BLOCK,
    PADDED,
    PRIORITY,
    Client,
    begun,
    data,
    headers,
    number,
    priority_update,
    rst_stream,
    settings,
    window_update,
)
from tests.http2.test_request_fields import MALFORMED

POST = ((b":method", b"POST"), *without(b":method"))


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_request() -> None:
    client = begun()
    (event,) = client.receive(headers(1, client.block(with_fields((b"range", b"bytes=0-1")))))
    assert isinstance(event, Request)
    assert (event.stream_id, event.head.target, event.ended, event.head.http_version) == (1, b"/file", True, b"2.0")
    assert event.head.headers == ((b"host", b"example.org"), (b"range", b"bytes=0-1"))
    assert event.shared.scheme == b"https"


def test_bytes_can_come_one_by_one() -> None:
    cache = HeadCache(65536)
    client, whole = Client(cache=cache), Client(cache=cache)
    block = client.block()
    sent = (
        PREFACE
        + settings((3, 100))
        + headers(1, block[:5], 0)
        + frame(FrameType.CONTINUATION, END_HEADERS, 1, block[5:])
    )
    sent += data(1, b"abc") + data(1, b"", END_STREAM) + headers(3, client.block()) + rst_stream(3)
    events = whole.receive(sent)
    assert [type(event) for event in events] == [Request, BodyReceived, RequestEnded, Request, StreamReset]
    assert [event for index in range(len(sent)) for event in client.receive(sent[index : index + 1])] == events
    assert client.sender.take() == whole.sender.take()


def test_the_last_stream_has_no_successor() -> None:
    """The reserved bit above a stream's number is no part of it (RFC 9113 section 4.1)."""
    for last in (0x7FFFFFFF, 0x7FFFFFFD):
        client = begun()
        for stream_id in range(last, 0x80000000, 2):
            (event,) = client.receive(headers(stream_id, client.block()))
            assert isinstance(event, Request)
        (event,) = client.receive(headers(0x80000001, client.block()))
        assert isinstance(event, ConnectionFailed)


def test_padding_and_old_priorities_are_passed_over() -> None:
    client = begun()
    old_priority = number(0x80000000) + b"\xff"
    for stream_id, flags, before, after in (
        (1, PADDED, b"\x03", b"\0\0\0"),
        (3, PRIORITY, old_priority, b""),
        (5, PADDED | PRIORITY, b"\x01" + old_priority, b"\0"),
    ):
        block = before + client.block() + after
        (event,) = client.receive(headers(stream_id, block, flags | END_HEADERS | END_STREAM))
        assert isinstance(event, Request)
        assert event.stream_id == stream_id
    assert client.receive(frame(FrameType.PRIORITY, 0, 99, old_priority)) == []


def test_the_reserved_bit_and_unknown_flags_mean_nothing() -> None:
    client = begun()
    (event,) = client.receive(headers(0x80000001, client.block(), 0xD2 | END_HEADERS | END_STREAM))
    assert isinstance(event, Request)
    assert event.stream_id == 1


def test_unknown_frames_and_settings_are_ignored() -> None:
    client = begun((0xFFFF, 1), (0x1234, 0xFFFFFFFF))
    assert client.receive(frame(FrameType.DATA, 0, 0, b"x").replace(b"\0\0\x01\0", b"\0\0\x01\x0a", 1)) == []
    assert client.named() == []
    client.request()


def test_requests_beyond_the_limit_are_refused() -> None:
    client = begun(limits=Http2Limits(concurrent_streams=2))
    client.request()
    client.request()
    event = client.reset(headers(5, client.block()))
    assert (event.stream_id, event.code, event.exceeded) == (5, ErrorCode.REFUSED_STREAM, Exceeded.CONCURRENT_STREAMS)
    client.next_stream = 7
    assert client.sender.respond(1, OK_BLOCK)
    # The table went on in the one that was refused.
    client.request(with_fields((b"a", b"b")))


def test_a_head_beyond_the_limit_is_to_be_answered() -> None:
    client = begun(limits=Http2Limits(header_list_bytes=1000))
    (event,) = client.receive(headers(1, client.block(with_fields((b"a", b"v" * 2000))), END_HEADERS))
    assert event == HeadTooLarge(1, b"GET", 4 * 32 + 53 + 2033, False)
    assert client.sender.respond(1, OK_BLOCK)
    assert client.named() == [("Headers", 1), ("RstStream", 1)]
    client.next_stream = 3
    client.request(with_fields((b"a", b"v" * 200)))


def test_trailers_end_a_request() -> None:
    client = begun()
    stream_id = client.request(POST, ended=False)
    events = client.receive(data(stream_id, b"abc") + headers(stream_id, client.block([(b"digest", b"x")])))
    assert events == [BodyReceived(1, 3), RequestEnded(1, ((b"digest", b"x"),))]


@pytest.mark.parametrize(("fields", "reason"), MALFORMED)
@pytest.mark.parametrize("ended", [False, True])
def test_a_malformed_request_is_a_stream_error(fields: tuple[Field, ...], reason: str, ended: bool) -> None:
    # RFC 9113 section 8.1.1.
    client = begun()
    for stream_id in (1, 3):
        event = client.reset(headers(stream_id, literals(fields), END_HEADERS | (END_STREAM if ended else 0)))
        assert (event.stream_id, event.code, event.exceeded) == (stream_id, ErrorCode.PROTOCOL_ERROR, None)
        assert reason in event.reason
    client.next_stream = 5
    client.request()


@pytest.mark.parametrize(
    ("fields", "frames"),
    [
        # A content-length that does not match (section 8.1.1).
        (with_fields((b"content-length", b"3")), []),
        ((*POST, (b"content-length", b"3")), [data(1, b"", END_STREAM)]),
        ((*POST, (b"content-length", b"3")), [data(1, b"ab", END_STREAM)]),
        ((*POST, (b"content-length", b"3")), [data(1, b"abcd")]),
        ((*POST, (b"content-length", b"3")), [data(1, b"ab"), data(1, b"cd", END_STREAM)]),
        ((*POST, (b"content-length", b"3")), [headers(1, literals([(b"a", b"b")]))]),
        ((*POST, (b"content-length", b"0")), [data(1, b"x")]),
        # Trailers (section 8.1).
        (POST, [headers(1, literals([(b"a", b"b")]), END_HEADERS)]),
        (POST, [headers(1, literals(GET))]),
        (POST, [headers(1, literals([(b"A", b"b")]))]),
        (POST, [data(1, b"x"), headers(1, literals([(b":path", b"/")]))]),
        # Windows (section 6.9).
        (POST, [window_update(1, 0)]),
        # Deprecated priorities: a stream must not depend on itself (RFC 7540 section 5.3.1).
        (POST, [frame(FrameType.PRIORITY, 0, 1, number(1) + b"\0")]),
    ],
)
def test_a_request_that_turns_out_malformed(fields: tuple[Field, ...], frames: list[bytes]) -> None:
    client = begun()
    flags = END_HEADERS | (0 if frames else END_STREAM)
    event = client.reset(headers(1, client.block(fields), flags) + b"".join(frames))
    assert (event.stream_id, event.code) == (1, ErrorCode.PROTOCOL_ERROR)
    # What was under way is no error.
    assert (
        client.receive(data(1, b"x") + headers(1, client.block([(b"c", b"d")])) + window_update(1, 5) + rst_stream(1))
        == []
    )
    client.next_stream = 3
    client.request()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (window_update(1, 0x7FFFFFFF), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(FrameType.PRIORITY, 0, 1, b"\0\0\0\0"), ErrorCode.FRAME_SIZE_ERROR),
        (b"".join(data(1, b"x" * 16384) for _ in range(4)), ErrorCode.FLOW_CONTROL_ERROR),
    ],
)
def test_other_stream_errors(frames: bytes, code: ErrorCode) -> None:
    client = begun()
    client.request(POST, ended=False)
    assert client.reset(frames).code is code


def test_priority_of_a_wrong_length_on_a_closed_stream() -> None:
    """Section 6.3 has a stream error in any state, and an idle stream has none."""
    client = begun()
    client.request()
    client.sender.respond(1, OK_BLOCK)
    client.frames()
    assert client.reset(frame(FrameType.PRIORITY, 0, 1, b"\0\0\0\0")).code is ErrorCode.FRAME_SIZE_ERROR


@pytest.mark.parametrize("frame_", [data(1, b"x"), data(1, b"", END_STREAM), headers(1, literals([(b"a", b"b")]))])
def test_frames_after_the_end_of_a_request_reset_it(frame_: bytes) -> None:
    client = begun()
    client.request()
    event = client.reset(frame_)
    assert (event.stream_id, event.code) == (1, ErrorCode.STREAM_CLOSED)


def test_a_stream_that_depends_on_itself() -> None:
    client = begun()
    flags = END_HEADERS | END_STREAM | PRIORITY
    for stream_id in (1, 3):
        event = client.reset(headers(stream_id, number(stream_id) + b"\0" + client.block(), flags))
        assert (event.stream_id, event.code) == (stream_id, ErrorCode.PROTOCOL_ERROR)
    two_frames = headers(5, number(5) + b"\0", PRIORITY) + frame(FrameType.CONTINUATION, END_HEADERS, 5, client.block())
    event = client.reset(two_frames)
    assert (event.stream_id, event.code) == (5, ErrorCode.PROTOCOL_ERROR)


def test_a_length_without_a_body_in_any_request() -> None:
    client = begun()
    client.request()
    event = client.reset(headers(3, client.block(with_fields((b"content-length", b"3")))))
    assert (event.stream_id, event.code) == (3, ErrorCode.PROTOCOL_ERROR)
    client.next_stream = 5
    client.request(with_fields((b"content-length", b"0")))


# --- bodies ----------------------------------------------------------------------------------------------------------


def test_a_body_is_counted_and_its_window_renewed_for_the_connection() -> None:
    client = begun()
    stream_id = client.request(POST, ended=False)
    events = client.receive(data(stream_id, b"x" * 16384) * 2 + data(stream_id, b"\x04abc\0\0\0\0", PADDED))
    assert events == [BodyReceived(1, 16384), BodyReceived(1, 16384), BodyReceived(1, 3)]
    (update,) = client.frames()
    assert (update.stream_id, getattr(update, "window_increment", None)) == (0, 32768)
    assert client.receive(data(stream_id, b"", END_STREAM)) == [RequestEnded(1, ())]


def test_a_body_beyond_the_window_is_too_large() -> None:
    client = begun()
    first = client.request(POST, ended=False)
    size = 65535
    pieces = [16384, 16384, 16384, size - 3 * 16384]
    assert BodyTooLarge(first) not in client.receive(b"".join(data(first, b"x" * piece) for piece in pieces[:3]))
    events = client.receive(data(first, b"x" * pieces[3]))
    assert events == [BodyReceived(first, pieces[3]), BodyTooLarge(first)]
    assert client.receive(data(first)) == []
    client.sender.take()
    assert client.sender.respond(first, OK_BLOCK)
    assert client.named() == [("Headers", 1), ("RstStream", 1)]


def test_a_body_that_fits_exactly_is_not_too_large() -> None:
    client = begun()
    first = client.request(POST, ended=False)
    pieces = [16384, 16384, 16384]
    client.receive(b"".join(data(first, b"x" * piece) for piece in pieces))
    assert client.receive(data(first, b"x" * 16383, END_STREAM)) == [BodyReceived(1, 16383), RequestEnded(1, ())]


def test_a_body_that_will_be_too_large_is_told_at_once() -> None:
    client = begun()
    block = client.block((*POST, (b"content-length", b"65536")))
    events = client.receive(headers(1, block, END_HEADERS))
    assert [type(event) for event in events] == [Request, BodyTooLarge]
    # The rest may come, and nothing is told twice.
    events = client.receive(b"".join(data(1, b"x" * 16383) for _ in range(4)) + data(1, b"xxx"))
    assert {type(event) for event in events} == {BodyReceived}


def test_after_a_response_the_rest_of_a_body_is_ignored() -> None:
    client = begun()
    first = client.request(POST, ended=False)
    assert client.sender.respond(first, OK_BLOCK, b"body")
    assert client.sender.take().endswith(b"body")
    # In a write of its own.
    (reset,) = client.frames()
    assert (reset.stream_id, getattr(reset, "error_code", None)) == (first, ErrorCode.NO_ERROR)
    assert client.receive(data(first, b"x" * 16384) * 2 + data(first, b"", END_STREAM)) == []
    # The connection's window is renewed all the same.
    assert client.named() == [("WindowUpdate", 0)]


# --- resets and priorities -------------------------------------------------------------------------------------------


def test_a_client_resets_a_stream() -> None:
    client = begun()
    stream_id = client.request()
    (event,) = client.receive(rst_stream(stream_id, 0xDEADBEEF))
    assert isinstance(event, StreamReset)
    assert (event.stream_id, event.code, event.by_peer) == (1, 0xDEADBEEF, True)
    assert client.receive(rst_stream(stream_id) + window_update(stream_id, 1)) == []
    assert client.sender.respond(stream_id, OK_BLOCK)
    assert not client.sender.begin(stream_id, OK_BLOCK)
    assert not client.sender.offer(stream_id, 10, last=True)
    assert not client.sender.pending


def priority_of(client: Client, stream_id: int) -> tuple[int, bool]:
    priority = client.sender.streams[stream_id].priority
    return priority.urgency, priority.incremental


def test_priorities_of_requests_and_updates() -> None:
    client = begun()
    assert client.receive(priority_update(5, b"u=7") + priority_update(5, b"u=1, i")) == []
    for _ in range(2):
        client.request(with_fields((b"priority", b"u=2")))
    client.request(with_fields((b"priority", b"u=6")))
    client.request()
    assert [priority_of(client, one) for one in (1, 3, 5, 7)] == [(2, False), (2, False), (1, True), (3, True)]
    assert (
        client.receive(priority_update(3, b"u=0") + priority_update(1, b"u=9 broken") + priority_update(99, b"i")) == []
    )
    assert [priority_of(client, one) for one in (1, 3, 5, 7)] == [(2, False), (0, False), (1, True), (3, True)]
    client.sender.respond(1, OK_BLOCK)
    assert client.receive(priority_update(1, b"u=0")) == []


def test_updates_before_requests_are_few() -> None:
    client = begun(limits=Http2Limits(concurrent_streams=3))
    for stream_id in (1, 3, 5, 7):
        client.receive(priority_update(stream_id, b"u=1"))
    for _ in range(3):
        client.request()
    assert [priority_of(client, one)[0] for one in (1, 3, 5)] == [3, 1, 1]


def test_updates_for_streams_that_were_skipped_are_forgotten() -> None:
    client = begun()
    client.receive(priority_update(1, b"u=1") + priority_update(9, b"u=2"))
    client.next_stream = 5
    client.request()
    assert list(client.connection._early_priorities or ()) == [9]
    client.next_stream = 11
    client.request()
    assert client.connection._early_priorities is None


# --- connection errors -----------------------------------------------------------------------------------------------

PROTOCOL, SIZE, CLOSED = ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.STREAM_CLOSED


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"GET / HTTP/1.1\r\n", PROTOCOL),
        (b"X", PROTOCOL),
        (PREFACE[:20] + b"XXXX", PROTOCOL),
        (PREFACE + ping(b"12345678", ack=False), PROTOCOL),
        (PREFACE + headers(1, literals(GET)), PROTOCOL),
        (PREFACE + settings(ack=True), PROTOCOL),
        (PREFACE + frame(FrameType.CONTINUATION, 0, 1), PROTOCOL),
    ],
)
def test_what_does_not_begin_as_it_has_to(first: bytes, code: ErrorCode) -> None:
    client = Client()
    assert client.failure(first).code is code


CONNECTION_ERRORS = [
    # section 4.2
    (frame(FrameType.DATA, 0, 1, b"x" * 16385), SIZE),
    (frame(FrameType.SETTINGS, 0, 0, b"x" * 16386), SIZE),
    # section 4.3, 6.10
    (headers(3, b"", 0) + headers(5, b""), PROTOCOL),
    (headers(3, b"", 0) + data(1, b""), PROTOCOL),
    (headers(3, b"", 0) + frame(FrameType.CONTINUATION, 0, 1), PROTOCOL),
    (headers(3, b"", 0) + frame(FrameType.PRIORITY, 0, 1, b"\0\0\0\0\0"), PROTOCOL),
    (headers(3, b"", 0) + b"\0\0\0\xfa\0\0\0\0\0", PROTOCOL),
    (frame(FrameType.CONTINUATION, END_HEADERS, 1), PROTOCOL),
    (frame(FrameType.CONTINUATION, END_HEADERS, 0), PROTOCOL),
    (headers(3, b"\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    (headers(3, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    (headers(1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    (headers(3, b"\xfe"), ErrorCode.COMPRESSION_ERROR),
    # section 5.1, idle streams
    (data(3, b"x"), PROTOCOL),
    (rst_stream(3), PROTOCOL),
    (window_update(3, 1), PROTOCOL),
    (rst_stream(2), PROTOCOL),
    # section 5.1.1
    (headers(2, literals(GET)), PROTOCOL),
    (headers(0, literals(GET)), PROTOCOL),
    (headers(9, literals(GET)) + headers(5, literals(GET)), PROTOCOL),
    (headers(9, literals(GET)) + data(5, b""), CLOSED),
    # section 6.1
    (data(0, b"x"), PROTOCOL),
    (data(1, b"", PADDED), SIZE),
    (data(1, b"\x01", PADDED), PROTOCOL),
    (data(1, b"\xff" * 200, PADDED), PROTOCOL),
    # section 6.2
    (headers(3, b"", PADDED), SIZE),
    (headers(3, b"\x01", PADDED | END_HEADERS | END_STREAM), PROTOCOL),
    (headers(3, b"\0\0\0\0", PRIORITY | END_HEADERS | END_STREAM), SIZE),
    # section 6.3
    (frame(FrameType.PRIORITY, 0, 0, b"\0\0\0\0\0"), PROTOCOL),
    (frame(FrameType.PRIORITY, 0, 3, b"\0\0\0\0"), SIZE),
    (frame(FrameType.PRIORITY, 0, 3, number(3) + b"\0"), PROTOCOL),
    # section 6.4
    (frame(FrameType.RST_STREAM, 0, 0, number(1)), PROTOCOL),
    (frame(FrameType.RST_STREAM, 0, 1, b"\0\0\0"), SIZE),
    # section 6.5
    (frame(FrameType.SETTINGS, 0, 1), PROTOCOL),
    (frame(FrameType.SETTINGS, ACK, 0, b"\0\0\0\0\0\0"), SIZE),
    (frame(FrameType.SETTINGS, 0, 0, b"\0\0\0\0\0"), SIZE),
    (settings((2, 2)), PROTOCOL),
    (settings((4, 0x80000000)), ErrorCode.FLOW_CONTROL_ERROR),
    (settings((5, 16383)), PROTOCOL),
    (settings((5, 1 << 24)), PROTOCOL),
    # section 6.6
    (frame(FrameType.PUSH_PROMISE, END_HEADERS, 1, number(2)), PROTOCOL),
    # section 6.7
    (frame(FrameType.PING, 0, 1, b"12345678"), PROTOCOL),
    (frame(FrameType.PING, 0, 0, b"1234567"), SIZE),
    (frame(FrameType.PING, ACK, 0, b"123456789"), SIZE),
    # section 6.8
    (frame(FrameType.GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    (frame(FrameType.GOAWAY, 0, 0, bytes(7)), SIZE),
    # section 6.9
    (window_update(0, 0), PROTOCOL),
    (window_update(0, 0x7FFFFFFF), ErrorCode.FLOW_CONTROL_ERROR),
    (frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\0"), SIZE),
    (frame(FrameType.WINDOW_UPDATE, 0, 1, b"\0\0\0\0\1"), SIZE),
    (window_update(1, 1) + settings((4, 0x7FFFFFFF)), ErrorCode.FLOW_CONTROL_ERROR),
    # RFC 9218 section 7.1
    (frame(FrameType.PRIORITY_UPDATE, 0, 1, number(1)), PROTOCOL),
    (frame(FrameType.PRIORITY_UPDATE, 0, 0, b"\0\0\1"), SIZE),
    (priority_update(0, b"u=1"), PROTOCOL),
    (priority_update(2, b"u=1"), PROTOCOL),
]


@pytest.mark.parametrize(("bytes_", "code"), CONNECTION_ERRORS)
def test_connection_errors(bytes_: bytes, code: ErrorCode) -> None:
    client = begun()
    client.request(POST, ended=False)
    failed = client.failure(bytes_)
    assert failed.code is code
    assert failed.reason


@pytest.mark.parametrize("bytes_", [data(1, b"x"), data(1), headers(1, literals([(b"a", b"b")]))])
@pytest.mark.parametrize("how", ["answered", "reset"])
def test_frames_on_a_closed_stream_are_a_connection_error(bytes_: bytes, how: str) -> None:
    client = begun()
    client.request()
    if how == "answered":
        client.sender.respond(1, OK_BLOCK)
    else:
        client.receive(rst_stream(1))
    assert client.failure(bytes_).code is CLOSED


def test_what_came_before_an_error_counts() -> None:
    client = begun()
    events = client.receive(
        headers(1, client.block()) + headers(3, client.block()) + data(0) + headers(5, client.block())
    )
    assert [type(event) for event in events] == [Request, Request, ConnectionFailed]
    (last,) = client.frames()
    assert (getattr(last, "last_stream_id", None), getattr(last, "error_code", None)) == (3, PROTOCOL)


def test_an_error_tells_of_requests_that_were_read_before_it() -> None:
    client = begun()
    block = client.block()
    client.receive(headers(1, block))
    client.sender.take()
    wrong = frame(FrameType.PING, 0, 1, bytes(8))
    assert isinstance(client.receive(headers(3, block) + headers(5, block) + wrong)[-1], ConnectionFailed)
    assert client.sender.take() == goaway(5, ErrorCode.PROTOCOL_ERROR)
    client = begun()
    client.receive(headers(1, block))
    client.sender.take()
    client.receive(headers(3, block) + headers(5, block) + headers(7, b"\x80"))
    assert client.sender.take() == goaway(5, ErrorCode.COMPRESSION_ERROR)


@pytest.mark.parametrize("fragments", [9, 20])
def test_continuations_are_few(fragments: int) -> None:
    client = begun()
    failed = client.failure(headers(1, b"", END_STREAM) + frame(FrameType.CONTINUATION, 0, 1) * fragments)
    assert (failed.code, failed.exceeded) == (ErrorCode.ENHANCE_YOUR_CALM, Exceeded.CONTINUATIONS)


def test_a_block_in_the_largest_number_of_frames() -> None:
    client = begun()
    block = client.block()
    pieces = [block[index : index + 1] for index in range(8)] + [block[8:]]
    sent = headers(1, pieces[0], END_STREAM)
    for index, piece in enumerate(pieces[1:]):
        sent += frame(FrameType.CONTINUATION, END_HEADERS if index == 7 else 0, 1, piece)
    (event,) = client.receive(sent)
    assert isinstance(event, Request)


def test_a_block_is_bounded() -> None:
    client = begun(limits=Http2Limits(header_block_bytes=20_000))
    failed = client.failure(headers(1, b"x" * 16384, 0) + frame(FrameType.CONTINUATION, 0, 1, b"x" * 3617))
    assert (failed.code, failed.exceeded) == (ErrorCode.ENHANCE_YOUR_CALM, Exceeded.HEADER_BLOCK)


# --- settings, PING, the end -----------------------------------------------------------------------------------------


def test_settings_and_pings_are_acknowledged() -> None:
    client = begun()
    assert (
        client.receive(settings((3, 5)) + ping(b"12345678", ack=False) + ping(b"87654321", ack=True) + settings()) == []
    )
    sent = client.frames()
    assert [type(one).__name__ for one in sent] == ["SettingsFrame", "PingFrame", "SettingsFrame"]
    assert all(set(one.flags) == {"ACK"} for one in sent)
    assert getattr(sent[1], "opaque_data", None) == b"12345678"


def test_a_client_that_goes_away() -> None:
    client = begun()
    client.request()
    assert client.receive(goaway(0, ErrorCode.CANCEL)) == [GoawayReceived(ErrorCode.CANCEL)]
    assert client.sender.respond(1, OK_BLOCK)


def test_draining_takes_what_the_client_sent_before_it_knew() -> None:
    client = begun()
    client.request()
    client.connection.drain()
    client.connection.drain()
    first, probe = client.frames()
    assert (getattr(first, "last_stream_id", None), getattr(first, "error_code", None)) == (0x7FFFFFFF, 0)
    client.request()
    assert not client.connection.drained
    # Another PING's answer is not the one.
    assert client.receive(ping(b"12345678", ack=True)) == []
    client.request()
    assert client.receive(ping(getattr(probe, "opaque_data", b""), ack=True)) == []
    (last,) = client.frames()
    assert (getattr(last, "last_stream_id", None), getattr(last, "error_code", None)) == (5, 0)
    # Later streams are ignored, whatever is sent on them; header blocks still count.
    assert (
        client.receive(headers(7, client.block(with_fields((b"a", b"b"))), END_HEADERS) + data(7, b"x", END_STREAM))
        == []
    )
    assert client.receive(headers(9, client.block(with_fields((b"a", b"b"))))) == []
    assert client.named() == []
    for stream_id in (1, 3, 5):
        assert not client.connection.drained
        assert client.sender.respond(stream_id, OK_BLOCK)
    assert client.connection.drained


def test_an_answer_to_no_ping_does_not_drain() -> None:
    client = begun()
    client.receive(ping(b"draining", ack=True))
    client.request()
    assert client.named() == []


def test_refusing_more_at_once() -> None:
    client = begun()
    client.request()
    client.connection.refuse_more()
    client.connection.refuse_more()
    client.connection.drain()
    (last,) = client.frames()
    assert getattr(last, "last_stream_id", None) == 1
    assert client.receive(headers(3, client.block())) == []
    failed = client.connection.close(ErrorCode.NO_ERROR, "the time for draining is over")
    assert (failed.code, failed.reason) == (0, "the time for draining is over")
    (last,) = client.frames()
    assert getattr(last, "last_stream_id", None) == 1


def test_draining_before_anything_came() -> None:
    client = Client()
    client.connection.drain()
    client.connection.refuse_more()
    assert client.connection.drained
    assert client.receive(PREFACE + settings() + headers(1, client.block())) == []
