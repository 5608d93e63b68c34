"""The host of a URI authority or a Host field: pure.

Strategy: a regular expression splits the port off and checks registered names and IPvFuture literals by the grammar of
RFC 3986 section 3.2.2; an IPv6 literal is valid if Python's ipaddress reads it. A registered name may look like a wrong
IPv4 address: the grammar allows it.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Final

_AUTHORITY: Final = re.compile(
    r"""
    (
        \[ (?: v[0-9a-f]++ \. [a-z0-9._~!$&'()*+,;=:-]+ | ([0-9a-f:.]+) ) \]  # IPvFuture, or what may be IPv6
        | (?: [a-z0-9._~!$&'()*+,;=-] | %[0-9a-f]{2} )*+                      # reg-name, an IPv4 address among them
    )
    (?: : [0-9]* )?
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


def host_of(authority: str) -> str | None:
    """The host of `uri-host [":" port]` as it was written, empty if there is none; None if that is not valid.

    RFC 9110 section 7.2, RFC 3986 section 3.2.2. A zone identifier is not valid: it has a meaning on one machine only
    (RFC 9844).
    """
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return None
    host, ipv6 = found.groups()
    if ipv6 is not None:
        try:
            IPv6Address(ipv6)
        except AddressValueError:
            return None
    return host
