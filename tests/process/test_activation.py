"""Sockets from systemd: what is taken, what is refused, and who is served on them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ktlsd.process.activation import take
from tests.serving import START_SECONDS, client_context, command, exchange_plain, get, parse, read_to_end, serving

# What systemd does before it executes a service: descriptors from 3 on, and this very process's number.
AS_SYSTEMD = """
import fcntl, os, sys
names, given, *command = sys.argv[1:]
copies = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in given.split(",")]
for number, copy in enumerate(copies):
    os.dup2(copy, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(copies)), "LISTEN_FDNAMES": names}
os.execv(command[0], command)
"""


def as_systemd(names: str, *sockets: socket.socket) -> list[str]:
    return [sys.executable, "-c", AS_SYSTEMD, names, ",".join(str(sock.fileno()) for sock in sockets)]


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "small.txt").write_text("small")
    return folder


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        ({}, {}),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "https", "PATH": "/bin"}, {"PATH": "/bin"}),
        ({"LISTEN_FDS": "1"}, {}),
        ({"LISTEN_PID": str(os.getpid())}, {}),
        ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}, {}),
        ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"}, {}),
        ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "one"}, {}),
    ],
)
def test_nothing_is_passed(environment: dict[str, str], left: dict[str, str]) -> None:
    assert take(environment) == []
    assert environment == left


def test_names_tell_what_is_spoken_and_options_for_it_do_not_count(root: Path, tmp_path: Path) -> None:
    """Two names that ktlsd knows, one that it does not, and an address that another socket has."""
    with ExitStack() as stack:
        plain, secure, other, taken = (stack.enter_context(listening()) for _ in range(4))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = stack.enter_context(
            serving(
                root,
                state=tmp_path,
                listen=(address, address),
                http_listen=(address,),
                wrapper=as_systemd("http:https:unknown", plain, secure, other),
                pass_fds=[sock.fileno() for sock in (plain, secure, other)],
            )
        )
        ports = [sock.getsockname()[1] for sock in (secure, other)]
        assert server.ports == ports
        assert server.http_ports == [plain.getsockname()[1]]
        for port in ports:
            assert get(port, "/small.txt").body == b"small"
        answer, _ = parse(
            exchange_plain(server.http_ports[0], b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        )
        assert answer.fields["location"] == f"https://a:{ports[0]}/x"


def test_a_kind_of_which_nothing_is_passed_is_bound(root: Path, tmp_path: Path) -> None:
    with listening() as secure:
        wrapper = as_systemd("", secure)
        with serving(
            root, state=tmp_path, http_listen=("127.0.0.1:0",), wrapper=wrapper, pass_fds=[secure.fileno()]
        ) as server:
            assert server.ports == [secure.getsockname()[1]]
            answer, _ = parse(
                exchange_plain(server.http_ports[0], b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            )
            assert answer.status == 301


def test_a_unix_socket_is_passed_for_a_proxy(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with listening() as secure, socket.socket(socket.AF_UNIX) as backend:
        backend.bind(str(path))
        backend.listen()
        wrapper = as_systemd("https:backend", secure, backend)
        unbound = f"unix:{tmp_path}/not-bound.sock"
        descriptors = [secure.fileno(), backend.fileno()]
        with serving(root, state=tmp_path, backend_listen=(unbound,), wrapper=wrapper, pass_fds=descriptors) as server:
            assert server.backends == [f"unix:{path}"]
            request = b"GET /small.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            assert parse(exchange_plain(str(path), request))[0].body == b"small"
        # It is systemd's, and so is its file.
        assert path.exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_clients_wait_in_the_queue_from_one_service_to_the_next(root: Path, tmp_path: Path, workers: str) -> None:
    with listening() as passed, socket.socket() as waiting:
        waiting.settimeout(60)

        def start() -> ExitStack:
            stack = ExitStack()
            stack.enter_context(
                serving(
                    root,
                    "--workers",
                    workers,
                    state=tmp_path,
                    wrapper=as_systemd("https", passed),
                    pass_fds=[passed.fileno()],
                )
            )
            return stack

        with start():
            assert get(passed.getsockname()[1], "/small.txt").body == b"small"
        waiting.connect(passed.getsockname())
        with start(), connect_over(waiting) as connection:
            connection.sendall(b"GET /small.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert parse(read_to_end(connection))[0].body == b"small"


def connect_over(raw: socket.socket) -> socket.socket:
    return client_context().wrap_socket(raw, suppress_ragged_eofs=False)


@pytest.fixture(params=["a pipe", "a datagram socket", "a connected socket"])
def unfit(request: pytest.FixtureRequest) -> Iterator[int]:
    with ExitStack() as stack:
        if request.param == "a pipe":
            reader, writer = os.pipe()
            stack.callback(os.close, writer)
            stack.callback(os.close, reader)
            yield reader
            return
        if request.param == "a datagram socket":
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        else:
            server = stack.enter_context(listening())
            sock = socket.create_connection(server.getsockname())
        yield stack.enter_context(sock).fileno()


def test_what_cannot_be_served_on_is_refused_in_a_line(unfit: int, root: Path) -> None:
    wrapper = [sys.executable, "-c", AS_SYSTEMD, "https", str(unfit)]
    done = subprocess.run(
        [*wrapper, *command("--root", str(root))],
        pass_fds=[unfit],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("ktlsd: descriptor 3 (https) from systemd is no ")
    assert "ListenStream=" in line
