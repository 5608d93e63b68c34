"""Bodies that cannot arrive whole, clients that leave, signals, and what is left behind: nothing.

Clients of both protocols are there at the same time.
Signals to several processes: test_worker_signals.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocols import HTTP_1, PROTOCOLS, BrokenError, Conversation, Download, ask_by_both, conversation, secured
from tests.serving import (
    Running,
    children,
    client_context,
    connect,
    eventually,
    get,
    is_refused,
    parse,
    read_to_end,
    serving,
)

LARGE = 16 * 1024 * 1024
"""More than the sockets of both sides hold."""
REQUEST = b"GET /%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "large.bin").write_bytes(os.urandom(1024 * 1024) * (LARGE // 1024 // 1024))
    (folder / "small.txt").write_text("small")
    return folder


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Running]:
    with serving(root, state=tmp_path / "state") as running:
        yield running


def begin_download(port: int, name: bytes = b"large.bin") -> tuple[ssl.SSLSocket, bytes]:
    """A download whose client has read a little and then nothing: the server is stuck in the middle of it."""
    connection = connect(port)
    connection.sendall(REQUEST % name)
    return connection, connection.recv(16384)


@contextlib.contextmanager
def downloading(port: int, *names: str) -> Iterator[list[tuple[Conversation, Download]]]:
    """The same by each protocol, or one by each."""
    with contextlib.ExitStack() as stack:
        begun = []
        for protocol, name in zip(PROTOCOLS, names or ["large.bin"] * len(PROTOCOLS), strict=True):
            client = stack.enter_context(conversation(port, protocol))
            download = client.begin(f"/{name}")
            download.read(1)
            begun.append((client, download))
        yield begun


def test_a_file_that_shrinks_is_never_taken_for_whole(server: Running, root: Path) -> None:
    with downloading(server.port) as downloads:
        os.truncate(root / "large.bin", LARGE // 2)
        for _, download in downloads:
            with pytest.raises(BrokenError):
                download.answer()
        # Of HTTP/2 only the stream ends.
        assert downloads[1][0].get("/small.txt").body == b"small"
    for pattern in ("cut off: the file shrank", "stream 1 reset: the file shrank"):
        server.wait_for_line(pattern)
    assert get(server.port, "/small.txt").body == b"small"


def test_a_file_that_grows_arrives_in_its_promised_length(server: Running, root: Path) -> None:
    before = (root / "large.bin").read_bytes()
    with downloading(server.port) as downloads:
        with open(root / "large.bin", "ab") as file:
            file.write(b"more" * 1000)
        for client, download in downloads:
            assert download.answer().body == before
            assert client.get("/small.txt").body == b"small"


def test_a_file_that_is_replaced_arrives_as_it_was_opened(server: Running, root: Path) -> None:
    before = (root / "large.bin").read_bytes()
    with downloading(server.port) as downloads:
        (root / "new.bin").write_bytes(b"new")
        os.replace(root / "new.bin", root / "large.bin")
        for client, download in downloads:
            assert download.answer().body == before
            assert client.get("/large.bin").body == b"new"


def test_a_file_that_leaves_the_root_arrives_whole(server: Running, root: Path) -> None:
    before = (root / "large.bin").read_bytes()
    os.link(root / "large.bin", root / "other.bin")
    with downloading(server.port, "other.bin", "large.bin") as downloads:
        os.rename(root / "large.bin", root.parent / "outside.bin")
        os.unlink(root / "other.bin")
        for client, download in downloads:
            assert download.answer().body == before
            assert [client.get(f"/{name}").status for name in ("large.bin", "other.bin")] == [404, 404]


def test_a_file_that_is_rewritten_in_place_arrives_as_it_was_read(server: Running, root: Path) -> None:
    """SECURITY.md warns of it: only the bytes differ."""
    (root / "large.bin").write_bytes(b"a" * LARGE)
    with downloading(server.port) as downloads:
        with open(root / "large.bin", "r+b") as file:
            file.write(b"b" * LARGE)
        for _, download in downloads:
            answer = download.answer()
            assert (answer.status, len(answer.body)) == (200, LARGE)
            # Where one processor has both the server and the writer, they may overtake each other more than once.
            assert set(answer.body) == set(b"ab")
            assert answer.body.startswith(b"a" * 16384)


def test_clients_that_leave_cost_nothing(server: Running) -> None:
    get(server.port, "/small.txt")
    before = server.open_files()
    for reset in (False, True) * 5:
        with downloading(server.port) as downloads:
            for client, _ in downloads:
                if reset:
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert get(server.port, "/small.txt").body == b"small"
    # Fewer: `before` may have been read while the server still closed the first connection.
    assert eventually(lambda: server.open_files() <= before), server.open_files()
    assert not [line for line in server.log if "defect" in line or "Traceback" in line]


def test_half_a_handshake_and_noise_are_harmless(server: Running) -> None:
    for noise in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x05hello", b"\0" * 1000, b"GE", os.urandom(500)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            plain.sendall(noise)
    assert get(server.port, "/small.txt").body == b"small"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_downloads_finish_and_exits_0(server: Running, root: Path, number: int) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(conversation(server.port, protocol)) for protocol in PROTOCOLS]
        for client in idle:
            assert client.get("/small.txt").body == b"small"
        downloads = stack.enter_context(downloading(server.port))
        server.process.send_signal(number)
        # An idle connection is closed in order, and at once.
        for client in idle:
            assert client.is_ended()
        assert eventually(lambda: is_refused(server.port))
        assert server.process.poll() is None
        for client, download in downloads:
            assert download.answer().body == (root / "large.bin").read_bytes()
            assert client.is_ended()
    assert server.process.wait(timeout=30) == 0


@pytest.mark.parametrize("seen_before", [True, False])
def test_a_first_request_that_crosses_the_signal_is_answered(server: Running, *, seen_before: bool) -> None:
    if seen_before:
        # A client that sends a cached head would get the response from memory.
        assert get(server.port, "/small.txt").body == b"small"
    with contextlib.ExitStack() as stack:
        fresh, silent = (
            [stack.enter_context(conversation(server.port, protocol)) for protocol in PROTOCOLS] for _ in range(2)
        )
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: is_refused(server.port))
        for protocol, client in zip(PROTOCOLS, fresh, strict=True):
            answer = client.get("/small.txt")
            assert answer.body == b"small"
            assert answer.fields.get("connection") == ("close" if protocol == HTTP_1 else None)
            assert client.is_ended()
        # Who sends none is not waited for, and sees an end in order.
        assert all(client.is_ended() for client in silent)
    assert server.process.wait(timeout=30) == 0


def test_a_handshake_that_crosses_the_signal_is_finished(server: Running) -> None:
    raw = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in PROTOCOLS]
    get(server.port, "/small.txt")
    server.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: is_refused(server.port))
    for protocol, connection in zip(PROTOCOLS, raw, strict=True):
        with secured(connection, protocol) as late:
            answer = late.get("/small.txt")
            assert answer.body == b"small"
            assert answer.fields.get("connection") == ("close" if protocol == HTTP_1 else None)
            assert late.is_ended()
    assert server.process.wait(timeout=30) == 0


def test_a_second_signal_ends_downloads_too(server: Running) -> None:
    with downloading(server.port) as downloads:
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: is_refused(server.port))
        assert server.stop() == 0
        for _, download in downloads:
            with pytest.raises(BrokenError):
                download.answer()


def test_workers_share_the_port_and_tickets_and_are_replaced(root: Path, tmp_path: Path) -> None:
    with serving(root, "--workers", "2", state=tmp_path / "state") as server:
        first = children(server.process.pid)
        assert len(first) == 2
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        session = None
        for attempt in range(20):
            with connect(server.port, context, session) as connection:
                connection.sendall(REQUEST % b"small.txt")
                assert parse(read_to_end(connection))[0].body == b"small"
                assert connection.session_reused == (attempt > 0)
                session = connection.session
        victim = min(first)
        os.kill(victim, signal.SIGKILL)
        server.wait_for_line(rf"worker {victim} ended \(signal 9\)")
        assert eventually(lambda: len(children(server.process.pid) - {victim}) == 2)
        for _ in range(10):
            assert get(server.port, "/small.txt").body == b"small"
        assert server.stop() == 0
        assert children(server.process.pid) == set()


def test_one_client_that_never_pauses_does_not_starve_another(server: Running) -> None:
    request = b"HEAD /small.txt HTTP/1.1\r\nHost: a\r\n\r\n"
    count = 1000
    with connect(server.port) as greedy:
        ended = threading.Event()

        def talk() -> None:
            # One request in each TLS record, as fast as the socket takes them. One thread: OpenSSL's objects are not
            # for two.
            greedy.setblocking(False)
            sent = answers = 0
            tail = b""
            while answers < count:
                with contextlib.suppress(ssl.SSLWantWriteError):
                    while sent < count:
                        greedy.send(request)
                        sent += 1
                with contextlib.suppress(ssl.SSLWantReadError):
                    tail += greedy.recv(65536)
                    answers += tail.count(b"\r\n\r\n")
                    tail = tail[-3:] if not tail.endswith(b"\r\n\r\n") else b""
            ended.set()

        thread = threading.Thread(target=talk)
        thread.start()
        answered = 0
        while not ended.is_set():
            assert get(server.port, "/small.txt").body == b"small"
            answered += 1
        thread.join()
    # Starved, the first of these would have come back only after the last of the greedy client's.
    assert answered > 2


def test_a_body_that_is_all_framing_is_not_read_for_ever(server: Running) -> None:
    chunk = b"1;" + b"e" * 16000 + b"\r\nx\r\n"
    with connect(server.port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 8)
        connection.sendall(b"GET /small.txt HTTP/1.1\r\nHost: a\r\n\r\n")
        answer, rest = parse(read_to_end(connection))
    assert (answer.status, rest) == (405, b"")
    server.wait_for_line(r"closed after the answer to POST /: its body: more than 65536 bytes")


def test_a_file_under_a_lease_is_busy_not_absent(server: Running, root: Path) -> None:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with open(root / "small.txt", "r+b") as holder:
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            assert ask_by_both(server.port, "/small.txt").status == 503
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert ask_by_both(server.port, "/small.txt").status == 200
    finally:
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("connection_field", ["close", "keep-alive"])
def test_a_slow_reader_gets_the_last_byte_and_close_notify(server: Running, root: Path, connection_field: str) -> None:
    """The server closes while most of the response waits in the socket: its tail must not be lost."""
    content = (root / "large.bin").read_bytes()
    for size in (100_000, 1_000_003, 3_333_333):
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(60)
        raw.connect(("127.0.0.1", server.port))
        with client_context().wrap_socket(raw, suppress_ragged_eofs=False) as connection:
            head = f"GET /large.bin HTTP/1.1\r\nHost: a\r\nRange: bytes=0-{size - 1}\r\n"
            connection.sendall(f"{head}Connection: {connection_field}\r\n\r\n".encode())
            time.sleep(1)
            if connection_field == "keep-alive":
                # The connection is closed by the end of the server instead.
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
            data = bytearray()
            while chunk := connection.recv(1000 if len(data) < 50_000 else 65536):
                data += chunk
        assert parse(bytes(data))[0].body == content[:size]
        if connection_field == "keep-alive":
            assert server.process.wait(timeout=30) == 0
            return
