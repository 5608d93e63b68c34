"""Features of interfaces and routes of connections, on this machine's kernel.

A NIC that encrypts is in tests/ktls/test_nic.py.
"""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from ktlsd.tls import nic
from ktlsd.tls.ktls import Offload
from ktlsd.tls.nic import Nics, Taken


def test_every_interface_is_there_with_its_features() -> None:
    found = nic.interfaces()
    assert [interface.name for interface in found] == [name for _, name in socket.if_nameindex()]
    assert {state for interface in found for state in interface[1:]} <= {"on", "off", "not offered"}
    assert ("lo", "not offered", "not offered") in found


@pytest.mark.parametrize(
    ("family", "host", "dual"),
    [
        (socket.AF_INET, "127.0.0.1", False),
        (socket.AF_INET6, "::1", False),
        # An IPv4 client of a socket for both.
        (socket.AF_INET6, "127.0.0.1", True),
    ],
)
def test_the_route_of_a_connection(family: socket.AddressFamily, host: str, dual: bool) -> None:
    listening = socket.create_server(("" if dual else host, 0), family=family, dualstack_ipv6=dual)
    with (
        listening,
        contextlib.closing(Nics()) as nics,
        socket.create_connection((host, listening.getsockname()[1])),
        listening.accept()[0] as connection,
    ):
        assert nics._outgoing(connection) == socket.if_nametoindex("lo")
        # Loopback has no device that encrypts.
        assert nics.carrying(connection) is None


def test_a_device_is_asked_without_a_packet_or_not_at_all() -> None:
    """Loopback's answer is that of the kernel: software, or none without the tls module."""
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            nic.taken_by("lo")
        return
    rows = nic.taken_by("lo")
    assert {row.tx for row in rows} <= {Offload.SOFTWARE, Offload.NONE}
    assert nic.in_words(rows) == "nothing"


def test_in_words() -> None:
    device, software = Offload.DEVICE, Offload.SOFTWARE
    rows = [
        Taken("eth0", "TLSv1.2", "AES-128-GCM", device, software),
        Taken("eth0", "TLSv1.2", "AES-256-GCM", device, software),
        Taken("eth0", "TLSv1.3", "AES-128-GCM", device, software),
        Taken("eth0", "TLSv1.3", "AES-256-GCM", software, device),
    ]
    assert nic.in_words(rows) == "TLS 1.2 with AES-128-GCM, AES-256-GCM and TLS 1.3 with AES-128-GCM"
