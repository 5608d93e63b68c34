"""A ktlsd whose ports are those where Pebble looks, for tests of certificates by ACME."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.pebble import Pebble, pebble
from tests.serving import PROGRAM, Running, client_context, connect, eventually, serving

NAME = "www.example.test"
CONTENT = b"the content of a file" * 100_000
ISSUED = "^certificate for .*: valid until "


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    with pebble(tmp_path_factory.mktemp("pebble")) as running:
        yield running


@pytest.fixture
def www(tmp_path: Path) -> Path:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "a.txt").write_bytes(CONTENT)
    return folder


@contextlib.contextmanager
def site(
    authority: Pebble,
    www: Path,
    *options: str,
    table: str = "",
    names: str = NAME,
    program: Sequence[str] = PROGRAM,
    **environment: Any,
) -> Iterator[Running]:
    """A server whose ports are those where the authority looks."""
    config = www.parent / "ktlsd.toml"
    config.write_text(authority.table(table))
    with serving(
        www,
        *("--config", str(config), *authority.options(names), *options),
        listen=[f"127.0.0.1:{authority.https}"],
        http_listen=[f"127.0.0.1:{authority.http}"],
        state=www.parent / "state",
        program=program,
        **environment,
    ) as server:
        yield server


def served(authority: Pebble, name: str = NAME, root: int = 0) -> int:
    """The serial number of the certificate in a handshake that verifies it, for this name."""
    with connect(authority.https, client_context(cafile=authority.root(root)), name=name) as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate
    return x509.load_der_x509_certificate(certificate).serial_number


def is_trusted(authority: Pebble, name: str = NAME, root: int = 0) -> bool:
    try:
        served(authority, name, root)
    except ssl.SSLCertVerificationError:
        return False
    return True


def becomes_trusted(authority: Pebble, name: str = NAME, root: int = 0) -> bool:
    """Whether every worker comes to have the certificate: each takes it up at a moment of its own."""
    return eventually(lambda: all(is_trusted(authority, name, root) for _ in range(40)))


def pem(www: Path, name: str = NAME) -> Path:
    return www.parent / "state/ktlsd/acme/certificates" / f"{name}.pem"


def record(www: Path, name: str = NAME) -> dict[str, object]:
    found: dict[str, object] = json.loads(pem(www, name).with_suffix(".json").read_text())
    return found
