"""The kernel's own evidence of kTLS: /proc/net/tls_stat for all sockets, sock_diag for one.

Strategy: the counters say whether any connection was ever given to a network device. Only where one was is the kernel
asked about a single connection, over netlink (sock_diag(7), linux/inet_diag.h, linux/tls.h).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Final

from ktlsd import netlink
from ktlsd.tls.ktls import Direction, Offload

TLS_STAT: Final = "/proc/net/tls_stat"

_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = struct.Struct("=BBBxI")  # inet_diag_req_v2 up to its sockid: family, protocol, extensions, states
_SOCKID: Final = struct.Struct(">HH16s16s4s8s")  # inet_diag_sockid: ports, addresses, interface, cookie
_WITH_INFO: Final = 1 << 1  # INET_DIAG_INFO: the kernel tells of the ULP only together with it
_NO_COOKIE: Final = b"\xff" * 8
_SO_BINDTOIFINDEX: Final = 62
_DIAG_MSG_SIZE: Final = 72
_INET_DIAG_ULP_INFO: Final = 19
_INET_ULP_INFO_TLS: Final = 2
_CONFIGURATION: Final = {Direction.TX: 3, Direction.RX: 4}  # TLS_INFO_TXCONF, TLS_INFO_RXCONF
_OFFLOADS: Final = {1: Offload.NONE, 2: Offload.SOFTWARE, 3: Offload.DEVICE, 4: Offload.DEVICE}  # TLS_CONF_*


def counters() -> dict[str, int] | None:
    """The kernel's counters of TLS sockets in this network namespace; None where the tls module is not loaded."""
    try:
        with open(TLS_STAT, encoding="ascii") as lines:
            return {name: int(value) for name, value in (line.split() for line in lines)}
    except FileNotFoundError:
        return None


class Offloads:
    """Distinguishes software and device offload for connections that have one."""

    def __init__(self) -> None:
        self._counters = -1

    def close(self) -> None:
        if self._counters >= 0:
            os.close(self._counters)
            self._counters = -1

    def of(self, connection: socket.socket, direction: Direction) -> Offload:
        """The kind of offload of a connection offloaded in this direction; KERNEL if the kernel does not show it."""
        try:
            if not self._any_device():
                return Offload.SOFTWARE
            return ask_kernel(connection).get(direction, Offload.KERNEL)
        except OSError:
            # The connection is gone, or a sandbox forbids netlink.
            return Offload.KERNEL

    def _any_device(self) -> bool:
        try:
            text = self._read()
        except OSError:
            # The tls module was unloaded and loaded again: the open file has the old one's counters.
            self.close()
            text = self._read()
        rows = (line.split() for line in text.splitlines())
        return any(int(value) for name, value in rows if name in (b"TlsTxDevice", b"TlsRxDevice"))

    def _read(self) -> bytes:
        if self._counters < 0:
            self._counters = os.open(TLS_STAT, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._counters, 4096, 0)


def ask_kernel(connection: socket.socket) -> dict[Direction, Offload]:
    """The offload of each direction of one TCP connection, from sock_diag; empty if it is not there.

    Kernels before 6.15 show it only to processes with CAP_NET_ADMIN. Raises OSError.
    """
    local, remote = connection.getsockname(), connection.getpeername()
    addresses = (socket.inet_pton(connection.family, end[0].partition("%")[0]) for end in (local, remote))
    # One that is bound to an interface, as all between link-local addresses are, is found only with it.
    interface = connection.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, 4)
    ends = (address.ljust(16, b"\0") for address in addresses)
    sockid = _SOCKID.pack(local[1], remote[1], *ends, interface, _NO_COOKIE)
    request = _REQUEST.pack(connection.family, socket.IPPROTO_TCP, _WITH_INFO, 0xFFFFFFFF) + sockid
    with netlink.connect(netlink.SOCK_DIAG) as asking:
        kind, reply = netlink.query(asking, _SOCK_DIAG_BY_FAMILY, request)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return {}
    ulp = dict(netlink.attributes(reply[_DIAG_MSG_SIZE:])).get(_INET_DIAG_ULP_INFO, b"")
    tls = dict(netlink.attributes(dict(netlink.attributes(ulp)).get(_INET_ULP_INFO_TLS, b"")))
    return {
        direction: _OFFLOADS.get(int.from_bytes(tls[number][:2], sys.byteorder), Offload.KERNEL)
        for direction, number in _CONFIGURATION.items()
        if number in tls
    }
