"""A real ktlsd and a service manager that only listens: readiness, status, the watchdog, the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.serving import Running, children, connect, eventually, get, serving


class Manager:
    """The receiving end of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.setblocking(False)
        self.told: list[str] = []

    def hear(self) -> list[str]:
        """All notifications so far."""
        while True:
            try:
                self.told += self.sock.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.told

    def beats(self) -> int:
        return self.hear().count("WATCHDOG=1")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.sock.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "small.txt").write_text("small")
    return folder


def started(
    manager: Manager, root: Path, state: Path, watchdog: str, *options: str
) -> contextlib.AbstractContextManager[Running]:
    """ktlsd with that many microseconds for its watchdog."""
    return serving(root, *options, state=state, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC=watchdog)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_tells_its_life(manager: Manager, root: Path, tmp_path: Path, workers: str) -> None:
    with started(manager, root, tmp_path, "3000000", "--workers", workers) as server:
        # It says that it listens before it says that it is ready.
        assert eventually(lambda: "READY=1" in manager.hear())
        with connect(server.port):
            assert get(server.port, "/small.txt").body == b"small"
            # Neither the one that is open nor, by now, the one that was.
            shown = "STATUS=1 connection now, 2 handshakes, 0 % of them with kTLS"
            offloaded = shown.replace("0 %", "100 %")
            assert eventually(lambda: not {shown, offloaded}.isdisjoint(manager.hear()))
        seen = manager.beats()
        assert eventually(lambda: manager.beats() > seen)
        assert "STOPPING=1" not in manager.hear()
        assert server.stop() == 0
        assert manager.hear().count("STOPPING=1") == 1
        assert manager.hear().count("READY=1") == 1


def test_a_stuck_process_misses_its_beat(manager: Manager, root: Path, tmp_path: Path) -> None:
    with started(manager, root, tmp_path, "600000") as server:
        assert eventually(lambda: manager.beats() > 0)
        server.process.send_signal(signal.SIGSTOP)
        assert eventually(lambda: state_of(server.process.pid) == "T")
        seen = manager.beats()
        time.sleep(1)
        assert manager.beats() == seen
        server.process.send_signal(signal.SIGCONT)
        assert eventually(lambda: manager.beats() > seen)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_stuck_worker_is_replaced_and_the_service_lives(manager: Manager, root: Path, tmp_path: Path) -> None:
    with started(manager, root, tmp_path, "3000000", "--workers", "2") as server:
        stuck = min(children(server.process.pid))
        os.kill(stuck, signal.SIGSTOP)
        server.wait_for_line(rf"worker {stuck} is stuck and will be replaced: no heartbeat for \d+ s")
        assert eventually(lambda: len(children(server.process.pid) - {stuck}) == 2)
        seen = manager.beats()
        assert eventually(lambda: manager.beats() > seen)
        assert get(server.port, "/small.txt").body == b"small"
        assert server.stop() == 0


def said(manager: Manager, message: str, times: int) -> bool:
    return manager.hear().count(message) == times


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_is_told_from_its_beginning_to_its_end(
    manager: Manager, root: Path, tmp_path: Path, workers: str
) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text("")
    with started(manager, root, tmp_path, "3000000", "--config", str(config), "--workers", workers) as server:
        assert eventually(lambda: "READY=1" in manager.hear())
        for count, content in ((1, "dotfiles = true\n"), (2, "no such key = 1\n")):
            config.write_text(content)
            server.process.send_signal(signal.SIGHUP)
            # A configuration that is not taken leaves a service that is as ready as before.
            assert eventually(partial(said, manager, "READY=1", count + 1))
            assert said(manager, "RELOADING=1", count)
            assert manager.told.index("RELOADING=1") > manager.told.index("READY=1")
        assert get(server.port, "/small.txt").body == b"small"
        assert server.stop() == 0
