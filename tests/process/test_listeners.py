"""What connections have from the socket that they were accepted from."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from ktlsd.config.values import Listen
from ktlsd.process.listeners import bind_all, close_all

CONGESTION_NAME = 16  # TCP_CA_NAME_MAX of linux/tcp.h


def congestion_control(sock: socket.socket) -> str:
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_NAME)
    return name.rstrip(b"\0").decode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
def test_no_segment_waits_on_the_way_to_a_client_on_this_machine(host: str) -> None:
    usual = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="ascii").strip()
    [listener] = listeners = bind_all([Listen(host, 0)])
    try:
        listener.prepare()
        with contextlib.closing(socket.create_connection(listener.socket.getsockname()[:2])):
            accepted, _ = listener.socket.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert congestion_control(accepted) == (usual if host == "0.0.0.0" else "reno")
    finally:
        close_all(listeners)
