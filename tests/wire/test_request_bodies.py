"""Requests whose bodies come late, wrong or not at all: the answer does not wait, and what follows it is never misread.

The server is asked over TLS and without it; a real nginx gets the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.ports import free_ports
from tests.downloads import read_all
from tests.proxies import TOOL_PATH
from tests.serving import (
    Running,
    connect,
    connect_plain,
    eventually,
    exchange_plain,
    is_refused,
    parse,
    parse_all,
    read_to_end,
    serving,
)

FIRST, LAST = b"first\n", b"last\n"
AT_ONCE = 8.0
"""Seconds: far less than head_seconds (20), for which a body is waited for, and enough for a busy machine."""
GET_LAST = b"GET /last.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
LENGTH, CHUNKED = b"Content-Length: 10\r\n", b"Transfer-Encoding: chunked\r\n"
BODIES = {LENGTH: b"0123456789", CHUNKED: b"a\r\n0123456789\r\n0\r\nX: y\r\n\r\n"}
NGINX = """
{user}worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off; default_type text/plain;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""

Connect = Callable[[], socket.socket]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "first.txt").write_bytes(FIRST)
    (folder / "last.txt").write_bytes(LAST)
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("state")
    options = ("--access-log", str(state / "access.log"), "--access-log-format", "json")
    place = ("127.0.0.1:0",)
    with serving(root, *options, state=state, backend_listen=place, http_listen=place) as running:
        yield running


@pytest.fixture(scope="module")
def nginx(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that serves the same files."""
    program = shutil.which("nginx", path=TOOL_PATH)
    if program is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    [port] = free_ports(1)
    # nginx would give its workers to another user, who may not enter a test's folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX.format(user=user, folder=folder, root=root, port=port))
    with subprocess.Popen([program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]) as process:
        try:
            assert eventually(lambda: not is_refused(port))
            yield port
        finally:
            process.terminate()


@pytest.fixture(params=["TLS", "backend", "nginx"])
def opened(request: pytest.FixtureRequest, server: Running) -> Connect:
    """Makes a connection to what is under test."""
    if request.param == "TLS":
        return lambda: connect(server.port)
    if request.param == "backend":
        return lambda: connect_plain(int(server.backends[0].rpartition(":")[2]))
    port: int = request.getfixturevalue("nginx")
    return lambda: connect_plain(port)


def head(method: bytes, *fields: bytes, version: bytes = b"1.1") -> bytes:
    return b"%b /first.txt HTTP/%b\r\nHost: a\r\n%b\r\n" % (method, version, b"".join(fields))


def answer_to(connection: socket.socket, sent: bytes, within: float = AT_ONCE) -> tuple[int, bool]:
    """The status of the answer to the first request, and whether it says that the connection ends."""
    began = time.monotonic()
    connection.sendall(sent)
    data = bytearray()
    while b"\r\n\r\n" not in data:
        some = connection.recv(65536)
        assert some
        data += some
    size = int(data.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
    while len(data.partition(b"\r\n\r\n")[2]) < size:
        some = connection.recv(65536)
        assert some
        data += some
    assert time.monotonic() - began < within
    answer, rest = parse(bytes(data))
    assert rest == b""
    return answer.status, answer.fields.get("connection") == "close"


@pytest.mark.parametrize("begun", [0, 3], ids=["nothing of it", "a part of it"])
@pytest.mark.parametrize("framing", BODIES, ids=["length", "chunks"])
@pytest.mark.parametrize(("method", "status"), [(b"GET", 200), (b"POST", 405)])
def test_the_answer_does_not_wait_for_the_body_and_the_next_request_follows_it(
    opened: Connect, method: bytes, status: int, framing: bytes, begun: int
) -> None:
    body = BODIES[framing]
    with opened() as connection:
        assert answer_to(connection, head(method, framing) + body[:begun]) == (status, False)
        connection.sendall(body[begun:-1])
        time.sleep(0.05)
        connection.sendall(body[-1:] + b"\r\n" + GET_LAST)
        [last] = parse_all(read_to_end(connection))
        assert (last.status, last.body) == (200, LAST)


def test_a_redirect_does_not_wait_either(server: Running) -> None:
    with connect_plain(server.http_ports[0]) as connection:
        assert answer_to(connection, head(b"GET", LENGTH)) == (301, False)
        assert answer_to(connection, BODIES[LENGTH] + head(b"GET")) == (301, False)


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ((LENGTH, b"Connection: close\r\n"), b"1.1"),
        ((CHUNKED, b"Connection: close\r\n"), b"1.1"),
        ((LENGTH,), b"1.0"),
        ((LENGTH, b"Expect: 100-continue\r\n"), b"1.1"),
        ((CHUNKED, b"Expect: 100-continue\r\n"), b"1.1"),
        ((b"Content-Length: 65537\r\n",), b"1.1"),
        ((b"Content-Length: 99999999999999999999\r\n",), b"1.1"),
    ],
)
def test_where_no_request_can_follow_the_answer_says_so(
    server: Running, fields: tuple[bytes, ...], version: bytes
) -> None:
    with connect(server.port) as connection:
        assert answer_to(connection, head(b"POST", *fields, version=version)) == (405, True)
        connection.sendall(BODIES[LENGTH] + GET_LAST)
        assert connection.recv(1) == b""


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "backend"])
@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        (b"1;x\ry\r\na\r\n0\r\n\r\n", "a bare line end around a chunk"),
        (b"1\r\na\r\n0\r\nX: y\n\r\n", "a bare line end around a chunk"),
        (b"1\r\nabc\r\n0\r\n\r\n", "malformed chunk footer"),
        (b"-1\r\na\r\n0\r\n\r\n", "illegal chunk header"),
        (b"1;" + b"x" * 70_000, "Receive buffer too long"),
        (b"1\r\na\r\n" * 20_000, "more than 65536 bytes"),
        (b"ffff\r\n" + b"x" * 70_000, "malformed chunk footer"),
    ],
    ids=["extension", "trailer", "long chunk", "no size", "no end of a line", "no last chunk", "long chunk, large"],
)
def test_after_a_body_that_goes_wrong_nothing_is_answered(
    server: Running, secure: bool, rest: bytes, problem: str
) -> None:
    """The response was sent before, and says nothing of the body; the connection ends, and the log has the reason."""
    lines = len(server.log)
    backend = int(server.backends[0].rpartition(":")[2])
    with connect(server.port) if secure else connect_plain(backend) as connection:
        assert answer_to(connection, head(b"POST", CHUNKED)) == (405, False)
        with contextlib.suppress(OSError):
            connection.sendall(rest + GET_LAST)
        data, _ = read_all(connection)
        assert data == b""
    server.wait_for_line(rf"closed after the answer to POST /first\.txt: its body: .*{problem}", lines)


def test_a_client_that_sends_much_before_it_reads_gets_its_answer(opened: Connect) -> None:
    """Not a reset, which would destroy the answer on its way (RFC 9112 section 9.6)."""
    with opened() as connection:
        connection.sendall(head(b"POST", b"Content-Length: 300000\r\n"))
        connection.sendall(bytes(300_000))
        # nginx throws this much away and keeps the connection.
        connection.sendall(GET_LAST)
        first, *others = parse_all(read_to_end(connection))
    assert first.status == 405
    assert [other.body for other in others] == ([] if first.fields.get("connection") == "close" else [LAST])


def test_the_access_log_has_the_request_when_it_is_answered(server: Running) -> None:
    file = server.state / "access.log"

    def mine() -> list[dict[str, object]]:
        records = [json.loads(line) for line in file.read_text().splitlines()]
        return [record for record in records if record["user_agent"] == "late"]

    with connect(server.port) as connection:
        answer_to(connection, head(b"POST", LENGTH, b"User-Agent: late\r\n"))
        assert eventually(lambda: len(mine()) == 1)
        connection.sendall(BODIES[LENGTH] + GET_LAST.replace(b"\r\n\r\n", b"\r\nUser-Agent: late\r\n\r\n"))
        read_to_end(connection)
    assert eventually(lambda: len(mine()) == 2)
    first, last = mine()
    assert (first["method"], first["status"], first["complete"]) == ("POST", 405, True)
    assert (last["target"], last["status"], last["complete"]) == ("/last.txt", 200, True)


def test_a_client_that_leaves_in_the_middle_of_a_body_leaves_nothing(server: Running) -> None:
    files = server.open_files()
    leaving: tuple[Callable[[ssl.SSLSocket], object], ...] = (
        lambda one: one.unwrap(),
        lambda one: socket.socket.shutdown(one, socket.SHUT_WR),
        lambda one: one.close(),
    )
    for leave in leaving:
        with connect(server.port) as connection:
            assert answer_to(connection, head(b"POST", LENGTH) + b"012") == (405, False)
            with contextlib.suppress(OSError):
                leave(connection)
    assert eventually(lambda: server.open_files() <= files)


def test_the_end_of_the_server_does_not_wait_for_bodies(root: Path, tmp_path: Path) -> None:
    with serving(root, state=tmp_path, backend_listen=("127.0.0.1:0",)) as server:
        backend = int(server.backends[0].rpartition(":")[2])
        with connect(server.port) as late, connect_plain(backend) as later:
            for connection in (late, later):
                assert answer_to(connection, head(b"POST", LENGTH)) == (405, False)
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < AT_ONCE
            # In order: with close_notify.
            assert (late.recv(1), later.recv(1)) == (b"", b"")


def test_plain_get_with_an_empty_line_after_a_body(opened: Connect) -> None:
    """As old browsers sent it after a POST (RFC 9112 section 2.2)."""
    with opened() as connection:
        connection.sendall(
            b"\r\n" + head(b"POST", LENGTH) + BODIES[LENGTH] + b"\r\n" + head(b"GET") + b"\r\n" * 3 + GET_LAST
        )
        answers = parse_all(read_to_end(connection))
    assert [answer.status for answer in answers] == [405, 200, 200]
    assert [answer.body for answer in answers[1:]] == [FIRST, LAST]


def test_empty_lines_alone_get_no_answer(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.http_ports[0])) as connection:
        connection.sendall(b"\r\n\r")
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""
    with connect(server.port) as secure:
        secure.sendall(b"\r\n")
        secure.settimeout(0.3)
        with pytest.raises((TimeoutError, ssl.SSLWantReadError)):
            secure.recv(1)
    assert exchange_plain(server.http_ports[0], b"\r\n" * 3 + GET_LAST).startswith(b"HTTP/1.1 301 ")
