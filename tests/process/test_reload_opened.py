"""SIGHUP with other addresses and logs: what is new is opened, what is gone drains, all of it or nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.ports import free_ports
from tests.serving import (
    Running,
    children,
    client_context,
    connect,
    connect_plain,
    eventually,
    exchange_plain,
    get,
    is_refused,
    parse,
    read_to_end,
    serving,
)

ASKED = b"GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = ASKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.txt").write_text("hello")
    return tmp_path


def configure(folder: Path, *lines: str) -> Path:
    config = folder / "ktlsd.toml"
    config.write_text("\n".join(['root = "root"', *lines, ""]))
    return config


def reload_to(server: Running, folder: Path, *lines: str, told: str = "^configuration reloaded$") -> int:
    """Reload; the number of lines of the log before it."""
    since = len(server.log)
    configure(folder, *lines)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_line(told, since)
    return since


def ask(connection: socket.socket) -> bytes:
    connection.sendall(ASKED)
    data = b""
    while not data.endswith(b"hello"):
        some = connection.recv(65536)
        assert some
        data += some
    return parse(data)[0].body


@pytest.mark.parametrize("workers", [1, 2])
def test_addresses_and_logs_change_without_losing_a_connection(folder: Path, workers: int) -> None:
    old, new, taken, plain = free_ports(4)
    first = [f"workers = {workers}", f'listen = "127.0.0.1:{old}"', 'access_log = "first.log"']
    second = [
        *(f"workers = {workers}", f'listen = ["127.0.0.1:{new}"]', f'http_listen = "127.0.0.1:{plain}"'),
        *('backend_listen = "unix:socket"', 'access_log = "second.log"', 'access_log_format = "json"'),
    ]
    config = configure(folder, *first)
    with serving(None, "--config", str(config), state=folder / "state", listen=()) as server:
        server.wait_for_line(f"^listening on https://127.0.0.1:{old}$")
        kept = connect(old)
        assert ask(kept) == b"hello"

        since = reload_to(server, folder, *second)
        told = [f"listening on https://127.0.0.1:{new}", f"listening on http://127.0.0.1:{plain}"]
        told += [f"backend on unix:{folder}/socket", f"no longer listening on https://127.0.0.1:{old}"]
        assert set(told) <= set(server.log[since:])
        assert eventually(lambda: is_refused(old))
        assert ask(kept) == b"hello"
        for _ in range(4):
            assert get(new, "/a.txt", "User-Agent: new").body == b"hello"
            assert parse(exchange_plain(str(folder / "socket"), LAST))[0].body == b"hello"
            location = parse(exchange_plain(plain, LAST))[0].fields["location"]
            assert location == f"https://a:{new}/a.txt"

        # One address that is taken: nothing of it happens.
        with socket.create_server(("127.0.0.1", taken)):
            wrong = [*first, 'backend_listen = "unix:other"', 'error_log = "error.log"']
            wrong[1] = f'listen = ["127.0.0.1:{old}", "127.0.0.1:{taken}"]'
            complaint = f"{config}:3: listen 127.0.0.1:{taken}: Address already in use: stop what listens there"
            reload_to(server, folder, *wrong, told=f"not reloaded, the old one stays in force: {complaint}")
        # An address that overlaps one of its own, which is to stay or to go.
        overlap = f"{config}:3: listen 0.0.0.0:{new}: it overlaps https://127.0.0.1:{new}, where this ktlsd listens"
        for kept_too, remedy in ((f'"127.0.0.1:{new}", ', ": leave one of the two out"), ("", ", and a reload opens ")):
            wrong[1] = f'listen = [{kept_too}"0.0.0.0:{new}"]'
            reload_to(server, folder, *wrong, told=f"not reloaded, the old one stays in force: {overlap}{remedy}")
        assert is_refused(old)
        assert not (folder / "other").exists()
        assert get(new, "/a.txt").body == b"hello"
        assert ask(kept) == b"hello"

        # Back again, with other permissions of a socket that stays.
        third = [*first, 'backend_listen = "unix:socket"', 'backend_mode = "0600"', 'error_log = "error.log"']
        configure(folder, *third)
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: (folder / "error.log").exists() and "reloaded" in (folder / "error.log").read_text())
        assert f" notice no longer listening on https://127.0.0.1:{new}\n" in (folder / "error.log").read_text()
        assert eventually(lambda: get(old, "/a.txt").body == b"hello" and is_refused(new))
        assert stat.S_IMODE((folder / "socket").lstat().st_mode) == 0o600
        assert ask(kept) == b"hello"
        kept.close()
        assert server.stop() == 0
    assert not (folder / "socket").exists()
    combined = re.compile(r'127\.0\.0\.1 - - \[.*\] "GET /a.txt HTTP/1.1" 200 5 .*')
    lines = [(folder / name).read_text().splitlines() for name in ("first.log", "second.log")]
    # A worker reads the new configuration a moment after its parent.
    if workers == 1:
        of_new = [[json.loads(line) for line in part if not combined.fullmatch(line)] for part in lines]
        assert of_new[0] == []
        # The connection that began before keeps its format.
        assert len(lines[1]) - len(of_new[1]) == 2
        assert sum(record["user_agent"] == "new" for record in of_new[1]) == 4


def metrics_of(port: int) -> dict[str, float]:
    """The sums of all samples by name."""
    answer, rest = parse(exchange_plain(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert (answer.status, rest) == (200, b"")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_move_end_and_begin(folder: Path, workers: int) -> None:
    port, old, new, taken = free_ports(4)
    first = [f"workers = {workers}", f'listen = "127.0.0.1:{port}"']
    config = configure(folder, *first, f'metrics_listen = "127.0.0.1:{old}"')
    with serving(None, "--config", str(config), state=folder / "state", listen=()) as server:
        server.wait_for_line(f"^listening on https://127.0.0.1:{port}$")
        assert get(port, "/a.txt").body == b"hello"
        # A client of the metrics whose request comes after the change.
        with connect_plain(old) as slow:
            since = reload_to(server, folder, *first, f'metrics_listen = "127.0.0.1:{new}"')
            told = [f"metrics on http://127.0.0.1:{new}", f"no longer metrics on http://127.0.0.1:{old}"]
            assert set(told) <= set(server.log[since:])
            assert eventually(lambda: is_refused(old))
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert slow.recv(12) == b"HTTP/1.1 200"
        assert metrics_of(new)["ktlsd_requests_total"] == 1
        with socket.create_server(("127.0.0.1", taken)):
            complaint = rf".*/ktlsd\.toml:\d: metrics_listen 127\.0\.0\.1:{taken}: Address already in use: stop"
            told_line = f"not reloaded, the old one stays in force: {complaint}"
            wrong = [*first, 'backend_listen = "unix:other"', f'metrics_listen = "127.0.0.1:{taken}"']
            reload_to(server, folder, *wrong, told=told_line)
        assert not (folder / "other").exists()
        assert metrics_of(new)["ktlsd_requests_total"] == 1
        reload_to(server, folder, *first)
        assert eventually(lambda: is_refused(new))
        reload_to(server, folder, *first, f'metrics_listen = "127.0.0.1:{old}"')
        assert eventually(lambda: not is_refused(old))
        assert metrics_of(old)["ktlsd_requests_total"] == 1


def test_the_number_of_workers_changes_without_losing_a_request(folder: Path) -> None:
    port, metrics = free_ports(2)
    lines = [f'listen = "127.0.0.1:{port}"', f'metrics_listen = "127.0.0.1:{metrics}"']
    config = configure(folder, *lines, "workers = 2")
    size = 1 << 23
    with (folder / "root/large").open("wb") as file:
        file.truncate(size)
    asked = 0

    def ask_some() -> bool:
        nonlocal asked
        asked += 1
        return get(port, "/a.txt").body == b"hello"

    with serving(None, "--config", str(config), state=folder / "state", listen=()) as server:
        parent = server.process.pid
        server.wait_for_line(f"^listening on https://127.0.0.1:{port}$")
        before = children(parent)
        assert len(before) == 2
        assert all(ask_some() for _ in range(4))
        reload_to(server, folder, *lines, "workers = 4")
        assert eventually(lambda: ask_some() and len(children(parent)) == 4)
        assert before < children(parent)
        assert "4 workers instead of 2" in server.log

        # Downloads over all workers, which have not ended when most workers are to end.
        downloads = [connect(port) for _ in range(8)]
        for download in downloads:
            download.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert download.recv(1) == b"H"
        reload_to(server, folder, *lines, "workers = 1")
        assert "1 worker instead of 4" in server.log
        # New ones are accepted by the one that stays, and only it tells whether the service is ready.
        for _ in range(8):
            assert ask_some()
            assert exchange_plain(metrics, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")[9:12] == b"200"
        # Meanwhile more are wanted again: they count apart from those that end.
        reload_to(server, folder, *lines, "workers = 2")
        assert eventually(lambda: ask_some() and metrics_of(metrics)["ktlsd_workers"] == 2)
        for download in downloads:
            assert len(read_to_end(download)) > size
            download.close()
        asked += len(downloads)
        assert eventually(lambda: len(children(parent)) == 2)
        assert min(before) in children(parent)
        assert eventually(lambda: metrics_of(metrics)["ktlsd_open_connections"] == 0)
        found = metrics_of(metrics)
        assert (found["ktlsd_requests_total"], found["ktlsd_worker_restarts_total"]) == (asked, 0)
        assert not [line for line in server.log if "takes its place" in line or "killed" in line]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_while_a_last_response_is_sent_does_not_end_it(folder: Path, workers: int) -> None:
    port, size = free_ports(1)[0], 1 << 23
    config = configure(folder, lines := f'listen = "127.0.0.1:{port}"\nworkers = {workers}')
    with (folder / "root/large").open("wb") as file:
        file.truncate(size)
    with serving(None, "--config", str(config), state=folder / "state", listen=()) as server:
        server.wait_for_line("^listening on ")
        with connect(port) as download:
            download.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert download.recv(1) == b"H"
            server.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: is_refused(port))
            if workers == 1:
                reload_to(server, folder, lines)
            else:
                # The parent reloads nothing more.
                for worker in children(server.process.pid):
                    os.kill(worker, signal.SIGHUP)
            assert len(read_to_end(download)) > size
        assert server.process.wait() == 0
        assert not [line for line in server.log if "defect" in line or re.search(r"worker \d+ failed", line)]


def test_tickets_and_ktls_change(folder: Path) -> None:
    port = free_ports(1)[0]
    lines = [f'listen = "127.0.0.1:{port}"', "workers = 2"]
    config = configure(folder, *lines)
    context = client_context()

    def resumes() -> bool:
        """Whether a client that comes back resumes its session, with whichever worker."""
        with connect(port, context) as first:
            assert ask(first) == b"hello"
            session = first.session
        with connect(port, context, session=session) as second:
            return second.session_reused is True

    with serving(None, "--config", str(config), state=folder / "state", listen=()) as server:
        server.wait_for_line(f"^listening on https://127.0.0.1:{port}$")
        assert resumes()
        reload_to(server, folder, *lines, "session_tickets = false", 'ktls = "off"')
        assert eventually(lambda: not any(resumes() for _ in range(4)))
        reload_to(server, folder, *lines, 'ticket_keys = "keys.json"', 'ktls = "auto"')
        assert eventually(lambda: all(resumes() for _ in range(4)))
        assert stat.S_IMODE((folder / "keys.json").stat().st_mode) == 0o600


def test_an_access_log_begins_and_ends(folder: Path) -> None:
    listen = f'listen = "127.0.0.1:{free_ports(1)[0]}"'
    port = int(listen.rpartition(":")[2].strip('"'))
    config = configure(folder, listen)
    with serving(None, "--config", str(config), state=folder / "state", listen=()) as server:
        server.wait_for_line("^listening on ")
        for keys in ((), ('access_log = "log"',), (), ('access_log = "log"', 'access_log_format = "json"')):
            reload_to(server, folder, listen, *keys)
            assert get(port, "/a.txt").body == b"hello"
        reload_to(
            server, folder, listen, 'access_log = "nowhere/log"', told="access_log .*nowhere/log: cannot be opened"
        )
        assert get(port, "/a.txt").body == b"hello"
        server.stop()
    lines = (folder / "log").read_text().splitlines()
    assert [line[:1] for line in lines] == ["1", "{", "{"]
