"""Clients that mean harm, against the running server: it outlives them, serves the others meanwhile, and keeps nothing.

Elsewhere: malformed and oversize requests in test_wire.py and test_framing_wire.py, slow readers in
test_tls_transport.py, sets of ranges in test_content_wire.py, bytes that damage a ClientHello in test_client_hello.py.
Here over whatever path this machine gives; test_ktls_hostile_clients.py has what kTLS could change.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.downloads import REQUEST, Outcome, download, judge, make_files, read_all
from tests.openssl_client import OpenSSLClient
from tests.protocols import HTTP_2, ask_by_both, conversation
from tests.serving import Answer, Running, client_context, connect, eventually, exchange, get, parse, parse_all, serving

MIB = 1024 * 1024
SIZES = {"small.bin": 10_000, "large.bin": 16 * MIB}
FEWER = 10 if "KTLSD_VM" in os.environ else 1
"""An emulated machine has a tenth of the clients."""
HALF_OPEN = 10_000 // FEWER
SPARE_FILES = 500


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "root"
    make_files(folder, SIZES)
    (folder / "a\r\nX-Injected: yes").mkdir()
    (folder / "bare").mkdir()
    (folder / "bare/b\r\nX-Injected: yes\r\n\r\n<img src=x>").write_text("odd")
    return folder


@pytest.fixture(scope="module")
def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in SIZES}


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        with serving(
            root,
            "--listing",
            "--log-level",
            "info",
            state=tmp_path_factory.mktemp("state"),
            http_listen=("127.0.0.1:0",),
        ) as running:
            get(running.port, "/small.bin")
            yield running
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(autouse=True)
def _nothing_is_left(server: Running, contents: dict[str, bytes]) -> Iterator[None]:
    lines, files = len(server.log), server.open_files()
    yield
    assert download(server.port, "small.bin", contents["small.bin"]) is Outcome.WHOLE
    assert eventually(lambda: server.open_files() <= files), (files, server.open_files())
    assert not [line for line in server.log[lines:] if "defect" in line or "Traceback" in line]


def tcp(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN (socket(7), SO_LINGER)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


# --- many, slow, and gone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "count"), [("half a hello", HALF_OPEN), ("a hello", HALF_OPEN // 10)], ids=["half", "whole"]
)
def test_half_open_handshakes_hold_up_nobody(
    server: Running, contents: dict[str, bytes], sent: str, count: int
) -> None:
    hello = client_hello()
    data = hello[: len(hello) // 2] if sent == "half a hello" else hello
    count = min(count, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES)
    before = server.resident_kib()
    with contextlib.ExitStack() as stack:
        for number in range(count):
            connection = stack.enter_context(tcp(server.port))
            connection.sendall(data)
            if number % (count // 10) == 0:
                assert download(server.port, "small.bin", contents["small.bin"]) is Outcome.WHOLE
        grown = server.resident_kib() - before
    print(f"{count} clients that sent {sent}: RssAnon grew by {grown} KiB, {grown * 1024 // count} bytes each")
    most_kib = 100
    assert grown < count * most_kib


@pytest.mark.parametrize("sent", [b"", b"GET /small.bin HTTP/1.1\r\nHost: a\r\nX: ", b"POST / HTTP/1.1\r\nHost: a\r\n"])
def test_slow_requests_hold_up_nobody(server: Running, contents: dict[str, bytes], sent: bytes) -> None:
    """Slowloris: hundreds of requests of which a byte comes now and then, in the head or in the body."""
    head = sent + (b"Content-Length: 1000\r\n\r\n" if sent.startswith(b"POST") else b"")
    context = client_context()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server.port, context)) for _ in range(100 // FEWER)]
        for connection in slow:
            connection.sendall(head or b"G")
        for _ in range(5):
            for connection in slow:
                connection.sendall(b"x")
            assert download(server.port, "small.bin", contents["small.bin"]) is Outcome.WHOLE


def test_readers_that_stop_cost_a_bounded_memory(server: Running, contents: dict[str, bytes]) -> None:
    before = server.resident_kib()
    context = client_context()
    count = 50 // min(FEWER, 4)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(connect(server.port, context))
            connection.sendall(REQUEST % (b"large.bin", b""))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert download(server.port, "small.bin", contents["small.bin"]) is Outcome.WHOLE
        grown = server.resident_kib() - before
    print(f"{count} readers that stopped in 16 MiB: RssAnon grew by {grown} KiB, {grown // count} each")
    # One buffer of 128 KiB, records of it that OpenSSL holds, and the connection itself.
    assert grown < count * 400


def test_a_storm_of_resets(server: Running, contents: dict[str, bytes]) -> None:
    hello, context = client_hello(), client_context()
    for number in range(300 // FEWER):
        stage = number % 5
        if stage < 3:
            connection = tcp(server.port)
            connection.sendall((b"", hello[:100], hello)[stage])
        else:
            connection = connect(server.port, context)
            connection.sendall(REQUEST % (b"large.bin", b"") if stage == 4 else b"GET /sm")
            if number % 2:
                connection.recv(1000) if stage == 4 else None
        reset(connection)
    assert download(server.port, "large.bin", contents["large.bin"]) is Outcome.WHOLE


def test_a_client_hello_cut_at_any_byte(server: Running) -> None:
    hello = client_hello()
    for end in range(0, len(hello), 7 * min(FEWER, 3)):
        connection = tcp(server.port)
        connection.sendall(hello[:end])
        if end % 2:
            reset(connection)
        else:
            connection.shutdown(socket.SHUT_WR)
            # An alert at most.
            data, _ = read_all(connection)
            assert len(data) <= 7
            connection.close()


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x15\x03\x03\x00\x02\x01\x00",
        b"\x15\x03\x03\x00\x13" + bytes(19),
        b"\x17\x03\x03\xff\xff" + bytes(65535),
        b"\x17\x03\x03\x00\x00" * 1000,
        b"\x16\x03\x03\x00\x04\x00\x00\x00\x00" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["fatal alert", "close_notify", "unreadable", "record too long", "empty records", "hello request", "plain"],
)
def test_alien_records_in_a_download_spoil_their_own_connection_alone(
    server: Running, contents: dict[str, bytes], sent: bytes
) -> None:
    """In the clear, in the middle of a download: all of it arrives, or the client sees that it does not."""
    with connect(server.port) as connection:
        connection.sendall(REQUEST % (b"large.bin", b""))
        begun = connection.recv(1000)
        with contextlib.suppress(OSError):
            socket.socket.send(connection, sent)
        data, in_order = read_all(connection)
    assert judge(begun + data, in_order, contents["large.bin"]) in (Outcome.WHOLE, Outcome.BROKEN)


@pytest.mark.parametrize("requested", [False, True])
def test_a_flood_of_key_updates(server: Running, contents: dict[str, bytes], requested: bool) -> None:
    ended = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError), OpenSSLClient(server.port) as client:
            for _ in range(1500 // FEWER):
                client.update_keys(requested=requested)
            client.write(REQUEST % (b"small.bin", b""))
            client.read()
        ended.set()

    thread = threading.Thread(target=flood)
    thread.start()
    answered = 0
    while not ended.is_set() or not answered:
        assert download(server.port, "small.bin", contents["small.bin"]) is Outcome.WHOLE
        answered += 1
    thread.join()
    print(f"{answered} others were served meanwhile")


def test_renegotiation_is_refused(server: Running, contents: dict[str, bytes]) -> None:
    for _ in range(20 // min(FEWER, 4)):
        with OpenSSLClient(server.port, newest=ssl.TLSVersion.TLSv1_2) as client:
            assert not client.renegotiate()


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY", "PROPFIND", "COPY")


@pytest.mark.parametrize(
    "sent",
    [
        *(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode() for method in METHODS),
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("pieces", [0, 3])
def test_plain_http_on_the_tls_port_is_told_so(server: Running, sent: bytes, pieces: int) -> None:
    """Whatever the method, and if the first bytes come one by one."""
    with tcp(server.port) as plain:
        for place in range(pieces):
            plain.sendall(sent[place : place + 1])
            time.sleep(0.02)
        plain.sendall(sent[pieces:])
        data, _ = read_all(plain)
    answer, rest = parse(data)
    assert (answer.status, rest) == (400, b"")
    assert b"HTTPS" in answer.body


@pytest.mark.parametrize(
    "sent", [b"SSH-2.0-x\r\n", b"EHLO a\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x80\x2e\x01\x00\x02", b"GETS\r\n"]
)
def test_other_protocols_on_the_tls_port_are_closed(server: Running, sent: bytes) -> None:
    with tcp(server.port) as plain:
        plain.sendall(sent + bytes(100))
        data, _ = read_all(plain)
    assert len(data) <= 200


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        ("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n".format("a/" * 4000), {404}),
        ("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n".format("%2e/" * 2000), {200, 404, 414}),
        ("GET /small.bin?{} HTTP/1.1\r\nHost: a\r\n\r\n".format("q" * 8000), {200}),
        ("GET /small.bin HTTP/1.1\r\nHost: {}\r\n\r\n".format("a" * 30_000), {200, 400, 431}),
        ("GET /small.bin HTTP/1.1\r\nHost: a\r\n{}\r\n".format("A: b\r\n" * 3000), {200, 431}),
        ("GET /small.bin HTTP/1.1\r\nHost: a\r\n{}: b\r\n\r\n".format("A" * 30_000), {200, 431}),
        ("GET /small.bin HTTP/1.1\r\nHost: a\r\nRange: bytes={}\r\n\r\n".format("0-0," * 7500), {200}),
        ("GET /small.bin HTTP/1.1\r\nHost: a\r\nRange: bytes={}-\r\n\r\n".format("9" * 30_000), {416}),
        ("GET /small.bin HTTP/1.1\r\nHost: a\r\nIf-None-Match: {}\r\n\r\n".format('"x",' * 7500), {200}),
        ("GET /small.bin HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {}\r\n\r\n".format("gzip;q=0.1," * 2500), {200}),
        ("GET /small.bin HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n".format("c" * 60_000), {431}),
        ("{} / HTTP/1.1\r\nHost: a\r\n\r\n".format("G" * 30_000), {400, 501}),
    ],
    ids=lambda value: None if isinstance(value, set) else f"{value[:20]}... of {len(value)}",
)
def test_oversize_requests_get_an_answer(server: Running, head: str, statuses: set[int]) -> None:
    data = exchange(server.port, head.encode() + REQUEST % (b"small.bin", b""))
    first, _ = parse(data)
    print(first.status)
    assert first.status in statuses
    method, target, _ = head.partition("\r\n")[0].split(" ")
    host, *fields = head.split("\r\n")[1:-2]
    with conversation(server.port, HTTP_2) as client:
        answer = client.get(target, *fields, method=method, host=host.removeprefix("Host: "))
        assert answer.status == first.status
        assert client.get("/small.bin", "Range: bytes=0-0").status == 206


def test_a_thousand_pipelined_requests_are_answered_in_turn(server: Running, contents: dict[str, bytes]) -> None:
    count = 1000 // FEWER
    requests = b"GET /small.bin HTTP/1.1\r\nHost: a\r\nRange: bytes=8-15\r\n\r\n" * count
    with connect(server.port) as connection:
        connection.sendall(requests)
        connection.sendall(REQUEST % (b"nothing", b""))
        data, in_order = read_all(connection)
    answers = parse_all(data)
    assert in_order
    assert [answer.status for answer in answers] == [206] * count + [404]
    assert {answer.body for answer in answers[:-1]} == {contents["small.bin"][8:16]}


LINE_ENDS = (
    "%0d%0a",
    "%0a",
    "%0d",
    "%0D%0A%20",
    "%e5%98%8a%e5%98%8d",
    "%c4%8d%c4%8a",
    "%00%0d%0a",
    "%23%0d%0a",
    "%3f%0d%0a",
)


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize(
    "target",
    ["/{}X-Injected:%20yes", "/a{}X-Injected:%20yes", "/bare/?C={}X-Injected:%20yes", "/bare?{}X-Injected:%20yes"],
)
def test_no_line_end_gets_into_a_head(server: Running, target: str, line_end: str) -> None:
    """Neither from a target into Location, nor from a folder's name, on HTTPS and on the way to it."""
    asked = target.format(line_end)
    for answer in (ask_by_both(server.port, asked), _plain(server.http_ports[0], asked)):
        assert "x-injected" not in answer.fields
        assert not any("\r" in value or "\n" in value for value in answer.fields.values())


def _plain(port: int, target: str, host: str = "a") -> Answer:
    with tcp(port) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        data, _ = read_all(connection)
    return parse(data)[0]


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_names_of_files_break_no_listing(server: Running, accept: str) -> None:
    answer = ask_by_both(server.port, "/bare/", f"Accept: {accept}")
    assert answer.status == 200
    assert b"\r\nX-Injected" not in answer.body
    assert b"<img src=x>" not in answer.body or accept == "application/json"


def test_nothing_is_compressed_while_a_client_waits(server: Running, contents: dict[str, bytes]) -> None:
    """Only files that were compressed beforehand are sent so: a request costs no compression, and leaks no length."""
    answer = ask_by_both(server.port, "/large.bin", "Accept-Encoding: gzip, br, zstd")
    assert "content-encoding" not in answer.fields
    assert answer.body == contents["large.bin"]
