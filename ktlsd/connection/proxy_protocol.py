"""The PROXY protocol: a header about the client, before the first byte of a connection. Pure, no sockets.

Strategy: the reader passes all bytes so far and gets the header, or learns that it is incomplete, which also means that
every byte so far is the header's. What HAProxy's specification (proxy-protocol.txt) does not allow is an error with a
reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from msgspec import Struct

from ktlsd.config.networks import Address

LONGEST_V1: Final = 107
"""Bytes of a line of version 1 with its CRLF (section 2.1)."""
LONGEST: Final = 16 + 8192
"""Bytes of a header that are read at most: version 2 could say 65551, of which a client's certificate is the most."""

_V1_START: Final = b"PROXY "
_V1: Final = re.compile(rb"PROXY (TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN( [^\r\n]*)?")
_V2_START: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_PREFIX: Final = 16
_MOST_PORT: Final = 65535

_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _STREAM, _DATAGRAM = 0, 1, 2  # transports; families have the same first number
_INET, _INET6, _UNIX = 1, 2, 3
_ADDRESS_SIZES: Final = {_INET: 4, _INET6: 16}
_BLOCK_SIZES: Final = {_INET: 2 * 4 + 2 * 2, _INET6: 2 * 16 + 2 * 2, _UNIX: 2 * 108}
"""Bytes of both addresses, with the ports that the streams and datagrams of IP have."""

_ALPN, _AUTHORITY, _CRC32C, _NOOP, _UNIQUE_ID, _SSL = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20
_SSL_VERSION, _SSL_CN, _SSL_CIPHER = 0x21, 0x22, 0x23
_CLIENT_SSL: Final = 0x01
_CLIENT_CERTIFICATE: Final = 0x02 | 0x04  # on this connection, or on the session that it resumed
_LONGEST_UNIQUE_ID: Final = 128


class BadHeader(Exception):
    """Bytes that are no PROXY header, or one that breaks the specification; the text says how."""


class NoHeader(BadHeader):
    """The bytes are of another protocol."""


class Incomplete(Struct, frozen=True):
    """All bytes so far belong to a header that goes on."""


class Endpoint(NamedTuple):
    """An end of a TCP connection."""

    address: Address
    port: int


class ProxyTls(NamedTuple):
    """The TLS connection between client and proxy (section 2.2.5)."""

    version: str
    """Such as "TLSv1.3"; empty where the proxy does not say."""
    cipher: str
    verified: bool
    """Whether the client gave a certificate and the proxy accepts it."""
    common_name: str
    """Of that certificate."""


class Header(Struct, frozen=True):
    """The content of a header; missing parts are None."""

    length: int
    """Bytes of the whole header; the rest belongs to the connection."""
    local: bool = False
    """Whether the proxy speaks for itself, as in a health check: the socket has the true addresses."""
    source: Endpoint | None = None
    """The client. None also if the proxy does not know it, and for a client that did not come over TCP."""
    destination: Endpoint | None = None
    alpn: bytes | None = None
    authority: str | None = None
    """The host name that the client asked for."""
    unique_id: bytes | None = None
    tls: ProxyTls | None = None


def parse(data: bytes) -> Header | Incomplete:
    """The header that `data`, all that was received so far, begins with. Raises BadHeader."""
    if data.startswith(_V2_START) or _V2_START.startswith(data):
        return _parse_v2(data)
    if data.startswith(_V1_START) or _V1_START.startswith(data):
        return _parse_v1(data)
    raise NoHeader("no PROXY header")


# --- version 1 --------------------------------------------------------------------------------------------------------


def _parse_v1(data: bytes) -> Header | Incomplete:
    line, end, _ = data[:LONGEST_V1].partition(b"\r\n")
    if not end:
        if len(data) >= LONGEST_V1:
            raise BadHeader(f"a version 1 header without its end in {LONGEST_V1} bytes")
        if b"\n" in line or b"\r" in line[:-1]:
            raise BadHeader("a version 1 header that does not end in CRLF")
        return Incomplete()
    length = len(line) + len(end)
    if _V1_UNKNOWN.fullmatch(line):
        return Header(length)
    found = _V1.fullmatch(line)
    if found is None:
        raise BadHeader("a malformed version 1 header")
    family, source, destination, source_port, destination_port = (part.decode("ascii") for part in found.groups())
    kind = IPv4Address if family == "TCP4" else IPv6Address
    try:
        return Header(
            length,
            source=_endpoint(kind(source), int(source_port)),
            destination=_endpoint(kind(destination), int(destination_port)),
        )
    except ValueError as error:
        raise BadHeader(f"a version 1 header with a bad address: {error}") from error


def _endpoint(address: Address, port: int) -> Endpoint:
    if port > _MOST_PORT:
        raise ValueError(f"port {port}")
    return Endpoint((isinstance(address, IPv6Address) and address.ipv4_mapped) or address, port)


# --- version 2 --------------------------------------------------------------------------------------------------------


def _parse_v2(data: bytes) -> Header | Incomplete:
    place = len(_V2_START)
    # Errors are raised at once: a mistaken sender may have nothing more to send.
    _refuse(data[place : place + 2])
    if len(data) < _V2_PREFIX:
        return Incomplete()
    local = data[place] % 16 == _LOCAL
    family, transport = divmod(data[place + 1], 16)
    length = _V2_PREFIX + int.from_bytes(data[place + 2 : _V2_PREFIX])
    if length > LONGEST:
        raise BadHeader(f"a version 2 header of {length} bytes, more than {LONGEST}")
    if not local and _UNSPECIFIED not in (family, transport) and length - _V2_PREFIX < _BLOCK_SIZES[family]:
        raise BadHeader("a version 2 header shorter than its addresses")
    if len(data) < length:
        return Incomplete()
    if local:
        # The content of such a header must be ignored (section 2.2).
        return Header(length, local=True)
    if _UNSPECIFIED in (family, transport):
        # There is no telling where addresses end: nothing of it counts.
        return Header(length)
    body = data[_V2_PREFIX:length]
    source: Endpoint | None = None
    destination: Endpoint | None = None
    # The addresses of anything but a TCP connection are passed over: the socket's own hold (section 2.2).
    if transport == _STREAM and family in _ADDRESS_SIZES:
        source, destination = _endpoints(body, _ADDRESS_SIZES[family])
    rest = body[_BLOCK_SIZES[family] :]
    values: dict[int, bytes] = {}
    for kind, value, position in _vectors(rest):
        if kind == _CRC32C:
            _check_sum(data[:length], length - len(rest) + position, value)
        values[kind] = value
    unique_id = values.get(_UNIQUE_ID)
    if unique_id is not None and len(unique_id) > _LONGEST_UNIQUE_ID:
        raise BadHeader(f"a unique ID of {len(unique_id)} bytes, more than {_LONGEST_UNIQUE_ID}")
    authority = values.get(_AUTHORITY)
    return Header(
        length,
        source=source,
        destination=destination,
        alpn=values.get(_ALPN),
        authority=None if authority is None else authority.decode("utf-8", "replace"),
        unique_id=unique_id,
        tls=_tls(values[_SSL]) if _SSL in values else None,
    )


def _refuse(start: bytes) -> None:
    """Raise BadHeader for a version, command, address family or transport protocol that section 2.2 does not define;
    `start` has the bytes for these, as far as they have come."""
    if not start:
        return
    version, command = divmod(start[0], 16)
    if version != 2:
        raise BadHeader(f"version {version} in a version 2 header")
    if command not in (_LOCAL, _PROXY):
        raise BadHeader(f"the command {command}")
    # Any family of a LOCAL header is ignored.
    if command == _LOCAL or len(start) < 2:
        return
    family, transport = divmod(start[1], 16)
    if family not in (_UNSPECIFIED, _INET, _INET6, _UNIX):
        raise BadHeader(f"the address family {family:#x}")
    if transport not in (_UNSPECIFIED, _STREAM, _DATAGRAM):
        raise BadHeader(f"the transport protocol {transport:#x}")


def _endpoints(body: bytes, size: int) -> tuple[Endpoint, Endpoint]:
    kind = IPv4Address if size == IPv4Address(0).max_prefixlen // 8 else IPv6Address
    ports = body[2 * size :]
    return (
        _endpoint(kind(body[:size]), int.from_bytes(ports[:2])),
        _endpoint(kind(body[size : 2 * size]), int.from_bytes(ports[2:4])),
    )


def _vectors(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Each type, value and the value's place of type-length-value triples (section 2.2.6)."""
    position = 0
    while position < len(data):
        start = position + 3
        end = start + int.from_bytes(data[position + 1 : start])
        if start > len(data) or end > len(data):
            raise BadHeader("a TLV that ends after the header")
        yield data[position], data[start:end], start
        position = end


def _tls(value: bytes) -> ProxyTls | None:
    """The SSL type's value: flags, the result of verification, and types of its own."""
    if len(value) < 5:
        raise BadHeader("an SSL TLV that is too short")
    flags, failed = value[0], int.from_bytes(value[1:5])
    if not flags & _CLIENT_SSL:
        return None
    inner = {kind: text.decode("utf-8", "replace") for kind, text, _ in _vectors(value[5:])}
    return ProxyTls(
        version=inner.get(_SSL_VERSION, ""),
        cipher=inner.get(_SSL_CIPHER, ""),
        verified=bool(flags & _CLIENT_CERTIFICATE) and not failed,
        common_name=inner.get(_SSL_CN, ""),
    )


def _check_sum(header: bytes, position: int, value: bytes) -> None:
    if len(value) != 4:
        raise BadHeader(f"a CRC32C of {len(value)} bytes")
    if crc32c(header[:position] + bytes(4) + header[position + 4 :]) != int.from_bytes(value):
        raise BadHeader("a CRC32C that does not fit the header")


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720 section 12.1 (Castagnoli's polynomial)."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = _TABLE[(remainder ^ byte) & 0xFF] ^ remainder >> 8
    return remainder ^ 0xFFFFFFFF


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE: Final = tuple(_table_entry(byte) for byte in range(256))
