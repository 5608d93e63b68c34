"""The default offer in handshakes: protocols, ciphers, groups, ticket keys, in OpenSSL's names and units.

Strategy: constants; tls/policy.py makes policies of them.
"""

from __future__ import annotations

from typing import Final

TLS_1_2: Final = 0x0303
TLS_1_3: Final = 0x0304
TICKET_KEY_BYTES: Final = 80
"""Of a session ticket key: 16 for its name, which stands at the beginning of each ticket, 32 for HMAC, 32 for AES."""

# AES-GCM first, and AES-128 before AES-256, as Mozilla's intermediate list has it: those are the suites that every kTLS
# kernel takes.
CIPHER_LIST: Final = ":".join(
    f"ECDHE-{authentication}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for authentication in ("ECDSA", "RSA")
)
CIPHERSUITES: Final = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
# The first that OpenSSL takes: 3.5 and later have the hybrid group, which wins over all that stand behind the slash
# (SSL_CTX_set1_groups_list(3)); a FIPS provider has no X25519. Without a list OpenSSL would let any client have it do
# finite-field exchanges of 8192 bits.
GROUP_LISTS: Final = (
    "X25519MLKEM768/X25519:secp256r1:secp384r1",
    "X25519:secp256r1:secp384r1",
    "secp256r1:secp384r1",
)

CLIENT_GROUPS: Final = ("X25519:secp256r1:secp384r1:secp521r1:X448", *GROUP_LISTS[2:])
"""Those that clients have: one of TLS 1.2 must have the curve of an ECDSA certificate among them (RFC 8422 section
5.1), which has no part in the key exchange."""
COMPRESSIONS: Final = {"zlib": 1, "brotli": 2, "zstd": 3}
"""Algorithms of certificate compression (RFC 8879 section 7.3)."""
