"""Conversations with h2: as a client that talks to the engine, and as a server that reads the same bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.http.request_fields import Field
from ktlsd.http2.connection import Connection
from ktlsd.http2.events import BodyReceived, Event, GoawayReceived, Request, RequestEnded, StreamReset
from ktlsd.http2.head_cache import HeadCache
from ktlsd.http2.hpack_encoder import encode
from ktlsd.http2.limits import Http2Limits

RECORDINGS = sorted((Path(__file__).parent / "recorded").glob("*.bin"))

PATHS = st.sampled_from([b"/", b"/index.html", b"/a/b.png", b"/" + b"long/" * 30, b"/?q=1"])
MORE = st.lists(
    st.sampled_from(
        [
            *((b"cookie", b"a=b"), (b"cookie", b"c=" + b"d" * 60), (b"priority", b"u=1"), (b"te", b"trailers")),
            *((b"accept", b"*/*"), (b"user-agent", b"x/1.0"), (b"x-large", b"v" * 5000), (b"range", b"bytes=0-")),
        ]
    ),
    max_size=4,
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("request"), PATHS, MORE),
        st.tuples(st.just("upload"), PATHS, MORE),
        st.tuples(st.just("data"), st.integers(0, 3), st.sampled_from([0, 1, 500, 16384])),
        st.tuples(st.just("end"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("trailers"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("reset"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("ping"), st.just(0), st.just(0)),
        st.tuples(st.just("table"), st.sampled_from([0, 100, 4096]), st.just(0)),
        st.tuples(st.just("window"), st.sampled_from([0, 100, 65535, 1_000_000]), st.just(0)),
        st.tuples(st.just("frames"), st.sampled_from([16384, 65536]), st.just(0)),
        st.tuples(st.just("priority"), st.integers(0, 5), st.just(0)),
    ),
    max_size=30,
)


class H2Client:
    """h2's client, which does at random what clients do."""

    def __init__(self) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.h2.initiate_connection()
        self.uploads: list[int] = []
        self.requests: list[int] = []

    def act(self, action: str, first: Any, second: Any) -> None:
        connection = self.h2
        if action in ("request", "upload"):
            stream_id = connection.get_next_available_stream_id()
            method = b"GET" if action == "request" else b"POST"
            fields = [(b":method", method), (b":scheme", b"https"), (b":authority", b"example.org"), (b":path", first)]
            connection.send_headers(stream_id, [*fields, *second], end_stream=action == "request")
            self.requests.append(stream_id)
            if action == "upload":
                self.uploads.append(stream_id)
        elif action == "ping":
            connection.ping(b"12345678")
        elif action == "table":
            connection.update_settings({SettingCodes.HEADER_TABLE_SIZE: first})
        elif action == "window":
            connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: first})
        elif action == "frames":
            connection.update_settings({SettingCodes.MAX_FRAME_SIZE: first})
        elif action == "priority" and first < len(self.requests):
            connection.prioritize(self.requests[first], weight=7, depends_on=0)
        elif action == "reset" and first < len(self.requests):
            stream_id = self.requests.pop(first)
            connection.reset_stream(stream_id)
            if stream_id in self.uploads:
                self.uploads.remove(stream_id)
        elif first < len(self.uploads):
            self._upload(action, self.uploads[first], second)

    def _upload(self, action: str, stream_id: int, count: int) -> None:
        if action == "data" and count <= self.h2.local_flow_control_window(stream_id):
            self.h2.send_data(stream_id, b"x" * count)
        elif action == "end":
            self.h2.end_stream(stream_id)
            self.uploads.remove(stream_id)
        elif action == "trailers":
            self.h2.send_headers(stream_id, [(b"digest", b"x")], end_stream=True)
            self.uploads.remove(stream_id)

    def sent(self) -> bytes:
        return self.h2.data_to_send()


def engine() -> Connection:
    return Connection(Http2Limits(), HeadCache(65536), 0.0)


Told = tuple[str, int, object]


def told_by_engine(events: list[Event]) -> list[Told]:
    told: list[Told] = []
    for event in events:
        if isinstance(event, Request):
            fields = [(b":method", event.head.method), (b":path", event.head.target), *event.head.headers]
            told.append(("request", event.stream_id, in_one_order(fields)))
            if event.ended:
                told.append(("end", event.stream_id, None))
        elif isinstance(event, BodyReceived):
            told.append(("data", event.stream_id, event.count))
        elif isinstance(event, RequestEnded):
            if event.trailers:
                told.append(("trailers", event.stream_id, list(event.trailers)))
            told.append(("end", event.stream_id, None))
        elif isinstance(event, GoawayReceived):
            told.append(("goaway", 0, event.code))
        else:
            assert isinstance(event, StreamReset), event
            assert event.by_peer
            told.append(("reset", event.stream_id, event.code))
    return told


def told_by_h2(events: list[h2.events.Event]) -> list[Told]:
    told: list[Told] = []
    for event in events:
        if isinstance(event, h2.events.RequestReceived):
            fields = [tuple(field) for field in event.headers or ()]
            told.append(("request", event.stream_id or 0, in_one_order(fields)))
        elif isinstance(event, h2.events.TrailersReceived):
            told.append(("trailers", event.stream_id or 0, [tuple(field) for field in event.headers or ()]))
        elif isinstance(event, h2.events.DataReceived):
            if event.data:
                told.append(("data", event.stream_id or 0, len(event.data)))
        elif isinstance(event, h2.events.StreamEnded):
            told.append(("end", event.stream_id or 0, None))
        elif isinstance(event, h2.events.ConnectionTerminated):
            told.append(("goaway", 0, int(event.error_code or 0)))
        elif isinstance(event, h2.events.StreamReset):
            told.append(("reset", event.stream_id, int(event.error_code or 0)))
    return told


def in_one_order(fields: list[Any]) -> list[Field]:
    """The fields as a RequestHead has them, but for the place of cookies, which h2 puts last."""
    pseudo = {name: value for name, value in fields if name[:1] == b":"}
    start = [(b":method", pseudo[b":method"]), (b":path", pseudo[b":path"])]
    if b":authority" in pseudo:
        start.append((b"host", pseudo[b":authority"]))
    regular = [field for field in fields if field[0][:1] != b":" and field[0] != b"cookie"]
    cookies = [value for name, value in fields if name == b"cookie"]
    return [*start, *regular, *([(b"cookie", b"; ".join(cookies))] if cookies else [])]


def told_by_h2s_server(sent: bytes) -> list[Told]:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    server.initiate_connection()
    told = []
    for event in server.receive_data(sent):
        if isinstance(event, h2.events.DataReceived):
            server.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        told += told_by_h2([event])
    return told


@settings(max_examples=50)
@given(ACTIONS, st.integers(1, 4000))
def test_both_servers_see_the_same(actions: list[tuple[str, Any, Any]], piece: int) -> None:
    client, connection = H2Client(), engine()
    sent = client.sent()
    for action in actions:
        client.act(*action)
        sent += client.sent()
    events = [event for at in range(0, len(sent), piece) for event in connection.receive(sent[at : at + piece], 0.0)]
    assert told_by_engine(events) == told_by_h2s_server(sent)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
def test_recorded_clients(recording: Path, piece: int) -> None:
    sent = recording.read_bytes()
    connection = engine()
    events = [event for at in range(0, len(sent), piece) for event in connection.receive(sent[at : at + piece], 0.0)]
    told = told_by_engine(events)
    assert told == told_by_h2s_server(sent)
    assert "request" in {one[0] for one in told}


# --- responses -------------------------------------------------------------------------------------------------------


def whole_frames(output: bytes) -> Iterator[bytes]:
    while output:
        size = 9 + int.from_bytes(output[:3])
        yield output[:size]
        output = output[size:]


class Server:
    """The engine with responses, as a caller drives it; h2 reads what it sends."""

    def __init__(self) -> None:
        self.connection = engine()
        self.client = H2Client()
        self.expected: dict[int, int] = {}
        """Bytes of each response that was not reset."""
        self.bodies: defaultdict[int, int] = defaultdict(int)
        self.ended: set[int] = set()
        self.heads: set[int] = set()

    def exchange(self, size: int, room: int) -> None:
        """Bytes of the client to the engine, responses of this size, and all that can be sent back."""
        for event in self.connection.receive(self.client.sent(), 0.0):
            if (isinstance(event, Request) and event.ended) or isinstance(event, RequestEnded):
                self.respond(event.stream_id, size)
            elif isinstance(event, StreamReset):
                self.expected.pop(event.stream_id, None)
        self.send(room)

    def respond(self, stream_id: int, size: int) -> None:
        sender = self.connection.sender
        self.expected[stream_id] = size
        block = encode([(b":status", b"200"), (b"content-length", b"%d" % size)])
        if not sender.respond(stream_id, block, b"x" * size):
            assert sender.begin(stream_id, block)
            assert sender.offer(stream_id, size, last=True)

    def send(self, room: int) -> None:
        sender = self.connection.sender
        while True:
            output = sender.take()
            turn = sender.next_turn(room, len(output))
            if turn is not None:
                output += b"".join(head + b"x" * size for head, size in zip(turn.headers(), turn.sizes, strict=True))
                sender.sent(turn)
            elif not output:
                return
            self.read(output)

    def read(self, output: bytes) -> None:
        # h2 raises for each violation: frame sizes, windows, states, content-length. It learns what the engine has
        # acknowledged at the end of a call.
        for frame in whole_frames(output):
            self.read_frame(frame)

    def read_frame(self, frame: bytes) -> None:
        for event in self.client.h2.receive_data(frame):
            if isinstance(event, h2.events.ResponseReceived):
                assert next(tuple(field) for field in event.headers or ()) == (b":status", b"200")
                self.heads.add(event.stream_id or 0)
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id or 0] += len(event.data or b"")
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id or 0)
            else:
                assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated)

    def open_windows(self) -> None:
        """The client takes everything."""
        self.client.h2.increment_flow_control_window(1 << 20)
        for stream_id in self.expected:
            if stream_id not in self.ended:
                self.client.h2.increment_flow_control_window(1 << 20, stream_id)


ROUNDS = st.tuples(ACTIONS, st.sampled_from([0, 100, 16384, 50_000]), st.sampled_from([500, 16384, 262_144]))


@settings(max_examples=40)
@given(st.lists(ROUNDS, max_size=4))
def test_h2_reads_every_response(rounds: list[tuple[list[tuple[str, Any, Any]], int, int]]) -> None:
    server = Server()
    for actions, size, room in rounds:
        for action in actions:
            if action[0] != "reset":
                server.client.act(*action)
        server.exchange(size, room)
        server.client.requests = [one for one in server.client.requests if one not in server.ended]
    for _ in range(20):
        server.open_windows()
        server.exchange(0, 262_144)
    assert server.ended == server.heads == set(server.expected)
    assert all(server.bodies[stream_id] == size for stream_id, size in server.expected.items())
    assert set(server.connection.sender.streams) == set(server.client.uploads)
