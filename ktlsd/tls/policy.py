"""The offer in handshakes, by the name of a policy: pure.

Strategy: a table. `modern` and `intermediate` are Mozilla's (Server Side TLS guidelines 6.0), and kTLS carries every
suite in them; `compatible` adds what it never carries, for clients that have nothing else; `nic` is `intermediate`, of
which handshake.py offers only TLS 1.2 where a NIC encrypts. docs/tls.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ktlsd.config.values import TlsPolicy
from ktlsd.openssl.algorithms import CIPHER_LIST, TLS_1_2, TLS_1_3


class Policy(NamedTuple):
    """The suites of TLS 1.3 and the groups are the same in all."""

    oldest: int
    """TLS_1_2 or TLS_1_3."""
    ciphers: str
    """Of TLS 1.2, as OpenSSL writes lists, best first (ciphers(1))."""


_CBC: Final = ":".join(
    f"ECDHE-{authentication}-{cipher}"
    for cipher in ("AES128-SHA256", "AES256-SHA384")
    for authentication in ("ECDSA", "RSA")
)
EVERY_CIPHER: Final = f"{CIPHER_LIST}:{_CBC}"
"""Of TLS 1.2, in any policy."""

POLICIES: Final[Mapping[TlsPolicy, Policy]] = {
    "modern": Policy(TLS_1_3, CIPHER_LIST),
    "intermediate": Policy(TLS_1_2, CIPHER_LIST),
    "compatible": Policy(TLS_1_2, EVERY_CIPHER),
    "nic": Policy(TLS_1_2, CIPHER_LIST),
}

FOR_NICS: Final[Mapping[str, frozenset[int]]] = {
    "EC": frozenset({0xC02B, 0xC02C}),
    "RSA": frozenset({0xC02F, 0xC030}),
}
"""The suites of TLS 1.2 that NICs take, ECDHE with AES-GCM, by the type of the certificate's key (RFC 5289)."""
