"""The state folder of ACME: accounts, certificates and answers to challenges, for people and for all processes.

Strategy: each file is written whole, flushed and renamed, mode 0600, so that a reader sees the old or the new one and a
full disk changes nothing. A certificate and its key are one file, and so always match. Only PEM and small JSON.

    accounts/HOST.json, HOST.pem        the account at an authority, and its key
    certificates/NAME.pem, NAME.json    key and chain, and the record of them (plan.py)
    certificates/NAME.pending.pem       the key of an order that is not finished
    challenges/http/TOKEN               the answers of http-01
    challenges/tls-alpn/NAME.pem        the certificates of tls-alpn-01
    lock                                the process that orders (lease.py)
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from ktlsd.acme.names import Wanted, directory_url, wanted
from ktlsd.acme.plan import Record, Terms
from ktlsd.config.options import AcmeOptions, Settings
from ktlsd.config.state import service_folder

_UNSAFE: Final = re.compile(r"[^a-z0-9._-]")


class AcmeFolder:
    """The paths of one state folder, and how its files are read and written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.accounts = path / "accounts"
        self.certificates = path / "certificates"
        self.http_answers = path / "challenges/http"
        self.tls_answers = path / "challenges/tls-alpn"
        self.lock = path / "lock"

    def pem(self, name: str) -> Path:
        """Key and chain of the certificate with this first name."""
        return self.certificates / f"{file_name(name)}.pem"

    def pending_key(self, name: str) -> Path:
        return self.certificates / f"{file_name(name)}.pending.pem"

    def _record(self, name: str) -> Path:
        return self.certificates / f"{file_name(name)}.json"

    def read(self, name: str) -> Record | None:
        """The record of a certificate; None if it is missing or no record. Raises OSError."""
        try:
            return msgspec.json.decode(self._record(name).read_bytes(), type=Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write(self, name: str, record: Record) -> None:
        """Raises OSError."""
        replace(self._record(name), msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")

    def records(self) -> list[tuple[str, Record]]:
        """The first name and the record of each certificate, in the order of their files. Raises OSError."""
        found = ((path.stem, self.read(path.stem)) for path in sorted(self.certificates.glob("[!.]*.json")))
        return [(record.terms.names[0] if record.terms.names else name, record) for name, record in found if record]

    def make(self, http_answers: Path | None = None) -> None:
        """Make the folders, except that of the operator for http-01, if any. Raises OSError, also if no file can be
        written there."""
        inner = (self.accounts, self.certificates, self.http_answers.parent, self.http_answers, self.tls_answers)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.path, *inner):
            folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.certificates, http_answers or self.http_answers):
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".try-"):
                pass


def of_settings(settings: Settings) -> AcmeFolder:
    """The folder below the state folder. Raises RuntimeError for a user without a home."""
    return AcmeFolder(service_folder(settings.user) / "acme")


def file_name(name: str) -> str:
    """A name as part of a file's name: the star of a wildcard is an underscore."""
    return _UNSAFE.sub("_", name.lower())


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file whole, or not at all. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # Else a rename may be lost with the machine's power.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def terms(certificate: Wanted, options: AcmeOptions) -> Terms:
    """The terms on which the settings ask for a certificate."""
    return Terms(
        certificate.names, directory_url(options), options.key_type, options.profile or "", options.chain or ""
    )


def prepare(settings: Settings, folder: AcmeFolder) -> None:
    """Make the folders, and a self-signed certificate for each that is not there yet. Raises OSError."""
    folder.make(settings.acme_challenges)
    for certificate in wanted(settings):
        if not folder.pem(certificate.name).exists():
            from ktlsd.tls.certificate import self_signed

            replace(folder.pem(certificate.name), self_signed(certificate.names))
            if (record := folder.read(certificate.name)) is not None and record.ends:
                # Its certificate was removed by hand.
                folder.write(certificate.name, msgspec.structs.replace(record, ends=0.0))
