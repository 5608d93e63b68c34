"""A listening socket: its protocol, and the socket options that connections inherit from it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple

from ktlsd.config.listener_kind import Kind
from ktlsd.config.values import Listen

BACKLOG: Final = 1024
"""Longest queue of connections that are not accepted yet."""


class SocketFile(NamedTuple):
    """The file of a bound Unix socket, as it was made."""

    path: Path
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file unless it has been replaced."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


class Listener(NamedTuple):
    """A bound socket and its protocol."""

    socket: socket.socket
    kind: Kind
    file: SocketFile | None = None
    place: Listen | Path | None = None
    """What it was bound for: an address of the settings may give several sockets. None if it was passed by systemd."""

    def url(self) -> str:
        """Its scheme, address and port, or the path of its file."""
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{self.socket.getsockname()}"
        host, port = self.socket.getsockname()[:2]
        return f"{'https' if self.kind is Kind.HTTPS else 'http'}://{Listen(host, port)}"

    def prepare(self) -> None:
        """Set what Linux has the sockets that are accepted inherit. Raises OSError."""
        sock = self.socket
        if sock.family == socket.AF_UNIX:
            return
        # Heads and files share records by MSG_MORE; nothing else is worth holding back.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if ip_address(sock.getsockname()[0]).is_loopback:
            # Nothing is ever lost on the way to a proxy on this machine, and a timer for each segment, as bbr has it to
            # spread them over time, costs as much as the sending. Every kernel has reno; a sandbox may forbid it.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")

    def announcement(self) -> str:
        """The line for the operator once connections are accepted."""
        return f"{'backend' if self.kind is Kind.BACKEND else 'listening'} on {self.url()}"


class MetricsSockets(NamedTuple):
    """The listening sockets for metrics."""

    listen: Listen
    """What they were bound for."""
    sockets: tuple[socket.socket, ...]

    def urls(self) -> list[str]:
        """Their addresses."""
        return [f"http://{Listen(*sock.getsockname()[:2])}" for sock in self.sockets]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def accepting(sock: socket.socket) -> Callable[[], tuple[socket.socket, Any]]:
    """A function that accepts one connection of a listening socket: its socket, and what accept(2) says of the peer.

    It raises OSError: BlockingIOError if none is queued. socket.accept() works out the family and the type of a
    listening socket for each connection, as members of enums, which takes longer than accept4(2).
    """
    family, kind, protocol = int(sock.family), int(sock.type), sock.proto
    accept = sock._accept  # type: ignore[attr-defined]

    def accept_one() -> tuple[socket.socket, Any]:
        descriptor, peer = accept()
        return socket.socket(family, kind, protocol, descriptor), peer

    return accept_one
