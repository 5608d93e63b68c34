"""The counters of all processes, and which of them are alive."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ktlsd.notify import Notifier
from ktlsd.pulse import STATUS_SECONDS, Pulse, Report, describe, total


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (Report(), "0 connections now"),
        (Report(1, 0, 0), "1 connection now"),
        (Report(2, 1, 1), "2 connections now, 1 handshake, 100 % of them with kTLS"),
        (Report(0, 3, 2), "0 connections now, 3 handshakes, 66 % of them with kTLS"),
        (Report(0, 1000, 999), "0 connections now, 1000 handshakes, 99 % of them with kTLS"),
    ],
)
def test_status_in_words(report: Report, text: str) -> None:
    assert describe(report) == text


def test_reports_add_up() -> None:
    assert total([Report(1, 2, 3), Report(10, 20, 30)]) == Report(11, 22, 33)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def told(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def pulse(tmp_path: Path, **environment: str) -> Pulse:
    return Pulse(Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")} | environment))


def test_a_single_process_tells_status_once_until_it_changes(manager: socket.socket, tmp_path: Path) -> None:
    with closing(pulse(tmp_path)) as watched:
        beat = watched.own_beat()
        assert beat is not None
        assert beat.seconds == STATUS_SECONDS
        for report in (Report(1), Report(1), Report(2)):
            beat.send(report)
    assert told(manager) == ["STATUS=1 connection now", "STATUS=2 connections now"]


def test_the_watchdog_hears_every_beat(manager: socket.socket, tmp_path: Path) -> None:
    with closing(pulse(tmp_path, WATCHDOG_USEC="3000000")) as watched:
        beat = watched.own_beat()
        assert beat is not None
        assert beat.seconds == 1.0
        beat.send(Report())
        beat.send(Report())
    assert told(manager).count("WATCHDOG=1") == 2


def test_without_a_manager_nothing_beats() -> None:
    with closing(Pulse(Notifier({}))) as silent:
        assert silent.own_beat() is None
        assert silent.worker_beat() is None


def test_a_worker_that_falls_silent_is_killed_and_its_handshakes_stay(manager: socket.socket, tmp_path: Path) -> None:
    with (
        closing(pulse(tmp_path, WATCHDOG_USEC="100000")) as watched,
        subprocess.Popen(["sleep", "60"]) as silent,
        subprocess.Popen(["sleep", "60"]) as lively,
    ):
        for worker, report in ((silent.pid, Report(1, 2, 1)), (lively.pid, Report(2, 2, 2))):
            watched.take(worker, report)
        watched.check({silent.pid, lively.pid})
        assert "STATUS=3 connections now, 4 handshakes, 75 % of them with kTLS" in told(manager)
        time.sleep(0.2)
        watched.take(lively.pid, Report(2, 2, 2))
        watched.check({silent.pid, lively.pid})
        assert silent.wait(timeout=10) == -signal.SIGKILL
        assert lively.poll() is None
        watched.check({lively.pid})
        assert "STATUS=2 connections now, 4 handshakes, 75 % of them with kTLS" in told(manager)
        lively.kill()


def test_a_worker_reports_to_its_parent(manager: socket.socket, tmp_path: Path) -> None:
    with closing(pulse(tmp_path)) as watched:
        beat = watched.worker_beat()
        assert beat is not None
        for _ in range(5000):
            # More than the parent's socket holds: the rest is dropped, nothing waits.
            beat.send(Report(7))
        watched.check({os.getpid()})
    assert told(manager) == ["STATUS=7 connections now"]
