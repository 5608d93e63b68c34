"""Authorization: the name and the password are those of a reader by characters of RFC 7617 and RFC 4648; and which
requests are CORS preflights, which have none."""

from __future__ import annotations

import string
from typing import Final

from ktlsd.http.basic_auth import LONGEST_FIELD, Credentials, credentials, is_preflight

TOKENS: Final = (
    b"Basic ",
    b"basic  ",
    b"Bearer ",
    b"Ym9iOnNlY3JldA==",
    b"Og==",
    b"OjA6",
    b"AGE6Yg==",
    b", ",
    b"=",
    b"OPTIONS\norigin\n",
)

_ALPHABET: Final = (string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/").encode()


def check(data: bytes) -> None:
    for field in (data, b"Basic " + data):
        found = credentials(field)
        assert found == _expected(field)
        if found is not None:
            assert b":" not in found.user
            assert min(found.user + found.password, default=255) >= 0x20
    method, *names = data.split(b"\n")
    is_cors = {b"origin", b"access-control-request-method"} <= set(names)
    assert is_preflight(method, dict.fromkeys(names, b"")) == (method == b"OPTIONS" and is_cors)


def _expected(field: bytes) -> Credentials | None:
    if len(field) > LONGEST_FIELD or field[:6].lower() != b"basic ":
        return None
    pair = _decoded(field[6:].lstrip(b" "))
    if pair is None or b":" not in pair or any(byte < 0x20 or byte == 0x7F for byte in pair):
        return None
    colon = pair.index(b":")
    return Credentials(pair[:colon], pair[colon + 1 :])


def _decoded(text: bytes) -> bytes | None:
    """Base64 with its padding; the bits that no byte takes may be any."""
    if not text or len(text) % 4:
        return None
    padding = 0
    while padding < 2 and text[len(text) - 1 - padding] == ord("="):
        padding += 1
    decoded = bytearray()
    bits = count = 0
    for byte in text[: len(text) - padding]:
        if byte not in _ALPHABET:
            return None
        bits, count = bits << 6 | _ALPHABET.index(byte), count + 6
        if count >= 8:
            count -= 8
            decoded.append(bits >> count)
            bits &= (1 << count) - 1
    return bytes(decoded)
