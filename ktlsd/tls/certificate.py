"""A self-signed certificate for localhost, made if no other is configured, and those that stand in for others to come.

Strategy: `cryptography` makes an ECDSA P-256 key and a certificate for localhost and its addresses; both live in one
PEM file in the user's state folder, written whole or not at all, and replaced shortly before it expires.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_FILE: Final = "localhost.pem"
_VALID: Final = datetime.timedelta(days=365)
_RENEWED_BEFORE: Final = datetime.timedelta(days=30)
_BACKDATED: Final = datetime.timedelta(hours=1)


def localhost_certificate(folder: Path) -> Path:
    """The PEM file with key and certificate in `folder`, made when absent, unreadable as such, or soon to expire.

    Raises OSError when it can neither be read nor written.
    """
    path = folder / _FILE
    now = datetime.datetime.now(datetime.UTC)
    try:
        kept = x509.load_pem_x509_certificate(path.read_bytes())
        if kept.not_valid_after_utc - now > _RENEWED_BEFORE:
            return path
    except (FileNotFoundError, ValueError):
        pass
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp gives mode 0600: the file holds the key.
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=_FILE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_make(now))
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def fingerprint(path: Path) -> str:
    """The SHA-256 fingerprint of the first certificate in a PEM file, as browsers and `openssl x509` show it.

    Raises OSError, or ValueError when the file holds none.
    """
    return x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(hashes.SHA256()).hex(":").upper()


def self_signed(names: Sequence[str]) -> bytes:
    """PEM of a new key and of a certificate for names and addresses, until an authority has given one."""
    return _make(datetime.datetime.now(datetime.UTC), names)


def _make(now: datetime.datetime, names: Sequence[str] = ("localhost", "127.0.0.1", "::1")) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    # The longest common name that X.509 allows (RFC 5280, ub-common-name); clients look at the other names.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """PEM of a private key, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def general_name(name: str) -> x509.GeneralName:
    """A name or an address, as a certificate has it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
