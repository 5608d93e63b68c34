"""HTTP/2 whose files the kernel sends between the headers of frames, as it does where a NIC encrypts.

Strategy: connections without TLS, for which the kernel does the same, are told that there is such a NIC; that needs a
server in this process. tests/ktls/test_nic.py has real ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ktlsd.config.options import Settings
from ktlsd.config.values import BackendListen, Listen, Mode
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.http2.errors import ErrorCode
from ktlsd.http2.frames import rst_stream
from ktlsd.process.listeners import bind_all
from ktlsd.server import Server
from ktlsd.service import Service
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.http2_client import Http2Client
from tests.in_process import in_a_thread
from tests.mounting import evict
from tests.serving import WAIT_SECONDS, eventually

SIZES = {"small": 900, "medium": 40_000, "large": 3_000_001, "other": 2_000_000}


@dataclass
class InProcess:
    port: int
    root: Path
    contents: dict[str, bytes]

    @contextlib.contextmanager
    def client(self, window: int | None = None, buffer: int | None = None) -> Iterator[Http2Client]:
        with socket.socket() as connection:
            if buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            connection.settimeout(WAIT_SECONDS)
            connection.connect(("127.0.0.1", self.port))
            yield Http2Client(connection, window, scheme="http")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    root = tmp_path_factory.mktemp("root")
    contents = {name: os.urandom(size) for name, size in SIZES.items()}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    library = Library()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setattr(PlainTransport, "nic_encrypts", True)
        service = Service(library, Settings(root=root), support(library, Mode.OFF))
        stack.callback(service.close)
        listeners = bind_all([], backend=[BackendListen(Listen("127.0.0.1", 0))])
        stack.enter_context(in_a_thread(Server(service), listeners))
        yield InProcess(listeners[0].socket.getsockname()[1], root, contents)


def open_files(server: InProcess) -> list[str]:
    """Those of the root."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    found = []
    for link in links:
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return [path for path in found if path.startswith(f"{server.root}/")]


def begin(client: Http2Client, stream: int, least: int = 1) -> None:
    while len(client.streams[stream].body) < least:
        assert client.receive()


@pytest.mark.parametrize("window", [None, 1 << 30])
def test_files_and_ranges_arrive_whole(server: InProcess, window: int | None) -> None:
    with server.client(window) as client:
        streams = {name: client.ask(f"/{name}") for name in ("large", "small", "other", "medium", "small")}
        parts = client.ask("/large", ("range", "bytes=0-9,30000-70000,1000000-1000300,2999000-"))
        one = client.ask("/other", ("range", "bytes=16375-99999"))
        client.wait_for(*streams.values(), parts, one)
        for name, stream in streams.items():
            assert client.streams[stream].answer().body == server.contents[name]
        body, large = client.streams[parts].answer().body, server.contents["large"]
        for begin, end in ((0, 10), (30000, 70001), (1000000, 1000301), (2999000, len(large))):
            assert b"\r\n\r\n" + large[begin:end] + b"\r\n--" in body
        assert client.streams[one].answer().body == server.contents["other"][16375:100_000]
    assert eventually(lambda: not open_files(server))


def test_a_small_response_overtakes_a_large_one(server: InProcess) -> None:
    with server.client() as client:
        large = client.ask("/large")
        begin(client, large)
        small = client.ask("/small")
        client.wait_for(small)
        assert client.streams[small].answer().body == server.contents["small"]
        assert not client.streams[large].ended
        client.wait_for(large)
        assert client.streams[large].answer().body == server.contents["large"]


@pytest.mark.skipif(os.geteuid() != 0, reason="as test_page_cache.py")
def test_a_disk_is_waited_for(server: InProcess) -> None:
    # Pages that a socket still holds would stay.
    (server.root / "cold").write_bytes(server.contents["large"])
    evict(server.root / "cold")
    with server.client() as client:
        cold, small = client.ask("/cold"), client.ask("/small")
        client.wait_for(cold, small)
        assert client.streams[cold].answer().body == server.contents["large"]
        assert client.streams[small].answer().body == server.contents["small"]


def test_a_client_that_resets_a_stream_gets_no_byte_of_another_file(server: InProcess) -> None:
    """The kernel still has to send frames of a file that nobody wants any more."""
    with server.client(1 << 30, buffer=4096) as client:
        for _ in range(5):
            large = client.ask("/large")
            begin(client, large)
            # The library h2 would answer each frame that is on its way with another one.
            client.socket.sendall(rst_stream(large, ErrorCode.CANCEL))
            received = client.streams[large].body
            other = client.get("/other", ("range", "bytes=0-99999"))
            assert other.body == server.contents["other"][:100_000]
            assert received == server.contents["large"][: len(received)]
    assert eventually(lambda: not open_files(server))


@pytest.fixture
def shrinking(server: InProcess) -> Iterator[Path]:
    path = server.root / "shrinking"
    path.write_bytes(server.contents["large"])
    yield path
    path.unlink()


def test_a_file_that_shrinks_between_frames_resets_its_stream(server: InProcess, shrinking: Path) -> None:
    with server.client(100_000) as client:
        stream = client.ask("/shrinking")
        begin(client, stream, 100_000)
        os.truncate(shrinking, 100_000)
        client.http.increment_flow_control_window(1_000_000, stream)
        client.flush()
        client.wait_for(stream)
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert client.streams[stream].body == server.contents["large"][:100_000]
        assert client.get("/small").body == server.contents["small"]


def test_a_file_that_shrinks_within_a_frame_ends_the_connection(
    server: InProcess, shrinking: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No frame can be inserted there: the other streams end with it, and none of them as if it were whole."""
    for _ in range(20):
        shrinking.write_bytes(server.contents["large"])
        with server.client(1 << 30, buffer=4096) as client:
            stream, other = client.ask("/shrinking"), client.ask("/other")
            begin(client, stream)
            os.truncate(shrinking, 0)
            try:
                client.wait_for(stream)
            except ConnectionResetError:
                break
            # Between two batches of frames: another try.
            assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
    for one, name in ((stream, "large"), (other, "other")):
        received = client.streams[one]
        assert not received.ended
        assert received.reset is None
        assert received.body == server.contents[name][: len(received.body)]
    assert eventually(lambda: "cut off: the file shrank while it was sent" in caplog.text)
    assert eventually(lambda: not open_files(server))
