"""Certificates that sign themselves, by openssl, for tests that need no authority."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

RSA: Final = ("rsa:2048",)
ECDSA: Final = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def self_signed(folder: Path, name: str, *alternatives: str, kind: Sequence[str] = ECDSA) -> tuple[Path, Path]:
    """NAME.pem and NAME.key in `folder`; `alternatives` such as IP:127.0.0.1, by default DNS:NAME."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={','.join(alternatives) or f'DNS:{name}'}"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    make = ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", *names, *files]
    subprocess.run(make, check=True, capture_output=True)
    return certificate, key
