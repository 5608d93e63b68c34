"""Responses: frames, windows, turns, and what becomes of them when a stream ends early."""

from __future__ import annotations

import random
import sys

import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http2.errors import ErrorCode
from ktlsd.http2.hpack_encoder import encode
from ktlsd.http2.sender import MOST_BODIES, SHARED_TURN_BYTES
from ktlsd.http2.turns import Turn
from tests.http2.blocks import with_fields
from tests.http2.client import OK_BLOCK, Client, begun, parsed, priority_update, rst_stream, settings, window_update

ROOM = 262_144
WIDE = 0x7FFFFFFF - 65535


def body_of(turn: Turn) -> list[Frame]:
    """The frames of a turn, their bytes all zeros."""
    memory = memoryview(bytearray(turn.frame_bytes))
    turn.write_headers(memory, 0)
    return parsed(bytes(memory))


def all_turns(client: Client, room: int = ROOM) -> list[tuple[int, int, bool]]:
    """Everything that can be sent: stream, bytes, end."""
    turns = []
    while (turn := client.sender.next_turn(room)) is not None:
        assert turn.frame_bytes <= room
        turns.append((turn.stream_id, turn.count, turn.last))
        client.sender.sent(turn)
    return turns


def big(client: Client, count: int = 1_000_000, priority: bytes = b"") -> int:
    """A request whose response is this large."""
    stream_id = client.request(with_fields((b"priority", priority)) if priority else with_fields())
    assert client.sender.begin(stream_id, OK_BLOCK)
    assert client.sender.offer(stream_id, count, last=True)
    return stream_id


# --- from memory -----------------------------------------------------------------------------------------------------


def test_a_response_from_memory() -> None:
    client = begun()
    stream_id = client.request()
    assert client.sender.respond(stream_id, OK_BLOCK, b"hello")
    head, body = client.frames()
    assert client.fields_of(head) == [(b":status", b"200")]
    assert set(head.flags) == {"END_HEADERS"}
    assert isinstance(body, DataFrame)
    assert (body.data, set(body.flags), body.stream_id) == (b"hello", {"END_STREAM"}, 1)
    assert not client.sender.streams
    assert client.sender.window == 65530


def test_a_response_without_a_body() -> None:
    client = begun()
    assert client.sender.respond(client.request(), OK_BLOCK)
    (head,) = client.frames()
    assert set(head.flags) == {"END_HEADERS", "END_STREAM"}


@pytest.mark.parametrize(
    ("size", "window", "fits"),
    [
        *((100, 99, False), (100, 100, True), (16384, 65535, True), (65535, 65534, False), (65535, 65535, True)),
        *((SHARED_TURN_BYTES, 1 << 20, True), (SHARED_TURN_BYTES + 1, 1 << 20, False)),
    ],
)
def test_a_body_that_does_not_fit_has_to_be_offered(size: int, window: int, fits: bool) -> None:
    client = begun((4, window))
    client.receive(window_update(0, WIDE))
    stream_id = client.request()
    assert client.sender.takes(stream_id, size) == fits
    assert client.sender.respond(stream_id, OK_BLOCK, b"x" * size) == fits
    assert client.sender.pending == fits
    assert (stream_id in client.sender.streams) != fits


@pytest.mark.parametrize("frame_bytes", [16384, 20000, 65536])
def test_a_body_from_memory_in_several_frames(frame_bytes: int) -> None:
    client = begun((5, frame_bytes))
    size = 50_000
    body = random.Random(size).randbytes(size)
    stream_id = client.request()
    assert client.sender.respond(stream_id, OK_BLOCK, bytearray(body))
    _, *frames = client.frames()
    assert [len(frame.data) for frame in frames if isinstance(frame, DataFrame)] == [
        min(frame_bytes, size - start) for start in range(0, size, frame_bytes)
    ]
    assert b"".join(frame.data for frame in frames if isinstance(frame, DataFrame)) == body
    assert [set(frame.flags) for frame in frames] == [*[set[str]()] * (len(frames) - 1), {"END_STREAM"}]
    assert stream_id not in client.sender.streams
    assert client.sender.window == 65535 - size


def test_the_connections_window_counts_too() -> None:
    client = begun()
    for _ in range(4):
        assert client.sender.respond(client.request(), OK_BLOCK, b"x" * 16383)
    stream_id = client.request()
    assert not client.sender.respond(stream_id, OK_BLOCK, b"1234")
    assert client.sender.respond(stream_id, OK_BLOCK, b"123")


def test_bodies_in_memory_are_bounded() -> None:
    client = begun()
    client.receive(window_update(0, WIDE))
    answered = 0
    while client.sender.respond(client.request(), OK_BLOCK, b"x" * 16384):
        answered += 1
    assert answered == MOST_BODIES // 16384
    assert len(client.sender.take()) < MOST_BODIES + 1000
    assert client.sender.respond(client.request(), OK_BLOCK, b"x")


def test_a_small_body_does_not_overtake_a_more_urgent_one() -> None:
    client = begun()
    big(client, priority=b"u=1")
    later, equal = client.request(), client.request(with_fields((b"priority", b"u=1")))
    assert not client.sender.respond(later, OK_BLOCK, b"x")
    assert client.sender.respond(equal, OK_BLOCK, b"x")
    assert client.sender.respond(later, OK_BLOCK)


def test_a_body_of_several_frames_does_not_overtake_others_of_its_urgency() -> None:
    client = begun()
    first = big(client, 10)
    later = client.request()
    assert not client.sender.takes(later, 16385)
    assert not client.sender.respond(later, OK_BLOCK, b"x" * 16385)
    assert client.sender.takes(later, 16384)
    assert all_turns(client) == [(first, 10, True)]
    assert client.sender.respond(later, OK_BLOCK, b"x" * 16385)


# --- header blocks ---------------------------------------------------------------------------------------------------


def test_a_large_head_goes_in_several_frames() -> None:
    client = begun()
    block = encode([(b":status", b"200"), (b"a", b"v" * 40_000)])
    assert client.sender.respond(client.request(), block, b"x")
    head, *others = client.frames()
    assert isinstance(head, HeadersFrame)
    assert [type(one).__name__ for one in others] == ["ContinuationFrame", "ContinuationFrame", "DataFrame"]
    whole = head.data + b"".join(getattr(one, "data", b"") for one in others[:2])
    assert list(client.decoder.decode(whole, raw=True))[1] == (b"a", b"v" * 40_000)


@pytest.mark.parametrize("sizes", [(0,), (100,), (0, 4096), (4095, 8192)])
def test_a_smaller_table_of_the_client_is_acknowledged_once(sizes: tuple[int, ...]) -> None:
    # RFC 7541 section 4.2: hpack's decoder refuses the block otherwise.
    client = begun(*((1, size) for size in sizes))
    client.decoder.header_table_size = min(sizes)
    client.decoder.max_allowed_table_size = min(sizes)
    for index in range(3):
        stream_id = client.request()
        assert (
            client.sender.begin(stream_id, OK_BLOCK) if index == 2 else client.sender.respond(stream_id, OK_BLOCK, b"x")
        )
        head = client.frames()[0]
        assert isinstance(head, HeadersFrame)
        assert head.data == (b"\x20" if not index else b"") + OK_BLOCK
        assert client.fields_of(head) == [(b":status", b"200")]


@pytest.mark.parametrize("size", [4096, 65536])
def test_a_table_that_is_not_smaller_needs_nothing(size: int) -> None:
    client = begun((1, size))
    client.sender.respond(client.request(), OK_BLOCK)
    assert client.sender.take().endswith(OK_BLOCK)


# --- turns -----------------------------------------------------------------------------------------------------------


def test_a_large_response_in_turns_of_full_records() -> None:
    client = begun((4, WIDE))
    client.receive(window_update(0, WIDE))
    client.frames()
    stream_id = big(client)
    (head,) = client.frames()
    assert set(head.flags) == {"END_HEADERS"}
    turn = client.sender.next_turn(ROOM)
    assert turn is not None
    frames = body_of(turn)
    assert [frame.body_len for frame in frames] == [16375] * 16
    assert all(not frame.flags for frame in frames)
    client.sender.sent(turn)
    turns = all_turns(client)
    assert sum(count for _, count, _ in turns) == 1_000_000 - turn.count
    assert [last for _, _, last in turns] == [False, False, True]
    assert stream_id not in client.sender.streams
    assert client.sender.next_turn(ROOM) is None


def test_the_first_frame_is_shortened_by_what_goes_before() -> None:
    client = begun((4, WIDE))
    client.receive(window_update(0, WIDE))
    big(client)
    before = len(client.sender.take())
    turn = client.sender.next_turn(ROOM - before, before)
    assert turn is not None
    assert turn.sizes == (16375 - before, *[16375] * 15)


def test_a_client_that_takes_large_frames_gets_them() -> None:
    client = begun((4, WIDE), (5, 65536))
    client.receive(window_update(0, WIDE))
    big(client)
    turn = client.sender.next_turn(ROOM)
    assert turn is not None
    assert turn.sizes == (65527,) * 4


def test_windows_stop_and_go() -> None:
    client = begun((4, 20_000))
    stream_id = big(client, 100_000)
    assert all_turns(client) == [(stream_id, 20_000, False)]
    assert client.sender.stalled()
    client.receive(window_update(stream_id, 60_000))
    assert not client.sender.stalled()
    # Now the connection's window is the smaller one.
    assert all_turns(client) == [(stream_id, 45_535, False)]
    assert client.sender.stalled()
    client.receive(window_update(0, 40_000))
    assert all_turns(client) == [(stream_id, 14_465, False)]
    client.receive(settings((4, 10_000)))
    client.receive(window_update(stream_id, 9_000))
    assert client.sender.stalled()
    client.receive(settings((4, 40_000)))
    assert all_turns(client) == [(stream_id, 20_000, True)]
    assert not client.sender.stalled()


def test_streams_take_turns() -> None:
    client = begun((4, WIDE))
    client.receive(window_update(0, WIDE))
    first, second = big(client), big(client)
    turns = all_turns(client)
    assert [one for one, *_ in turns[:6]] == [first, second] * 3
    share = SHARED_TURN_BYTES - 4 * 9
    assert {count for _, count, _ in turns[:6]} == {share}
    assert sum(count for one, count, _ in turns if one == first) == 1_000_000


def test_urgent_ones_go_first_and_an_update_counts() -> None:
    client = begun((4, WIDE))
    client.receive(window_update(0, WIDE))
    first, second, third = (big(client, 50_000, priority) for priority in (b"u=3", b"u=1", b"u=5"))
    client.receive(priority_update(third, b"u=0"))
    assert [one for one, *_ in all_turns(client, 40_000)] == [third, third, second, second, first, first]


def test_a_stream_without_a_window_does_not_stop_others() -> None:
    client = begun((4, 1000))
    first = big(client, 5000, b"u=0")
    assert all_turns(client) == [(first, 1000, False)]
    second = big(client, 500)
    assert all_turns(client) == [(second, 500, True)]


def test_a_turn_that_waits_for_a_disk() -> None:
    """Its bytes and windows are as before, and others go on."""
    client = begun((4, WIDE))
    first, second = big(client, 50_000, b"u=0"), big(client, 10_000)
    turn = client.sender.next_turn(40_000)
    assert turn is not None
    assert turn.stream_id == first
    client.sender.postpone(turn)
    assert not client.sender.stalled()
    assert client.sender.window == 65_535
    # What the client does meanwhile is no reason for a turn.
    client.receive(window_update(first, 1000) + priority_update(first, b"u=1"))
    assert all_turns(client) == [(second, 10_000, True)]
    client.sender.resume(first)
    assert all_turns(client) == [(first, 50_000, True)]
    client.sender.resume(first)
    third = big(client, 5_000)
    turn = client.sender.next_turn(40_000)
    assert turn is not None
    client.sender.postpone(turn)
    client.receive(rst_stream(third))
    client.sender.resume(third)
    assert client.sender.next_turn(40_000) is None
    assert client.sender.window == 5_535


def test_many_streams_leave_no_memory() -> None:
    client = begun()
    streams = client.sender.streams
    asked = [client.request() for _ in range(100)]
    client.sender.shrink()
    assert len(streams) == 100
    for stream_id in asked:
        client.sender.respond(stream_id, OK_BLOCK)
    assert sys.getsizeof(streams) > 4000
    client.sender.shrink()
    assert sys.getsizeof(streams) == sys.getsizeof({})


def test_a_response_of_unknown_length() -> None:
    client = begun()
    stream_id = client.request()
    assert client.sender.begin(stream_id, OK_BLOCK)
    assert client.sender.next_turn(ROOM) is None
    assert not client.sender.stalled()
    assert client.sender.offer(stream_id, 100, last=False)
    assert all_turns(client) == [(stream_id, 100, False)]
    assert client.sender.offer(stream_id, 50, last=False)
    assert client.sender.offer(stream_id, 50, last=False)
    assert all_turns(client) == [(stream_id, 100, False)]
    client.sender.take()
    assert client.sender.offer(stream_id, 0, last=True)
    (end,) = client.frames()
    assert isinstance(end, DataFrame)
    assert (end.data, set(end.flags)) == (b"", {"END_STREAM"})
    assert not client.sender.streams


def test_the_end_comes_with_what_was_offered_before() -> None:
    client = begun()
    stream_id = client.request()
    client.sender.begin(stream_id, OK_BLOCK)
    client.sender.offer(stream_id, 100, last=False)
    client.sender.offer(stream_id, 0, last=True)
    assert all_turns(client) == [(stream_id, 100, True)]


def test_an_end_of_its_own() -> None:
    client = begun()
    stream_id = big(client, 100)
    client.sender.take()
    turn = client.sender.next_turn(ROOM)
    assert turn is not None
    assert turn.headers(end=False)[-1][4] == 0
    client.sender.sent(turn, ended=False)
    (end,) = client.frames()
    assert (end.stream_id, set(end.flags), end.body_len) == (stream_id, {"END_STREAM"}, 0)
    assert not client.sender.streams


@pytest.mark.parametrize("state", ["not begun", "complete"])
def test_offers_out_of_order_are_a_mistake(state: str) -> None:
    client = begun()
    stream_id = big(client) if state == "complete" else client.request()
    with pytest.raises(ValueError, match=f"stream {stream_id}"):
        client.sender.offer(stream_id, 1, last=True)


# --- what ends early -------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_resets_its_stream() -> None:
    client = begun()
    stream_id, other = big(client), big(client)
    client.sender.take()
    turn = client.sender.next_turn(ROOM)
    assert turn is not None
    assert turn.stream_id == stream_id
    client.sender.abandon(turn, turn.sizes[0])
    (reset,) = client.frames()
    assert (reset.stream_id, getattr(reset, "error_code", None)) == (stream_id, ErrorCode.INTERNAL_ERROR)
    # What was not sent is the other's.
    assert sum(count for _, count, _ in all_turns(client)) == 65535 - turn.sizes[0]
    assert set(client.sender.streams) == {other}


def test_a_client_resets_a_stream_within_its_turn() -> None:
    client = begun()
    stream_id = big(client, 30_000)
    turn = client.sender.next_turn(ROOM)
    assert turn is not None
    assert turn.last
    client.receive(rst_stream(stream_id))
    client.sender.take()
    client.sender.sent(turn)
    client.sender.abandon(turn, 16375)
    assert not client.sender.pending
    assert client.sender.window == 65535 - 16375


def test_a_reset_of_ours() -> None:
    client = begun()
    stream_id = big(client)
    client.sender.take()
    client.sender.reset(stream_id, ErrorCode.CANCEL)
    client.sender.reset(stream_id, ErrorCode.CANCEL)
    (reset,) = client.frames()
    assert getattr(reset, "error_code", None) == ErrorCode.CANCEL
    assert client.sender.next_turn(ROOM) is None


# --- flow control as h2 counts ---------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("big"), st.integers(1, 100_000), st.sampled_from([b"", b"u=1", b"u=5, i"])),
        st.tuples(st.just("turn"), st.sampled_from([10, 5000, 16384, 70_000]), st.sampled_from([0, 100])),
        st.tuples(st.just("window"), st.integers(0, 5), st.integers(1, 100_000)),
        st.tuples(st.just("initial"), st.integers(0, 100_000), st.just(0)),
        st.tuples(st.just("reset"), st.integers(1, 5), st.booleans()),
        st.tuples(st.just("priority"), st.integers(1, 5), st.sampled_from([b"u=0", b"u=7", b"i"])),
    ),
    max_size=40,
)


@given(ACTIONS)
def test_no_byte_is_sent_beyond_a_window(actions: list[tuple[str, int, object]]) -> None:
    client = begun()
    connection = initial = 65535
    windows: dict[int, int] = {}
    left: dict[int, int] = {}
    for action, first, second in actions:
        stream_id = 2 * first - 1
        if action == "big" and isinstance(second, bytes):
            opened = big(client, first, second)
            windows[opened], left[opened] = initial, first
        elif action == "window" and isinstance(second, int):
            if not first:
                connection += second
                client.receive(window_update(0, second))
            elif stream_id in windows:
                windows[stream_id] += second
                client.receive(window_update(stream_id, second))
        elif action == "initial":
            for one in windows:
                windows[one] += first - initial
            initial = first
            client.receive(settings((4, initial)))
        elif action == "reset" and stream_id in windows:
            if second:
                client.receive(rst_stream(stream_id))
            else:
                client.sender.reset(stream_id, ErrorCode.CANCEL)
            del windows[stream_id], left[stream_id]
        elif action == "priority" and isinstance(second, bytes):
            client.receive(priority_update(stream_id, second))
        elif action == "turn" and isinstance(second, int):
            turn = client.sender.next_turn(first, second)
            could = {one for one in windows if windows[one] > 0}
            assert (turn is not None) == bool(could and connection > 0)
            if turn is None:
                assert client.sender.stalled() == bool(left)
                continue
            assert turn.stream_id in could
            windows[turn.stream_id] -= turn.count
            left[turn.stream_id] -= turn.count
            connection -= turn.count
            assert windows[turn.stream_id] >= 0 <= connection
            assert left[turn.stream_id] >= 0
            assert turn.last == (not left[turn.stream_id])
            client.sender.sent(turn)
            if turn.last:
                del windows[turn.stream_id], left[turn.stream_id]
        assert client.sender.window == connection
        assert set(client.sender.streams) == set(windows)
