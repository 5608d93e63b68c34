"""SIGHUP with other addresses and logs: what is new is opened, what is gone drains, all of it or nothing."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
from pathlib import Path

import pytest

from bench.ports import free_ports
from tests.serving import Running, connect, eventually, exchange_plain, get, is_refused, parse, serving

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
