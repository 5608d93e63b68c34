"""The limits of HTTP/2 connections of a running server: their effect, metric and log line, and others that go on."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from ktlsd.http2.errors import ErrorCode, Exceeded
from ktlsd.http2.frames import PREFACE, FrameType, ping
from ktlsd.protocol.http2 import GOODBYE_SECONDS
from tests.hanging_fs import mounted
from tests.http2.blocks import GET, literals, with_fields
from tests.http2.client import END_HEADERS, END_STREAM, headers, rst_stream, settings, window_update
from tests.http2.test_hostile import EXCEEDED, MOST_FRAMES, SHAPES
from tests.http2_client import h2_context, http2
from tests.mounting import overlay
from tests.serving import WAIT_SECONDS, Running, connect, counts, eventually, serving

POST = headers(1, literals(((b":method", b"POST"), *GET[1:])), END_HEADERS)
"""A request whose body does not come."""
LARGE = headers(1, literals((*GET[:3], (b":path", b"/large"))))
LARGEST = (1 << 31) - 1
MOST_KIB = 1024
MIDDLE = 40_000
CANCEL = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits") / "www"
    folder.mkdir()
    for name in ("small.txt", "file"):
        (folder / name).write_bytes(b"small")
    (folder / "middle").write_bytes(os.urandom(MIDDLE))
    with open(folder / "large", "wb") as file:
        file.truncate(32 << 20)
    return folder


@contextlib.contextmanager
def limited(folder: Path, root: Path, *lines: str, wrapper: Sequence[str] = ()) -> Iterator[Running]:
    """A server with a [limits] table of these lines."""
    path = folder / "ktlsd.toml"
    write(path, root, *lines)
    arguments = ("--config", str(path), "--metrics-listen", "127.0.0.1:0")
    with serving(None, *arguments, state=folder, wrapper=wrapper) as running:
        yield running


def write(path: Path, root: Path, *lines: str) -> None:
    path.write_text("\n".join((f"root = {json.dumps(str(root))}", "http2 = true", "[limits]", *lines)))


def end_of(port: int, frames: Iterable[bytes], window: int = 65535) -> int:
    """Send frames while the server takes them, and read to the end of the connection; the code of its GOAWAY."""
    received, unsent, rest = b"", PREFACE + settings((4, window)), iter(frames)
    with connect(port, h2_context("h2")) as connection:
        while True:
            while len(unsent) < 16384 and (one := next(rest, b"")):
                unsent += one
            if unsent and select.select([], [connection], [], 0)[1]:
                with contextlib.suppress(OSError):
                    connection.sendall(unsent[:16384])
                unsent = unsent[16384:]
            if unsent and not connection.pending() and not select.select([connection], [], [], 0)[0]:
                continue
            try:
                data = connection.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                break
            received += data
    codes = [int.from_bytes(payload[4:8]) for kind, _, payload in whole_frames(received) if kind == FrameType.GOAWAY]
    return codes[-1] if codes else -1


def whole_frames(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and payload of each."""
    while len(received) >= (size := 9 + int.from_bytes(received[:3])):
        yield received[3], received[4], received[9:size]
        received = received[size:]


@contextlib.contextmanager
def bounded_memory(server: Running) -> Iterator[None]:
    """At no moment inside has the server more than MOST_KIB more of resident memory (proc(5): VmHWM, clear_refs)."""

    def resident(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(process, "status").read_text())
        assert found
        return int(found[1])

    process = f"/proc/{server.process.pid}"
    Path(process, "clear_refs").write_text("5")
    before = resident("VmRSS")
    yield
    assert resident("VmHWM") - before < MOST_KIB


def test_hostile_clients(root: Path, tmp_path: Path) -> None:
    """Each shape ends within 1,000 frames, takes less than 1 MiB, and is counted; another connection goes on."""
    with limited(tmp_path, root) as server, http2(server.port) as other:
        for shape, (make, _) in SHAPES.items():
            # Where time goes by, some more may come than test_hostile.py allows.
            first, second = (itertools.chain((POST,), map(make, range(2 * MOST_FRAMES))) for _ in range(2))
            label = EXCEEDED.get(shape.partition(":")[0], Exceeded.OVERHEAD_FRAMES).value
            # Requests without a window for their responses stay.
            window = 0 if shape == "requests beyond the limit" else 65535
            # What the process remembers from the first time is not the connection's.
            assert end_of(server.port, first, window) == ErrorCode.ENHANCE_YOUR_CALM, shape
            before = counts(server, "ktlsd_limited_total")[label]
            with bounded_memory(server):
                assert end_of(server.port, second, window) == ErrorCode.ENHANCE_YOUR_CALM, shape
            assert counts(server, "ktlsd_limited_total")[label] == before + 1, shape
            assert other.get("/small.txt").body == b"small"


LIMITS = {
    "http2_header_block_bytes = 300": [headers(1, b"x" * 200, 0), b"\0\0\xc8\x09\4\0\0\0\1" + b"x" * 200],
    "http2_continuations = 1": [headers(1, b"", 0), *[b"\0\0\0\x09\0\0\0\0\1"] * 2],
    "http2_resets_per_second = 1": [
        headers(stream_id, literals(with_fields())) + rst_stream(stream_id) for stream_id in range(1, 51, 2)
    ],
    "http2_overhead_frames_per_second = 1": [ping(b"12345678", ack=False)] * 25,
}


@pytest.mark.parametrize("line", LIMITS)
def test_limit(root: Path, tmp_path: Path, line: str) -> None:
    """Each has a key, a label of the metric, and a line in the log, of which there are not many."""
    with limited(tmp_path, root, line) as server, http2(server.port) as other:
        for _ in range(3):
            assert end_of(server.port, LIMITS[line]) == ErrorCode.ENHANCE_YOUR_CALM
        assert counts(server, "ktlsd_limited_total") == {line.partition(" ")[0]: 3}
        server.wait_for_line(f"127.0.0.1:[0-9]+ cut off: HTTP/2: .*: limit {line}$")
        assert sum(f"limit {line}" in entry for entry in server.log) == 1
        assert other.get("/small.txt").body == b"small"


def test_the_largest_limits(root: Path, tmp_path: Path) -> None:
    """The protocol can say them."""
    keys = ("concurrent_streams", "header_block_bytes", "continuations", "resets_per_second")
    lines = "\n".join(f"http2_{key} = 2147483647" for key in keys)
    with limited(tmp_path, root, lines) as server, http2(server.port) as client:
        assert client.get("/small.txt").body == b"small"
        assert client.http.remote_settings.max_concurrent_streams == 2147483647


def test_concurrent_streams(root: Path, tmp_path: Path) -> None:
    """The client hears of the limit, more are refused, and a reload changes it for new connections."""
    key = "http2_concurrent_streams"
    with limited(tmp_path, root, f"{key} = 2") as server, http2(server.port, window=10) as client:
        client.receive()
        assert client.http.remote_settings.max_concurrent_streams == 2
        large = [client.ask("/large") for _ in range(2)]
        client.http.remote_settings[3] = 100
        client.http.remote_settings.acknowledge()
        refused = client.ask("/small.txt")
        client.wait_for(refused)
        assert client.streams[refused].reset == ErrorCode.REFUSED_STREAM
        assert counts(server, "ktlsd_limited_total") == {key: 1}
        server.wait_for_line(f"stream {refused} reset: limit {key} = 2$")
        write(tmp_path / "ktlsd.toml", root, f"{key} = 3")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("reloaded")
        with http2(server.port) as later:
            later.receive()
            assert later.http.remote_settings.max_concurrent_streams == 3
        client.http.reset_stream(large[0])
        assert client.get("/small.txt").body == b"small"


# --- time


def test_ping_does_not_extend_the_idle_time(root: Path, tmp_path: Path) -> None:
    with limited(tmp_path, root, "idle_seconds = 1") as server, http2(server.port, window=1000) as client:
        # A response goes on for longer than that.
        large = client.ask("/middle")
        time.sleep(1.5)
        client.http.increment_flow_control_window(MIDDLE, large)
        client.flush()
        client.wait_for(large)
        assert client.get("/small.txt").body == b"small"
        client.socket.settimeout(0.1)
        pings = 0
        while not client.closed:
            client.http.ping(b"12345678")
            with contextlib.suppress(TimeoutError, OSError):
                client.flush()
                while client.receive():
                    pass
            pings += 1
            assert pings < 50
        assert client.error == 0
        assert counts(server, "ktlsd_limited_total") == {"idle_seconds": 1}


def test_closed_windows_of_a_busy_connection(root: Path, tmp_path: Path) -> None:
    """A stream whose client takes nothing of it is reset, also while another stream goes on."""
    with limited(tmp_path, root, "send_seconds = 1") as server, http2(server.port, window=1000) as client:
        closed, busy = client.ask("/large"), client.ask("/large")
        client.http.increment_flow_control_window(40 << 20, busy)
        began = time.monotonic()
        while client.streams[closed].reset is None:
            assert client.receive()
            assert not client.streams[busy].ended, "too fast to see it"
            # Not so fast that it ends before.
            time.sleep(0.002)
            assert time.monotonic() - began < WAIT_SECONDS
        assert client.streams[closed].reset == CANCEL
        client.wait_for(busy)
        assert len(client.streams[busy].answer().body) == 32 << 20
        assert counts(server, "ktlsd_limited_total") == {"send_bytes_per_second": 1}
        server.wait_for_line("stream 1 reset: the client's windows .*: limit send_bytes_per_second = 240$")


# --- descriptors


FEW_FILES = ("prlimit", "--nofile=200:200")


def test_more_streams_than_descriptors(root: Path, tmp_path: Path) -> None:
    """Streams wait for a descriptor, and others are served; nothing gets an error."""
    with limited(tmp_path, root, wrapper=FEW_FILES) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(http2(server.port, window=10)) for _ in range(2)]
        for client in clients:
            for _ in range(90):
                client.ask("/middle")
            client.receive()
        assert eventually(lambda: server.open_files() > 80)
        assert server.open_files() < 150
        with http2(server.port) as other:
            assert other.get("/middle").body == (root / "middle").read_bytes()
        for client in clients:
            for stream_id in client.streams:
                client.http.increment_flow_control_window(MIDDLE, stream_id)
            client.flush()
            client.wait_for(*client.streams)
            for stream in client.streams.values():
                assert stream.answer().body == (root / "middle").read_bytes()
        assert counts(server, "ktlsd_limited_total") == {}


def test_streams_do_not_wait_for_descriptors_for_ever(root: Path, tmp_path: Path) -> None:
    with limited(tmp_path, root, "file_seconds = 1", wrapper=FEW_FILES) as server:
        with http2(server.port, window=10) as client:
            *_, last = [client.ask("/middle") for _ in range(120)]
            while not client.streams[last].status:
                client.receive()
            refused = sum(stream.status == 503 for stream in client.streams.values())
            assert 20 < refused < 100
            assert counts(server, "ktlsd_limited_total") == {"open_files": refused}
            server.wait_for_line("stream [0-9]+ waited for a descriptor: limit open_files$")
        with http2(server.port) as other:
            assert other.get("/middle").body == (root / "middle").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_disk_holds_up_its_own_stream_only(tmp_path: Path) -> None:
    """An overlay counts as local: its files are read on the event loop if they are cached, and else in a thread."""
    shown = tmp_path / "shown"
    shown.mkdir()
    cold = {name: os.urandom(200_000) for name in ("one", "two", "three")}
    for name, content in cold.items():
        (shown / name).write_bytes(content)
    with mounted(shown, tmp_path / "mount", tmp_path / "held") as fuse, overlay(tmp_path, fuse.path) as root:
        (root / "warm").write_bytes(b"warm" * 10_000)
        with limited(tmp_path, root) as server, http2(server.port) as client:
            fuse.hold("read")
            asked = {client.ask(f"/{name}"): content for name, content in cold.items()}
            assert client.get("/warm").body == b"warm" * 10_000
            dropped = next(iter(asked))
            client.http.reset_stream(dropped)
            del asked[dropped]
            assert client.get("/warm").body == b"warm" * 10_000
            assert not any(client.streams[one].body for one in asked)
            fuse.hold()
            client.wait_for(*asked)
            for one, content in asked.items():
                assert client.streams[one].answer().body == content


# --- memory


def test_memory_of_slow_clients(root: Path, tmp_path: Path) -> None:
    """A few connections may keep a batch of 256 KiB until their clients take it, and many others 64 KiB each."""
    frames = PREFACE, settings((4, LARGEST)), window_update(0, LARGEST - 65535), LARGE

    def full(server: Running, number: int) -> Callable[[], bool]:
        """Whether the sockets of so many clients hold all that they can."""
        table = "ss", "-Htn", "state", "established", f"( sport = :{server.port} )"

        def holds() -> bool:
            lines = subprocess.run(table, capture_output=True, text=True, check=True).stdout.splitlines()
            return sum(int(line.split()[1]) > 0 for line in lines) == number

        return holds

    with limited(tmp_path, root) as server, contextlib.ExitStack() as stack:
        before = server.resident_kib()
        for _ in range(64):
            raw = stack.enter_context(socket.socket())
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            raw.connect(("127.0.0.1", server.port))
            client = stack.enter_context(h2_context("h2").wrap_socket(raw))
            client.sendall(b"".join(frames))
        assert eventually(full(server, 64))
        with http2(server.port) as other:
            assert other.get("/middle").body == (root / "middle").read_bytes()
        grown = (server.resident_kib() - before) / 64
        assert 30 < grown < 170


def test_memory_of_idle_connections(root: Path, tmp_path: Path) -> None:
    """What many streams at a time needed is given back: an idle connection takes 24 KiB at most."""
    requests = [headers(stream_id, literals(with_fields())) for stream_id in range(1, 200, 2)]
    sent = b"".join((PREFACE, settings(), *requests))

    def idle(port: int) -> socket.socket:
        connection = connect(port, h2_context("h2"))
        connection.sendall(sent)
        received = b""
        while sum(kind < 2 and flags & END_STREAM for kind, flags, _ in whole_frames(received)) < len(requests):
            received += connection.recv(65536)
        return connection

    with limited(tmp_path, root) as server, contextlib.ExitStack() as stack:
        for _ in range(20):
            idle(server.port).close()
        before = server.resident_kib()
        for _ in range(200):
            stack.enter_context(idle(server.port))
        # Memory comes in steps of 1 MiB.
        assert (server.resident_kib() - before - 1024) / 200 < 24


def processor_seconds(server: Running) -> float:
    """What the process has used of a processor (proc(5): utime and stime)."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def assert_sleeps(server: Running) -> None:
    """A process that waits for a client uses no processor meanwhile."""

    def spent() -> float:
        before = processor_seconds(server)
        time.sleep(0.5)
        return processor_seconds(server) - before

    # On a busy host an emulated machine's clock also counts what other processes took.
    assert any(spent() < 0.2 for _ in range(5))


def test_a_part_of_a_record_is_waited_for_as_the_whole_is(tmp_path: Path, root: Path) -> None:
    """OpenSSL has the part (SSL_has_pending(3)), and nothing to give. A slow client's response needs a task."""
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = h2_context("h2").wrap_bio(arriving, leaving, server_hostname="localhost")
    with limited(tmp_path, root) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(WAIT_SECONDS)

        def plain(size: int) -> bytes:
            while True:
                try:
                    if size:
                        return tls.read(size)
                    tls.do_handshake()
                    return b""
                except ssl.SSLWantReadError:
                    connection.sendall(leaving.read())
                data = connection.recv(65536)
                assert data, "the server ended the connection"
                arriving.write(data)

        plain(0)
        tls.write(PREFACE + settings((4, LARGEST)) + window_update(0, LARGEST - 65535) + LARGE)
        connection.sendall(leaving.read())
        time.sleep(0.2)
        tls.write(ping(b"pingping", ack=False))
        record = leaving.read()
        connection.sendall(record[:7])
        received, missing = b"", 32 << 20
        while missing > 0:
            received += plain(1 << 20)
            for kind, _, payload in (frames := list(whole_frames(received))):
                missing -= len(payload) if kind == FrameType.DATA else 0
            received = received[sum(9 + len(payload) for _, _, payload in frames) :]
        assert_sleeps(server)
        connection.sendall(record[7:])
        received = b""
        while not any(kind == FrameType.PING for kind, _, _ in whole_frames(received)):
            received += plain(65536)


def test_a_stream_that_lasts_beyond_the_last_goaway_is_waited_for(tmp_path: Path, root: Path) -> None:
    with limited(tmp_path, root, "requests_per_connection = 2") as server, http2(server.port, window=1000) as client:
        small, large = client.ask("/small.txt"), client.ask("/large")
        client.wait_for(small)
        while len(client.goaways) < 2:
            assert client.receive()
        time.sleep(GOODBYE_SECONDS)
        assert_sleeps(server)
        assert not client.streams[large].ended


def test_no_request_is_answered_on_a_failed_connection(tmp_path: Path, root: Path) -> None:
    """A request whose body does not come is answered in time, but not after DATA on stream 0."""
    frames = PREFACE + settings((4, LARGEST)) + window_update(0, LARGEST - 65535) + LARGE
    body = headers(3, literals((*GET[:3], (b":path", b"/large"))), END_HEADERS)
    with (
        limited(tmp_path, root, "head_seconds = 1") as server,
        connect(server.port, h2_context("h2")) as connection,
    ):
        connection.sendall(frames + body)
        time.sleep(1.2)
        connection.sendall(b"\0\0\x01\0\0\0\0\0\0x")
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1 << 20):
                pass
        server.wait_for_line("cut off: HTTP/2")
        server.stop()
        assert not [line for line in server.log if "defect" in line]


@pytest.mark.parametrize(
    "begun", [headers(1, literals(GET), 0), LARGE[:-1]], ids=["no CONTINUATION", "a part of a frame"]
)
def test_a_head_ends_in_time(tmp_path: Path, root: Path, begun: bytes) -> None:
    with limited(tmp_path, root, "head_seconds = 1") as server:
        assert end_of(server.port, [begun]) == ErrorCode.ENHANCE_YOUR_CALM
        server.wait_for_line("cut off: HTTP/2: a request head that did not end: limit head_seconds = 1$")
        assert counts(server, "ktlsd_limited_total")["head_seconds"] == 1
