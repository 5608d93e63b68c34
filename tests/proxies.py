"""nginx, HAProxy and Caddy in front of ktlsds, by the very text of docs/proxies.md, with the places of a test in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.ports import free_ports
from tests.serving import START_SECONDS, WAIT_SECONDS, eventually, is_refused

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "proxies.md"
TOOL_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"

_EXAMPLE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Places:
    """What the document's addresses and paths stand for."""

    folder: Path
    """Of all files."""
    tls: int
    """The port of the ktlsd that demands client certificates."""
    passed: int
    """The port of the ktlsd that demands PROXY headers."""
    unix: str
    """The file of the Unix socket of the ktlsd without TLS."""
    plain: int
    """Its port."""
    authority: Path
    certificate: Path
    """Of the proxy, with its key."""


def examples(language: str) -> list[str]:
    """The document's configurations for one proxy."""
    return [text for name, text in _EXAMPLE.findall(DOCUMENT.read_text(encoding="utf-8")) if name == language]


def placed(text: str, places: Places, replaced: Mapping[str, str]) -> str:
    """A configuration of the document for a test: every text that is to be replaced must be there."""
    known = {
        "/run/ktlsd/http.sock": places.unix,
        "/var/cache/nginx/ktlsd": f"{places.folder}/cache",
        **{f"/etc/{proxy}/ktlsd-ca.pem": str(places.authority) for proxy in ("nginx", "haproxy", "caddy")},
        **{f"/etc/{proxy}/proxy.pem": str(places.certificate) for proxy in ("nginx", "haproxy", "caddy")},
    }
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    for old, new in known.items():
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def running(name: str, folder: Path, ports: Sequence[int], *words: str) -> Iterator[None]:
    """Start a proxy that stays in the foreground, wait until it listens, and see that it is gone at the end."""
    binary = shutil.which(words[0], path=TOOL_PATH)
    assert binary, f"{words[0]} is not installed"
    log = folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [binary, *words[1:]],
            cwd=folder,
            env=os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while any(is_refused(port) for port in ports):
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, f"{name}:\n{log.read_text()}"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def nginx(places: Places) -> Iterator[dict[str, int]]:
    """nginx with all of its configurations; the ports by what is behind them."""
    tls, local, passed = ports = free_ports(3)
    over_tls, over_unix, passed_on = examples("nginx")
    http = placed(over_tls, places, {"127.0.0.1:8443": f"127.0.0.1:{places.tls}", "listen 80": f"listen {tls}"})
    http += placed(over_unix, places, {"listen 80": f"listen {local}"})
    stream = placed(
        passed_on, places, {"127.0.0.1:8443": f"127.0.0.1:{places.passed}", "listen 443": f"listen {passed}"}
    )
    # nginx would give its workers up to another user, who may not enter a test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {places.folder}/nginx-{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = places.folder / "nginx.conf"
    configuration.write_text(
        f"load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\n{user}\n"
        f"pid {places.folder}/nginx.pid;\nevents {{ }}\n"
        f"http {{\naccess_log off;\n{temporary}{http}}}\nstream {{\n{stream}}}\n"
    )
    words = ("nginx", "-e", "stderr", "-p", str(places.folder), "-c", str(configuration))
    with running("nginx", places.folder, ports, *words):
        yield {"nginx": tls, "nginx-local": local, "nginx-passed": passed}


@contextlib.contextmanager
def haproxy(places: Places) -> Iterator[dict[str, int]]:
    """HAProxy with all of its configurations, the one with the PROXY protocol for both versions."""
    tls, local, local_h2, passed, passed_1 = ports = free_ports(5)
    over_tls, over_unix, over_unix_h2, passed_on = examples("haproxy")
    text = placed(over_tls, places, {"127.0.0.1:8443": f"127.0.0.1:{places.tls}", "bind :80": f"bind 127.0.0.1:{tls}"})
    text += placed(over_unix, places, {"bind :80": f"bind 127.0.0.1:{local}"})
    text += placed(over_unix_h2, places, {"bind :80": f"bind 127.0.0.1:{local_h2}"})
    ktlsd = {"127.0.0.1:8443": f"127.0.0.1:{places.passed}"}
    text += placed(passed_on, places, ktlsd | {"bind :443": f"bind 127.0.0.1:{passed}"})
    version_1 = {
        "bind :443": f"bind 127.0.0.1:{passed_1}",
        "passed_on": "passed_on_1",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id": "send-proxy",
    }
    text += placed(passed_on, places, ktlsd | version_1)
    configuration = places.folder / "haproxy.cfg"
    patience = "".join(f"    timeout {what} 60s\n" for what in ("connect", "client", "server", "check"))
    configuration.write_text(
        f"global\n    stats socket {admin_socket(places)} mode 600 level admin\ndefaults\n{patience}{text}"
    )
    with running("haproxy", places.folder, ports, "haproxy", "-db", "-f", str(configuration)):
        # HAProxy gives it its name only after it listens everywhere.
        assert eventually(lambda: Path(admin_socket(places)).exists())
        yield {
            "haproxy": tls,
            "haproxy-local": local,
            "haproxy-local-h2": local_h2,
            "haproxy-passed": passed,
            "haproxy-passed-1": passed_1,
        }


def admin_socket(places: Places) -> str:
    return f"{places.folder}/haproxy.sock"


@contextlib.contextmanager
def caddy(places: Places) -> Iterator[dict[str, int]]:
    """Caddy with all of its configurations."""
    tls, local, local_h2 = ports = free_ports(3)
    over_tls, over_unix, over_tcp_h2 = examples("caddyfile")
    text = placed(
        over_tls, places, {"127.0.0.1:8443": f"127.0.0.1:{places.tls}", "example.org:80": f"example.org:{tls}"}
    )
    text += placed(over_unix, places, {"example.org:80": f"example.org:{local}"})
    plain = {"127.0.0.1:8080": f"127.0.0.1:{places.plain}", "example.org:80": f"example.org:{local_h2}"}
    text += placed(over_tcp_h2, places, plain)
    configuration = places.folder / "Caddyfile"
    configuration.write_text(f"{{\n    admin off\n    auto_https off\n}}\n{text}")
    words = ("caddy", "run", "--adapter", "caddyfile", "--config", str(configuration))
    with running("caddy", places.folder, ports, *words):
        yield {"caddy": tls, "caddy-local": local, "caddy-local-h2": local_h2}


PROXIES = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy}
