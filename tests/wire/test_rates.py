"""Rates of client networks over the wire, over both protocols: who gets 429, also from memory, and what is counted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import write_all
from tests.http2_client import Http2Client, Stream
from tests.protocols import PROTOCOLS, conversation, plain_conversation
from tests.serving import Running, connect_plain, serving
from tests.wire.test_metrics_wire import metrics_port, numbers, value

CONFIGURATION = """
root = "www"
trusted_proxies = "unix"
metrics_listen = "127.0.0.1:0"
error_pages = { 429 = "/slow-down.html" }

[[rate]]
path = "/few/**"
requests_per_second = 0.001
burst = 5

[[rate]]
path = "/large/**"
concurrent = 2

[[rate]]
path = "/slow/response"
response_bytes_per_second = 500_000

[[rate]]
path = "/slow/burst"
response_bytes_per_second = 1000
bytes_at_full_speed = 900_000

[[rate]]
path = "/slow/connection"
connection_bytes_per_second = 500_000

[[rate]]
path = "/slow/small"
connection_bytes_per_second = 40_000

[[rate]]
path = "/slow/client"
client_bytes_per_second = 500_000

[[site]]
names = ["other.example"]
error_pages = {}

[[site.rate]]
path = "/once"
requests_per_second = 0.001
burst = 1
"""
LARGE = 16 << 20
SLOW = 1_000_000
"""Bytes that take two seconds."""
CONTENT = random.Random(21).randbytes(SLOW)
SIZES = {
    **{"few/a.txt": 1, "few/b.txt": 1, "other.txt": 1, "large/file": LARGE, "slow-down.html": 5},
    **{f"slow/{name}": SLOW for name in ("response", "burst", "connection", "client")},
    "slow/small": 8000,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("rates")
    contents = {name: (CONTENT if name.startswith("slow/") else b"x" * size)[:size] for name, size in SIZES.items()}
    write_all(folder / "www", contents)
    (folder / "ktlsd.toml").write_text(CONFIGURATION)
    backend = f"unix:{folder / 'socket'}"
    with serving(
        None, "--config", str(folder / "ktlsd.toml"), state=folder / "state", backend_listen=(backend,)
    ) as running:
        yield running


def address(protocol: str, number: int) -> str:
    """The field that names a client of one test."""
    return f"X-Forwarded-For: 192.0.2.{2 * number + PROTOCOLS.index(protocol)}"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_requests_a_second(server: Running, protocol: str) -> None:
    client, other = address(protocol, 1), address(protocol, 2)
    with plain_conversation(server.unix_socket, protocol) as connection:
        # The first is decided, the next is remembered; 304, HEAD and 404 count, too.
        assert connection.get("/few/a.txt", client).status == 200
        answer = connection.get("/few/a.txt", client)
        assert answer.status == 200
        assert connection.get("/few/a.txt", client, f"If-None-Match: {answer.fields['etag']}").status == 304
        assert connection.get("/few/b.txt", client, method="HEAD").status == 200
        assert connection.get("/few/absent", client).status == 404
        # The second time of each is remembered, for clients at the same limit.
        for target in ("/few/a.txt", "/few/absent", "/few/a.txt", "/few/absent"):
            refused = connection.get(target, client)
            assert (refused.status, refused.body) == (429, b"xxxxx")
            assert 990 <= int(refused.fields["retry-after"]) <= 1000
        assert connection.get("/few/a.txt", client, method="HEAD").status == 429
        assert connection.get("/other.txt", client).status == 200
        assert connection.get("/few/a.txt", other).status == 200
        assert connection.get("/few/absent", other).status == 404
        assert connection.get("/few/absent", client).status == 429
    with plain_conversation(server.unix_socket, protocol) as connection:
        assert connection.get("/few/a.txt", client).status == 429


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_responses_in_progress(server: Running, protocol: str) -> None:
    client, other = address(protocol, 3), address(protocol, 4)
    with plain_conversation(server.unix_socket, protocol) as third:
        with (
            plain_conversation(server.unix_socket, protocol) as first,
            plain_conversation(server.unix_socket, protocol) as second,
        ):
            first.begin("/large/file", client).read(1)
            download = second.begin("/large/file", client)
            download.read(1)
            assert third.get("/large/file", client, method="HEAD").status == 429
            assert third.get("/large/absent", client).status == 429
            assert third.get("/large/file", other, method="HEAD").status == 200
            assert len(download.answer().body) == LARGE
            assert third.get("/large/file", client).status == 200
            second.begin("/large/file", client).read(1)
            assert third.get("/large/file", client).status == 429
        # Both were cut off by their clients.
        deadline = time.monotonic() + 10
        while third.get("/large/file", client, "Range: bytes=0-0").status != 206:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(4):
            assert third.get("/large/file", client, "Range: bytes=0-0").status == 206


def test_a_remembered_refusal_has_no_id_of_a_request(server: Running) -> None:
    # Of a rate without an error page of its own.
    client, json = address(PROTOCOLS[1], 11), "Accept: application/json"
    with plain_conversation(server.unix_socket, PROTOCOLS[0]) as connection:
        assert connection.get("/once", client, host="other.example").status == 404
        for number in range(3):
            answer = connection.get("/once", client, json, f"X-Request-ID: id-{number}", host="other.example")
            assert (answer.status, answer.fields["content-type"]) == (429, "application/json")
            assert b"id-" not in answer.body


def test_refusals_are_counted_and_logged_now_and_then(server: Running) -> None:
    client = address(PROTOCOLS[0], 5)
    with plain_conversation(server.unix_socket, PROTOCOLS[0]) as connection:
        assert [connection.get("/few/a.txt", client).status for _ in range(9)] == [200] * 5 + [429] * 4
    line = server.wait_for_line(
        " 429 .*: more than 0.001 requests a second from the client's network: limit requests_per"
    )
    assert "/few/a.txt" in line
    assert sum(" 429 " in line and "a second" in line for line in server.log) == 1
    assert value(numbers(metrics_port(server)), "ktlsd_limited_total", limit="requests_per_second") >= 4


# --- send rates


class Taker(threading.Thread):
    """Takes a part of a file several times at once on one connection, and notes how much came when."""

    def __init__(self, server: Running, protocol: str, name: str, client: str, count: int, size: int = SLOW) -> None:
        super().__init__()
        self._place, self._protocol, self._size = server.unix_socket, protocol, size
        self._asked = f"/slow/{name}", client, f"Range: bytes=0-{size - 1}"
        self._count = count
        self.after_a_second = 0
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        with plain_conversation(self._place, self._protocol) as connection:
            began = time.monotonic()
            taken = {connection.begin(*self._asked): 0 for _ in range(self._count)}
            while any(have < self._size for have in taken.values()):
                for download, have in taken.items():
                    taken[download] = len(download.read(min(have + 1, self._size)))
                if time.monotonic() < began + 1:
                    self.after_a_second = connection.received_bytes
            self.seconds = time.monotonic() - began


def test_send_rates(server: Running) -> None:
    http_1, http_2 = PROTOCOLS
    each = [
        Taker(server, http_1, "response", address(http_1, 6), 1),
        Taker(server, http_2, "response", address(http_2, 6), 1),
        Taker(server, http_1, "connection", address(http_1, 7), 1),
        Taker(server, http_2, "connection", address(http_2, 7), 2, SLOW // 2),
        Taker(server, http_1, "connection", "X-Forwarded-For: unix", 1),
    ]
    two_streams = Taker(server, http_2, "response", address(http_2, 8), 2)
    shared = [Taker(server, protocol, "client", address(http_1, 9), 1, SLOW // 2) for protocol in PROTOCOLS]
    for taker in (*each, two_streams, *shared):
        taker.join()
    for taker in (*each, two_streams):
        assert taker.seconds >= 1.5
    for taker in each:
        assert taker.after_a_second <= 620_000
    assert two_streams.after_a_second <= 1_240_000
    assert max(taker.seconds for taker in shared) >= 1.5
    assert sum(taker.after_a_second for taker in shared) <= 620_000


def test_small_responses_together_have_the_rate(server: Running) -> None:
    with connect_plain(server.unix_socket) as connection:
        client = Http2Client(connection, scheme="http")
        for _ in range(2):
            assert client.get("/slow/small").status == 200
        # Remembered responses to requests that arrive together.
        for stream_id in range(5, 15, 2):
            client.streams[stream_id] = Stream()
            fields = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/slow/small")]
            client.http.send_headers(stream_id, fields, end_stream=True)
        began = time.monotonic()
        client.flush()
        client.wait_for(*client.streams)
        assert time.monotonic() - began >= 0.6


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_byte_arrives_over_tls(server: Running, protocol: str) -> None:
    # Decided, remembered, in several parts.
    with conversation(server.port, protocol) as connection:
        for _ in range(2):
            began = time.monotonic()
            answer = connection.get("/slow/response", "Range: bytes=1-250000")
            assert (answer.status, answer.body) == (206, CONTENT[1:250_001])
            assert time.monotonic() - began >= 0.25
        answer = connection.get("/slow/response", "Range: bytes=0-9999,20000-119999")
        assert answer.status == 206
        assert CONTENT[:10_000] in answer.body
        assert CONTENT[20_000:120_000] in answer.body


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_response_begins_at_full_speed(server: Running, protocol: str) -> None:
    with plain_conversation(server.unix_socket, protocol) as connection:
        # Of the rest, it is 8 seconds' worth.
        began = time.monotonic()
        got = len(connection.begin("/slow/burst", address(protocol, 10)).read(900_000))
        assert got <= 900_000 + 5000 + 1000 * (time.monotonic() - began)
        assert time.monotonic() < began + 30
    # What has no body waits for nobody.
    with plain_conversation(server.unix_socket, protocol) as connection:
        answer = connection.get("/slow/burst", address(protocol, 10), method="HEAD")
        assert answer.status == 200
        tag = f"If-None-Match: {answer.fields['etag']}"
        assert connection.get("/slow/burst", address(protocol, 10), tag).status == 304


def test_a_client_that_the_server_slows_down_is_not_too_slow(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(CONTENT[:20_000])
    (tmp_path / "ktlsd.toml").write_text(
        """
        root = "www"
        [limits]
        send_seconds = 0.2
        send_bytes_per_second = 1_000_000
        [[rate]]
        path = "**"
        response_bytes_per_second = 16_000
        """
    )
    options, backend = ("--config", str(tmp_path / "ktlsd.toml")), f"unix:{tmp_path / 'socket'}"
    with (
        serving(None, *options, state=tmp_path / "state", backend_listen=(backend,)) as running,
        plain_conversation(running.unix_socket, PROTOCOLS[0]) as one,
        plain_conversation(running.unix_socket, PROTOCOLS[1]) as other,
    ):
        began = time.monotonic()
        downloads = [connection.begin("/file") for connection in (one, other)]
        for download in downloads:
            assert download.answer().body == CONTENT[:20_000]
        assert time.monotonic() - began >= 0.8
