"""Signed links: a link says what a plain reader of the signed text says, and no other text has its signature.

Strategy: the input is a path, a line feed and a query. The query is read as it is, and with a right signature.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from ktlsd.http.signed_links import SIGNATURE, SignedLink, Unsigned, read_link, sign, without_signatures

TOKENS: Final = (
    *(b"expires=", b"starts=", b"client=", b"prefix=", b"key=k", b"&signature=", b"&", b"=", b"/", b"%2F", b"\n"),
    *(b"192.0.2.0/24", b"2001:db8::1", b"unix", b"0" * 64),
)

_SECRET: Final = b"0123456789abcdef" * 2
_ADDRESSES: Final = tuple(map(ip_network, ("192.0.2.1", "2001:db8::1", "0.0.0.0")))
_LONGEST_TIME: Final = 11


def check(data: bytes) -> None:
    path, _, query = data.partition(b"\n")
    _compare(path, query)
    right = _hmac(path + b"?" + query)
    assert sign(_SECRET, path, query) == right
    _compare(path, query + SIGNATURE + right.encode())
    for prefix in (path[: path.rfind(b"/") + 1], path):
        _compare(path + b"x", query + SIGNATURE + _hmac(prefix + b"?" + query).encode())
    shown = without_signatures(query + SIGNATURE + right.encode())
    assert right.encode() not in shown


def _compare(path: bytes, query: bytes) -> None:
    try:
        found: SignedLink | None = read_link(path, query, {b"k": _SECRET}.get)
    except Unsigned:
        found = None
    expected = _expected(path, query)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        starts, ends, network = expected
        assert (found.starts, found.ends) == (starts, ends)
        for address in _ADDRESSES:
            assert found.is_for(address.network_address) == _holds(network, address)


def _holds(network: bytes | None, address: IPv4Network | IPv6Network) -> bool:
    if network is None:
        return True
    if network == b"unix":
        return False
    block = ip_network(network.decode("ascii"))
    first, last = int(block.network_address), int(block.broadcast_address)
    return block.version == address.version and first <= int(address.network_address) <= last


def _expected(path: bytes, query: bytes) -> tuple[int, int, bytes | None] | None:
    """The beginning, the end and the client of a right link."""
    end = query.find(SIGNATURE)
    if end < 0:
        return None
    signed, given = query[:end], query[end + len(SIGNATURE) :].split(b"&")[0].lower()
    values: dict[bytes, bytes] = {}
    for pair in signed.split(b"&"):
        name = pair.split(b"=")[0]
        if name in (b"client", b"expires", b"key", b"prefix", b"starts"):
            if name in values:
                return None
            values[name] = _decoded(pair[len(name) + 1 :])
    prefix = values.get(b"prefix", path)
    if b"?" in signed or values.get(b"key") != b"k" or given != _hmac(prefix + b"?" + signed).encode():
        return None
    if b"prefix" in values and (prefix[-1:] != b"/" or path[: len(prefix)] != prefix):
        return None
    ends, starts, client = values.get(b"expires", b""), values.get(b"starts", b"0"), values.get(b"client")
    for time in (ends, starts):
        if not 0 < len(time) <= _LONGEST_TIME or any(not 48 <= byte <= 57 for byte in time):
            return None
    if client is not None and client != b"unix":
        try:
            ip_network(client.decode("ascii"))
        except ValueError:
            return None
    return int(starts), int(ends), client


def _decoded(text: bytes) -> bytes:
    """Percent-encoding; a sign that begins none stands for itself."""
    decoded, position = bytearray(), 0
    while position < len(text):
        digits = text[position + 1 : position + 3]
        if (
            text[position] == ord("%")
            and len(digits) == 2
            and all(byte in b"0123456789abcdefABCDEF" for byte in digits)
        ):
            decoded.append(int(digits, 16))
            position += 3
        else:
            decoded.append(text[position])
            position += 1
    return bytes(decoded)


def _hmac(text: bytes) -> str:
    """RFC 2104."""
    key = _SECRET.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + text).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()
