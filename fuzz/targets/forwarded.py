"""Fields of proxies: only trusted proxies are believed, and their fields are read as in RFC 7239.

Strategy: an input is lines of fields. They are read once more one character at a time; then what a client could have
written before what a trusted proxy adds must not change what is known of that proxy's client.
"""

from __future__ import annotations

import ipaddress
import string
from collections.abc import Mapping
from typing import Final, get_args

from fuzz.targets.validators import fields_of
from ktlsd.config.networks import Networks
from ktlsd.config.values import ForwardedFields
from ktlsd.http.forwarded import MOST_HOPS, Origin, origin

TOKENS: Final = (
    b"forwarded: ",
    b"x-forwarded-for: ",
    b"x-forwarded-proto: ",
    b"x-request-id: ",
    b"for=",
    b"proto=https",
    b"proto=http",
    b"10.0.0.1",
    b"192.0.2.7:80",
    b'"[2001:db8::7]:443"',
    b"::ffff:10.0.0.1",
    b"unix",
    b"unknown",
    b"_hidden",
    b";",
    b", ",
    b'\\"',
)

_TRUSTED: Final = Networks(["10.0.0.0/8", "unix"])
_NEAREST: Final = Origin("10.9.9.9", https=False)
_TOKEN: Final = frozenset(string.ascii_letters + string.digits + "!#$%&'*+.^_`|~-")
_PORT: Final = frozenset(string.ascii_letters + string.digits + "._-")
_REQUEST_ID: Final = frozenset(string.ascii_letters + string.digits + "._:/+=@~-")
_CLIENT: Final = "198.51.100.23"
_ADDED: Final[Mapping[str, str]] = {"forwarded": f"for={_CLIENT};proto=https", "x-forwarded-for": _CLIENT}


def check(data: bytes) -> None:
    fields = fields_of(data.decode("latin-1"))
    for written in get_args(ForwardedFields):
        found = origin(fields, _NEAREST, _TRUSTED, written)
        assert found == _expected(fields, written)
        assert found.address == "unix" or str(ipaddress.ip_address(found.address)) == found.address
        name = "forwarded" if written == "forwarded" else "x-forwarded-for"
        before = fields.get(name, "")
        # Regardless of earlier values, a proxy that appends is believed about its own client, which is not trusted.
        added = fields | {name: f"{before}, {_ADDED[name]}" if before else _ADDED[name]}
        after = origin(added, _NEAREST, _TRUSTED, written).address
        assert after in (_CLIENT, _NEAREST.address)
        assert after == _CLIENT or (name == "forwarded" and before)


def _expected(fields: Mapping[str, str], written: ForwardedFields) -> Origin:
    address, https = _NEAREST.address, _NEAREST.https
    hops = _of_forwarded(fields) if written == "forwarded" else _of_x_forwarded(fields)
    for node, scheme in hops[:MOST_HOPS]:
        if scheme:
            https = scheme == "https"
        read = _node(node)
        if read is None:
            break
        address = read
        if address != "unix" and ipaddress.ip_address(address) not in ipaddress.ip_network("10.0.0.0/8"):
            break
    given = fields.get("x-request-id", "")
    known = 1 <= len(given) <= 128 and _REQUEST_ID.issuperset(given)
    return Origin(address, https, given if known else None)


def _of_x_forwarded(fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """Nodes and schemes, the nearest first."""
    nodes, schemes = (
        [part.strip() for part in fields.get(name, "").split(",")][::-1]
        for name in ("x-forwarded-for", "x-forwarded-proto")
    )
    # What is beyond the last hop that is looked at may be left uncounted.
    nodes, schemes = ([part.lower() for part in parts[:MOST_HOPS] if part] for parts in (nodes, schemes))
    if len(nodes) == len(schemes):
        return list(zip(nodes, schemes, strict=True))
    first = schemes[0] if schemes else ""
    return [(node, "" if number else first) for number, node in enumerate(nodes)] or [("", first)]


def _of_forwarded(fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """Nodes and schemes, the nearest first; none where anything is malformed."""
    text = fields.get("forwarded", "")
    if not text:
        return []
    hops: list[tuple[str, str]] = []
    pairs: dict[str, str] = {}
    position = 0
    while True:
        while text[position : position + 1] in ("\t", " "):
            position += 1
        if text[position : position + 1] in ("", ",", ";"):
            # Nothing between two separators counts for nothing.
            if pairs and text[position : position + 1] != ";":
                hops.append((pairs.get("for", ""), pairs.get("proto", "").lower()))
                pairs = {}
            position += 1
            if position >= len(text):
                return hops[::-1]
            continue
        name, position = _token(text, position)
        if not name or text[position : position + 1] != "=" or name.lower() in pairs:
            return []
        position += 1
        if text[position : position + 1] == '"':
            value = ""
            position += 1
            while text[position : position + 1] != '"':
                position += text[position : position + 1] == "\\"
                if position >= len(text):
                    return []
                value += text[position]
                position += 1
            position += 1
        else:
            value, position = _token(text, position)
            if not value:
                return []
        pairs[name.lower()] = value
        while text[position : position + 1] in ("\t", " "):
            position += 1
        separator = text[position : position + 1]
        position += 1
        if separator not in ("", ",", ";"):
            return []
        if separator != ";" or position >= len(text):
            hops.append((pairs.get("for", ""), pairs.get("proto", "").lower()))
            pairs = {}
        if position >= len(text):
            return hops[::-1]


def _token(text: str, position: int) -> tuple[str, int]:
    end = position
    while end < len(text) and text[end] in _TOKEN:
        end += 1
    return text[position:end], end


def _node(text: str) -> str | None:
    """An address, "unix", or None."""
    if text.lower() in ("unix", "unix:"):
        return "unix"
    candidates = [text]
    if text.startswith("["):
        inside, bracket, port = text[1:].partition("]")
        if bracket and (not port or (port[0] == ":" and _PORT.issuperset(port[1:]))):
            candidates.append(inside)
    elif text.count(":") == 1 and _PORT.issuperset(text.partition(":")[2]):
        candidates.append(text.partition(":")[0])
    for candidate in candidates:
        try:
            address = ipaddress.ip_address(candidate.partition("%")[0])
        except ValueError:
            continue
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return str(mapped or address)
    return None
