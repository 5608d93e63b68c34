"""Live processes, and the notifications to systemd about all of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import trio

from ktlsd.config.listener_kind import Kind
from ktlsd.metrics.metrics import ACCEPTED, BEAT, OPEN, MetricsStore, slot
from ktlsd.process.notify import Notifier
from ktlsd.process.watchdog import STATUS_SECONDS, Watchdog, describe

IN_KERNEL = slot("ktlsd_tls_connections_total", "TLSv1.3", "other", "software", "none")
BY_DEVICE = slot("ktlsd_tls_connections_total", "TLSv1.2", "other", "device", "device")
IN_USER_SPACE = slot("ktlsd_tls_connections_total", "TLSv1.3", "other", "none", "software")


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({}, "0 connections now"),
        ({OPEN[Kind.HTTPS]: 1, ACCEPTED[Kind.HTTPS]: 9}, "1 connection now"),
        (
            {OPEN[Kind.HTTPS]: 1, OPEN[Kind.REDIRECT]: 1, IN_KERNEL: 1},
            "2 connections now, 1 handshake, 100 % of them with kTLS",
        ),
        ({IN_KERNEL: 1, BY_DEVICE: 1, IN_USER_SPACE: 1}, "0 connections now, 3 handshakes, 66 % of them with kTLS"),
        ({IN_KERNEL: 999, IN_USER_SPACE: 1}, "0 connections now, 1000 handshakes, 99 % of them with kTLS"),
    ],
)
def test_status_in_words(counts: Mapping[int, int], text: str) -> None:
    store = MetricsStore(2)
    for number, (place, count) in enumerate(counts.items()):
        store.rows[number % 2][place] = count
    assert describe(store.totals()) == text


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


def watchdog(tmp_path: Path, store: MetricsStore, **environment: str) -> Watchdog:
    return Watchdog(Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")} | environment), store)


def test_status_is_told_once_until_it_changes(manager: socket.socket, tmp_path: Path) -> None:
    store = MetricsStore(2)
    watched = watchdog(tmp_path, store)
    assert watched.seconds == STATUS_SECONDS
    for row, count in ((0, 1), (0, 1), (1, 1)):
        store.rows[row][OPEN[Kind.HTTPS]] = count
        watched.tell()
    assert told(manager) == ["STATUS=1 connection now", "STATUS=2 connections now"]


def test_troubles_are_told_behind_the_figures(manager: socket.socket, tmp_path: Path) -> None:
    troubles = [""]
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    watched = Watchdog(notifier, MetricsStore(1), lambda: troubles[0])
    watched.tell()
    troubles[0] = "certificate for www.example.test: not issued"
    watched.tell()
    figures = "STATUS=0 connections now"
    assert told(manager) == [figures, f"{figures}; certificate for www.example.test: not issued"]


@pytest.mark.parametrize("alone", [True, False])
async def test_an_event_loop_beats_and_only_one_without_a_parent_tells(
    manager: socket.socket, tmp_path: Path, alone: bool
) -> None:
    store = MetricsStore(1)
    watched = watchdog(tmp_path, store, WATCHDOG_USEC="300000")
    began = time.monotonic_ns()
    messages: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(watched.beat, store.rows[0], alone=alone))
        with trio.fail_after(30):
            while store.rows[0][BEAT] <= began + 200_000_000 or (alone and messages.count("WATCHDOG=1") <= 2):
                await trio.sleep(0.05)
                messages += told(manager)
        nursery.cancel_scope.cancel()
    assert ("WATCHDOG=1" in messages) is alone


async def test_without_a_manager_nothing_beats() -> None:
    store = MetricsStore(1)
    with trio.fail_after(10):
        await Watchdog(Notifier({}), store).beat(store.rows[0], alone=True)
    assert store.rows[0][BEAT] == 0


def test_silence_counts_from_the_last_beat_or_the_start(tmp_path: Path) -> None:
    store, now = MetricsStore(3), time.monotonic()
    watched = watchdog(tmp_path, store, WATCHDOG_USEC="5000000")
    for row, beat in zip(store.rows, (now - 100, now, 0), strict=True):
        row[BEAT] = int(beat * 1e9)
    stuck = watched.silence(0, now - 200)
    assert stuck is not None
    assert 100 <= stuck < 110
    assert watched.silence(0, now) is None
    assert watched.silence(1, now - 200) is None
    assert watched.silence(2, now - 200) is not None


@pytest.mark.parametrize("name", ["", "vsock:2:1234"])
def test_where_nobody_listens_nobody_is_stuck(name: str) -> None:
    watched = Watchdog(Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"}), MetricsStore(1))
    assert watched.silence(0, time.monotonic() - 1000) is None
    assert watched.seconds == STATUS_SECONDS


def test_without_a_watchdog_nobody_is_stuck(tmp_path: Path) -> None:
    assert watchdog(tmp_path, MetricsStore(1)).silence(0, time.monotonic() - 1000) is None
