"""The networks that an operator named, and whether a peer is in them: pure.

Strategy: CIDR blocks by Python's ipaddress, and one word for all peers on Unix sockets, which have no address.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

UNIX: Final = "unix"
"""Stands for every peer on a Unix socket."""

Address = IPv4Address | IPv6Address


class Networks:
    """A set of networks, without order."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Each text is a CIDR block, an address, or UNIX. Raises ValueError that says what is wrong with one."""
        wanted = set(texts)
        self._unix = UNIX in wanted
        self._blocks = [parse_network(text) for text in sorted(wanted - {UNIX})]

    def __bool__(self) -> bool:
        return self._unix or bool(self._blocks)

    def holds(self, peer: Address | None) -> bool:
        """Whether a peer is in one of them; None is a peer on a Unix socket."""
        if peer is None:
            return self._unix
        # Every new connection asks this, most often of an empty set: no generator for that.
        return bool(self._blocks) and any(peer in block for block in self._blocks)


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Read a CIDR block (RFC 4632 section 3.1), or an address as one of its own. Raises ValueError."""
    return ip_network(text)


def parse_address(text: str) -> Address | None:
    """Read an address as proxies write it, as address_of() does; None when it is none."""
    try:
        return address_of(text)
    except ValueError:
        return None


@functools.lru_cache(1024)
def address_of(text: str) -> Address:
    """Read an address as the kernel writes it. Raises ValueError.

    An IPv4 address in IPv6 clothes (::ffff:192.0.2.1, RFC 4291 section 2.5.5.2) is the IPv4 address. A zone is dropped.
    """
    address = ip_address(text.partition("%")[0])
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
