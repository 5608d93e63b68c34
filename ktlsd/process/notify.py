"""Notifications to systemd: ready, reloading, stopping, status, alive (sd_notify(3)).

Strategy: each message is one datagram to the socket that NOTIFY_SOCKET names; without one nothing is sent. A message
that does not get through is no reason to serve any less, so it is dropped.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

_MICROSECONDS: Final = 1_000_000


class Notifier:
    """The way to the service manager that started this process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog_seconds(environment)
        """Seconds without a notification after which this process is taken for stuck; None without a limit."""

    @property
    def heard(self) -> bool:
        """True if there is a service manager."""
        return self._address is not None

    def ready(self) -> None:
        """The start, or a reload, is done."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; ready() ends it. Type=notify-reload needs the time of it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The shutdown begins: requests in progress are finished."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + text.replace("\n", " "))

    def alive(self) -> None:
        """Another watchdog_seconds, please."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            # A manager that reads nothing must not hold up the event loop.
            sock.setblocking(False)
            sock.sendto("\n".join(assignments).encode(), self._address)


def _address(name: str) -> str | None:
    """A path, or an abstract name where it begins with @ (unix(7)); other kinds of sockets are not for this machine."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """sd_watchdog_enabled(3): WATCHDOG_USEC counts unless WATCHDOG_PID names another process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not meant or not microseconds.isascii() or not microseconds.isdecimal() or len(microseconds) > 18:
        return None
    return int(microseconds) / _MICROSECONDS or None
