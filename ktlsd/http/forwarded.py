"""The origin of a request from trusted proxies' fields: the client's address, its scheme, a request id. Pure.

Strategy: walk from the nearest hop to the client for as long as the hop that reports is trusted, since what is further
left may be the client's own invention. Only the fields that the operator's proxies write are read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Final, NamedTuple

from ktlsd.config.networks import UNIX, Address, Networks, parse_address
from ktlsd.config.values import ForwardedFields

MOST_HOPS: Final = 64
"""Number of hops that are read."""

FIELDS: Final = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-proto", "x-request-id"})
"""Request fields, in lower case, that may say something about the client."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  RFC 9110 section 5.6.2
_PAIR: Final = re.compile(rf'[ \t]*({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*+")[ \t]*', re.DOTALL)
_BLANKS: Final = re.compile(r"[ \t]*+(?=[;,]|\Z)")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
# nodename [":" node-port] of RFC 7239 section 6; X-Forwarded-For also has IPv6 addresses without brackets.
_NODE: Final = re.compile(r"\[([^\]]*)\](?::[0-9A-Za-z._-]*)?|([^:]*)(?::[0-9A-Za-z._-]*)?")


class Hop(NamedTuple):
    """One step of a request's way: the node that a proxy took it from, and by which scheme."""

    node: str
    scheme: str


class Origin(NamedTuple):
    """The origin of a request, as reported by trusted proxies."""

    address: str
    """The client's, without a port if a proxy sent it; "unix" for a client on a Unix socket."""
    https: bool
    """Whether the client itself speaks TLS, to this server or to a proxy."""
    request_id: str | None = None


def origin(fields: Mapping[str, str], nearest: Origin, trusted: Networks, written: ForwardedFields) -> Origin:
    """The origin of a request from a peer in `trusted`; `nearest` is the origin without its fields.

    `fields` has lower-case names, repeated fields joined with ", ". Never raises: an invalid entry ends the walk.
    """
    hops = _from_forwarded(fields) if written == "forwarded" else _from_x_forwarded(fields)
    address, https = nearest.address, nearest.https
    for node, scheme in hops:
        if scheme:
            https = scheme == "https"
        hop = _read_node(node)
        if hop is None:
            break
        address, peer = hop
        if not trusted.holds(peer):
            break
    request_id = fields.get("x-request-id", "")
    return Origin(address, https, request_id if _REQUEST_ID.fullmatch(request_id) else None)


def is_https(fields: Mapping[str, str], nearest: Origin, trusted: Networks, written: ForwardedFields) -> bool:
    """The scheme of origin(), often without a look at the addresses."""
    scheme = fields.get("x-forwarded-proto", "").strip().lower()
    if written == "forwarded" or "," in scheme:
        return origin(fields, nearest, trusted, written).https
    return scheme == "https" if scheme else nearest.https


@functools.lru_cache(1024)
def _address(text: str) -> Address | None:
    node = _read_node(text)
    if node is None:
        raise ValueError(f"no address: {text}")
    return node[1]


def address_of_origin(origin: Origin) -> Address | None:
    """The client's address; None on a Unix socket. Raises ValueError for what neither the kernel nor a proxy writes."""
    return _address(origin.address)


def _from_forwarded(fields: Mapping[str, str]) -> list[Hop]:
    """The hops, the nearest first."""
    return _parse_forwarded(fields.get("forwarded", ""))[: -MOST_HOPS - 1 : -1]


def _from_x_forwarded(fields: Mapping[str, str]) -> list[Hop]:
    """The hops, the nearest first; where the schemes are not one for each, only the nearest proxy's counts."""
    nodes = _from_the_right(fields.get("x-forwarded-for", ""))
    schemes = [scheme.lower() for scheme in _from_the_right(fields.get("x-forwarded-proto", ""))]
    if len(schemes) != len(nodes):
        schemes = schemes[:1]
    return [Hop(node, scheme) for node, scheme in zip_longest(nodes, schemes, fillvalue="")]


def _from_the_right(value: str) -> list[str]:
    """The members of a list from its end on, without empty ones (RFC 9110 section 5.6.1.2)."""
    parts = value.rsplit(",", MOST_HOPS)[-MOST_HOPS:]
    return [stripped for part in reversed(parts) if (stripped := part.strip())]


def _parse_forwarded(value: str) -> list[Hop]:
    """The elements of a Forwarded field (RFC 7239 section 4), the client's first; none of them when one is malformed.

    A quote that a client opens and does not close would otherwise swallow what a proxy adds. Empty elements and pairs
    do not count (RFC 9110 section 5.6.1.2).
    """
    hops: list[Hop] = []
    pairs: dict[str, str] = {}
    position = 0
    while position <= len(value):
        found = _PAIR.match(value, position) or _BLANKS.match(value, position)
        if found is None:
            return []
        if found.lastindex:
            name, text = found[1].lower(), found[2]
            if name in pairs:
                return []
            pairs[name] = _ESCAPED.sub(r"\1", text[1:-1]) if text.startswith('"') else text
        position = found.end()
        separator = value[position : position + 1]
        if separator not in (";", ",", ""):
            return []
        position += 1
        if separator != ";" and pairs:
            hops.append(Hop(pairs.get("for", ""), pairs.get("proto", "").lower()))
            pairs = {}
    return hops


def _read_node(node: str) -> tuple[str, Address | None] | None:
    """A node as text and as an address (none for a Unix socket); None for one that hides itself or makes no sense."""
    if node.lower() in (UNIX, "unix:"):
        return UNIX, None
    address = parse_address(node)
    if address is None:
        found = _NODE.fullmatch(node)
        address = parse_address(found[1] or found[2] or "") if found else None
    return None if address is None else (str(address), address)
