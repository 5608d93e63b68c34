"""Notifications to systemd: the protocol of sd_notify(3), over real sockets."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktlsd.process.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and its name as NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@ktlsd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        sock.settimeout(10)
        yield sock, name


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (Notifier.ready, "READY=1"),
        (Notifier.stopping, "STOPPING=1"),
        (Notifier.alive, "WATCHDOG=1"),
        (lambda notifier: notifier.status("3 connections"), "STATUS=3 connections"),
        (lambda notifier: notifier.status("one\nREADY=1"), "STATUS=one READY=1"),
    ],
)
def test_each_message_is_a_datagram(
    manager: tuple[socket.socket, str], say: Callable[[Notifier], None], expected: str
) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert notifier.heard
    say(notifier)
    assert sock.recv(4096).decode() == expected


def test_a_reload_carries_the_time_of_the_monotonic_clock(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", sock.recv(4096).decode())
    assert found
    assert before <= int(found[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "relative"])
def test_nobody_listens(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name} if name else {})
    assert not notifier.heard
    notifier.ready()


def test_a_manager_that_is_gone_or_reads_nothing_is_no_trouble(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        for _ in range(10_000):
            notifier.alive()
        assert sock.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "1" * 19}, None),
        ({"WATCHDOG_USEC": "\u0661"}, None),
    ],
)
def test_when_the_watchdog_bites(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment).watchdog_seconds == seconds
