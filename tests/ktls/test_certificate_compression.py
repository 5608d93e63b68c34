"""Certificates are compressed for clients that ask for it (RFC 8879): with the OpenSSL of Debian 13, which Debian 12
lacks."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.ssl_ffi import Context, Library
from tests.self_signed import self_signed
from tests.serving import Running, client_context, connect, run_to_end, serving

pytestmark = pytest.mark.ktls(machine="debian13")

ALGORITHMS = ("zlib", "zstd")
"""Those of Debian's build."""


def make_certificate(folder: Path, names: int) -> tuple[Path, Path]:
    """One that signs itself, as large as a chain."""
    return self_signed(folder, "cert", *(f"DNS:host-{number}.example.org" for number in range(names)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    certificate, key = make_certificate(tmp_path, 100)
    (tmp_path / "www").mkdir()
    (tmp_path / "www/index.html").write_text("page")
    pair = ("--cert", str(certificate), "--key", str(key))
    with serving(tmp_path / "www", *pair, state=tmp_path / "state") as running:
        yield running


def messages(port: int, *options: str) -> tuple[list[str], int]:
    """The handshake messages with certificates that openssl s_client gets, and the bytes of the whole handshake."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-msg", *options]
    out = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False).stdout
    read = re.search(r"SSL handshake has read (\d+) bytes", out)
    assert read, out
    return re.findall(r"<<< .* (CompressedCertificate|Certificate)$", out, re.MULTILINE), int(read[1])


def test_a_client_that_asks_for_it_gets_fewer_bytes(server: Running, tmp_path: Path) -> None:
    plain, plain_bytes = messages(server.port, "-no_rx_cert_comp")
    compressed, compressed_bytes = messages(server.port)
    assert (plain, compressed) == (["Certificate"], ["CompressedCertificate"])
    assert compressed_bytes < 0.7 * plain_bytes
    assert messages(server.port, "-tls1_2")[0] == ["Certificate"]
    # What comes out of it is the certificate.
    client = client_context(cafile=tmp_path / "cert.pem")
    with connect(server.port, client, name="host-99.example.org") as connection:
        der = connection.getpeercert(binary_form=True)
    assert der == ssl.PEM_cert_to_DER_cert((tmp_path / "cert.pem").read_text())


def test_no_client_is_asked_for_a_compressed_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, 20)
    config = tmp_path / "ktlsd.toml"
    config.write_text(f'root = "{tmp_path}"\ncert = "{certificate}"\nkey = "{key}"\nclient_ca = "{certificate}"\n')
    with serving(None, "--config", str(config), state=tmp_path / "state") as running:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{running.port}", "-msg"]
        command += ["-cert", str(certificate), "-key", str(key)]
        out = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False).stdout
    assert re.findall(r">>> .* (CompressedCertificate|Certificate)$", out, re.MULTILINE) == ["Certificate"]


def test_sizes_and_the_doctor(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, 100)
    with contextlib.closing(Context(Library())) as context:
        assert context.compressed_sizes() == {}
        context.use_certificate(str(certificate), str(key))
        sizes = context.compressed_sizes()
    assert tuple(sizes) == ALGORITHMS
    assert all(small < 0.5 * large for small, large in sizes.values())
    report = json.loads(run_to_end("doctor", "--json", state=tmp_path).stdout)
    found = {link["name"]: link["found"] for link in report["links"]}
    assert found["certificate compression"] == f"by {', '.join(ALGORITHMS)}"
