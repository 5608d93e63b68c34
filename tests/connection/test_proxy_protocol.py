"""PROXY headers of both versions, as the specification has them, cut anywhere and bent in every way."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.config.networks import Address
from ktlsd.connection.proxy_header import take_proxy_header
from ktlsd.connection.proxy_protocol import (
    LONGEST,
    LONGEST_V1,
    BadHeader,
    Endpoint,
    Header,
    Incomplete,
    ProxyTls,
    crc32c,
    parse,
)
from ktlsd.openssl.errors import ConnectionLost
from ktlsd.tls.ktls_probe import loopback_pair

START = b"\r\n\r\n\0\r\nQUIT\n"
PROXY, LOCAL = 0x21, 0x20
TCP4, TCP6, UNIX, UNSPEC = 0x11, 0x21, 0x31, 0x00
UDP4, UDP6, UNIX_DATAGRAM = 0x12, 0x22, 0x32
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 1, 2, 3, 4, 5, 0x20, 0x30
ADDRESSES_4 = IPv4Address("192.0.2.7").packed + IPv4Address("198.51.100.1").packed + struct.pack("!HH", 50312, 443)
ADDRESSES_6 = IPv6Address("2001:db8::7").packed + IPv6Address("2001:db8::1").packed + struct.pack("!HH", 1, 65535)
FROM_4 = Endpoint(IPv4Address("192.0.2.7"), 50312)
TO_4 = Endpoint(IPv4Address("198.51.100.1"), 443)
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def v2(body: bytes, command: int = PROXY, family: int = TCP4) -> bytes:
    return START + struct.pack("!BBH", command, family, len(body)) + body


def with_checksum(body: bytes, family: int = TCP4) -> bytes:
    """A header with the right checksum at its end."""
    header = v2(body + tlv(CRC32C, bytes(4)), family=family)
    return header[:-4] + struct.pack("!I", crc32c(header))


def ssl_tlv(flags: int, failed: int, *inner: tuple[int, bytes]) -> bytes:
    return tlv(SSL, struct.pack("!BI", flags, failed) + b"".join(tlv(*one) for one in inner))


GOOD: dict[str, tuple[bytes, Header]] = {
    "v1 tcp4": (b"PROXY TCP4 192.0.2.7 198.51.100.1 50312 443\r\n", Header(45, source=FROM_4, destination=TO_4)),
    "v1 tcp6": (
        b"PROXY TCP6 2001:db8::7 ::ffff:198.51.100.1 0 443\r\n",
        Header(50, source=Endpoint(IPv6Address("2001:db8::7"), 0), destination=TO_4),
    ),
    "v1 longest": (
        b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n",
        Header(LONGEST_V1),
    ),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", Header(15)),
    "v1 unknown with addresses": (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65536\r\n", Header(59)),
    "v1 ports": (
        b"PROXY TCP4 192.0.2.7 198.51.100.1 0 65535\r\n",
        Header(
            43, source=Endpoint(IPv4Address("192.0.2.7"), 0), destination=Endpoint(IPv4Address("198.51.100.1"), 65535)
        ),
    ),
    "v1 tcp6 in capitals": (
        b"PROXY TCP6 2001:DB8::7 ::FFFF:C000:207 1 2\r\n",
        Header(
            44,
            source=Endpoint(IPv6Address("2001:db8::7"), 1),
            destination=Endpoint(IPv4Address("192.0.2.7"), 2),
        ),
    ),
    "v2 tcp4": (v2(ADDRESSES_4), Header(28, source=FROM_4, destination=TO_4)),
    "v2 tcp6": (
        v2(ADDRESSES_6, family=TCP6),
        Header(
            52,
            source=Endpoint(IPv6Address("2001:db8::7"), 1),
            destination=Endpoint(IPv6Address("2001:db8::1"), 65535),
        ),
    ),
    "v2 unix": (v2(bytes(216) + tlv(UNIQUE_ID, b"x"), family=UNIX), Header(16 + 216 + 4, unique_id=b"x")),
    "v2 local": (v2(b"", LOCAL, UNSPEC), Header(16, local=True)),
    "v2 local with anything": (v2(b"any", LOCAL, 0xFF), Header(19, local=True)),
    "v2 udp4": (v2(ADDRESSES_4, family=UDP4), Header(28)),
    "v2 udp6": (v2(ADDRESSES_6, family=UDP6), Header(52)),
    "v2 unix datagram": (v2(bytes(216), family=UNIX_DATAGRAM), Header(16 + 216)),
    "v2 udp4 with values": (
        v2(ADDRESSES_4 + tlv(AUTHORITY, b"a.example") + tlv(UNIQUE_ID, b"x") + ssl_tlv(1, 0), family=UDP4),
        Header(
            28 + 12 + 4 + 8,
            authority="a.example",
            unique_id=b"x",
            tls=ProxyTls("", "", verified=False, common_name=""),
        ),
    ),
    "v2 udp6 checksum": (with_checksum(ADDRESSES_6, UDP6), Header(52 + 7)),
    "v2 unspecified": (v2(b"any", PROXY, UNSPEC), Header(19)),
    "v2 unspecified, nothing": (v2(b"", PROXY, UNSPEC), Header(16)),
    "v2 values": (
        v2(
            ADDRESSES_4
            + tlv(NOOP, b"...")
            + tlv(ALPN, b"h2")
            + tlv(AUTHORITY, b"www.example.org")
            + tlv(UNIQUE_ID, bytes(range(128)))
            + tlv(NETNS, b"blue")
            + tlv(0xEE, b"")
        ),
        Header(
            28 + 6 + 5 + 18 + 131 + 7 + 3,
            source=FROM_4,
            destination=TO_4,
            alpn=b"h2",
            authority="www.example.org",
            unique_id=bytes(range(128)),
        ),
    ),
    "v2 tls": (
        v2(ADDRESSES_4 + ssl_tlv(7, 0, (0x21, b"TLSv1.3"), (0x22, b"proxy"), (0x23, b"AES"), (0x25, b"RSA2048"))),
        Header(
            28 + 8 + 10 + 8 + 6 + 10,
            source=FROM_4,
            destination=TO_4,
            tls=ProxyTls("TLSv1.3", "AES", verified=True, common_name="proxy"),
        ),
    ),
    "v2 tls without a certificate": (
        v2(ADDRESSES_4 + ssl_tlv(1, 0)),
        Header(36, source=FROM_4, destination=TO_4, tls=ProxyTls("", "", verified=False, common_name="")),
    ),
    "v2 tls with a bad certificate": (
        v2(ADDRESSES_4 + ssl_tlv(3, 10)),
        Header(36, source=FROM_4, destination=TO_4, tls=ProxyTls("", "", verified=False, common_name="")),
    ),
    "v2 no tls": (v2(ADDRESSES_4 + ssl_tlv(0, 1)), Header(36, source=FROM_4, destination=TO_4)),
    "v2 checksum": (
        with_checksum(ADDRESSES_4 + tlv(ALPN, b"h2")),
        Header(40, source=FROM_4, destination=TO_4, alpn=b"h2"),
    ),
    "v2 longest": (
        v2(ADDRESSES_4 + tlv(NOOP, bytes(LONGEST - 28 - 3))),
        Header(LONGEST, source=FROM_4, destination=TO_4),
    ),
}

BAD = [
    (b"GET / HTTP/1.1\r\n", "no PROXY header"),
    (HELLO, "no PROXY header"),
    (b"PROXY\r\n", "no PROXY header"),
    (b"proxy TCP4", "no PROXY header"),
    (b"PROXY \r\n", "malformed"),
    (b"PROXY TCP4\r\n", "malformed"),
    (b"PROXY TCP5 192.0.2.7 192.0.2.8 1 2\r\n", "malformed"),
    (b"PROXY TCP4  192.0.2.7 192.0.2.8 1 2\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2 \r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 1\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 01 2\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 +1 2\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 \xb21 2\r\n", "malformed"),
    (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "malformed"),
    (b"PROXY UNKNOWNER\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 65536\r\n", "port 65536"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 65536 1\r\n", "port 65536"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 99999 1\r\n", "port 99999"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 100000 1\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 -1 2\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8  2\r\n", "malformed"),
    (b"PROXY TCP6 fe80::1%25eth0 ::1 1 2\r\n", "malformed"),
    (b"PROXY TCP6 [::1] ::1 1 2\r\n", "malformed"),
    (b"PROXY TCP6 ::1::2 ::1 1 2\r\n", "bad address"),
    (b"PROXY TCP6 12345::1 ::1 1 2\r\n", "bad address"),
    (b"PROXY TCP4 192.0.2 192.0.2.8 1 2\r\n", "bad address"),
    (b"PROXY TCP4 3221225991 192.0.2.8 1 2\r\n", "bad address"),
    (b"PROXY UDP4 192.0.2.7 192.0.2.8 1 2\r\n", "malformed"),
    (b"PROXY unknown\r\n", "malformed"),
    (b"PROXY UNKNOWN\0\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.07 192.0.2.8 1 2\r\n", "bad address"),
    (b"PROXY TCP4 192.0.2.256 192.0.2.8 1 2\r\n", "bad address"),
    (b"PROXY TCP4 ::1 ::1 1 2\r\n", "bad address"),
    (b"PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n", "bad address"),
    (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\n", "CRLF"),
    (b"PROXY TCP4 192.0.2.7\r192.0.2.8 1 2", "CRLF"),
    (b"PROXY UNKNOWN " + b"f" * 93, "without its end in 107 bytes"),
    (b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n", "without its end in 107 bytes"),
    (START + b"\x11\x11\x00\x0c" + ADDRESSES_4, "version 1 "),
    (START + b"\x22\x11\x00\x0c" + ADDRESSES_4, "command 2"),
    (v2(ADDRESSES_4, family=0x41), "address family 0x4"),
    (v2(ADDRESSES_4, family=0x13), "transport protocol 0x3"),
    (v2(ADDRESSES_4[:-1], family=UDP4), "shorter than its addresses"),
    (v2(ADDRESSES_6[:-1], family=UDP6), "shorter than its addresses"),
    (v2(bytes(215), family=UNIX_DATAGRAM), "shorter than its addresses"),
    (v2(ADDRESSES_4 + b"\x04\x00\x02a", family=UDP4), "ends after the header"),
    (v2(ADDRESSES_4 + tlv(CRC32C, bytes(4)), family=UDP4), "does not fit"),
    (v2(ADDRESSES_4[:-1]), "shorter than its addresses"),
    (v2(ADDRESSES_6[:-1], family=TCP6), "shorter than its addresses"),
    (v2(bytes(215), family=UNIX), "shorter than its addresses"),
    (v2(ADDRESSES_4 + b"\x04"), "ends after the header"),
    (v2(ADDRESSES_4 + b"\x04\x00"), "ends after the header"),
    (v2(ADDRESSES_4 + b"\x04\x00\x02a"), "ends after the header"),
    (v2(ADDRESSES_4 + tlv(UNIQUE_ID, bytes(129))), "unique ID of 129 bytes"),
    (v2(ADDRESSES_4 + tlv(SSL, b"\x01\0\0\0")), "too short"),
    (v2(ADDRESSES_4 + tlv(SSL, b"\x01\0\0\0\0\x21\x00\x09a")), "ends after the header"),
    (v2(ADDRESSES_4 + tlv(CRC32C, b"\0\0\0")), "CRC32C of 3 bytes"),
    (v2(ADDRESSES_4 + tlv(CRC32C, b"\0\0\0\0")), "does not fit"),
    (with_checksum(ADDRESSES_4).replace(b"\xc0\x00\x02\x07", b"\xc0\x00\x02\x08"), "does not fit"),
    (START + struct.pack("!BBH", PROXY, TCP4, LONGEST - 15), f"more than {LONGEST}"),
]


@pytest.mark.parametrize("name", GOOD)
def test_a_header_says_what_it_has(name: str) -> None:
    data, expected = GOOD[name]
    assert expected.length == len(data)
    assert parse(data) == expected
    assert parse(data + HELLO) == expected


@pytest.mark.parametrize("command", [LOCAL, PROXY])
@pytest.mark.parametrize("family", range(256))
def test_every_family_and_transport_that_the_specification_has_is_taken(command: int, family: int) -> None:
    """Section 2.2: what is valid and not supported counts as unspecified, what is not defined is refused."""
    data = v2(bytes(216), command, family)
    if command == LOCAL:
        assert parse(data) == Header(len(data), local=True)
    elif family >> 4 > 3 or family & 0xF > 2:
        with pytest.raises(BadHeader, match=r"the address family|the transport protocol"):
            parse(data)
    else:
        found = parse(data)
        assert isinstance(found, Header)
        assert found.length == len(data)
        assert not found.local
        assert (found.source is not None) == (found.destination is not None) == (family in (TCP4, TCP6))


@pytest.mark.parametrize("family", [0x00, 0x01, 0x02, 0x10, 0x20, 0x30], ids=hex)
@pytest.mark.parametrize("body", [b"", b"any", bytes(300), ADDRESSES_4 + tlv(CRC32C, bytes(4))], ids=len)
def test_nothing_counts_of_a_header_with_an_unspecified_part(family: int, body: bytes) -> None:
    assert parse(v2(body, PROXY, family)) == Header(16 + len(body))


@pytest.mark.parametrize("name", GOOD)
def test_every_part_of_a_header_goes_on(name: str) -> None:
    data, _ = GOOD[name]
    assert {parse(data[:end]) for end in range(len(data))} == {Incomplete()}


@pytest.mark.parametrize(("data", "reason"), BAD)
def test_what_is_no_header_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadHeader, match=reason):
        parse(data)


@pytest.mark.parametrize(
    ("beginning", "reason"),
    [
        (START + b"\x31", "version 3"),
        (START + b"\x22", "command 2"),
        (START + b"\x21\x41", "address family 0x4"),
        (START + b"\x21\x13", "transport protocol 0x3"),
        (v2(ADDRESSES_4)[:14] + struct.pack("!H", 11), "shorter than its addresses"),
        (v2(ADDRESSES_4)[:14] + b"\xff\xff", f"more than {LONGEST}"),
    ],
)
def test_a_header_is_refused_with_the_byte_that_makes_it_wrong(beginning: bytes, reason: str) -> None:
    assert parse(beginning[:-1]) == Incomplete()
    with pytest.raises(BadHeader, match=reason):
        parse(beginning)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_that_of_the_rfc(data: bytes, expected: int) -> None:
    """The values are those of RFC 3720 section B.4, the first that of every table of such."""
    assert crc32c(data) == expected


PORTS = st.integers(0, 65535)


@settings(deadline=None)
@given(source=st.ip_addresses(v=4), destination=st.ip_addresses(v=4), ports=st.tuples(PORTS, PORTS))
def test_both_versions_say_the_same(source: Address, destination: Address, ports: tuple[int, int]) -> None:
    line = f"PROXY TCP4 {source} {destination} {ports[0]} {ports[1]}\r\n".encode()
    binary = v2(source.packed + destination.packed + struct.pack("!HH", *ports))
    first, second = parse(line), parse(binary)
    assert isinstance(first, Header)
    assert isinstance(second, Header)
    assert (
        (first.source, first.destination)
        == (second.source, second.destination)
        == (
            Endpoint(source, ports[0]),
            Endpoint(destination, ports[1]),
        )
    )


PREFIXES = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", START, *(good for good, _ in GOOD.values())])


@settings(deadline=None)
@given(start=PREFIXES, rest=st.binary(max_size=200), cut=st.integers(0, 400))
def test_anything_is_a_header_or_goes_on_or_is_refused(start: bytes, rest: bytes, cut: int) -> None:
    data = (start + rest)[:cut] if cut < 200 else start + rest
    try:
        found = parse(data)
    except BadHeader:
        return
    if isinstance(found, Header):
        assert 0 < found.length <= min(len(data), LONGEST)
        assert parse(data[: found.length]) == found
        if found.length:
            assert parse(data[: found.length - 1]) == Incomplete()
    else:
        # What goes on may not run past what is ever read.
        assert len(data) < LONGEST


@settings(deadline=None)
@given(name=st.sampled_from(sorted(GOOD)), position=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_changed_byte_never_makes_it_take_more(name: str, position: int, byte: int) -> None:
    data = bytearray(GOOD[name][0][:600])
    data[position % len(data)] = byte
    try:
        found = parse(bytes(data))
    except BadHeader:
        return
    assert not isinstance(found, Header) or found.length <= len(data)


# --- on a real socket


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The proxy's end and ours."""
    if request.param == "unix":
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.setblocking(False)
            yield near, far
    else:
        with loopback_pair() as (near, far):
            yield near, far


@pytest.mark.parametrize("name", GOOD)
async def test_what_follows_a_header_stays_in_the_socket(pair: tuple[socket.socket, socket.socket], name: str) -> None:
    near, far = pair
    data, expected = GOOD[name]
    near.send(data + HELLO)
    with trio.fail_after(10):
        assert await take_proxy_header(far) == expected
        await trio.lowlevel.wait_readable(far)
    assert far.recv(65536) == HELLO


@pytest.mark.parametrize("name", ["v1 tcp4", "v2 values", "v2 local"])
async def test_a_header_may_come_in_single_bytes(pair: tuple[socket.socket, socket.socket], name: str) -> None:
    near, far = pair
    data, expected = GOOD[name]
    found: list[Header] = []

    async def take() -> None:
        found.append(await take_proxy_header(far))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            for byte in data:
                assert not found
                near.send(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked(0.001)
        near.send(HELLO)
        await trio.lowlevel.wait_readable(far)
    assert found == [expected]
    assert far.recv(65536) == HELLO


async def test_a_header_that_does_not_go_on_is_waited_for_without_a_look(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    near.send(b"PROXY TCP4 ")
    steps: list[str] = []

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            steps.append(task.name)

    counter = Steps()
    trio.lowlevel.add_instrument(counter)
    with trio.move_on_after(0.2) as scope:
        await take_proxy_header(far)
    trio.lowlevel.remove_instrument(counter)
    assert scope.cancelled_caught
    assert len(steps) < 20


async def test_a_peer_that_says_nothing_has_left(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.shutdown(socket.SHUT_WR)
    with trio.fail_after(10), pytest.raises(ConnectionLost):
        await take_proxy_header(far)


async def test_a_peer_that_stops_within_a_header_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.send(b"PROXY TCP4 ")
    near.shutdown(socket.SHUT_WR)
    with trio.fail_after(10), pytest.raises(BadHeader, match="too early"):
        await take_proxy_header(far)
