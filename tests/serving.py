"""A running ktlsd for tests: the real command in a process of its own, and a plain TLS client that sees every byte."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .preloaded import FRESH, ForkedServer

START_SECONDS = 120.0
"""An emulated machine needs half a minute only for Python's imports."""
WAIT_SECONDS = 60.0
_BACKEND = re.compile(r"backend on (.+)")
_LISTENING = tuple(re.compile(rf"listening on {scheme}://.*:(\d+)") for scheme in ("https", "http"))


@dataclass
class Running:
    """A ktlsd process; `log` grows as it writes to stderr."""

    process: subprocess.Popen[str] | ForkedServer
    state: Path
    log: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    http_ports: list[int] = field(default_factory=list)
    backends: list[str] = field(default_factory=list)
    """Where proxies that end TLS connect: http://ADDR:PORT or unix:PATH."""

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def unix_socket(self) -> str:
        """The path of the first backend on a Unix socket."""
        return next(place for place in self.backends if place.startswith("unix:")).removeprefix("unix:")

    @property
    def certificate(self) -> Path:
        return self.state / "ktlsd/localhost.pem"

    def url(self, path: str = "/") -> str:
        return f"https://127.0.0.1:{self.port}{path}"

    def wait_for_line(self, pattern: str, since: int = 0) -> str:
        """The first line of stderr from index `since` on that matches."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            for line in self.log[since:]:
                if re.search(pattern, line):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line matches {pattern!r} in:\n" + "\n".join(self.log))

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit status."""
        self.process.send_signal(signal_number)
        return self.process.wait(timeout=WAIT_SECONDS)

    def resident_kib(self) -> int:
        """Resident memory that is the process's own (proc(5), RssAnon)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found
        return int(found[1])

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


PROGRAM = (sys.executable, "-m", "ktlsd")


def command(*arguments: str, program: Sequence[str] = PROGRAM) -> list[str]:
    return [*program, *arguments]


def run_to_end(
    *arguments: str, state: Path, program: Sequence[str] = PROGRAM, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a ktlsd that is expected to end without a signal."""
    return subprocess.run(
        command(*arguments, program=program),
        env=os.environ | {"XDG_STATE_HOME": str(state)} | environment,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


@contextlib.contextmanager
def serving(
    root: Path | None,
    *options: str,
    state: Path,
    listen: Sequence[str] = ("127.0.0.1:0",),
    http_listen: Sequence[str] = (),
    backend_listen: Sequence[str] = (),
    wrapper: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
    new_session: bool = False,
    pass_fds: Sequence[int] = (),
    **environment: str,
) -> Iterator[Running]:
    """Start ktlsd, on `root` unless a configuration file names it, wait until it listens, and see that it is gone at
    the end."""
    arguments = [] if root is None else ["--root", str(root)]
    wanted = (("--listen", listen), ("--http-listen", http_listen), ("--backend-listen", backend_listen))
    for option, places in wanted:
        arguments += (part for place in places for part in (option, place))
    arguments += options
    whole = os.environ | {"XDG_STATE_HOME": str(state), "PYTHONUNBUFFERED": "1"} | environment
    process: subprocess.Popen[str] | ForkedServer
    if FRESH or wrapper or program is not PROGRAM or new_session or pass_fds or environment or "--libssl" in options:
        process = subprocess.Popen(
            [*wrapper, *command(*arguments, program=program)],
            env=whole,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=new_session,
            pass_fds=pass_fds,
        )
    else:
        process = ForkedServer(arguments, whole)
    running = Running(process, state)

    def read_log() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            running.log.append(line.rstrip("\n"))

    reader = threading.Thread(target=read_log)
    reader.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while (
            len(running.ports) < len(listen)
            or len(running.http_ports) < len(http_listen)
            or len(running.backends) < len(backend_listen)
        ):
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, "not listening:\n" + "\n".join(running.log)
            time.sleep(0.02)
            running.ports, running.http_ports = (
                [int(match[1]) for line in list(running.log) if (match := pattern.fullmatch(line))]
                for pattern in _LISTENING
            )
            running.backends = [match[1] for line in list(running.log) if (match := _BACKEND.fullmatch(line))]
        yield running
    finally:
        process.terminate()
        try:
            process.wait(timeout=WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def end_successors(server: Running) -> None:
    """End the processes that took a server's place (SIGRTMIN)."""
    for line in list(server.log):
        if found := re.match(r"upgrade: process (\d+) started", line):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(found[1]), signal.SIGTERM)


def client_context(
    *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, ciphers: str | None = None, cafile: Path | None = None
) -> ssl.SSLContext:
    # Not create_default_context: it reads all of the system's authorities, half a second in an emulated machine.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if cafile is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(str(cafile))
    context.maximum_version = newest
    if ciphers:
        context.set_ciphers(ciphers)
    return context


def connect(
    port: int, context: ssl.SSLContext | None = None, session: ssl.SSLSession | None = None, name: str | None = None
) -> ssl.SSLSocket:
    """A TLS connection that asks for the server `name` and reports an end without close_notify as ssl.SSLEOFError."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    context = context or client_context()
    if name is None and context.check_hostname:
        name = "127.0.0.1"
    return context.wrap_socket(raw, suppress_ragged_eofs=False, session=session, server_hostname=name)


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether this comes to hold within half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def children(parent: int) -> set[int]:
    listed = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False).stdout
    return {int(number) for number in listed.split()}


def is_refused(port: int) -> bool:
    """True if no process listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def read_to_end(connection: socket.socket) -> bytes:
    """All bytes up to the end; one without close_notify raises ssl.SSLEOFError."""
    data = bytearray()
    while chunk := connection.recv(65536):
        data += chunk
    return bytes(data)


def exchange(
    port: int,
    request: bytes,
    context: ssl.SSLContext | None = None,
    *,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> bytes:
    """Send bytes over a new TLS connection and give back all that arrives until close_notify."""
    with connect(port, context, session, name) as connection:
        connection.sendall(request)
        return read_to_end(connection)


def connect_plain(place: int | str) -> socket.socket:
    """A connection without TLS to a port of this machine or to a Unix socket's file."""
    if isinstance(place, int):
        return socket.create_connection(("127.0.0.1", place), timeout=WAIT_SECONDS)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(WAIT_SECONDS)
    try:
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return connection


def exchange_plain(place: int | str, request: bytes) -> bytes:
    """Send bytes over a new connection without TLS and give back all that arrives."""
    with connect_plain(place) as connection:
        connection.sendall(request)
        return read_to_end(connection)


def counts(server: Running, metric: str) -> dict[str, int]:
    """A metric's numbers by the one label that it has, without those that are 0."""
    line = server.wait_for_line("^metrics on ")
    data = exchange_plain(int(line.rpartition(":")[2]), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = re.findall(rf'^{metric}{{\w+="(\w+)"}} ([\d.e+]+)$', data.decode(), re.MULTILINE)
    assert found
    return {name: int(float(value)) for name, value in found if float(value)}


@dataclass
class Answer:
    """A parsed response; field names in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes


def parse(data: bytes, *, head_only: bool = False) -> tuple[Answer, bytes]:
    """The first response in `data` and what follows it."""
    head, _, rest = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(fields) == len(lines), f"a field is there twice: {lines}"
    status = int(status_line.split()[1])
    if head_only or status in (204, 304):
        body = b""
    elif fields.get("transfer-encoding") == "chunked":
        body, rest = _unchunk(rest)
    elif "content-length" in fields:
        length = int(fields["content-length"])
        assert len(rest) >= length, f"{len(rest)} of {length} bytes"
        body, rest = rest[:length], rest[length:]
    else:
        assert fields["connection"] == "close"
        body, rest = rest, b""
    return Answer(status, fields, body), rest


def parse_all(data: bytes) -> list[Answer]:
    """All responses in `data`, none of them to HEAD."""
    answers = []
    while data:
        answer, data = parse(data)
        answers.append(answer)
    return answers


def _unchunk(data: bytes) -> tuple[bytes, bytes]:
    """The content of a chunked body, and what follows it."""
    body = bytearray()
    position = 0
    while True:
        start = data.index(b"\r\n", position) + 2
        end = start + int(data[position : start - 2], 16)
        position = end + 2
        assert data[end:position] == b"\r\n", "a chunk does not end where it said"
        if start == end:
            return bytes(body), data[position:]
        body += data[start:end]


def get(
    port: int,
    target: str,
    *fields: str,
    method: str = "GET",
    context: ssl.SSLContext | None = None,
    host: str = "localhost",
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> Answer:
    """One request on a connection of its own, which asks for the server `name` in its handshake."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *fields, "", ""]
    data = exchange(port, "\r\n".join(lines).encode("latin-1"), context, name=name, session=session)
    answer, rest = parse(data, head_only=method == "HEAD")
    assert rest == b""
    return answer
