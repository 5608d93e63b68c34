"""The answers to challenges, where the authority finds them: files for the workers, and a program for the DNS.

Strategy: each answer is published before the authority is told to look, and removed when it has. The next process
removes the leftovers of a killed one: files by their folder, DNS records by the certificate's own record.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import subprocess
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ktlsd.acme.folder import file_name, replace
from ktlsd.acme.names import sni_name
from ktlsd.tls.certificate import general_name, key_pem

DNS_LABEL: Final = "_acme-challenge"
HOOK_SECONDS: Final = 600.0
_ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTET_STRING: Final = b"\x04\x20"
"""Its tag and length before 32 bytes, all of the DER of the extension's value (RFC 8737 section 3)."""
_DAY: Final = datetime.timedelta(days=1)


class HookError(Exception):
    """dns_hook failed; the text is for the operator."""


def publish_http(folder: Path, token: str, text: str) -> Path:
    """The file of http-01 (RFC 8555 section 8.3). Raises OSError."""
    path = folder / token
    # No secret: the folder may be the operator's (acme_challenges), and another server give the answer.
    replace(path, text.encode("ascii"), 0o644)
    return path


def publish_tls(folder: Path, name: str, key_authorization: str) -> Path:
    """The certificate of tls-alpn-01 with its key (RFC 8737 section 3). Raises OSError."""
    path = folder / f"{file_name(sni_name(name))}.pem"
    replace(path, _challenge_certificate(name, key_authorization))
    return path


def clear(folder: Path) -> None:
    """Remove the files of a killed process. Raises OSError."""
    for left in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            left.unlink()


def record_name(name: str) -> str:
    """The name of the TXT record that proves a name (RFC 8555 section 8.4)."""
    return f"{DNS_LABEL}.{name.removeprefix('*.')}"


def call_hook(hook: Path, action: str, name: str, text: str) -> None:
    """Have the operator's program `add`, `wait` for, or `remove` a TXT record. Raises HookError."""
    try:
        done = subprocess.run(  # noqa: S603
            [hook, action, name, text], stdin=subprocess.DEVNULL, capture_output=True, timeout=HOOK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HookError(f"dns_hook {action} {name}: not done within {HOOK_SECONDS:g} s") from error
    except OSError as error:
        raise HookError(f"dns_hook {hook} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise HookError(
            f"dns_hook {action} {name}: exit status {done.returncode}{': ' if said else ''}{''.join(said[-1:])}"
        )


def _challenge_certificate(name: str, key_authorization: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
    now = datetime.datetime.now(datetime.UTC)
    digest = hashlib.sha256(key_authorization.encode("ascii")).digest()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.SubjectAlternativeName([general_name(name)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, _OCTET_STRING + digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)
