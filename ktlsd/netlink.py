"""Requests to the kernel over netlink (netlink(7)).

Strategy: a request has one reply, or, for a dump, a message for each thing that there is. Callers know the layout of
the bytes behind the header; the attributes that follow them have the same form everywhere.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

ROUTE: Final = 0
"""NETLINK_ROUTE: addresses, routes and interfaces (rtnetlink(7))."""
SOCK_DIAG: Final = 4
"""NETLINK_SOCK_DIAG: sockets (sock_diag(7))."""

_REQUEST: Final = 0x1  # NLM_F_REQUEST
_DUMP: Final = 0x300  # NLM_F_DUMP
_DONE: Final = 3  # NLMSG_DONE
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")
_TIMEOUT_SECONDS: Final = 1


def connect(family: int) -> socket.socket:
    """A socket to a part of the kernel, with a time-out. Raises OSError."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
    netlink.settimeout(_TIMEOUT_SECONDS)
    return netlink


def query(netlink: socket.socket, kind: int, body: bytes) -> tuple[int, bytes]:
    """Ask for one thing; the type of the kernel's first reply, and the bytes after the header. Raises OSError."""
    netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST, 1, 0) + body)
    reply = netlink.recv(8192)
    length, answered, *_ = _HEADER.unpack_from(reply)
    return answered, reply[_HEADER.size : length]


def dump(netlink: socket.socket, kind: int, body: bytes) -> Iterator[bytes]:
    """Ask for all things of a kind; the bytes after the header of each message. Raises OSError."""
    netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _DUMP, 1, 0) + body)
    while True:
        data = netlink.recv(65536)
        while len(data) >= _HEADER.size:
            length, answered, *_ = _HEADER.unpack_from(data)
            if answered == _DONE or length < _HEADER.size:
                return
            yield data[_HEADER.size : length]
            data = data[_padded(length) :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data`: each a length with its header, a type, and padding to four bytes."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[_padded(length) :]


def _padded(length: int) -> int:
    return length + 3 & ~3
