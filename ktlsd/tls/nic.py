"""Network interfaces whose devices encrypt: what they offer, what they take, and which of them carries a connection.

Strategy: features by the ethtool ioctl (linux/ethtool.h), the interface of a connection by its route (rtnetlink(7)).
Protocols and ciphers are tried: a socket in repair mode is connected through it without a packet, and given keys.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from ktlsd import netlink
from ktlsd.system_calls import SOL_TLS, TCP_ULP
from ktlsd.tls.ktls import Direction, Offload
from ktlsd.tls.tls_stat import ask_kernel

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GSTRINGS: Final = 0x1B
_ETHTOOL_GSSET_INFO: Final = 0x37
_ETHTOOL_GFEATURES: Final = 0x3A
_ETH_SS_FEATURES: Final = 4
_STRING_BYTES: Final = 32
_FEATURES_IN_A_BLOCK: Final = 32
_BLOCK: Final = struct.Struct("=IIII")  # ethtool_get_features_block: available, requested, active, never_changed
_FEATURES: Final = {Direction.TX: b"tls-hw-tx-offload", Direction.RX: b"tls-hw-rx-offload"}

_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, lengths of both addresses, five fields that stay 0, flags
_RTA_DST, _RTA_SRC, _RTA_OIF = 1, 2, 4
_RTA: Final = struct.Struct("=HH")

_TCP_REPAIR: Final = 19
_SET_KEYS: Final = {Direction.TX: 1, Direction.RX: 2}  # TLS_TX, TLS_RX
# Of TLS_CIPHER_*: number, bytes of iv, key and salt (linux/tls.h).
_CIPHERS: Final = {"AES-128-GCM": (51, 8, 16, 4), "AES-256-GCM": (52, 8, 32, 4), "ChaCha20-Poly1305": (54, 12, 32, 0)}
_VERSIONS: Final = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_SEQUENCE_BYTES: Final = 8
_DISCARD_PORT: Final = 9
_NOWHERE: Final = "192.0.2.1"  # RFC 5737: in documentation only

_MAPPED: Final = bytes(10) + b"\xff\xff"  # IPv4 in IPv6 (RFC 4291 section 2.5.5.2)
_RENEWED_SECONDS: Final = 60.0


class Interface(NamedTuple):
    """A network interface and whether its device offers to encrypt (tx) and decrypt (rx) records, and does so."""

    name: str
    tx: str
    """on, off, "not offered" or unknown."""
    rx: str


class Taken(NamedTuple):
    """The treatment of one protocol and cipher by a device, found by giving it keys."""

    interface: str
    protocol: str
    cipher: str
    tx: Offload
    rx: Offload


# --- features ---------------------------------------------------------------------------------------------------------


def interfaces() -> list[Interface]:
    """All interfaces of this network namespace."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        found = []
        places: dict[Direction, int] | None = None
        for _, name in socket.if_nameindex():
            try:
                # The kernel's names of features are the same for all interfaces.
                places = places or _places(asking, name)
                found.append(Interface(name, *_states(asking, name, places)))
            except OSError as error:
                found.append(Interface(name, f"unknown ({error.strerror})", "unknown"))
        return found
    return []


def _ethtool(asking: socket.socket, name: str, request: bytes) -> bytes:
    """One request about an interface; the reply is as long. Raises OSError."""
    data = array.array("B", request)
    address, _ = data.buffer_info()
    fcntl.ioctl(asking, _SIOCETHTOOL, struct.pack("16sP16x", os.fsencode(name), address))
    return data.tobytes()


def _places(asking: socket.socket, name: str) -> dict[Direction, int]:
    """The numbers of both features."""
    counted = _ethtool(asking, name, struct.pack("=IIQI", _ETHTOOL_GSSET_INFO, 0, 1 << _ETH_SS_FEATURES, 0))
    count = int.from_bytes(counted[16:20], sys.byteorder)
    request = struct.pack("=III", _ETHTOOL_GSTRINGS, _ETH_SS_FEATURES, count) + bytes(count * _STRING_BYTES)
    text = _ethtool(asking, name, request)[12:]
    names = [text[at : at + _STRING_BYTES].rstrip(b"\0") for at in range(0, len(text), _STRING_BYTES)]
    return {direction: names.index(feature) for direction, feature in _FEATURES.items() if feature in names}


def _states(asking: socket.socket, name: str, places: dict[Direction, int]) -> tuple[str, str]:
    blocks = max(places.values(), default=0) // _FEATURES_IN_A_BLOCK + 1
    request = struct.pack("=II", _ETHTOOL_GFEATURES, blocks) + bytes(blocks * _BLOCK.size)
    reply = _ethtool(asking, name, request)[8:]

    def state(direction: Direction) -> str:
        if (place := places.get(direction)) is None:
            return "unknown"
        available, _, active, _ = _BLOCK.unpack_from(reply, place // _FEATURES_IN_A_BLOCK * _BLOCK.size)
        bit = 1 << place % _FEATURES_IN_A_BLOCK
        return "on" if active & bit else "off" if available & bit else "not offered"

    return state(Direction.TX), state(Direction.RX)


# --- what a device takes ----------------------------------------------------------------------------------------------


def taken_by(interface: str) -> list[Taken]:
    """The treatment of each protocol and cipher by the device of an interface that is up; no packet is sent.

    Raises OSError: EPERM without CAP_NET_ADMIN, for which repair mode asks.
    """
    return [
        Taken(interface, protocol, cipher, *(_offload(interface, version, cipher, way) for way in Direction))
        for protocol, version in _VERSIONS.items()
        for cipher in _CIPHERS
    ]


def in_words(rows: Iterable[Taken]) -> str:
    """The protocols and ciphers that a device encrypts, as "TLS 1.2 with AES-128-GCM, AES-256-GCM"; "nothing"."""
    ciphers: dict[str, list[str]] = {}
    for row in rows:
        if row.tx is Offload.DEVICE:
            ciphers.setdefault(row.protocol.replace("v", " "), []).append(row.cipher)
    return " and ".join(f"{protocol} with {', '.join(taken)}" for protocol, taken in ciphers.items()) or "nothing"


def summary() -> str:
    """The protocols and ciphers that each NIC encrypts, for the line at the start; empty without a NIC that does."""
    parts = []
    for interface in interfaces():
        if interface.tx == "on":
            try:
                parts.append(f"NIC {interface.name} encrypts {in_words(taken_by(interface.name))}")
            except OSError:
                parts.append(f"NIC {interface.name} offers to encrypt")
    return ", ".join(parts)


def _offload(interface: str, version: int, cipher: str, direction: Direction) -> Offload:
    number, iv, key, salt = _CIPHERS[cipher]
    # Nothing is ever encrypted with these keys, but they are random all the same.
    material = os.urandom(iv + key + salt) + bytes(_SEQUENCE_BYTES)
    with _through(interface) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            sock.setsockopt(SOL_TLS, _SET_KEYS[direction], struct.pack("=HH", version, number) + material)
        except OSError:
            # The kernel has no such cipher, not even in software.
            return Offload.NONE
        return ask_kernel(sock).get(direction, Offload.KERNEL)


def _through(interface: str) -> socket.socket:
    """A connected socket whose route leads through an interface, to nobody (TCP_REPAIR, tcp(7)). Raises OSError."""
    index = socket.if_nametoindex(interface)
    ends: tuple[tuple[int, tuple[str, int] | tuple[str, int, int, int]], ...] = (
        (socket.AF_INET6, ("fe80::1", _DISCARD_PORT, 0, index)),
        (socket.AF_INET, (_NOWHERE, _DISCARD_PORT)),
    )
    last = OSError()
    for family, end in ends:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            # Without a route there, IPv4 takes the other end to be on the link (ip_route_output_key_hash_rcu()).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(interface))
            sock.connect(end)
        except OSError as error:
            sock.close()
            last = error
            continue
        return sock
    raise last


# --- connections ------------------------------------------------------------------------------------------------------


class Nics:
    """Tells whether a connection's interface encrypts. The creator closes it."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        self._encrypting: frozenset[int] = frozenset()
        self._renewed = -_RENEWED_SECONDS

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def encrypting(self) -> frozenset[int]:
        """The numbers of the interfaces that encrypt, as of a minute ago at most."""
        now = time.monotonic()
        if now - self._renewed >= _RENEWED_SECONDS:
            self._renewed = now
            found = set()
            for interface in interfaces():
                if interface.tx == "on":
                    # It may be gone already.
                    with contextlib.suppress(OSError):
                        found.add(socket.if_nametoindex(interface.name))
            self._encrypting = frozenset(found)
        return self._encrypting

    def carrying(self, connection: socket.socket) -> str | None:
        """The name of the interface that encrypts for a connection; None if none does, or it cannot be told."""
        encrypting = self.encrypting()
        if not encrypting:
            return None
        try:
            index = self._outgoing(connection)
            return socket.if_indextoname(index) if index in encrypting else None
        except OSError:
            # The connection is gone, or a sandbox forbids netlink: the next one gets a fresh socket.
            self.close()
            return None

    def _outgoing(self, connection: socket.socket) -> int:
        """The number of the interface that packets of a connection go out by. Raises OSError."""
        local, remote = connection.getsockname(), connection.getpeername()
        scope = remote[3] if len(remote) > 3 else 0
        family, ends = _plain(connection.family, remote[0], local[0])
        fields = b"".join(
            _RTA.pack(_RTA.size + len(end), kind) + end for kind, end in zip((_RTA_DST, _RTA_SRC), ends, strict=True)
        )
        if scope:
            fields += _RTA.pack(_RTA.size + 4, _RTA_OIF) + struct.pack("=I", scope)
        bits = 8 * len(ends[0])
        body = _RTMSG.pack(family, bits, bits, 0, 0, 0, 0, 0, 0) + fields
        if self._netlink is None:
            self._netlink = netlink.connect(netlink.ROUTE)
        kind, reply = netlink.query(self._netlink, _RTM_GETROUTE, body)
        if kind != _RTM_NEWROUTE:
            return 0
        found = dict(netlink.attributes(reply[_RTMSG.size :])).get(_RTA_OIF, b"")
        return int.from_bytes(found, sys.byteorder)


def _plain(family: int, *ends: str) -> tuple[int, list[bytes]]:
    """Addresses, IPv4 in IPv6 as IPv4."""
    if family == socket.AF_INET6:
        raw = [socket.inet_pton(family, end.partition("%")[0]) for end in ends]
        if all(end.startswith(_MAPPED) for end in raw):
            return socket.AF_INET, [end[len(_MAPPED) :] for end in raw]
        return family, raw
    return family, [socket.inet_pton(family, end) for end in ends]
