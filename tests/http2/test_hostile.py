"""Hostile clients: each shape of frames without use ends soon, memory stays bounded, and nothing but events comes out.

The shapes are those of CVE-2019-9511 to -9518, CVE-2023-44487, CVE-2024-27316 and CVE-2025-8671.
"""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ktlsd.http2 import credit
from ktlsd.http2.credit import Credit
from ktlsd.http2.errors import ConnectionFault, ErrorCode, Exceeded
from ktlsd.http2.events import (
    BodyReceived,
    BodyTooLarge,
    ConnectionFailed,
    Event,
    GoawayReceived,
    HeadTooLarge,
    Request,
    RequestEnded,
    StreamReset,
)
from ktlsd.http2.frames import PREFACE, FrameType, frame, goaway, ping
from ktlsd.http2.head_cache import HeadCache
from ktlsd.http2.limits import BURST_SECONDS, Http2Limits
from tests.http2.blocks import GET, literals, with_fields
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
    parsed,
    priority_update,
    rst_stream,
    settings,
    window_update,
)

BLOCK = literals(GET)
SHORT_BODY = literals(with_fields((b"content-length", b"1")))
BOMB_ENTRY = b"\x40\x01a\x7f\xc9\x1e" + b"v" * (0x7F + 0x49 + 0x1E * 128)
MOST_FRAMES = 1000
"""Beyond what a connection may have on its way to its end."""


def request(index: int, flags: int = END_HEADERS | END_STREAM) -> bytes:
    return headers(2 * index + 1, BLOCK, flags)


Shape = Callable[[int], bytes]

# For an index from 0 on the frames that come, and their number. Stream 1 is a request that is not ended.
SHAPES: dict[str, tuple[Shape, int]] = {
    "rapid reset": (lambda index: request(index + 1) + rst_stream(2 * index + 3), 2),
    "reset of a stream that is gone": (lambda index: rst_stream(1), 1),
    "PING": (lambda index: ping(b"12345678", ack=False), 1),
    "PING acknowledged": (lambda index: ping(b"12345678", ack=True), 1),
    "SETTINGS": (lambda index: settings(), 1),
    "SETTINGS with a window": (lambda index: settings((4, 65535 + index % 2)), 1),
    "SETTINGS with many entries": (lambda index: settings(*[(0x99, 1)] * 2000), 1),
    "SETTINGS acknowledged": (lambda index: settings(ack=True), 1),
    "empty DATA": (lambda index: data(1), 1),
    "small DATA": (lambda index: data(1, b"x"), 1),
    "DATA that is padding": (lambda index: data(1, b"\xff" + bytes(255), PADDED), 1),
    "DATA on a stream that was reset": (
        lambda index: (window_update(1, 0) if not index else b"") + data(1, b"x" * 9000),
        1,
    ),
    "PRIORITY": (lambda index: frame(FrameType.PRIORITY, 0, 5, number(3) + b"\0"), 1),
    "PRIORITY_UPDATE": (lambda index: priority_update(2 * index + 5, b"u=1"), 1),
    "unknown frames": (lambda index: b"\0\0\x01\xfa\0\0\0\0\x01x", 1),
    "GOAWAY": (lambda index: goaway(0, ErrorCode.NO_ERROR), 1),
    "CONTINUATION": (lambda index: headers(3, b"", 0) if not index else frame(FrameType.CONTINUATION, 0, 3), 1),
    "WINDOW_UPDATE of 1": (lambda index: window_update(1, 1), 1),
    "WINDOW_UPDATE of 1 for the connection": (lambda index: window_update(0, 1), 1),
    "WINDOW_UPDATE for a stream that is gone": (lambda index: rst_stream(1) + window_update(1, 1), 2),
    "MadeYouReset: window of 0": (lambda index: request(index + 1) + window_update(2 * index + 3, 0), 2),
    "MadeYouReset: window overflow": (lambda index: request(index + 1) + window_update(2 * index + 3, 0x7FFFFFFF), 2),
    "MadeYouReset: DATA after the end": (lambda index: request(index + 1) + data(2 * index + 3, b"x"), 2),
    "MadeYouReset: HEADERS after the end": (lambda index: request(index + 1) + request(index + 1), 2),
    "MadeYouReset: PRIORITY": (lambda index: request(index + 1) + frame(FrameType.PRIORITY, 0, 2 * index + 3, b"x"), 2),
    "MadeYouReset: length": (
        lambda index: headers(2 * index + 3, SHORT_BODY, END_HEADERS) + data(2 * index + 3, b"xx"),
        2,
    ),
    "malformed requests": (lambda index: headers(2 * index + 3, literals(GET[1:])), 1),
    "requests beyond the limit": (lambda index: request(index + 1), 1),
    "heads beyond the limit": (
        lambda index: headers(2 * index + 3, literals(GET) + (BOMB_ENTRY if not index else b"") + b"\xbe" * 20),
        1,
    ),
    "HPACK bomb": (lambda index: headers(2 * index + 3, BOMB_ENTRY if not index else b"\xbe" * 16000), 1),
}

EXCEEDED = {
    "rapid reset": Exceeded.RESETS,
    "reset of a stream that is gone": Exceeded.RESETS,
    "MadeYouReset": Exceeded.RESETS,
    "malformed requests": Exceeded.RESETS,
    "requests beyond the limit": Exceeded.RESETS,
    "WINDOW_UPDATE for a stream that is gone": Exceeded.RESETS,
    "CONTINUATION": Exceeded.CONTINUATIONS,
    "HPACK bomb": Exceeded.HEADER_LIST,
}
"""The limit that each of these reaches; the others are overhead frames."""


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_ends_within_a_thousand_frames(shape: str, answered: bool) -> None:
    make, frames_each = SHAPES[shape]
    client = begun()
    client.request(((b":method", b"POST"), *GET[1:]), ended=False)
    client.sender.take()
    for count in itertools.count():
        # What comes in pairs is a request and its end.
        assert count * frames_each <= frames_each * MOST_FRAMES, "it goes on"
        events = client.receive(make(count))
        last = events[-1] if events else None
        if isinstance(last, ConnectionFailed):
            break
        for event in events:
            if answered and isinstance(event, HeadTooLarge):
                client.sender.respond(event.stream_id, OK_BLOCK)
    assert isinstance(last, ConnectionFailed)
    assert last.exceeded is EXCEEDED.get(shape.partition(":")[0], Exceeded.OVERHEAD_FRAMES)
    assert last.code == ErrorCode.ENHANCE_YOUR_CALM
    assert len(client.sender.take()) < 200_000
    assert len(client.sender.streams) <= 128


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_takes_less_than_a_mebibyte(shape: str) -> None:
    make, _ = SHAPES[shape]
    # What the process remembers is not the connection's.
    begun().receive(make(0))
    client = begun()
    client.request(((b":method", b"POST"), *GET[1:]), ended=False)
    frames = [make(index) for index in range(2000)]
    tracemalloc.start()
    try:
        for one in frames:
            if any(isinstance(event, ConnectionFailed) for event in client.receive(one)):
                break
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_frames_without_use_are_allowed_now_and_then() -> None:
    client = begun()
    for _ in range(3000):
        client.now += 1 / 40
        assert client.receive(ping(b"12345678", ack=False)) == []
        client.sender.take()


def test_a_long_silence_does_not_add_up() -> None:
    client = begun()
    client.now = 1e6
    for _ in range(700):
        assert client.receive(ping(b"12345678", ack=False)) == []
    client.now += 0.5
    events = client.receive(ping(b"12345678", ack=False) * 200)
    assert [type(event) for event in events] == [ConnectionFailed]


def test_responses_give_credit() -> None:
    client = begun()
    for _ in range(3000):
        client.sender.respond(client.request(), OK_BLOCK)
        assert client.receive(window_update(0, 1)) == []
        client.sender.take()


def test_windows_of_a_large_response_may_be_renewed() -> None:
    """A client with windows of 64 KiB renews both after each half."""
    client = begun()
    stream_id = client.request()
    assert client.sender.begin(stream_id, OK_BLOCK)
    assert client.sender.offer(stream_id, 1 << 30, last=True)
    client.sender.take()
    for _ in range((1 << 30) // 32768 - 2):
        turn = client.sender.next_turn(32768 + 27)
        assert turn is not None
        client.sender.sent(turn)
        assert client.receive(window_update(0, turn.count) + window_update(stream_id, turn.count)) == []


def test_the_measure() -> None:
    # A power of two: no sum is rounded.
    measure = Credit(Http2Limits(resets_per_second=1, overhead_frames_per_second=2), 128.0)
    for spend, most, exceeded in (
        (measure.spend, 2 * BURST_SECONDS, Exceeded.OVERHEAD_FRAMES),
        (measure.spend_reset, BURST_SECONDS, Exceeded.RESETS),
    ):
        for _ in range(most):
            spend(1, "a frame")
        with pytest.raises(ConnectionFault, match="the last of them: PING") as caught:
            spend(credit.USEFUL_FRAME, "PING")
        assert (caught.value.code, caught.value.exceeded) == (ErrorCode.ENHANCE_YOUR_CALM, exceeded)
    measure.now += 1
    measure.spend(2, "two a second")
    measure.spend_reset(1, "one a second")
    measure.responses += 1
    measure.spend(1, "a response's")
    measure.spend_reset(1, "a response's")
    measure.responses += 100
    measure.spend(2 * BURST_SECONDS, "all that there can be")
    measure.spend_reset(BURST_SECONDS, "all that there can be")
    with pytest.raises(ConnectionFault):
        measure.spend(credit.FRAME, "one more")


# --- any frames in any order -----------------------------------------------------------------------------------------

STREAMS = st.sampled_from([0, 1, 1, 2, 3, 3, 5, 7, 9, 11, 101, 0x7FFFFFFF, 0x80000001])
BLOCKS = st.one_of(
    st.sampled_from(
        [
            *(BLOCK, literals(GET[1:]), literals([(b"a", b"b")]), b"", SHORT_BODY, BOMB_ENTRY, b"\xbe" * 3000, b"\x80"),
            *(b"\x82\x87\x84\x41\x0bexample.org", b"\x82\x87\xbe\x84", b"\x82\x87\x04\x02/a\xbe"),
            *(b"\x3f\xe1\x1f\x82\x87\x84", b"\x20\x82\x87\x84", literals(with_fields((b"priority", b"u=1, i")))),
        ]
    ),
    st.binary(max_size=30),
)
FLAGS = st.sampled_from([0, END_HEADERS, END_STREAM, 5, 5, 5, 5, PADDED | 5, PRIORITY | 5, 0x2D, 0xFF])
VALUES = st.sampled_from([0, 1, 16384, 65535, 0x7FFFFFFF, 0xFFFFFFFF])
PAYLOADS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([number(value) for value in (0, 1, 8, 1000, 65535, 0x7FFFFFFF, 0xFFFFFFFF)]),
    st.sampled_from([number(stream) + b"u=1, i" for stream in (0, 1, 3, 101)] + [b"12345678", b"x" * 300, b"x" * 9000]),
    st.lists(st.tuples(st.integers(0, 10), VALUES), max_size=3).map(lambda entries: settings(*entries)[9:]),
)
KINDS = st.one_of(st.sampled_from([int(kind) for kind in FrameType]), st.integers(0, 255))


def raw_frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


class HostileClient(RuleBasedStateMachine):
    """A client that sends anything, and a server that answers as servers do."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Http2Limits(
            concurrent_streams=4,
            header_list_bytes=8192,
            header_block_bytes=16384,
            resets_per_second=1,
            overhead_frames_per_second=3,
        )
        self.client = Client(self.limits)
        self.failed = False
        self.last_stream = 0
        self.waiting: dict[int, bool] = {}
        """Requests without a response, and whether the client may send more."""

    @initialize(proper=st.booleans())
    def begin(self, proper: bool) -> None:
        if proper:
            self.send(PREFACE + settings())

    def send(self, sent: bytes, cut: int = 0) -> None:
        events = [*self.client.receive(sent[:cut]), *self.client.receive(sent[cut:])]
        for event in events:
            assert not self.failed, "an event after the last"
            self.check(event)

    def check(self, event: Event) -> None:
        if isinstance(event, Request | HeadTooLarge):
            assert event.stream_id > self.last_stream
            assert event.stream_id % 2 == 1
            self.last_stream = event.stream_id
            self.waiting[event.stream_id] = not event.ended
            if isinstance(event, Request):
                assert event.shared.refused is None
                assert event.head.target
        elif isinstance(event, BodyReceived | BodyTooLarge):
            assert self.waiting[event.stream_id]
        elif isinstance(event, RequestEnded):
            assert self.waiting[event.stream_id]
            self.waiting[event.stream_id] = False
        elif isinstance(event, StreamReset):
            assert not event.by_peer or event.stream_id in self.waiting or event.stream_id in self.begun_streams()
            self.waiting.pop(event.stream_id, None)
        elif isinstance(event, ConnectionFailed):
            assert event.reason
            self.failed = True
        else:
            assert isinstance(event, GoawayReceived)

    def begun_streams(self) -> set[int]:
        return set(range(1, self.last_stream + 2, 2))

    @rule(kind=KINDS, flags=FLAGS, stream_id=STREAMS, payload=PAYLOADS, cut=st.integers(0, 12))
    def any_frame(self, kind: int, flags: int, stream_id: int, payload: bytes, cut: int) -> None:
        self.send(raw_frame(kind, flags, stream_id, payload), cut)

    @rule(stream_id=STREAMS, block=BLOCKS, flags=FLAGS, cut=st.integers(0, 40))
    def a_head(self, stream_id: int, block: bytes, flags: int, cut: int) -> None:
        self.send(raw_frame(FrameType.HEADERS, flags, stream_id, block), cut)

    @rule(block=BLOCKS, flags=st.sampled_from([4, 5, 5, 0]))
    def the_next_head(self, block: bytes, flags: int) -> None:
        self.send(headers(self.last_stream + 2, block, flags))

    @rule(flags=st.sampled_from([0, END_HEADERS]), block=BLOCKS)
    def a_continuation(self, flags: int, block: bytes) -> None:
        self.send(raw_frame(FrameType.CONTINUATION, flags, self.last_stream + 2, block))

    @rule(
        back=st.sampled_from([0, 2, 4]),
        kind=st.sampled_from([0, 3, 8]),
        payload=PAYLOADS,
        flags=st.sampled_from([0, 1]),
    )
    def a_frame_of_a_request(self, back: int, kind: int, payload: bytes, flags: int) -> None:
        self.send(raw_frame(kind, flags, max(1, self.last_stream - back), payload))

    @rule(garbage=st.binary(max_size=40))
    def garbage(self, garbage: bytes) -> None:
        self.send(garbage)

    @rule(seconds=st.sampled_from([0.0, 0.1, 5.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.client.now += seconds

    @precondition(lambda self: self.waiting)
    @rule(chosen=st.data(), size=st.sampled_from([0, 1, 100, 16384, 20_000]))
    def respond(self, chosen: st.DataObject, size: int) -> None:
        stream_id = chosen.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[stream_id]
        if not self.client.sender.respond(stream_id, OK_BLOCK, b"x" * size):
            assert self.client.sender.begin(stream_id, OK_BLOCK)
            assert self.client.sender.offer(stream_id, size, last=True)

    @rule(room=st.sampled_from([0, 100, 16384, 100_000]), fails=st.sampled_from([False, False, True]))
    def a_turn(self, room: int, fails: bool) -> None:
        self.read_output()
        turn = self.client.sender.next_turn(room)
        if turn is None:
            return
        assert turn.stream_id in self.client.sender.streams
        if fails:
            self.client.sender.abandon(turn)
        else:
            self.client.sender.sent(turn)

    @rule()
    def read_output(self) -> None:
        for one in parsed(self.client.sender.take()):
            # Nothing goes out on a stream that the client has not opened.
            assert not one.stream_id or one.stream_id % 2 == 1

    @rule(how=st.sampled_from(["drain", "refuse_more"]), really=st.sampled_from([False, False, False, True]))
    def drain(self, how: str, really: bool) -> None:
        if really:
            getattr(self.client.connection, how)()

    @invariant()
    def memory_is_bounded(self) -> None:
        connection, sender = self.client.connection, self.client.sender
        assert len(sender.streams) <= self.limits.concurrent_streams
        assert set(self.waiting) <= set(sender.streams) or self.failed
        assert len(connection._buffer) <= 16384 + 9 + 9000
        assert len(connection._early_priorities or ()) <= self.limits.concurrent_streams
        assert connection._block is None or len(connection._block.data) <= 2 * 16384
        assert sender.window <= 0x7FFFFFFF

    def teardown(self) -> None:
        # Each frame that is sent is whole, whatever came.
        self.read_output()
        if self.failed:
            assert self.client.receive(b"x") == []


TestHostileClient = HostileClient.TestCase
TestHostileClient.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_frame_that_comes_byte_by_byte_is_kept_once() -> None:
    client = begun()
    body = data(1, b"x" * 16384)
    client.request(((b":method", b"POST"), *GET[1:]), ended=False)
    for index in range(0, len(body) - 1, 64):
        client.receive(body[index : min(index + 64, len(body) - 1)])
        assert len(client.connection._buffer) <= len(body)


def answers(client: Client) -> Iterator[int]:
    for event in client.receive(request(0)):
        assert isinstance(event, Request)
        yield event.stream_id


def test_heads_of_one_process_are_shared_by_connections() -> None:
    cache = HeadCache(65536)
    clients = [Client(cache=cache) for _ in range(3)]
    for client in clients:
        client.receive(PREFACE + settings() + settings(ack=bool(ACK)))
        assert list(answers(client)) == [1]
    assert cache.entries == 1
