"""The offer in handshakes, by the name of a policy and the lists that replace parts of it: pure.

Strategy: a table. `modern` and `intermediate` are Mozilla's (Server Side TLS guidelines 6.0), and kTLS carries every
suite in them; `compatible` adds what it never carries, for clients that have nothing else; `nic` is `intermediate`, of
which handshake.py offers only TLS 1.2 where a NIC encrypts. docs/tls.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ktlsd.config.options import Settings
from ktlsd.config.values import TlsPolicy, TlsVersion
from ktlsd.openssl.algorithms import CIPHER_LIST, CIPHERSUITES, GROUP_LISTS, TLS_1_2, TLS_1_3


class Policy(NamedTuple):
    """The suites of TLS 1.3 and the groups are the same in all by a name."""

    oldest: int
    """TLS_1_2 or TLS_1_3."""
    ciphers: str
    """Of TLS 1.2, as OpenSSL writes lists, best first (ciphers(1))."""
    ciphersuites: str = CIPHERSUITES
    """Of TLS 1.3, best first."""
    groups: tuple[str, ...] = GROUP_LISTS
    """Lists of groups, of which the first counts that OpenSSL takes."""

    @property
    def suits_http2(self) -> bool:
        """Whether HTTP/2 is known to refuse none of the ciphers (RFC 9113 appendix A)."""
        return self.ciphers == CIPHER_LIST


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

# Never without a certificate, even if a list has such ciphers.
_NEVER: Final = ":!aNULL:!eNULL:!PSK:!SRP"
_VERSIONS: Final[Mapping[TlsVersion, int]] = {"1.2": TLS_1_2, "1.3": TLS_1_3}


def allowed(ciphers: str) -> str:
    """A list of ciphers without those that authenticate no server or do not encrypt."""
    return ciphers + _NEVER


def policy_of(settings: Settings) -> Policy:
    """The offer of a service."""
    policy = POLICIES[settings.tls_policy]
    if settings.tls_min_version is not None:
        policy = policy._replace(oldest=_VERSIONS[settings.tls_min_version])
    if settings.tls_ciphers is not None:
        policy = policy._replace(ciphers=allowed(settings.tls_ciphers))
    if settings.tls_ciphersuites is not None:
        policy = policy._replace(ciphersuites=settings.tls_ciphersuites)
    if settings.tls_groups is not None:
        policy = policy._replace(groups=(settings.tls_groups,))
    return policy


FOR_NICS: Final[Mapping[str, frozenset[int]]] = {
    "EC": frozenset({0xC02B, 0xC02C}),
    "RSA": frozenset({0xC02F, 0xC030}),
}
"""The suites of TLS 1.2 that NICs take, ECDHE with AES-GCM, by the type of the certificate's key (RFC 5289)."""
