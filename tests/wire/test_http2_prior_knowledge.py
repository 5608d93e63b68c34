"""HTTP/2 with prior knowledge on backend_listen (RFC 9113 section 3.3): the first bytes choose the protocol.

Strategy: prefaces whole, in pieces and wrong, by socket; then curl, nghttp and h2load. test_backend.py has the fields
of proxies and PROXY headers over both protocols, tests/system/test_proxies.py real proxies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.ports import free_ports
from ktlsd.http2.frames import END_HEADERS, END_STREAM, PREFACE, FrameType, frame
from ktlsd.http2.peer_settings import settings_frame
from tests.http2.blocks import literals
from tests.http2_client import Http2Client
from tests.protocols import HTTP_1, plain_conversation
from tests.proxies import running
from tests.serving import WAIT_SECONDS, Running, connect_plain, parse, parse_all, read_to_end, serving

BIG = os.urandom(3_000_001)
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"localhost"), (b":path", b"/small.txt")]
ONE_REQUEST = PREFACE + settings_frame(()) + frame(FrameType.HEADERS, END_HEADERS | END_STREAM, 1, literals(GET))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("h2c") / "www"
    folder.mkdir()
    (folder / "small.txt").write_text("small")
    (folder / "big").write_bytes(BIG)
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("state")
    options = ("--log-level", "debug", "--access-log", "stderr")
    backends = ("127.0.0.1:0", f"unix:{folder}/http.sock")
    with serving(root, *options, state=folder, backend_listen=backends, http_listen=("127.0.0.1:0",)) as running:
        yield running


def port_of(server: Running) -> int:
    return int(server.backends[0].rpartition(":")[2])


def connected(place: int | str) -> socket.socket:
    connection = connect_plain(place)
    if isinstance(place, int):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def response_to(connection: socket.socket) -> tuple[int, bytes]:
    """Type and content of the first frame with a response's body, of frames in their order."""
    received = b""
    while True:
        data = connection.recv(65536)
        assert data, received
        received += data
        while (size := 9 + int.from_bytes(received[:3])) <= len(received):
            one, received = received[:size], received[size:]
            if one[3] == FrameType.DATA:
                return int.from_bytes(one[5:9]), one[9:]


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("first", [1, 3, 18, 24, 30, len(ONE_REQUEST)])
def test_preface_in_pieces(server: Running, first: int, unix: bool) -> None:
    with connected(server.unix_socket if unix else port_of(server)) as connection:
        connection.sendall(ONE_REQUEST[:first])
        connection.sendall(ONE_REQUEST[first:])
        assert response_to(connection) == (1, b"small")


def test_preface_byte_by_byte(server: Running) -> None:
    with connected(port_of(server)) as connection:
        for position in range(len(ONE_REQUEST)):
            connection.sendall(ONE_REQUEST[position : position + 1])
        assert response_to(connection) == (1, b"small")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", 505),
        (b"PRI * HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
    ],
)
def test_other_first_bytes_are_http_1_1(server: Running, head: bytes, status: int) -> None:
    with connected(port_of(server)) as connection:
        # In pieces, the first of which might be that of a preface.
        for piece in (head[:1], head[1:]):
            connection.sendall(piece)
        answer, _ = parse(read_to_end(connection))
    assert answer.status == status


def test_no_change_of_protocol_after_a_request(server: Running) -> None:
    with connected(port_of(server)) as connection:
        connection.sendall(b"GET /small.txt HTTP/1.1\r\nHost: a\r\n\r\n" + ONE_REQUEST)
        answers = parse_all(read_to_end(connection))
    assert [answer.status for answer in answers] == [200, 505]


def test_upgrade_is_ignored(server: Running) -> None:
    fields = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with connected(port_of(server)) as connection:
        connection.sendall(b"GET /small.txt HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
        answer, rest = parse(read_to_end(connection))
    assert (answer.status, answer.body, rest) == (200, b"small", b"")


def test_not_on_listeners_that_redirect(server: Running) -> None:
    with connected(server.http_ports[0]) as connection:
        connection.sendall(ONE_REQUEST)
        answer, _ = parse(read_to_end(connection))
    assert answer.status == 505
    assert server.wait_for_line(" 505 PRI .*: HTTP/2 on a connection that speaks HTTP/1.1 only$")


@contextlib.contextmanager
def limited(root: Path, folder: Path, *lines: str) -> Iterator[Running]:
    """A server with these lines in its configuration, and a second for a head."""
    path = folder / "ktlsd.toml"
    path.write_text("\n".join((f"root = {json.dumps(str(root))}", *lines, "[limits]", "head_seconds = 1\n")))
    with serving(None, "--config", str(path), state=folder, backend_listen=("127.0.0.1:0",)) as running:
        yield running


def test_off_with_http2(root: Path, tmp_path: Path) -> None:
    with limited(root, tmp_path, "http2 = false") as server:
        with connected(port_of(server)) as connection:
            connection.sendall(ONE_REQUEST)
            answer, _ = parse(read_to_end(connection))
        assert answer.status == 505


def test_a_preface_that_does_not_end(root: Path, tmp_path: Path) -> None:
    with limited(root, tmp_path) as server:
        with connected(port_of(server)) as connection:
            connection.sendall(PREFACE[:20])
            answer, _ = parse(read_to_end(connection))
        assert answer.status == 505
        with connected(port_of(server)) as connection:
            connection.sendall(PREFACE[:12])
            connection.shutdown(socket.SHUT_WR)
            assert b"HTTP/2" not in read_to_end(connection)
        with connected(port_of(server)) as connection:
            began = time.monotonic()
            # As far as it goes, it may be a request of HTTP/1.1.
            connection.sendall(PREFACE[:12])
            answer, _ = parse(read_to_end(connection))
            assert answer.status == 408
            # The second for a head was not waited for twice.
            assert time.monotonic() - began < 2


def test_streams_share_a_connection(server: Running) -> None:
    with connected(server.unix_socket) as connection:
        client = Http2Client(connection, scheme="http")
        big, small = client.ask("/big?streams"), [client.ask("/small.txt") for _ in range(20)]
        client.wait_for(big, *small)
        assert client.streams[big].answer().body == BIG
        assert {client.streams[one].answer().body for one in small} == {b"small"}
    assert "HTTP/2.0" in server.wait_for_line(r'"GET /big\?streams ')


def test_sigterm_lets_streams_end(root: Path, tmp_path: Path) -> None:
    with serving(root, state=tmp_path, backend_listen=("127.0.0.1:0",)) as server:
        with connected(port_of(server)) as connection:
            client = Http2Client(connection, window=100_000, scheme="http")
            big = client.ask("/big")
            while len(client.streams[big].body) < 100_000:
                client.receive()
            server.process.send_signal(signal.SIGTERM)
            while len(client.goaways) < 2:
                client.receive()
            client.http.increment_flow_control_window(len(BIG), big)
            client.flush()
            client.wait_for(big)
            assert client.streams[big].answer().body == BIG
            client.read_to_end()
            assert client.goaways[-1] == big
        assert server.process.wait(WAIT_SECONDS) == 0


# --- other clients


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True).stdout


def test_curl(server: Running, tmp_path: Path) -> None:
    out = tmp_path / "out"
    url, common = f"http://localhost:{port_of(server)}/big", ("curl", "-sS", "-w", "%{http_version}", "-o", str(out))
    for words in (("--ipv4",), ("--unix-socket", server.unix_socket)):
        assert run(*common, "--http2-prior-knowledge", *words, url) == "2"
        assert out.read_bytes() == BIG
    # By Upgrade.
    assert run(*common, "--http2", "--ipv4", url) == "1.1"
    assert out.read_bytes() == BIG


def test_nginx_by_its_grpc_module(server: Running, tmp_path: Path) -> None:
    """The one module of nginx 1.22 that speaks HTTP/2 to backends."""
    (front,) = free_ports(1)
    location = f"location / {{ grpc_pass grpc://127.0.0.1:{port_of(server)}; }}"
    # nginx would give its workers up to another user, who may not enter a test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    scratch = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"daemon off; {user} pid {tmp_path}/nginx.pid; events {{ }}\n"
        f"http {{ access_log off; {scratch} server {{ listen 127.0.0.1:{front}; {location} }} }}\n"
    )
    words = ("nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(configuration))
    with running("nginx", tmp_path, (front,), *words):
        for target, body in (("/small.txt", b"small"), ("/big?nginx", BIG)):
            with plain_conversation(front, HTTP_1) as connection:
                answer = connection.get(target)
            assert (answer.status, answer.body) == (200, body)
    assert "HTTP/2.0" in server.wait_for_line(r'"GET /big\?nginx ')


def test_nghttp_and_h2load(server: Running) -> None:
    url = f"http://127.0.0.1:{port_of(server)}"
    assert len(re.findall(r" 200 +\d", run("nghttp", "-nsa", f"{url}/big", f"{url}/small.txt"))) == 2
    output = run("h2load", "-n", "200", "-c", "4", "-m", "10", f"{url}/big", f"{url}/small.txt")
    assert re.search(r"200 succeeded, 0 failed, 0 errored", output), output
