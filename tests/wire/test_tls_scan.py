"""Scanners against a running server: testssl.sh finds nothing above "low", sslscan no more than the policy has."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ktlsd.config.values import TlsPolicy
from ktlsd.openssl.algorithms import CIPHERSUITES, TLS_1_2
from ktlsd.tls.policy import POLICIES
from tests.serving import serving

DAY = datetime.timedelta(days=1)
SCAN_SECONDS = 400
HARMLESS = {"OK", "INFO", "LOW"}
# Checks that testssl.sh may fail to make, and then says so with WARN, which is no finding: its client of TLS 1.3 leaves
# before it has read a ticket. tests/wire/test_tickets.py resumes sessions.
NOT_MADE = {"sessionresumption_ticket", "engine_problem"}
# Protocols, ciphers by their strength, the server's order, its defaults and certificates, vulnerabilities. Without the
# simulation of clients, header fields and the rest that costs as much time again and has no findings of TLS.
SECTIONS = ["-p", "-s", "-P", "-S", "-U"]
GROUPS = {"x25519", "secp256r1", "secp384r1"}
HYBRID = {"X25519MLKEM768"}

pytestmark = [
    pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool}: apt install {package}")
    for tool, package in (("testssl", "testssl.sh"), ("sslscan", "sslscan"))
]

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def certify(subject: str, key: Key, issuer: str, signer: Key, *, authority: bool) -> x509.Certificate:
    """As public authorities do it: 90 days, a list of the revoked, key identifiers."""
    now = datetime.datetime.now(datetime.UTC)
    names = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer))
    revoked = x509.UniformResourceIdentifier("http://authority.test/revoked.crl")
    usage = {
        name: name in (("key_cert_sign", "crl_sign") if authority else ("digital_signature",))
        for name in (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        )
    }
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=authority, path_length=None), True),
        (x509.KeyUsage(**usage), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ]
    if not authority:
        extensions += [
            (x509.SubjectAlternativeName([x509.DNSName("localhost")]), False),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.CRLDistributionPoints([x509.DistributionPoint([revoked], None, None, None)]), False),
        ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(next(names))
        .issuer_name(next(names))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY / 24)
        .not_valid_after(now + 90 * DAY)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


@dataclass
class Scan:
    """A server with an ECDSA and an RSA certificate, and testssl.sh at work on it."""

    port: int
    process: subprocess.Popen[bytes] | None
    findings: Path


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[TlsPolicy, Scan]]:
    """Of each policy, at the same time; of `compatible`, for which sslscan's list is enough, without testssl.sh."""
    folder = tmp_path_factory.mktemp("scan")
    root = folder / "root"
    root.mkdir()
    (root / "index.html").write_text("<!doctype html><title>x</title>")
    signer = ec.generate_private_key(ec.SECP256R1())
    authority = folder / "authority.pem"
    pem = serialization.Encoding.PEM
    authority.write_bytes(certify("authority", signer, "authority", signer, authority=True).public_bytes(pem))
    keys: dict[str, Key] = {
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "rsa": rsa.generate_private_key(65537, 2048),
    }
    for name, key in keys.items():
        certificate = certify("localhost", key, "authority", signer, authority=False)
        (folder / f"{name}.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + certificate.public_bytes(pem)
        )
    pairs = [str(folder / f"{name}.pem") for name in keys]
    with contextlib.ExitStack() as stack:
        found: dict[TlsPolicy, Scan] = {}
        for policy in POLICIES:
            config, findings = folder / f"{policy}.toml", folder / f"{policy}.json"
            config.write_text(f"tls_policy = '{policy}'\nroot = '{root}'\ncert = {pairs}\nkey = {pairs}\n")
            port = stack.enter_context(serving(None, "--config", str(config), state=folder / policy)).port
            process = None
            if policy != "compatible":
                options = ["--quiet", "--color", "0", "--warnings", "off", "-n", "none", "--ip", "127.0.0.1"]
                files = ["--add-ca", str(authority), "--jsonfile", str(findings)]
                process = stack.enter_context(
                    subprocess.Popen(
                        ["testssl", *SECTIONS, *options, *files, f"https://localhost:{port}/"],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                    )
                )
                stack.callback(process.kill)
            found[policy] = Scan(port, process, findings)
        yield found


@pytest.mark.parametrize("policy", ["modern", "intermediate"])
def test_testssl_finds_nothing_above_low(scans: dict[TlsPolicy, Scan], policy: TlsPolicy) -> None:
    scan = scans[policy]
    assert scan.process is not None
    scan.process.wait(SCAN_SECONDS)
    findings = json.loads(scan.findings.read_text())
    found = {finding["id"]: finding for finding in findings}
    # All sections came to their end, and both certificates were seen.
    assert found["TLS1_3"]["finding"] == "offered with final"
    assert {"cipherlist_NULL", "cipher_order", "cert_chain_of_trust <cert#2>", "RC4", "scanTime"} <= found.keys()
    not_made = {name for name in NOT_MADE & found.keys() if found[name]["severity"] == "WARN"}
    above = [finding for finding in findings if finding["severity"] not in HARMLESS]
    assert [finding for finding in above if finding["id"] not in not_made] == []


@pytest.mark.parametrize("policy", POLICIES)
def test_sslscan_finds_what_the_policy_has(scans: dict[TlsPolicy, Scan], policy: TlsPolicy) -> None:
    sslscan = ["sslscan", "--xml=-", "--ipv4", f"localhost:{scans[policy].port}"]
    xml = subprocess.run(sslscan, capture_output=True, check=True, timeout=SCAN_SECONDS).stdout
    root = ElementTree.fromstring(xml)
    enabled = {found.attrib["version"] for found in root.iter("protocol") if found.attrib["enabled"] == "1"}
    offers_1_2 = POLICIES[policy].oldest == TLS_1_2
    assert enabled == ({"1.2", "1.3"} if offers_1_2 else {"1.3"})
    ciphers = [found.attrib["cipher"] for found in root.iter("cipher")]
    expected = [*CIPHERSUITES.split(":"), *(POLICIES[policy].ciphers.split(":") if offers_1_2 else ())]
    assert ciphers == expected, "in the server's order"
    groups = {found.attrib["name"].split()[0] for found in root.iter("group")}
    assert GROUPS <= groups <= GROUPS | HYBRID
    assert [found.attrib["supported"] for found in root.iter("renegotiation")] == ["0"]
    assert {found.attrib["vulnerable"] for found in root.iter("heartbleed")} == {"0"}
