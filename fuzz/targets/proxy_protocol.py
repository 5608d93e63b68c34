"""PROXY headers: what they say is what a second reading of the specification says, however they are cut.

Strategy: version 1 is read word by word, version 2 by struct. What follows a header must not matter, and less than a
header must never be one.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from fuzz.cuts import cuts
from ktlsd.connection.proxy_protocol import LONGEST, LONGEST_V1, BadHeader, Endpoint, Header, Incomplete, crc32c, parse

_START: Final = b"\r\n\r\n\0\r\nQUIT\n"
TOKENS: Final = (
    _START,
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    b"PROXY UNKNOWN",
    b"192.0.2.7 ",
    b"2001:db8::7 ",
    b"::ffff:192.0.2.1 ",
    b"65535",
    b"\r\n",
    b"\x21\x11\x00\x0c",
    b"\x21\x21\x00\x24",
    b"\x21\x31\x00\xd8",
    b"\x21\x12\x00\x0c",
    b"\x21\x22\x00\x24",
    b"\x21\x32\x00\xd8",
    b"\x20\x00\x00\x00",
    b"\x01\x00\x02h2",
    b"\x02\x00\x0bexample.org",
    b"\x03\x00\x04",
    b"\x05\x00\x01",
    b"\x20\x00\x05\x01\x00\x00\x00\x00",
    b"\x21\x00\x07TLSv1.3",
)

_SIZES: Final = {0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_WITHOUT_ADDRESSES: Final = (0x00, 0x01, 0x02, 0x10, 0x20, 0x30)
_CRC: Final = 3


def check(data: bytes) -> None:
    found = _parsed(data)
    expected = _expected(data)
    if isinstance(expected, tuple):
        assert isinstance(found, Header)
        assert (found.length, found.local, found.source, found.destination) == expected[:4]
        assert (found.alpn, found.authority, found.unique_id) == expected[4:]
        _check_complete(data, found)
    else:
        assert isinstance(found, expected)
    for end in cuts(len(data), found.length if isinstance(found, Header) else 0):
        earlier = _parsed(data[:end])
        if isinstance(earlier, BadHeader):
            assert isinstance(found, BadHeader)
        elif isinstance(earlier, Header):
            assert earlier == found


def _check_complete(data: bytes, found: Header) -> None:
    assert found.length <= LONGEST
    # Nothing after a header counts, not even what looks like another.
    for more in (b"", b"\n", b"\0", data):
        assert _parsed(data[: found.length] + more) == found
    for end in cuts(found.length - 1, found.length):
        assert isinstance(_parsed(data[:end]), Incomplete)
    for endpoint in (found.source, found.destination):
        if endpoint is not None:
            assert 0 <= endpoint.port <= 0xFFFF
            assert not isinstance(endpoint.address, ipaddress.IPv6Address) or endpoint.address.ipv4_mapped is None


def _parsed(data: bytes) -> Header | Incomplete | BadHeader:
    try:
        return parse(data)
    except BadHeader as error:
        text = str(error)
        assert text
        assert text.isprintable()
        return error


_Said = tuple[int, bool, Endpoint | None, Endpoint | None, bytes | None, str | None, bytes | None]


def _expected(data: bytes) -> _Said | type[Incomplete | BadHeader]:
    if _START.startswith(data[:12]):
        return _expected_v2(data)
    if b"PROXY ".startswith(data[:6]):
        return _expected_v1(data)
    return BadHeader


def _expected_v1(data: bytes) -> _Said | type[Incomplete | BadHeader]:
    end = data.find(b"\r\n", 0, LONGEST_V1)
    if end < 0:
        line = data[:LONGEST_V1]
        # A carriage return may be the beginning of the end.
        broken = b"\n" in line or b"\r" in line[:-1]
        return BadHeader if broken or len(data) >= LONGEST_V1 else Incomplete
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        broken = b"\n" in data[:end] or b"\r" in data[:end]
        return BadHeader if broken else (end + 2, False, None, None, None, None, None)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        return BadHeader
    family = socket_family(words[1])
    ends = []
    for address, port in ((words[2], words[4]), (words[3], words[5])):
        if not port.isdigit() or (port[:1] == b"0" and port != b"0") or len(port) > 5 or int(port) > 0xFFFF:
            return BadHeader
        try:
            ends.append(_endpoint(family(address.decode("ascii")), int(port)))
        except ValueError:
            return BadHeader
        if b"%" in address:
            return BadHeader
    return end + 2, False, ends[0], ends[1], None, None, None


def socket_family(word: bytes) -> type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]:
    return ipaddress.IPv4Address if word == b"TCP4" else ipaddress.IPv6Address


def _endpoint(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Endpoint:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return Endpoint(mapped or address, port)


def _expected_v2(data: bytes) -> _Said | type[Incomplete | BadHeader]:
    if data[12:13] not in (b"", b"\x20", b"\x21"):
        return BadHeader
    if data[12:13] == b"\x21" and data[13:14] and data[13] not in (*_SIZES, *_WITHOUT_ADDRESSES):
        return BadHeader
    if len(data) < 16:
        return Incomplete
    version_command, family, length = struct.unpack_from("!BBH", data, 12)
    if 16 + length > LONGEST or (version_command == 0x21 and length < _SIZES.get(family, 0)):
        return BadHeader
    if len(data) < 16 + length:
        return Incomplete
    nothing = (None, None, None, None, None)
    if version_command == 0x20:
        return 16 + length, True, *nothing
    if family in _WITHOUT_ADDRESSES:
        return 16 + length, False, *nothing
    source = destination = None
    if family == 0x11:
        first, second, *ports = struct.unpack_from("!4s4sHH", data, 16)
        source, destination = (
            Endpoint(ipaddress.IPv4Address(a), p) for a, p in zip((first, second), ports, strict=True)
        )
    elif family == 0x21:
        first, second, *ports = struct.unpack_from("!16s16sHH", data, 16)
        source, destination = (
            _endpoint(ipaddress.IPv6Address(a), p) for a, p in zip((first, second), ports, strict=True)
        )
    values: dict[int, bytes] = {}
    position, end = 16 + _SIZES[family], 16 + length
    while position < end:
        if end - position < 3:
            return BadHeader
        kind, count = struct.unpack_from("!BH", data, position)
        position += 3
        value = data[position : position + count]
        if position + count > end:
            return BadHeader
        if kind == _CRC:
            blanked = data[:position] + b"\0\0\0\0" + data[position + 4 : end]
            if count != 4 or crc32c(blanked) != int.from_bytes(value):
                return BadHeader
        values[kind] = value
        position += count
    if len(values.get(5, b"")) > 128 or not _is_tls(values.get(0x20)):
        return BadHeader
    authority = values.get(2)
    host = None if authority is None else authority.decode("utf-8", "replace")
    return 16 + length, False, source, destination, values.get(1), host, values.get(5)


def _is_tls(value: bytes | None) -> bool:
    """Whether there is no SSL vector, or a whole one."""
    if value is None:
        return True
    if len(value) < 5:
        return False
    if not value[0] & 1:
        return True
    position = 5
    while position + 3 <= len(value):
        position += 3 + int.from_bytes(value[position + 1 : position + 3])
    return position == len(value)
