"""The reason why a file cannot be used as a certificate, a key, authorities or revocation lists, in plain words: pure.

Strategy: OpenSSL gives a reason for its own sources, not for an operator; the labels of the PEM blocks in the file
(RFC 7468) show more: an encrypted key, another kind of block, DER, half a file. Otherwise OpenSSL's reason is given.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

_BEGIN: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_END: Final = re.compile(rb"-----END ([A-Z0-9 ]+)-----")
_CERTIFICATES: Final = frozenset({"CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"})
_LISTS: Final = frozenset({"X509 CRL"})
_PRIVATE_KEY: Final = "PRIVATE KEY"
_DER_SEQUENCE: Final = b"\x30"
# OpenSSL's reason strings (ssl/ssl_err.c, crypto/x509/x509_err.c) of 3.0 to 3.5.
_WORDS: Final = {
    "ee key too small": "its key is too short for OpenSSL's security level: use RSA with 2048 bits or more, or ECDSA",
    "ca key too small": "the key of an authority in it is too short for OpenSSL's security level",
    "ca md too weak": "a signature in it has a hash that OpenSSL's security level forbids, such as SHA-1",
    "is a directory": "it is a folder",
    "no start line": "there is no PEM block in it",
}


def certificate_trouble(content: bytes, reason: str) -> str:
    """The fault of a certificate chain: `content` of its file, empty if it was not read, OpenSSL's `reason`."""
    return _lacking(content, _CERTIFICATES, "certificate", "x509") or _in_words(reason)


def key_trouble(content: bytes, reason: str) -> str:
    """The same, of a private key."""
    labels = _labels(content)
    if "ENCRYPTED PRIVATE KEY" in labels or b"Proc-Type: 4,ENCRYPTED" in content:
        return "it is encrypted: write it without a passphrase by `openssl pkey -in FILE -out NEW`, mode 0600"
    keys = {label for label in labels if label.endswith(_PRIVATE_KEY)}
    return _lacking(content, keys or {_PRIVATE_KEY}, "private key", "pkey") or _in_words(reason)


def authorities_trouble(content: bytes, reason: str) -> str:
    """The same, of the certificates of authorities."""
    return certificate_trouble(content, reason)


def revoked_trouble(content: bytes, reason: str) -> str:
    """The same, of revocation lists."""
    return _lacking(content, _LISTS, "revocation list", "crl") or _in_words(reason)


def _lacking(content: bytes, wanted: Collection[str], what: str, tool: str) -> str:
    labels = _labels(content)
    if not content or any(label in wanted for label in labels):
        ends = {match.decode() for match in _END.findall(content)}
        return "" if not content or any(label in wanted for label in ends) else "it is cut short"
    if labels:
        return f"there is no {what} in it, but {', '.join(dict.fromkeys(labels))}"
    if content.startswith(_DER_SEQUENCE):
        return f"it is not PEM: convert DER by `openssl {tool} -inform DER -in FILE -out NEW`"
    return "it is not PEM"


def _labels(content: bytes) -> list[str]:
    return [match.decode() for match in _BEGIN.findall(content)]


def _in_words(reason: str) -> str:
    return _WORDS.get(reason.lower(), reason)
