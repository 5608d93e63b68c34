"""An authority for tests of mutual TLS: certificates of clients and servers, and lists of the revoked."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY: Final = datetime.timedelta(days=1)


class Authority:
    """Writes what it makes to a folder; `ca` is the PEM file with its own certificate."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._now = datetime.datetime.now(datetime.UTC)
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._revoked: list[x509.RevokedCertificate] = []
        self.ca = folder / f"{name}.pem"
        self.crl = folder / f"{name}.crl"
        own = self._builder(name, self._key.public_key(), _DAY)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.ca.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.revoke()

    def _builder(
        self, subject: str, key: ec.EllipticCurvePublicKey, until: datetime.timedelta
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_named(subject))
            .issuer_name(_named(self._name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - 2 * _DAY)
            .not_valid_after(self._now + until)
        )

    def issue(self, subject: str, names: Sequence[str] = (), *, until: datetime.timedelta = _DAY) -> Path:
        """A PEM file with the certificate, for these DNS names and addresses, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(subject, key.public_key(), until)
        if names:
            alternatives = x509.SubjectAlternativeName(list(map(_alternative, names)))
            builder = builder.add_extension(alternatives, critical=False)
        path = self._folder / f"{self._name}-{subject.replace(' ', '-')}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return path

    def certify(self, other: Authority) -> bytes:
        """A certificate in PEM for another authority, by this one."""
        builder = self._builder(other._name, other._key.public_key(), _DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def revoke(self, *certificates: Path) -> Path:
        """The PEM file of the list of the revoked, to which these are added."""
        for path in certificates:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self._now - _DAY)
            self._revoked.append(revoked.build())
        builder = x509.CertificateRevocationListBuilder().issuer_name(_named(self._name))
        builder = builder.last_update(self._now - _DAY).next_update(self._now + _DAY)
        for entry in self._revoked:
            builder = builder.add_revoked_certificate(entry)
        self.crl.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return self.crl


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _alternative(name: str) -> x509.DNSName | x509.IPAddress:
    is_address = re.fullmatch(r"[\d.]+|.*:.*", name)
    return x509.IPAddress(ipaddress.ip_address(name)) if is_address else x509.DNSName(name)
