"""HTTP Basic authentication (RFC 7617): the Authorization field and the challenge. Pure.

Strategy: strict, since a browser writes one form only: one field, base64 with its padding, no control characters.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

LONGEST_FIELD: Final = 2048
"""Bytes of an Authorization field; a longer one has no password that a user could type."""

_BASIC: Final = re.compile(rb"basic +([A-Za-z0-9+/]+={0,2})", re.IGNORECASE)
_GROUP: Final = 4
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")


class Credentials(NamedTuple):
    """A name and a password, as bytes of UTF-8."""

    user: bytes
    password: bytes


def credentials(field: bytes | None) -> Credentials | None:
    """The name and the password of an Authorization field; None if it has none."""
    if field is None or len(field) > LONGEST_FIELD:
        return None
    found = _BASIC.fullmatch(field)
    # binascii takes padding after a whole group.
    if found is None or len(found[1]) % _GROUP:
        return None
    try:
        pair = binascii.a2b_base64(found[1], strict_mode=True)
    except binascii.Error:
        return None
    user, colon, password = pair.partition(b":")
    if not colon or _CONTROL.search(pair):
        return None
    return Credentials(user, password)


def challenge(realm: str) -> tuple[str, str]:
    """The field by which a 401 asks for a password; `realm` has no quotes."""
    return "WWW-Authenticate", f'Basic realm="{realm}", charset="UTF-8"'


def is_preflight(method: bytes, fields: Mapping[bytes, bytes]) -> bool:
    """Whether a request is a CORS preflight, which browsers send without credentials (Fetch standard, section 4.8)."""
    return method == b"OPTIONS" and b"origin" in fields and b"access-control-request-method" in fields
