"""SIGRTMIN: another process with the same command takes the place of the running one, under load, or does not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.ports import free_ports
from ktlsd.config.refusal import Refusal
from ktlsd.process.upgrade import Inherited
from ktlsd.tls.certificate import localhost_certificate
from tests.process.test_reload import Busy
from tests.serving import (
    Running,
    end_successors,
    eventually,
    exchange_plain,
    get,
    is_refused,
    parse,
    read_to_end,
    serving,
)
from tests.wire.test_lifecycle import begin_download

LAST = b"GET /a.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
READY = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = 64 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.txt").write_text("hello")
    (tmp_path / "root/large.bin").write_bytes(os.urandom(1 << 20) * (LARGE >> 20))
    return tmp_path


@contextlib.contextmanager
def upgradable(folder: Path, config: Path) -> Iterator[Running]:
    """A server, and at the end its successors. A variable of its own has it started as a process of its own."""
    state = folder / "state"
    with serving(None, "--config", str(config), state=state, listen=(), KTLSD_TEST="1") as server:
        try:
            server.wait_for_line("^listening on ")
            yield server
        finally:
            # Its log ends with its last successor.
            end_successors(server)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_connection_is_refused(folder: Path, workers: int) -> None:
    port, metrics = free_ports(2)
    config = folder / "ktlsd.toml"
    lines = [f"workers = {workers}", 'root = "root"', f'listen = "127.0.0.1:{port}"', f"metrics_listen = ':{metrics}'"]
    config.write_text("\n".join([*lines, 'backend_listen = "unix:socket"', ""]))
    busy = Busy()

    def over_tls() -> None:
        assert get(port, "/a.txt").body == b"hello"
        time.sleep(0.05)

    def over_a_unix_socket() -> None:
        assert parse(exchange_plain(str(folder / "socket"), LAST))[0].body == b"hello"
        time.sleep(0.05)

    with upgradable(folder, config) as server, busy(over_tls, over_a_unix_socket):
        download, received = begin_download(port)
        # What needs a restart else: the new process reads the file.
        config.write_text(config.read_text().replace(f"workers = {workers}", f"workers = {3 - workers}"))
        server.process.send_signal(signal.SIGRTMIN)
        line = server.wait_for_line(r"^upgrade: process \d+ accepts connections, this one ends$")
        server.wait_for_line("^shutting down on SIGTERM: ")
        before = dict(busy.done)
        assert eventually(lambda: all(busy.done[name] > count + 3 for name, count in before.items()))
        assert server.process.poll() is None
        with download:
            received += read_to_end(download)
        assert parse(received)[0].body == (folder / "root/large.bin").read_bytes()
        assert server.process.wait(30) == 0
        assert parse(exchange_plain(metrics, READY))[0].status == 200
        # The new process is such as the old one was, but that its configuration does not let it have a successor.
        config.write_text("wrong = 1")
        successor = int(line.split()[2])
        since = len(server.log)
        os.kill(successor, signal.SIGRTMIN)
        server.wait_for_line(r"^not upgraded, this process goes on: process \d+ has ended \(exit status 2\)$", since)
        over_a_unix_socket()
        over_tls()
    assert busy.failures == []
    assert eventually(lambda: is_refused(port) and not (folder / "socket").exists())


def test_a_successor_takes_only_the_addresses_of_its_configuration(folder: Path) -> None:
    port, other = free_ports(2)
    config = folder / "ktlsd.toml"
    config.write_text(f'root = "root"\nlisten = "127.0.0.1:{port}"\nbackend_listen = "unix:socket"\n')
    with upgradable(folder, config) as server:
        config.write_text(f'root = "root"\nlisten = ["127.0.0.1:{other}"]\n')
        server.process.send_signal(signal.SIGRTMIN)
        assert server.process.wait(60) == 0
        assert get(other, "/a.txt").body == b"hello"
        assert is_refused(port)
        assert not (folder / "socket").exists()


def test_a_site_that_is_served_is_not_left_out(folder: Path) -> None:
    """One that the old process does not serve either may be."""
    (port,) = free_ports(1)
    config = folder / "ktlsd.toml"
    for name in ("default", "good", "bad"):
        (folder / name).mkdir()
        localhost_certificate(folder / name).rename(folder / f"{name}.pem")
    (folder / "bad.pem").unlink()
    lines = [f'listen = "127.0.0.1:{port}"', 'root = "root"', 'cert = "default.pem"', 'key = "default.pem"']
    for name in ("good", "bad"):
        lines += ["[[site]]", f'names = ["{name}.example"]', f'cert = "{name}.pem"', f'key = "{name}.pem"']
    config.write_text("\n".join(lines))
    with upgradable(folder, config) as server:
        server.wait_for_line("site bad.example is not served")
        (folder / "good.pem").rename(folder / "away.pem")
        server.process.send_signal(signal.SIGRTMIN)
        server.wait_for_line(r"site\[0\].*good\.pem")
        server.wait_for_line(r"^not upgraded, this process goes on: process \d+ has ended \(exit status 2\)$")
        assert get(port, "/a.txt", name="good.example", host="good.example").body == b"hello"
        (folder / "away.pem").rename(folder / "good.pem")
        server.process.send_signal(signal.SIGRTMIN)
        server.wait_for_line(r"^upgrade: process \d+ accepts connections, this one ends$")
        assert get(port, "/a.txt", name="good.example", host="good.example").body == b"hello"


def test_under_systemd_there_is_another_way(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        with serving(folder / "root", state=folder / "state", NOTIFY_SOCKET=str(folder / "notify")) as server:
            server.process.send_signal(signal.SIGRTMIN)
            server.wait_for_line(
                "^not upgraded, this process goes on: systemd manages this process: systemctl restart "
            )
            assert get(server.port, "/a.txt").body == b"hello"


@pytest.mark.parametrize("text", ["x", "{}", '{"ready":9999,"sockets":[]}'])
def test_a_variable_that_no_upgrade_made(text: str) -> None:
    environment = {"KTLSD_INHERITED": text}
    with pytest.raises(Refusal, match=r"^KTLSD_INHERITED: nothing that an upgrade hands over \(.+\): unset it$"):
        Inherited(environment)
    assert not environment
