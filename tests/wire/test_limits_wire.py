"""Every limit of a running server: its effect, its log line, and that no other client is harmed.

Here over whatever path this machine gives; test_ktls_limits_wire.py has it over kTLS.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ktlsd.config.limits import BURST_SECONDS
from tests.http2_client import Http2Client
from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS, conversation
from tests.serving import (
    START_SECONDS,
    WAIT_SECONDS,
    Running,
    client_context,
    command,
    connect,
    connect_plain,
    counts,
    eventually,
    exchange,
    exchange_plain,
    get,
    parse,
    parse_all,
    read_to_end,
    serving,
)

SMALL = b"GET /small.txt HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /small.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
LARGE = 32 * 1024 * 1024
"""More than the sockets of both sides hold."""
PEOPLE = ('exempt_clients = ["127.9.0.0/16"]',)
"""Clients of 127.0.0.1 are limited, and those of 127.9.0.1 are others."""
OTHERS = "127.9.0.1"
ALPN = {HTTP_1: "http/1.1", HTTP_2: "h2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("limits")
    (base / "root").mkdir()
    (base / "root/small.txt").write_text("small")
    with open(base / "root/large.bin", "wb") as file:
        file.truncate(LARGE)
    return base


@contextlib.contextmanager
def limited(
    folder: Path, *lines: str, top: Sequence[str] = (), wrapper: Sequence[str] = (), http: bool = False
) -> Iterator[Running]:
    """A server with a [limits] table of these lines."""
    config = folder / "ktlsd.toml"
    config.write_text("\n".join((*top, "[limits]", *lines, "")))
    place = ("127.0.0.1:0",)
    with serving(
        folder / "root",
        *("--config", str(config), "--metrics-listen", "127.0.0.1:0"),
        state=folder / "state",
        backend_listen=place if http else (),
        http_listen=place if http else (),
        wrapper=wrapper,
    ) as running:
        yield running


def reached(server: Running) -> dict[str, int]:
    """How often each limit was."""
    return counts(server, "ktlsd_limited_total")


def told(server: Running, pattern: str) -> list[str]:
    return [line for line in server.log if re.search(pattern, line)]


def alive(server: Running) -> bool:
    """Whether another client is served."""
    return exchange_from(OTHERS, server.port, LAST).endswith(b"small")


def exchange_from(source: str, port: int, request: bytes) -> bytes:
    with connect_from(source, port) as connection:
        connection.sendall(request)
        return read_to_end(connection)


def connect_from(source: str, port: int) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), WAIT_SECONDS, (source, 0))
    return client_context().wrap_socket(raw, suppress_ragged_eofs=False)


def is_turned_away(port: int) -> bool:
    """Whether a TLS client is: it finds an end in order, not a reset, before any byte of the server."""
    with begin_handshake(port) as plain:
        return plain.recv(1) == b""


def begin_handshake(port: int) -> socket.socket:
    """A connection with a ClientHello on it."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    leaving = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client_context().wrap_bio(ssl.MemoryBIO(), leaving).do_handshake()
    plain.sendall(leaving.read())
    return plain


# --- how long


def test_a_handshake_that_takes_too_long(folder: Path) -> None:
    with limited(folder, "handshake_seconds = 2") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_SECONDS) as silent:
            assert alive(server)
            assert silent.recv(1) == b""
        server.wait_for_line("handshake failed: not complete within 2 s")
        assert reached(server) == {"handshake_seconds": 1}


def test_a_head_that_trickles_in_gets_408(folder: Path) -> None:
    with limited(folder, "head_seconds = 1") as server, connect(server.port) as slow:
        slow.settimeout(0.1)
        data = b""
        for byte in SMALL * 10:
            with contextlib.suppress(OSError):
                slow.sendall(bytes((byte,)))
            with contextlib.suppress(TimeoutError):
                data = slow.recv(65536)
                break
        answer, _ = parse(data)
        assert (answer.status, answer.fields["connection"]) == (408, "close")
        assert alive(server)
        server.wait_for_line("408 a request: no whole request head within 1 s")
        assert reached(server) == {"head_seconds": 1}


@pytest.mark.parametrize("fresh", [True, False])
def test_idle_connections_end_in_order(folder: Path, protocol: str, fresh: bool) -> None:
    with limited(folder, "idle_seconds = 0.5") as server, conversation(server.port, protocol) as idle:
        if not fresh:
            assert idle.get("/small.txt").body == b"small"
        assert idle.is_ended()
        assert reached(server) == {"idle_seconds": 1}
        assert alive(server)


@pytest.mark.parametrize("half", [False, True])
def test_empty_lines_are_no_request(folder: Path, half: bool) -> None:
    """They do not keep a connection, get no 408, and do not count (RFC 9112 section 2.2)."""
    limits = ("idle_seconds = 2", "head_seconds = 0.5", "requests_per_connection = 2")
    with limited(folder, *limits, http=True) as server, contextlib.ExitStack() as stack:
        connections: list[socket.socket] = [
            stack.enter_context(connect(server.port)),
            stack.enter_context(connect(server.port)),
        ]
        connections += [stack.enter_context(connect_plain(server.http_ports[0]))]
        connections[1].sendall(b"\r\n" + SMALL + b"\r\n")
        assert parse(connections[1].recv(65536))[0].body == b"small"
        began, ended = time.monotonic(), 0
        while ended < len(connections) and time.monotonic() - began < WAIT_SECONDS:
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(b"\r" if half else b"\r\n")
            time.sleep(0.05)
            if half:
                for connection in connections:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"\n")
            ready, _, _ = select.select(connections, [], [], 0)
            ended = len(ready)
        assert time.monotonic() - began > 1
        for connection in connections:
            data = b""
            with contextlib.suppress(OSError):
                data = connection.recv(1)
            assert data == b""
        assert eventually(lambda: reached(server) == {"idle_seconds": 3})


def test_empty_lines_in_records_that_are_never_whole_keep_no_connection(folder: Path) -> None:
    """Each write ends in the middle of a TLS record, so that OpenSSL always holds a part of one."""
    arrived, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(arrived, leaving)
    with (
        limited(folder, "idle_seconds = 2") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_SECONDS) as plain,
    ):
        done = False
        while not done:
            try:
                client.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                plain.sendall(leaving.read())
                arrived.write(plain.recv(65536))
        rest = leaving.read()
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while not told(server, "defect") and time.monotonic() - began < WAIT_SECONDS:
                client.write(b"\r\n")
                sending = rest + leaving.read()
                plain.sendall(sending[:-1])
                rest = sending[-1:]
                time.sleep(0.05)
        assert 1 < time.monotonic() - began < WAIT_SECONDS
        assert eventually(lambda: reached(server) == {"idle_seconds": 1})
        assert alive(server)


def test_a_body_that_does_not_come_ends_the_connection_after_the_answer(folder: Path) -> None:
    with limited(folder, "head_seconds = 1") as server, connect(server.port) as slow:
        slow.sendall(b"POST /small.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        answer, rest = parse(read_to_end(slow))
        assert (answer.status, answer.fields.get("connection"), rest) == (405, None, b"")
        server.wait_for_line("closed after the answer to POST /small.txt: its body: not all there within 1 s")
        assert reached(server) == {"head_seconds": 1}
        assert alive(server)


def begin_download(port: int, protocol: str, *, buffer: int = 4096) -> ssl.SSLSocket:
    """With windows of HTTP/2 that are never closed."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    raw.settimeout(WAIT_SECONDS)
    raw.connect(("127.0.0.1", port))
    context = client_context()
    context.set_alpn_protocols([ALPN[protocol]])
    connection = context.wrap_socket(raw, suppress_ragged_eofs=False)
    if protocol == HTTP_2:
        Http2Client(connection, window=2 * LARGE).ask("/large.bin")
    else:
        connection.sendall(b"GET /large.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    return connection


def test_a_reader_that_takes_too_little_is_cut_off_and_a_slow_one_is_not(folder: Path) -> None:
    with limited(folder, "send_seconds = 2", "send_bytes_per_second = 20_000") as server:
        hurry = threading.Event()
        received = dict.fromkeys(PROTOCOLS, 0)

        def trickle(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while not hurry.wait(0.02) and connection.recv(20):
                    pass

        def read_slowly(connection: socket.socket, protocol: str) -> None:
            while received[protocol] < LARGE:
                received[protocol] += len(connection.recv(16384))
                if not hurry.is_set():
                    time.sleep(0.02)

        with contextlib.ExitStack() as stack:
            too_slow, slow = (
                {one: stack.enter_context(begin_download(server.port, one, buffer=buffer)) for one in PROTOCOLS}
                for buffer in (4096, 65536)
            )
            threads = [threading.Thread(target=trickle, args=(connection,)) for connection in too_slow.values()]
            threads += [
                threading.Thread(target=read_slowly, args=(connection, protocol))
                for protocol, connection in slow.items()
            ]
            for thread in threads:
                thread.start()
            cut = "cut off: the client took less than 20000 bytes a second for 2 s"
            assert eventually(lambda: len(told(server, cut)) == 2)
            assert alive(server)
            # The others are observed for some more periods.
            time.sleep(4)
            assert max(received.values()) < LARGE // 2
            hurry.set()
            for thread in threads:
                thread.join()
            # A client that was cut off does not take a part for the whole.
            for connection in too_slow.values():
                with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                    read_to_end(connection)
        assert reached(server) == {"send_bytes_per_second": 2}


def test_a_reader_that_is_dead_is_cut_off_over_plain_http_too(folder: Path) -> None:
    path = folder / "http.sock"
    top = (f'backend_listen = ["127.0.0.1:0", "unix:{path}"]',)
    with limited(folder, "send_seconds = 0.5", top=top) as server:
        server.wait_for_line(r"^backend on .*http\.sock")
        places = [place.rpartition(":")[2] for line in told(server, "^backend on ") for place in line.split()[-1:]]
        for place in (int(places[0]), str(path)):
            lines = len(server.log)
            with connect_plain(place) as connection:
                connection.sendall(b"GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n")
                server.wait_for_line("cut off: the client took less than 240 bytes a second for 0.5 s", since=lines)
        assert reached(server) == {"send_bytes_per_second": 2}


# --- how much


@pytest.mark.parametrize("known", [True, False])
def test_the_last_request_of_a_connection_says_so(folder: Path, known: bool) -> None:
    with limited(folder, "requests_per_connection = 3") as server:
        if known:
            exchange(server.port, SMALL + LAST)
        data = exchange(server.port, SMALL * 5)
        assert [answer.fields.get("connection") for answer in parse_all(data)] == [None, None, "close"]
        with connect(server.port) as one_by_one:
            for number in range(3):
                one_by_one.sendall(SMALL)
                answer, _ = parse(one_by_one.recv(65536))
                assert (answer.body, answer.fields.get("connection")) == (b"small", "close" if number == 2 else None)
            assert one_by_one.recv(1) == b""
        assert reached(server) == {"requests_per_connection": 2}


def test_no_number_of_requests_is_the_last_without_a_limit(folder: Path) -> None:
    with limited(folder, "requests_per_connection = 0") as server:
        data = exchange(server.port, SMALL * 50 + LAST)
        assert [answer.fields.get("connection") for answer in parse_all(data)] == [None] * 50 + ["close"]


HEAD = "GET /small.txt HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("request_text", "status", "limit"),
    [
        (HEAD + f"X: {'y' * 550}\r\n\r\n", 200, None),
        (HEAD + f"X: {'y' * 600}\r\n\r\n", 431, "head_bytes"),
        (HEAD + "X: " + "y" * 700, 431, "head_bytes"),
        (f"GET /{'a' * 700}", 414, "head_bytes"),
    ],
    ids=lambda value: str(value)[:8],
)
def test_sizes_of_a_head(small_heads: Running, request_text: str, status: int, limit: str | None) -> None:
    with is_limited(small_heads, limit, status), connect(small_heads.port) as connection:
        connection.sendall(request_text.encode())
        assert parse(connection.recv(65536))[0].status == status


@contextlib.contextmanager
def is_limited(server: Running, limit: str | None, status: int) -> Iterator[None]:
    """This limit is reached once, and logged with the status and its value."""
    before, lines = reached(server), len(server.log)
    yield
    if limit is None:
        assert reached(server) == before
    else:
        assert reached(server) == before | {limit: before.get(limit, 0) + 1}
        server.wait_for_line(f" {status} .*, more than {limit} = [0-9]+$", since=lines)


@pytest.mark.parametrize(
    ("target", "fields", "status", "limit"),
    [
        ("/small.txt", ("X: y",) * 9, 200, None),
        ("/small.txt", ("X: y",) * 10, 431, "header_fields"),
        # In HTTP/2 the name of each field, its value and 32 bytes count, and the pseudo-header fields.
        ("/small.txt", (f"X: {'y' * 350}",), 200, None),
        ("/small.txt", (f"X: {'y' * 600}",), 431, "head_bytes"),
        (f"/small.txt?{'a' * 89}", (), 200, None),
        (f"/small.txt?{'a' * 90}", (), 414, "target_bytes"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_parts_of_a_head(
    small_heads: Running, protocol: str, target: str, fields: tuple[str, ...], status: int, limit: str | None
) -> None:
    with is_limited(small_heads, limit, status), conversation(small_heads.port, protocol) as client:
        assert client.get(target, *fields, host="a").status == status


@pytest.fixture(scope="module")
def small_heads(folder: Path) -> Iterator[Running]:
    with limited(folder, "head_bytes = 600", "header_fields = 10", "target_bytes = 100") as running:
        yield running


def test_key_updates_are_counted(folder: Path) -> None:
    with limited(folder, "key_updates_per_connection = 2", top=('ktls = "off"',)) as server:
        arguments = ["-connect", f"127.0.0.1:{server.port}", "-tls1_3", "-quiet", "-no_ign_eof"]
        with subprocess.Popen(
            ["openssl", "s_client", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:
            assert client.stdin is not None
            for number in range(1, 4):
                assert not told(server, "TLS records without data")
                lines = len(server.log)
                if number == 1:
                    server.wait_for_line("TLSv1.3")
                client.stdin.write(b"k\n")
                client.stdin.flush()
                # s_client looks for a command at the start of each read: two writes must not become one.
                time.sleep(0.5)
            server.wait_for_line("cut off: more than 2 TLS records without data", since=lines)
            assert client.wait(WAIT_SECONDS) is not None
        assert reached(server) == {"key_updates_per_connection": 1}
        assert alive(server)


def test_a_record_that_comes_in_pieces_is_none_without_data(folder: Path) -> None:
    with limited(folder, "key_updates_per_connection = 1") as server:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        arrived, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(arrived, leaving)
        with raw:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    raw.sendall(leaving.read())
                    arrived.write(raw.recv(65536))
            raw.sendall(leaving.read())
            # Only the head of a record, all of it byte by byte, and what may be any part.
            for size in (5, 5, 1, 7):
                tls.write(SMALL)
                record = leaving.read()
                for start in range(0, len(record), size):
                    raw.sendall(record[start : start + size])
                    time.sleep(0.005)
                data = b""
                while not data.endswith(b"small"):
                    try:
                        data += tls.read(65536)
                    except ssl.SSLWantReadError:
                        arrived.write(raw.recv(65536))
                assert parse(data)[0].body == b"small"
        assert reached(server) == {}


# --- how many


def test_more_connections_than_there_may_be(folder: Path) -> None:
    with limited(folder, "connections = 3", *PEOPLE, http=True) as server:
        backend = int(server.backends[0].rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(connect(server.port)) for _ in range(3)]
            assert all(is_turned_away(server.port) for _ in range(3))
            for port in (backend, server.http_ports[0]):
                answer, rest = parse(exchange_plain(port, SMALL))
                assert (answer.status, rest) == (503, b"")
                assert int(answer.fields["retry-after"]) > 0
                assert answer.fields["connection"] == "close"
            # Those who are there are served as ever.
            for connection in held:
                connection.sendall(LAST)
                assert parse(read_to_end(connection))[0].body == b"small"
        assert eventually(lambda: parse(exchange_plain(backend, LAST))[0].status == 200)
        assert get(server.port, "/small.txt").status == 200
        assert reached(server)["connections"] >= 5
        # One line for all of them.
        lines = told(server, "limit connections")
        assert len(lines) == 1
        assert re.search(r"127\.0\.0\.1:\d+ refused: limit connections = 3$", lines[0])


@pytest.mark.parametrize("silent", [False, True])
def test_the_longest_idle_makes_room_before_all_is_taken(folder: Path, *, silent: bool) -> None:
    with limited(folder, "connections = 16") as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(server.port))
        join = (lambda port: socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)) if silent else connect
        idle = [stack.enter_context(join(server.port)) for _ in range(14)]
        assert eventually(lambda: counts(server, "ktlsd_open_connections") == {"https": 15})
        first.sendall(SMALL)
        assert parse(first.recv(65536))[0].body == b"small"
        for _ in range(5):
            assert get(server.port, "/small.txt").body == b"small"
            # The server may hear of its client's end, and end who made room, only after the next one has come.
            assert eventually(lambda: counts(server, "ktlsd_open_connections")["https"] < 16)
        found = reached(server)
        assert 1 <= found["crowded"] <= 5
        assert found.keys() == {"crowded"}
        # Of those that came at once, chance says who is waited for first. One that said nothing may get an alert.
        ended = select.select(idle, [], [], WAIT_SECONDS)[0] if silent else idle
        assert ended[0].recv(1) in (b"", b"\x15")
        # Who was idle for a shorter time is served.
        first.sendall(LAST)
        assert parse(read_to_end(first))[0].body == b"small"


def test_one_client_cannot_take_all_connections(folder: Path) -> None:
    with limited(folder, "client_connections = 2", *PEOPLE, http=True) as server:
        backend = int(server.backends[0].rpartition(":")[2])
        with connect(server.port) as one, connect_plain(backend) as two:
            two.sendall(SMALL)
            assert parse(two.recv(65536))[0].status == 200
            assert is_turned_away(server.port)
            assert parse(exchange_plain(backend, SMALL))[0].status == 503
            others = [connect_from(OTHERS, server.port) for _ in range(5)]
            for connection in others:
                with connection:
                    connection.sendall(LAST)
                    assert parse(read_to_end(connection))[0].body == b"small"
            one.sendall(LAST)
            assert parse(read_to_end(one))[0].body == b"small"
            two.sendall(LAST)
            assert parse(read_to_end(two))[0].body == b"small"
        assert eventually(lambda: is_served(server.port))
        assert reached(server)["client_connections"] >= 2
        refusal = r"127\.0\.0\.1:\d+ refused: limit client_connections = 2"
        # The log comes from a thread, and to this process by another.
        assert eventually(lambda: told(server, refusal) != [])
        assert len(told(server, refusal)) == 1


def is_served(port: int) -> bool:
    with contextlib.suppress(OSError):
        return get(port, "/small.txt").body == b"small"
    return False


def test_handshakes_of_one_client_are_limited(folder: Path) -> None:
    most = BURST_SECONDS
    # At once: an emulated machine takes as long for one handshake as the limit wants between two.
    with (
        limited(folder, "client_handshakes_per_second = 1", *PEOPLE) as server,
        ThreadPoolExecutor(4 * most) as clients,
    ):
        served = sum(clients.map(is_served, [server.port] * 4 * most))
        refused = 4 * most - served
        assert refused
        assert served >= most
        assert all(alive(server) for _ in range(most + 5))
        assert reached(server) == {"client_handshakes_per_second": refused}
        # A kept connection needs no other handshake.
        with eventual_connection(server.port) as kept:
            for _ in range(20):
                kept.sendall(SMALL)
                assert parse(kept.recv(65536))[0].body == b"small"


def eventual_connection(port: int) -> ssl.SSLSocket:
    while True:
        with contextlib.suppress(OSError):
            return connect(port)
        time.sleep(0.3)


def test_clients_of_a_proxy_count_for_themselves(folder: Path) -> None:
    top = ('proxy_protocol = ["127.0.0.1"]',)
    with limited(folder, "client_connections = 1", "exempt_clients = []", top=top, http=True) as server:
        backend = int(server.backends[0].rpartition(":")[2])

        with contextlib.ExitStack() as stack:

            def status(header: str) -> int:
                connection = stack.enter_context(connect_plain(backend))
                connection.sendall(f"{header}\r\n".encode() + SMALL)
                return parse(connection.recv(65536))[0].status

            clients = ("198.51.100.1", "198.51.100.2", "198.51.100.1")
            assert [status(f"PROXY TCP4 {client} 192.0.2.9 1000 80") for client in clients] == [200, 200, 503]
            # A proxy that speaks for itself is not one client.
            assert [status("PROXY UNKNOWN") for _ in range(4)] == [200] * 4
        assert reached(server) == {"client_connections": 1}


@pytest.mark.parametrize(("trusted", "statuses"), [("", [200, 503, 503]), ('"127.0.0.0/8"', [200, 200, 200])])
def test_trusted_proxies_are_not_one_client(folder: Path, trusted: str, statuses: list[int]) -> None:
    top = (f"trusted_proxies = [{trusted}]",)
    with limited(folder, "client_connections = 1", "exempt_clients = []", top=top, http=True) as server:
        backend = int(server.backends[0].rpartition(":")[2])
        found = []
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                connection = stack.enter_context(connect_plain(backend))
                connection.sendall(SMALL)
                found.append(parse(connection.recv(65536))[0].status)
        assert found == statuses


# --- reload


def test_other_limits_come_with_a_reload(folder: Path) -> None:
    with limited(folder, *PEOPLE) as server, contextlib.ExitStack() as stack:
        old = [stack.enter_context(conversation(server.port, protocol)) for protocol in PROTOCOLS]
        (folder / "ktlsd.toml").write_text("[limits]\nrequests_per_connection = 1\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        assert get(server.port, "/small.txt").fields["connection"] == "close"
        for protocol in PROTOCOLS:
            with conversation(server.port, protocol) as another:
                answer = another.get("/small.txt")
                assert answer.fields.get("connection") == ("close" if protocol == HTTP_1 else None)
                assert another.is_ended()
        # Who was there keeps its own.
        for client in old:
            for _ in range(4):
                assert client.get("/small.txt").body == b"small"


# --- what the system has


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_out_of_descriptors_accepting_pauses_and_recovers(folder: Path) -> None:
    wrapper = ("prlimit", "--nofile=200:200")
    with limited(folder, wrapper=wrapper) as server:
        server.wait_for_line(
            r"connection limit lowered from 16384 to 36: .*\(RLIMIT_NOFILE\) is 200; raise it to 32896 "
        )
        assert get(server.port, "/small.txt").body == b"small"
        # Fewer than it was started with, so that connections run into them before their own limit does.
        left = server.open_files() + 8
        subprocess.run(["prlimit", f"--pid={server.process.pid}", f"--nofile={left}:{left}"], check=True)
        with contextlib.ExitStack() as stack:
            # Nothing can be ended to make room for others while these are in the middle of their handshakes.
            held = [stack.enter_context(begin_handshake(server.port)) for _ in range(20)]
            server.wait_for_line(r"accepting pauses: .*Too many open files: limit open_files")
            before, began = cpu_seconds(server.process.pid), time.monotonic()
            time.sleep(2)
            busy = (cpu_seconds(server.process.pid) - before) / (time.monotonic() - began)
            print(f"{busy:.1%} of a core while accepting pauses")
            assert busy < 0.5
            assert len(told(server, "accepting pauses")) == 1
            for connection in held:
                connection.close()
        assert get(server.port, "/small.txt").body == b"small"
        assert reached(server)["open_files"] > 1


def test_out_of_descriptors_idle_connections_make_room(folder: Path) -> None:
    with limited(folder) as server:
        left = server.open_files() + 8
        subprocess.run(["prlimit", f"--pid={server.process.pid}", f"--nofile={left}:{left}"], check=True)
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                connection = stack.enter_context(connect(server.port))
                connection.sendall(SMALL)
                assert connection.recv(65536).startswith(b"HTTP/1.1 ")
            found = reached(server)
            assert found["crowded"] >= 8
            assert found["open_files"] >= 8


def test_the_soft_limit_is_raised_to_the_hard_one(folder: Path) -> None:
    with limited(folder, wrapper=("prlimit", "--nofile=100:300")) as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        assert re.search(r"^Max open files +300 +300 ", limits, re.MULTILINE)
        server.wait_for_line(
            r"connection limit lowered from 16384 to 86: .*\(RLIMIT_NOFILE\) is 300; raise it to 32896 "
        )


@pytest.mark.parametrize(("files", "most", "level"), [(64, 1, "error"), (327, 99, "error"), (328, 100, "warning")])
def test_too_few_open_files_are_told_once_with_the_remedy(folder: Path, files: int, most: int, level: str) -> None:
    log = folder / "error.log"
    log.unlink(missing_ok=True)
    top = (f"error_log = '{log}'", "log_level = 'warning'", "workers = 2")
    with limited(folder, top=top, wrapper=("prlimit", f"--nofile={files}:{files}")) as server:
        assert get(server.port, "/small.txt").body == b"small"
        lowered = [line for line in log.read_text().splitlines() if "connection limit" in line]
    assert [line.split(" ", 1)[1] for line in lowered] == [
        f"{level} connection limit lowered from 16384 to {most}: the limit of open files (RLIMIT_NOFILE) is {files};"
        " raise it to 32896 (systemd: LimitNOFILE=, Docker: --ulimit nofile=, shell: ulimit -n),"
        " or lower connections in [limits]"
    ]


def test_what_is_told_of_open_files_is_enough(folder: Path) -> None:
    with limited(folder, "connections = 300", wrapper=("prlimit", "--nofile=728:728")) as server:
        assert not told(server, "connection limit")
        (folder / "ktlsd.toml").write_text("[limits]\nconnections = 301\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("connection limit lowered from 301 to 300: .* is 728; raise it to 730 ")
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: len(told(server, "configuration reloaded")) == 2)
        assert len(told(server, "connection limit")) == 1


@pytest.mark.parametrize("files", [6, 14, 31])
def test_a_start_without_open_files_is_refused_in_one_line(folder: Path, files: int) -> None:
    run = ["prlimit", f"--nofile={files}:{files}", *command("--root", str(folder / "root"), "--listen", "127.0.0.1:0")]
    environment = os.environ | {"XDG_STATE_HOME": str(folder / "state")}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"ktlsd: the limit of open files (RLIMIT_NOFILE) is {files}, and ktlsd needs 32 to start and two for each"
        " connection: raise it (systemd: LimitNOFILE=, Docker: --ulimit nofile=, shell: ulimit -n)\n",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a network of its own")
@pytest.mark.parametrize(("most", "told_so"), [(1023, True), (1024, False)])
def test_a_backlog_that_the_kernel_lowers_is_told(folder: Path, most: int, told_so: bool) -> None:
    inside = f'ip link set lo up && echo {most} > /proc/sys/net/core/somaxconn && exec "$@"'
    with limited(folder, wrapper=("unshare", "--net", "sh", "-c", inside, "sh")) as server:
        lowered = told(server, "listen backlog lowered from 1024 to 1023: net.core.somaxconn is 1023")
        assert len(lowered) == told_so
