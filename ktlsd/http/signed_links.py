"""Signed links that end: PATH?expires=TIME&key=ID&signature=HEX. Pure.

Strategy: the signature is the HMAC-SHA-256 of the decoded path, a question mark, and the query as it stands before
"&signature=", so that other languages can sign in a few lines. The query has no question mark, so that the last one
ends the path: one signature is never for two files. Other parameters before the signature restrict the link or
extend it to a folder; the rest of the query is not signed and has no effect.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from ktlsd.config.networks import Address, Networks

SIGNATURE: Final = b"&signature="
_HEX: Final = re.compile(rb"[0-9a-f]{64}")
_TIME: Final = re.compile(rb"[0-9]{1,11}")
_READ: Final = (b"client", b"expires", b"key", b"prefix", b"starts")
_SHOWN: Final = re.compile(rb"(signature=[0-9A-Fa-f]{8})[0-9A-Fa-f]{56}")


class Unsigned(Exception):
    """A target without a signature, or with one that cannot be read or is wrong; the text is for the log."""


class SignedLink(Struct, frozen=True):
    """What a right signature says."""

    starts: int
    """In seconds since the epoch; 0 for no time."""
    ends: int
    """In seconds since the epoch."""
    client: Networks | None
    """Networks for whose clients it is; None for all."""

    def is_for(self, address: Address | None) -> bool:
        """Whether it is for a client with this address; None is a client on a Unix socket."""
        return self.client is None or self.client.holds(address)


def sign(secret: bytes, path: bytes, query: bytes) -> str:
    """The signature of a decoded path, or of a prefix, and a query without question marks and signature."""
    return hmac.digest(secret, b"%b?%b" % (path, query), "sha256").hex()


def read_link(path: bytes, query: bytes, secret_of: Callable[[bytes], bytes | None]) -> SignedLink:
    """Read what is signed in a target; `path` is decoded, `query` without its question mark, `secret_of` gives the
    secret of a key. Raises Unsigned."""
    signed, found, rest = query.partition(SIGNATURE)
    if not found:
        raise Unsigned("no signature")
    if b"?" in signed:
        raise Unsigned("a question mark in the query of a signed link")
    signature = rest.partition(b"&")[0].lower()
    values = _values(signed)
    secret = secret_of(values.get(b"key", b""))
    if secret is None or not _HEX.fullmatch(signature):
        raise Unsigned("a signature of an unknown key" if secret is None else "a malformed signature")
    prefix = values.get(b"prefix")
    covered = path if prefix is None else prefix
    if not hmac.compare_digest(sign(secret, covered, signed).encode("ascii"), signature):
        raise Unsigned("a wrong signature")
    # What follows was written by the operator's program.
    if prefix is not None and not (prefix.endswith(b"/") and path.startswith(prefix)):
        raise Unsigned("a signature for another folder")
    ends, starts, client = values.get(b"expires", b""), values.get(b"starts", b"0"), values.get(b"client")
    if not _TIME.fullmatch(ends) or not _TIME.fullmatch(starts):
        raise Unsigned("a signed link without a valid time in expires or starts")
    try:
        networks = None if client is None else Networks((client.decode("ascii"),))
    except ValueError:
        raise Unsigned("a signed link with a malformed client") from None
    return SignedLink(int(starts), int(ends), networks)


def _values(signed: bytes) -> Mapping[bytes, bytes]:
    """The decoded values of the parameters that are read. Raises Unsigned for one that comes twice."""
    values: dict[bytes, bytes] = {}
    for pair in signed.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name in _READ:
            if name in values:
                raise Unsigned(f"{name.decode('ascii')} twice in a signed link")
            values[name] = unquote_to_bytes(value)
    return values


def without_signatures(text: bytes) -> bytes:
    """A target or URL for logs: a whole signature gives access to the file."""
    # For bytes, `in` takes twice as long.
    return text if text.find(b"signature=") < 0 else _SHOWN.sub(rb"\1...", text)
