"""`ktlsd doctor` on this machine, whatever it is; test_ktls.py has it on one with kTLS."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

from ktlsd.commands.doctor import AEAD_CIPHERS
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import has_ulp
from tests.serving import run_to_end


def test_json_is_complete_and_agrees_with_the_exit_status(tmp_path: Path) -> None:
    ended = run_to_end("doctor", "--json", state=tmp_path)
    report = json.loads(ended.stdout)
    assert ended.returncode == (0 if report["sends_offloaded"] else 1)
    links = {link["name"]: link for link in report["links"]}
    assert platform.release() in links["kernel"]["found"]
    assert links["tls ULP"]["ok"] is has_ulp()
    assert all(link["ok"] or link["advice"] for link in links.values())
    library = Library()
    assert links["OpenSSL"]["found"] == f"{library.version_text} ({library.path})"
    compression = links["certificate compression"]
    assert compression["ok"] is (compression["found"] != "OpenSSL has none")
    assert library.compresses_certificates or not compression["ok"]
    assert [(row["protocol"], row["cipher"]) for row in report["ciphers"]] == [
        (protocol, cipher) for protocol, ciphers in AEAD_CIPHERS.items() for cipher in ciphers
    ]
    assert report["sends_offloaded"] is any(row["tx"] != "none" for row in report["ciphers"])
    for row in report["ciphers"]:
        assert row["error"] or (row["tx"] == "none") is bool(row["tx_reason"])
    listed = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].partition("@")[0] for line in listed.splitlines()} - {"lo"}
    assert {interface["name"] for interface in report["interfaces"]} == names
    assert (report["counters"] is None) is not Path("/proc/net/tls_stat").exists()


def test_text_says_the_same(tmp_path: Path) -> None:
    report = json.loads(run_to_end("doctor", "--json", state=tmp_path).stdout)
    text = run_to_end("doctor", state=tmp_path).stdout
    for link in report["links"]:
        assert link["name"] in text
        assert link["ok"] or link["advice"] in text
    for row in report["ciphers"]:
        assert row["cipher"] in text


def test_a_missing_libssl_is_one_missing_link(tmp_path: Path) -> None:
    ended = run_to_end("doctor", "--json", "--libssl", "/no/libssl.so.3", state=tmp_path)
    report = json.loads(ended.stdout)
    assert ended.returncode == 1
    openssl = next(link for link in report["links"] if link["name"] == "OpenSSL")
    assert not openssl["ok"]
    assert "/no/libssl.so.3" in openssl["found"]
