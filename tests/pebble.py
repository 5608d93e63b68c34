"""Pebble, Let's Encrypt's test server, on loopback: an ACME authority with a DNS of its own (pebble-challtestsrv).

Strategy: the package of one Debian suite is unpacked into the cache of the machines, since that of Debian 12 knows
neither renewal information nor profiles. Its authority looks at the ports that a test's ktlsd listens on.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.ports import free_ports

from .authority import Authority
from .serving import eventually, is_refused
from .vm import machine

SUITE: Final = "forky"
"""The first Debian whose Pebble (2.10) has renewal information of RFC 9773, and profiles with a lifetime."""
QUICK: Final[dict[str, str]] = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
EAB_KEY: Final = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@dataclass
class Pebble:
    """A running authority."""

    folder: Path
    port: int
    management: int
    dns_management: int
    https: int
    """Where it looks for tls-alpn-01."""
    http: int
    """Where it looks for http-01."""
    environment: dict[str, str]
    dns_port: int
    host: str = "localhost"
    process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> str:
        return f"https://{self.host}:{self.port}/dir"

    @property
    def ca(self) -> Path:
        """The authority of its own certificate, not of those that it issues."""
        return self.folder / "authority.pem"

    def options(self, names: str = "www.example.test") -> list[str]:
        """Options of a ktlsd that gets a certificate here, beside those in a file by table()."""
        return ["--acme", names, "--acme-directory", self.directory]

    def table(self, more: str = "") -> str:
        """The table [acme] of a configuration file."""
        return f'[acme]\ndirectory = "{self.directory}"\nca = "{self.ca}"\n{more}\n'

    def root(self, number: int = 0) -> Path:
        """A root that certificates are verified by."""
        path = self.folder / f"root-{number}.pem"
        path.write_text(self._managed(f"roots/{number}"))
        return path

    def _managed(self, path: str, data: bytes | None = None) -> str:
        context = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(f"https://localhost:{self.management}/{path}", data, context=context) as answer:
            text: str = answer.read().decode()
            return text

    def renew_at_once(self, certificate: Path) -> None:
        """Have the authority suggest to renew a certificate in a window that has begun."""
        window = {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}
        pem = certificate.read_text()
        leaf = pem[pem.index("-----BEGIN CERTIFICATE") :]
        body = {"certificate": leaf, "ariResponse": json.dumps({"suggestedWindow": window})}
        self._managed("set-renewal-info/", json.dumps(body).encode())

    def dns(self, action: str, **values: Any) -> None:
        """An order for the DNS, such as add-a(host=, addresses=)."""
        url = f"http://127.0.0.1:{self.dns_management}/{action}"
        with urllib.request.urlopen(url, json.dumps(values).encode()):
            pass

    def start(self) -> None:
        program = _programs() / "pebble"
        with (self.folder / "pebble.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-config", self.folder / "pebble.json", "-dnsserver", f"127.0.0.1:{self.dns_port}"],
                env=os.environ | QUICK | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        assert eventually(lambda: not is_refused(self.port) and not is_refused(self.management))

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def pebble(
    folder: Path, environment: dict[str, str] | None = None, address: str = "127.0.0.1", **config: Any
) -> Iterator[Pebble]:
    """An authority at an address of this machine, which all names in its DNS have; `environment` are Pebble's variables
    beside QUICK, `config` keys of its configuration."""
    port, management, dns_port, dns_management, https, http = free_ports(6)
    server = Pebble(folder, port, management, dns_management, https, http, environment or {}, dns_port)
    server.host = "localhost" if address == "127.0.0.1" else address
    pem = Authority(folder).issue("localhost", [server.host])
    written: dict[str, Any] = {
        # It is looked for on loopback, too.
        "listenAddress": f"{address}:{port}" if address == "127.0.0.1" else f"0.0.0.0:{port}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(pem),
        "privateKey": str(pem),
        "httpPort": http,
        "tlsPort": https,
        "retryAfter": {"authz": 1, "order": 1},
        "keyAlgorithm": "ecdsa",
        "profiles": {
            "default": {"description": "ninety days", "validityPeriod": 7776000},
            "brief": {"description": "a hundred seconds", "validityPeriod": 100},
        },
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": written | config}))
    names = [f"127.0.0.1:{dns_port}", f"127.0.0.1:{dns_management}"]
    places = [
        "-dnsserver",
        names[0],
        "-doh",
        "",
        "-management",
        names[1],
        "-http01",
        "",
        "-https01",
        "",
        "-tlsalpn01",
        "",
    ]
    command = [str(_programs() / "pebble-challtestsrv"), "-defaultIPv4", address, "-defaultIPv6", "", *places]
    dns = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: not is_refused(dns_management))
        server.start()
        yield server
    finally:
        server.stop()
        dns.kill()
        dns.wait()


def _programs() -> Path:
    """The folder of Pebble's programs."""
    target = machine.cache_dir() / f"pebble-{SUITE}"
    with machine.locked(target.with_name("pebble.lock")):
        if not target.exists():
            machine.fetch_package("pebble", SUITE, target)
    return target / "usr/bin"
