"""The logs of a running server: a line for each request in any case and of both protocols, none lost by a rotation, and
no request waits for a log that takes nothing."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from ktlsd.config.options import Settings
from ktlsd.config.values import Listen, LogPlace, Mode, Network
from ktlsd.connection.tls_transport import USER_SPACE_CHUNK
from ktlsd.logs.exchange_log import LONGEST_RECEIVED
from ktlsd.logs.logs import AccessLogFile
from ktlsd.process.listeners import bind_all
from ktlsd.server import Server
from ktlsd.service import Service
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.logs.test_access_log import read_combined
from tests.process.test_reload import is_blocked
from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS, ask, conversation
from tests.serving import (
    Running,
    children,
    client_context,
    command,
    connect,
    eventually,
    exchange,
    exchange_plain,
    get,
    parse,
    parse_all,
    run_to_end,
    serving,
)
from tests.wire.test_metrics_wire import metrics_port, numbers, value

LARGE = 16 * 1024 * 1024
"""More than the sockets of both sides hold."""
CLOSE = "Host: a.example\r\nConnection: close\r\n\r\n"

Record = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "small.txt").write_text("small")
    (folder / "folder").mkdir()
    (folder / "large.bin").touch()
    os.truncate(folder / "large.bin", LARGE)
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Writes JSON to state/access.log."""
    state = tmp_path_factory.mktemp("state")
    config = state / "ktlsd.toml"
    config.write_text("tls_policy = 'compatible'\n")
    options = ("--access-log", str(state / "access.log"), "--access-log-format", "json", "--listing")
    with serving(root, "--config", str(config), *options, state=state, http_listen=["127.0.0.1:0"]) as running:
        yield running


def records(file: Path) -> list[Record]:
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


class Log:
    """What a server adds to its access log from now on."""

    def __init__(self, server: Running) -> None:
        self.file = server.state / "access.log"
        self._seen = len(records(self.file))

    def wait(self, count: int) -> list[Record]:
        """So many new lines, and no more."""
        assert eventually(lambda: len(records(self.file)) >= self._seen + count), records(self.file)[self._seen :]
        found = records(self.file)[self._seen :]
        assert len(found) == count
        return found


@pytest.fixture
def log(server: Running) -> Log:
    return Log(server)


@pytest.mark.parametrize(
    ("method", "target", "fields", "status", "sent"),
    [
        ("GET", "/small.txt", (), 200, 5),
        ("GET", "/small.txt?a=%00", ("Range: bytes=1-3",), 206, 3),
        ("GET", "/large.bin", (), 200, LARGE),
        ("GET", "/small.txt", ("If-None-Match: *",), 304, 0),
        ("HEAD", "/small.txt", (), 200, 0),
        ("OPTIONS", "*", (), 204, 0),
        ("GET", "/folder", (), 301, None),
        ("GET", "/nothing", (), 404, None),
        ("GET", "/../x", (), 400, None),
        ("POST", "/small.txt", ("Content-Length: 0",), 405, None),
        ("GET", "/small.txt", ("Range: bytes=9-",), 416, None),
        ("GET", "/small.txt", tuple(f"X-{number}: a" for number in range(101)), 431, None),
        ("GET", "/" + "a" * 9000, (), 414, None),
    ],
)
def test_every_request_has_a_line(
    server: Running,
    log: Log,
    protocol: str,
    method: str,
    target: str,
    fields: tuple[str, ...],
    status: int,
    sent: int | None,
) -> None:
    more = ("Referer: https://b.example/", "User-Agent: t\xe9st")
    answer = ask(server.port, target, *more, *fields, protocol=protocol, method=method, host="a.example")
    assert answer.status == status
    (record,) = log.wait(1)
    asked = {"method": method, "target": target, "protocol": protocol, "host": "a.example", "received": None}
    assert record.items() >= asked.items()
    assert record.items() >= {"referer": "https://b.example/", "user_agent": "t\xe9st", "status": status}.items()
    assert (record["bytes"], record["complete"]) == (len(answer.body) if sent is None else sent, True)
    assert record["duration_ms"] > 0


@pytest.mark.parametrize(
    ("version", "status", "sent"), [("HTTP/1.0", 200, 5), ("HTTP/2.0", 505, len("505 HTTP Version Not Supported\n"))]
)
def test_requests_of_other_versions_have_a_line(
    server: Running, log: Log, version: str, status: int, sent: int
) -> None:
    assert parse(exchange(server.port, f"GET /small.txt {version}\r\n{CLOSE}".encode()))[0].status == status
    (record,) = log.wait(1)
    assert record.items() >= {"protocol": version, "status": status, "bytes": sent, "complete": True}.items()


def test_a_head_beyond_the_limit_has_a_line(server: Running, log: Log, protocol: str) -> None:
    fields = [f"X-{number}: {'a' * 1000}" for number in range(60)]
    answer = ask(server.port, "/small.txt", *fields, protocol=protocol)
    assert answer.status == 431
    (record,) = log.wait(1)
    assert (record["status"], record["bytes"], record["complete"]) == (431, len(answer.body), True)


@pytest.mark.parametrize(
    ("head", "status", "received"),
    [
        (b'BAD\x01 "\r\nx\r\n\r\n', 400, 'BAD\x01 "'),
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "GET / HTTP/1.1"),
        (b"GET /" + b"a" * 40_000, 414, "GET /" + "a" * (LONGEST_RECEIVED - 5)),
    ],
)
def test_what_is_no_request_has_a_line(server: Running, log: Log, head: bytes, status: int, received: str) -> None:
    assert parse(exchange(server.port, head))[0].status == status
    (record,) = log.wait(1)
    assert (record["status"], record["received"], record["method"]) == (status, received, None)
    assert record["complete"]


def test_a_request_whose_body_goes_wrong_is_logged_with_its_head(server: Running, log: Log) -> None:
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    assert parse(exchange(server.port, head))[0].status == 400
    (record,) = log.wait(1)
    assert (record["status"], record["method"], record["target"], record["received"]) == (400, "POST", "/x", None)


def test_a_request_whose_body_does_not_come_has_a_line(server: Running, log: Log) -> None:
    with connect(server.port) as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        time.sleep(0.2)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    (record,) = log.wait(1)
    assert (record["target"], record["status"], record["complete"]) == ("/x", 405, True)


def test_a_request_begins_with_its_first_byte(root: Path, tmp_path: Path) -> None:
    """Also one that gets a remembered response."""
    time.sleep(max(0.0, 2.1 - (time.time() - (root / "small.txt").stat().st_ctime)))
    log = tmp_path / "access.log"
    options = ("--access-log", str(log), "--access-log-format", "json", "--metrics-listen", "127.0.0.1:0")
    with serving(root, *options, state=tmp_path) as running, connect(running.port) as connection:
        metrics = metrics_port(running)
        head = b"GET /small.txt HTTP/1.1\r\nHost: a\r\n\r\n"
        halves_begun = []
        for _ in range(3):
            connection.sendall(head[:20])
            assert eventually(lambda: value(numbers(metrics), "ktlsd_requests_in_flight") == 1)
            halves_begun.append(time.time())
            connection.sendall(head[20:])
            assert connection.recv(65536).endswith(b"small")
        assert eventually(lambda: len(records(log)) == 3)
        began = [datetime.datetime.fromisoformat(record["time"]).timestamp() for record in records(log)]
    assert all(first <= half for first, half in zip(began, halves_begun, strict=True))


def test_a_client_that_asks_nothing_has_no_line(server: Running, protocol: str, log: Log) -> None:
    connect(server.port).close()
    ask(server.port, "/small.txt", protocol=protocol)
    log.wait(1)


def test_the_connection_is_told(server: Running, log: Log) -> None:
    # HTTP/2 refuses these ciphers, which no kernel takes (RFC 9113 appendix A).
    context = client_context(newest=ssl.TLSVersion.TLSv1_2, ciphers="ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256")
    with conversation(server.port, HTTP_1, context=context, name="b.example") as client:
        connection = client.socket
        assert isinstance(connection, ssl.SSLSocket)
        address, session = connection.getsockname(), connection.session
        client.get("/small.txt", host="b.example")
        cipher = connection.cipher()
    ask(server.port, "/small.txt", protocol=HTTP_1, context=context, session=session)
    first, second = log.wait(2)
    assert cipher is not None
    assert [first["client"], first["port"]] == list(address)
    assert (first["tls"], first["cipher"], first["server_name"]) == ("TLSv1.2", cipher[0], "b.example")
    assert (first["resumed"], second["resumed"]) == (False, True)
    assert (first["ktls_tx"], first["ktls_rx"]) == ("none", "none")
    # The first connection of its kind.
    assert first["ktls_tx_reason"] in server.wait_for_line(f"^{address[0]}:{address[1]} ")
    assert first["request_id"] != second["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", first["request_id"])


def test_plain_http_has_lines_without_tls(server: Running, log: Log) -> None:
    answer, _ = parse(exchange_plain(server.http_ports[0], f"GET /x HTTP/1.1\r\n{CLOSE}".encode()))
    (record,) = log.wait(1)
    assert (record["status"], record["bytes"]) == (301, len(answer.body))
    assert {record[name] for name in ("tls", "cipher", "resumed", "ktls_tx", "ktls_tx_reason")} == {None}


def test_pipelined_requests_have_a_line_each_in_their_order(server: Running, log: Log) -> None:
    targets = [f"/{name}" for name in ("small.txt", "nothing", "small.txt?2", "nothing?4", "small.txt")]
    requests = "".join(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n" for target in targets)
    answers = parse_all(exchange(server.port, f"{requests}GET /end HTTP/1.1\r\n{CLOSE}".encode()))
    found = log.wait(6)
    assert [record["target"] for record in found] == [*targets, "/end"]
    assert [record["status"] for record in found] == [answer.status for answer in answers]
    assert len({record["request_id"] for record in found}) == 6


def test_streams_side_by_side_have_a_line_each(server: Running, log: Log) -> None:
    targets = [f"/{name}" for name in ("small.txt", "nothing", "small.txt?2", "large.bin", "small.txt", "folder/")]
    with conversation(server.port, HTTP_2) as client:
        downloads = [client.begin(target) for target in targets]
        answers = [download.answer() for download in downloads]
    found = log.wait(len(targets))
    told = sorted((record["target"], record["status"], record["bytes"]) for record in found)
    expected = zip(targets, answers, strict=True)
    assert told == sorted((target, answer.status, len(answer.body)) for target, answer in expected)
    assert {record["complete"] for record in found} == {True}
    assert len({record["request_id"] for record in found}) == len(targets)


def test_a_download_that_is_broken_off_has_its_bytes_so_far(server: Running, log: Log, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        client.begin("/large.bin").read(4 * USER_SPACE_CHUNK)
    (record,) = log.wait(1)
    assert (record["status"], record["complete"]) == (200, False)
    assert 4 * USER_SPACE_CHUNK <= record["bytes"] < LARGE


def test_a_chunked_response_counts_what_was_sent(server: Running, log: Log) -> None:
    received = exchange(server.port, f"GET / HTTP/1.1\r\n{CLOSE}".encode())
    assert b"Transfer-Encoding: chunked" in received
    over_http2 = ask(server.port, "/", protocol=HTTP_2)
    first, second = log.wait(2)
    assert first["bytes"] == len(received.partition(b"\r\n\r\n")[2])
    assert second["bytes"] == len(over_http2.body)


def from_memory(
    tmp_path: Path, patch: pytest.MonkeyPatch, protocol: str, fields: Sequence[Sequence[str]], **keys: object
) -> tuple[int, list[Record]]:
    """How many requests for one file, each with some of these, were answered from memory, and what was logged: on this
    process's own event loop, so that its memory can be looked into."""
    root = tmp_path / "root"
    root.mkdir()
    file = root / "a.txt"
    file.write_bytes(b"a" * 5000)
    os.utime(file, (0, 0))
    patch.setenv("XDG_STATE_HOME", str(tmp_path))
    library = Library()
    place = LogPlace(tmp_path / "access.log")
    settings = msgspec.structs.replace(Settings(root=root, access_log=place, access_log_format="json"), **keys)
    service = Service(library, settings, support(library, Mode.OFF))
    access_log = AccessLogFile(settings)
    listeners = bind_all([Listen("127.0.0.1", 0)])
    port = listeners[0].socket.getsockname()[1]

    def ask() -> None:
        # Until the file's ctime, which cannot be set, is no longer of now.
        time.sleep(max(0.0, 2.1 - (time.time() - file.stat().st_ctime)))
        with conversation(port, protocol) as client:
            for lines in fields:
                assert client.get("/a.txt", *lines, host="a").status in (200, 206, 304)

    async def serve() -> int:
        async with access_log.opened(), trio.open_nursery() as nursery:
            server = Server(service, access_log.current())
            nursery.start_soon(server.serve, listeners, lambda: None)
            await trio.to_thread.run_sync(ask)
            server.drain()
        return service.response_cache.uses

    uses = trio.run(serve)
    access_log.close()
    service.close()
    return uses, records(tmp_path / "access.log")


def test_answers_from_memory_are_logged_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    fields = [lines for lines in ((), ("Range: bytes=1-9",), ("If-None-Match: *",)) for _ in range(2)]
    uses, found = from_memory(tmp_path, monkeypatch, protocol, fields)
    assert uses == 3
    expected = [(200, 5000)] * 2 + [(206, 9)] * 2 + [(304, 0)] * 2
    assert [(record["status"], record["bytes"]) for record in found] == expected
    of_one = {"time", "request_id", "duration_ms"}
    for fresh, again in zip(found[::2], found[1::2], strict=True):
        assert fresh["request_id"] != again["request_id"]
        assert {name: fresh[name] for name in fresh.keys() - of_one} == {
            name: again[name] for name in again.keys() - of_one
        }


def test_what_differs_from_a_remembered_request_is_logged_as_it_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """All that has no say in the response, but stands in the log."""
    fields = [
        ("User-Agent: one",),
        ("User-Agent: two", "Referer: https://a/", "X-Request-ID: 17"),
        ("X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https"),
        (),
    ]
    uses, found = from_memory(tmp_path, monkeypatch, protocol, fields, trusted_proxies=(Network("127.0.0.0/8"),))
    assert uses == 3
    assert [(record["status"], record["bytes"]) for record in found] == [(200, 5000)] * 4
    assert [record["user_agent"] for record in found] == ["one", "two", None, None]
    assert [record["referer"] for record in found] == [None, "https://a/", None, None]
    assert [record["client"] for record in found] == ["127.0.0.1", "127.0.0.1", "192.0.2.7", "127.0.0.1"]
    assert [record["request_id"] == "17" for record in found] == [False, True, False, False]
    assert {(record["method"], record["target"], record["protocol"], record["host"]) for record in found} == {
        ("GET", "/a.txt", protocol, "a")
    }


# --- files


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rotation_loses_no_line(root: Path, tmp_path: Path, workers: int) -> None:
    access, errors = tmp_path / "access.log", tmp_path / "error.log"
    # At debug there is a line for each connection.
    logs = ("--access-log", str(access), "--error-log", str(errors), "--log-level", "debug")
    options = (*logs, "--workers", str(workers))
    clients, rotations = 4, 5
    asked: list[str] = []
    over = threading.Event()
    with serving(root, *options, state=tmp_path / "state") as server:

        def ask(client: int) -> None:
            connection, protocol = 0, PROTOCOLS[client % 2]
            while not over.is_set():
                targets = [f"/small.txt?{client}-{connection}-{number}" for number in range(20)]
                with conversation(server.port, protocol) as one:
                    for target in targets:
                        assert one.get(target).body == b"small"
                asked.extend(f"GET {target} {protocol}" for target in targets)
                connection += 1

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
        for thread in threads:
            thread.start()
        for rotation in range(rotations):
            for file in (access, errors):
                file.rename(f"{file}.{rotation}")
            server.process.send_signal(signal.SIGUSR1)
            assert eventually(lambda: access.exists() and access.stat().st_size > 0 and errors.exists())
            assert eventually(lambda: errors.read_text().count(f"log {access}: reopened") >= workers)
        over.set()
        for thread in threads:
            thread.join()
        assert server.stop() == 0
        # Whatever serving has to say went to the file.
        assert server.log[-1].startswith("listening on")
    logged = []
    for file in tmp_path.glob("access.log*"):
        for line in file.read_text(encoding="ascii").splitlines(keepends=True):
            logged.append(read_combined(line)["request"])
    assert sorted(logged) == sorted(asked)
    said = "".join(file.read_text() for file in tmp_path.glob("error.log*")).splitlines()
    dated = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|notice|warning|error) \S.*")
    assert all(dated.fullmatch(line) for line in said)
    assert 20 * sum(" ktls tx=" in line for line in said) == len(asked)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_rotation_may_come_before_the_start_is_done(root: Path, tmp_path: Path, workers: str) -> None:
    path = tmp_path / "access.log"
    options = ("--root", str(root), "--listen", "127.0.0.1:0", "--access-log", str(path), "--workers", workers)
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    with subprocess.Popen(command(*options), stderr=subprocess.PIPE, text=True, env=environment) as process:
        # Ignored or handled would not do: it is to wait.
        while not is_blocked(process.pid, signal.SIGUSR1):
            assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        assert process.stderr
        assert any(line == f"log {path}: reopened\n" for line in process.stderr)
        assert any(line.startswith("listening on ") for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_the_last_lines_are_written_at_the_end(root: Path, tmp_path: Path, protocol: str) -> None:
    access = tmp_path / "access.log"
    options = ("--access-log", str(access), "--access-log-format", "json")
    with (
        serving(root, *options, state=tmp_path / "state") as server,
        conversation(server.port, protocol) as client,
    ):
        client.begin("/large.bin").read(1)
        get(server.port, "/small.txt")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.stop() == 0
    assert [(record["target"], record["complete"]) for record in records(access)] == [
        ("/small.txt", True),
        ("/large.bin", False),
    ]
    assert access.stat().st_mode & 0o777 == 0o640


def test_a_name_that_cannot_be_opened_again_leaves_the_old_file(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    options = ("--access-log", str(folder / "access.log"), "--access-log-format", "json")
    with serving(root, *options, state=tmp_path / "state") as server:
        moved = folder.rename(tmp_path / "moved") / "access.log"
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for_line(
            r"access\.log: cannot be reopened \(No such file or directory\), the old file is still in use"
        )
        get(server.port, "/small.txt")
        assert eventually(lambda: len(records(moved)) == 1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_both_logs_go_to_stdout_as_json(root: Path, tmp_path: Path, workers: str) -> None:
    """As a container's runtime wants them, by variables alone."""
    out = tmp_path / "out"
    redirect = ("sh", "-c", f'exec "$@" >"{out}"', "sh")
    with serving(
        None,
        state=tmp_path / "state",
        wrapper=redirect,
        KTLSD_ACCESS_LOG="-",
        KTLSD_ACCESS_LOG_FORMAT="json",
        KTLSD_ERROR_LOG="stdout",
        KTLSD_ERROR_LOG_FORMAT="json",
        KTLSD_WORKERS=workers,
        KTLSD_ROOT=str(root),
    ) as running:
        assert exchange(running.port, b"GET /%0a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(
            b"HTTP/1.1 404"
        )
        running.process.send_signal(signal.SIGUSR1)
        assert running.stop() == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    (access,) = (line for line in lines if "status" in line)
    assert (access["target"], access["status"]) == ("/%0a", 404)
    messages = [line for line in lines if "level" in line]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in messages)
    assert {line["level"] for line in messages} >= {"info", "notice"}
    assert any("/%0a" in line["message"] for line in messages)
    assert not [line for line in running.log if "/%0a" in line]


@pytest.mark.parametrize("option", ["--access-log", "--error-log"])
def test_a_file_that_cannot_be_opened_is_refused(root: Path, tmp_path: Path, option: str) -> None:
    file = tmp_path / "none" / "a.log"
    ended = run_to_end("--root", str(root), option, str(file), state=tmp_path)
    assert ended.returncode == 2
    assert re.fullmatch(rf"ktlsd: {option} {file}: cannot be opened \(No such file or directory\): .*\n", ended.stderr)


def test_a_full_disk_disturbs_nobody(root: Path, tmp_path: Path) -> None:
    with serving(root, "--access-log", "/dev/full", state=tmp_path / "state") as server:
        for _ in range(3):
            assert get(server.port, "/small.txt").body == b"small"
            time.sleep(0.2)
        server.wait_for_line(
            r"^access log /dev/full: cannot be written \(No space left on device\), lines are dropped$"
        )
        assert server.stop() == 0
        assert sum("/dev/full" in line for line in server.log) == 1


def test_lines_come_again_when_there_is_room_again(root: Path, tmp_path: Path) -> None:
    """The limit is one on the size of files: what exceeds it is cut in the middle of a line, as on a full disk."""
    access = tmp_path / "access.log"
    options = ("--access-log", str(access), "--access-log-format", "json")
    limit = ("prlimit", "--fsize=10000", "--")
    with serving(root, *options, state=tmp_path / "state", wrapper=limit) as server:
        asked = 0
        while access.stat().st_size < 10000:
            get(server.port, f"/small.txt?{asked}")
            asked += 1
            assert asked < 1000
        server.wait_for_line(r"access\.log: cannot be written \(File too large\)")
        *before, torn = access.read_text().splitlines()
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            json.loads(torn)
        os.truncate(access, 0)
        get(server.port, "/small.txt?again")
        line = server.wait_for_line(r"access\.log: written again")
        assert eventually(lambda: "?again" in access.read_text())
        empty, *after = access.read_text().splitlines()
        assert (empty, json.loads(after[-1])["target"]) == ("", "/small.txt?again")
        lost = re.search(r", (\d+) lines were lost$", line)
        assert lost
        # The torn line counts as lost.
        assert len(before) + int(lost[1]) + len(after) == asked + 1


# --- stderr


def stderr_of(kind: str) -> tuple[int, int]:
    """What a shell gives a process, or journald: the end to read from, and the one to write to."""
    if kind == "pipe":
        return os.pipe()
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_nobody_waits_for_a_stderr_that_takes_nothing(root: Path, tmp_path: Path, kind: str) -> None:
    reading, writing = stderr_of(kind)
    reader = os.fdopen(reading, encoding="utf-8")
    options = ("--root", str(root), "--listen", "127.0.0.1:0", "--access-log", "stderr", "--access-log-format", "json")
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command(*options), stderr=writing, env=environment)
    os.close(writing)
    try:
        while not (found := re.fullmatch(r"listening on https://127.0.0.1:(\d+)\n", reader.readline())):
            pass
        port, count = int(found[1]), 400
        # There is no reader; each of these lines has more than 2 KiB.
        with connect(port) as connection:
            for number in range(count):
                connection.sendall(f"GET /nothing/{number}/{'x' * 1000} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                assert parse(connection.recv(65536))[0].status == 404
        lines: list[str] = []
        thread = threading.Thread(target=lambda: lines.extend(reader))
        thread.start()
        assert eventually(lambda: any("/nothing/0/" in line for line in lines))

        def heard() -> bool:
            assert get(port, "/nothing/again").status == 404
            return any("/nothing/again" in line for line in lines if line[0] == "{")

        assert eventually(heard)
        process.terminate()
        assert process.wait(30) == 0
        thread.join()
    finally:
        process.kill()
        process.wait()
        reader.close()
    accesses = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(accesses) > 1
    lost = [int(found[1]) for line in lines if (found := re.match(r"(\d+) messages of this log were lost", line))]
    assert sum(lost) > 100
    # None of the others is a part of one.
    message = re.compile(
        r"(127\.0\.0\.1:\d+ (TLSv1\.3 \S+ ktls tx=.*|404 GET /nothing/.*: no such file)|access log stderr: .*"
        r"|shutting down on SIGTERM: .*|shut down)\n"
    )
    others = [line for line in lines if not line.startswith("{") and "messages of this log" not in line]
    assert all(message.fullmatch(line) for line in others)


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_connection_of_each_kind_is_told(root: Path, tmp_path: Path, workers: int) -> None:
    older = client_context(newest=ssl.TLSVersion.TLSv1_2)
    with serving(root, "--workers", str(workers), state=tmp_path / "state") as server:

        def told() -> list[str]:
            # A line about a request comes after those about its connection.
            since = len(server.log)
            assert get(server.port, "/nothing").status == 404
            server.wait_for_line("404 GET /nothing", since)
            return [line.split()[1] for line in server.log if " ktls tx=" in line]

        assert told() == ["TLSv1.3"]
        for _ in range(10):
            exchange(server.port, f"GET /small.txt HTTP/1.1\r\n{CLOSE}".encode(), older)
            assert told() == ["TLSv1.3", "TLSv1.2"]
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        for worker in children(server.process.pid):
            os.kill(worker, signal.SIGKILL)
            server.wait_for_line(f"worker {worker} ended")
        for _ in range(5):
            exchange(server.port, f"GET /small.txt HTTP/1.1\r\n{CLOSE}".encode(), older)
            assert told() == ["TLSv1.3", "TLSv1.2"]


def test_debug_tells_each_connection(root: Path, tmp_path: Path) -> None:
    with serving(root, "--log-level", "debug", state=tmp_path / "state") as server:
        for _ in range(3):
            assert get(server.port, "/small.txt").body == b"small"
        assert eventually(lambda: sum(" ktls tx=" in line for line in server.log) == 3)


# --- what an operator asks for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_and_the_end_are_told_at_warning(root: Path, tmp_path: Path, workers: str) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"root = '{root}'\nlog_level = 'warning'\nerror_log = 'error.log'\ndrain_seconds = 9\n")
    arguments = ("--config", str(config), "--workers", workers)
    with serving(None, *arguments, state=tmp_path / "state") as server:
        log = tmp_path / "error.log"
        assert eventually(lambda: get(server.port, "/").status in (200, 403))
        before = log.read_text()
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "notice configuration reloaded\n" in log.read_text())
        server.process.send_signal(signal.SIGUSR1)
        # Each process opens the file again: the only one, or the parent and two workers.
        processes = 1 if workers == "1" else 3
        assert eventually(lambda: log.read_text().count(f"notice log {log}: reopened\n") == processes)
        assert server.stop() == 0
    told = [line.partition("Z ")[2] for line in log.read_text().removeprefix(before).splitlines()]
    open_ones = "0 connections" if workers == "1" else "2 workers"
    assert told[0] == "notice configuration reloaded"
    assert set(told[1:-2]) == {f"notice log {log}: reopened"}
    assert told[-2:] == [f"notice shutting down on SIGTERM: {open_ones}, 9 s to finish", "notice shut down"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_is_told_and_error_hides_both(root: Path, tmp_path: Path, workers: str) -> None:
    for level, told in (("warning", True), ("error", False)):
        arguments = ("--workers", workers, "--log-level", level)
        with serving(root, *arguments, state=tmp_path / "state") as server, connect(server.port) as client:
            # A request that has begun is waited for.
            client.sendall(b"GET / HTTP/1.1\r\n")
            time.sleep(0.3)
            since = len(server.log)
            server.process.send_signal(signal.SIGINT)
            if told:
                server.wait_for_line("^shutting down on SIGINT: ", since)
            else:
                time.sleep(0.5)
            assert server.stop(signal.SIGTERM) == 0
            log = server.log[since:]
        first, second = ("1 connection", "1 connection") if workers == "1" else ("2 workers", "connections")
        patterns = [
            f"shutting down on SIGINT: {first}, 240 s to finish",
            f"second SIGTERM: .*{second} cut off",
            "shut down",
        ]
        if told:
            assert len(log) == len(patterns)
            assert all(map(re.fullmatch, patterns, log)), log
        else:
            assert log == []
