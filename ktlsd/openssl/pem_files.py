"""Errors for PEM files that OpenSSL refused, which say what is wrong with the file.

Strategy: OpenSSL's reason and the beginning of the file go to config/certificate_files.py, which finds the words. Each
function is called once OpenSSL has failed, with the first reason of its error queue.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from ktlsd.config.certificate_files import authorities_trouble, certificate_trouble, key_trouble, revoked_trouble
from ktlsd.openssl.errors import ContextError, PairError, RevokedError

# OpenSSL's reasons for a key of one certificate beside another (crypto/x509/x509_err.c, ssl/ssl_err.c).
MISMATCHES: Final = frozenset(
    {"key values mismatch", "key type mismatch", "different parameters", "different key types"}
)
_LONGEST_PEM: Final = 1 << 20


def certificate_error(certificate: str, reason: str) -> PairError:
    """The error of a certificate chain that cannot be used."""
    why = certificate_trouble(_beginning(certificate), reason)
    return PairError(f"{certificate} cannot be used as a PEM certificate chain: {why}")


def mismatch_error(certificate: str, key: str) -> PairError:
    """The error of a key that belongs to another certificate."""
    return PairError(f"the key {key} does not belong to the certificate {certificate}", of_key=True)


def key_error(certificate: str, key: str, reason: str) -> PairError:
    """The error of a private key that cannot be used."""
    why = key_trouble(_beginning(key), reason)
    return PairError(f"{key} cannot be used as an unencrypted PEM key for {certificate}: {why}", of_key=True)


def authorities_error(authorities: str, reason: str) -> ContextError:
    """The error of a file of authorities that cannot be used."""
    why = authorities_trouble(_beginning(authorities), reason)
    return ContextError(f"{authorities} cannot be used as PEM certificates of authorities: {why}")


def revoked_error(revoked: str, reason: str) -> RevokedError:
    """The error of a file of revocation lists that cannot be used."""
    why = revoked_trouble(_beginning(revoked), reason)
    return RevokedError(f"{revoked} cannot be used as PEM revocation lists: {why}")


def _beginning(path: str) -> bytes:
    """The content of a file, to explain its error; nothing of one that cannot be read or is no file."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(_LONGEST_PEM) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""
