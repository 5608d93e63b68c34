"""Certificates by the operator's guide: certbot asks a real ACME server (Caddy's), ktlsd answers the challenge.

In a network namespace of its own, where ports 80 and 443 are free and the names of the test are known.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.serving import Running, eventually, serving

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
SITE = "www.example.test"
CA = "ca.test"
CA_PORT = 14000
CADDY = f"""
{{
    admin off
    skip_install_trust
    storage file_system caddy
    auto_https disable_redirects
}}
https://{CA}:{CA_PORT} {{
    tls internal
    acme_server
}}
"""
ASK = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
with socket.create_connection(("127.0.0.1", 443), timeout=30) as raw:
    with context.wrap_socket(raw, server_hostname=sys.argv[2]) as connection:
        print(connection.getpeercert()["serialNumber"])
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network namespace"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("ip", "caddy", "certbot"))), reason="iproute2, caddy and certbot are not all here"
    ),
]


@pytest.fixture
def namespace() -> Iterator[list[str]]:
    """The words that run a command where ports are free and the names lead to loopback."""
    name = f"ktlsd-acme-{secrets.token_hex(4)}"
    hosts = Path("/etc/netns", name, "hosts")  # ip-netns(8)
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f"127.0.0.1 localhost {CA} {SITE}\n")
    try:
        subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
            yield ["ip", "netns", "exec", name]
        finally:
            subprocess.run(["ip", "netns", "delete", name], check=False)
    finally:
        shutil.rmtree(hosts.parent)


@contextlib.contextmanager
def acme_server(namespace: list[str], folder: Path) -> Iterator[Path]:
    """Caddy as a certificate authority; the certificate of its root."""
    (folder / "Caddyfile").write_text(CADDY)
    root = folder / "caddy/pki/authorities/local/root.crt"
    command = [*namespace, "caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder) as caddy:
        try:
            listening = [*namespace, "ss", "-Hltn", f"sport = :{CA_PORT}"]
            assert eventually(lambda: bool(subprocess.run(listening, capture_output=True, check=True).stdout))
            assert eventually(root.exists)
            yield root
        finally:
            caddy.terminate()


def hook(folder: Path, server: Running) -> Path:
    """The guide's deploy hook, with the places of this test in it."""
    found = re.search(r"^```sh\n(#!/bin/sh\n.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    text = found[1]
    for old, new in (
        ("/etc/ktlsd", str(folder / "etc")),
        ("systemctl reload ktlsd.service", f"kill -HUP {server.process.pid}"),
        ("systemctl restart ktlsd.service", f"kill -HUP {server.process.pid}"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "ktlsd-deploy"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_first_certificate_and_its_renewal(namespace: list[str], tmp_path: Path) -> None:
    etc, www, challenges = tmp_path / "etc", tmp_path / "www", tmp_path / "acme/.well-known/acme-challenge"
    for made in (etc / "keys", www, challenges):
        made.mkdir(parents=True)
    cert, key = etc / "fullchain.pem", etc / "keys/privkey.pem"
    subject = ["-subj", f"/CN={SITE}", "-addext", f"subjectAltName=DNS:{SITE}"]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
    subprocess.run(["openssl", "req", "-x509", *new_key, *subject, "-out", str(cert)], check=True, capture_output=True)

    def served(authority: Path) -> str:
        """The serial number of the certificate that is served, which that authority must have signed."""
        asked = [*namespace, sys.executable, "-c", ASK, str(authority), SITE]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    program = [*namespace, sys.executable, "-m", "ktlsd"]
    options = ["--cert", str(cert), "--key", str(key), "--acme-challenges", str(challenges)]
    ktlsd = partial(serving, listen=["0.0.0.0:443"], http_listen=["0.0.0.0:80"])
    with (
        acme_server(namespace, tmp_path) as authority,
        ktlsd(www, *options, program=program, state=tmp_path / "state") as server,
    ):
        first = served(cert)

        def certbot(*words: str) -> None:
            folders = [f"--{name}-dir={tmp_path / name}" for name in ("config", "work", "logs")]
            server_url = f"--server=https://{CA}:{CA_PORT}/acme/local/directory"
            # The authorities of certbot's own HTTP client count, not OpenSSL's folder.
            trusting = ["env", f"REQUESTS_CA_BUNDLE={authority}"]
            command = [*namespace, *trusting, "certbot", *words, server_url, *folders, "--non-interactive"]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr

        def another(before: str) -> bool:
            with contextlib.suppress(subprocess.CalledProcessError):
                return served(authority) != before
            return False

        webroot = ["--webroot", "--webroot-path", str(tmp_path / "acme"), "--reuse-key", "--key-type", "ecdsa"]
        agreed = ["--agree-tos", "--register-unsafely-without-email"]
        certbot("certonly", *webroot, *agreed, "--deploy-hook", str(hook(tmp_path, server)), "-d", SITE)
        assert eventually(lambda: another(first))
        second, key_of_second = served(authority), key.read_bytes()
        certbot("renew", "--force-renewal", "--no-random-sleep-on-renew")
        assert eventually(lambda: another(second))
        assert key.read_bytes() == key_of_second
        assert server.stop() == 0
