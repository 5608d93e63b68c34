"""The servers that are compared: how each is configured, started and asked for its version, and why one cannot run.

Strategy: a table of records; each `launch` writes the configuration for a Place and gives the command. All are set up
for what the rows do: no access log, keep-alive without end, as many workers as asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.machine import CHECKOUT, has_ktls, output
from bench.servers import Launch

OURS: Final = "ktlsd"
OTHER: Final = "-other"
"""The end of the names of the other ktlsd's peers."""
PATH: Final = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
IDLE_SECONDS: Final = 600
MOST_CONNECTIONS: Final = 8192
USERS: Final = (
    "bench:$6$rounds=600000$wHb723eKZc24p3Da"
    "$BRwyFpp2k93jojoUeusZIyfTd/d9qEy.ShpbPfEgLw2fnVnBw4r76D5O4R9Krd2jLL8x8A.VB1d.fBnk83ZsW1\n"
)
"""A file of users that nobody uses."""
RULES_SETTLED_SECONDS: Final = 11
"""Age of rules from which on ktlsd keeps responses for more than a second."""
HEADER_RULES: Final = """/*
  X-Frame-Options: DENY
  Referrer-Policy: strict-origin-when-cross-origin
/traffic/*
  Cache-Control: public, max-age=300
"""
APACHE_MODULES: Final = Path("/usr/lib/apache2/modules")
S_SERVER_SETTINGS: Final = """openssl_conf = start
[start]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
Options = KTLS
"""


@dataclass(frozen=True)
class Place:
    """The settings of a server: folder, certificate, port and number of workers."""

    root: Path
    certificate: Path
    key: Path
    port: int
    workers: int
    scratch: Path
    """A new folder for its configuration and log."""


@dataclass(frozen=True)
class Programs:
    """What comes from the command line: ktlsd's command and the interpreter that has the Python peers.

    `other` is the command of another ktlsd to compare with, empty for none.
    """

    ktlsd: tuple[str, ...]
    python: str
    other: tuple[str, ...] = ()

    def of_the_other(self) -> Programs:
        """The same with the other ktlsd in place of this one."""
        return replace(self, ktlsd=self.other)


@dataclass(frozen=True)
class Peer:
    name: str
    program: str
    """The program that must be there, or the Python module for python=True."""
    package: str
    """The Debian package, or the Python distribution, that brings it."""
    launch: Callable[[Place, Programs], Launch]
    version: Callable[[Programs], str]
    python: bool = False
    ktls: bool = False
    """True if the kernel must encrypt its sends; otherwise the server is missing."""
    plain: bool = False
    """True for HTTP without TLS."""
    http2: bool = False
    """True if it speaks HTTP/2 with clients that offer it; all others are to have HTTP/1.1 only."""
    serial: bool = False
    """True if it serves one connection at a time and closes it after one response."""

    def why_missing(self, programs: Programs) -> str:
        """Why it cannot run on this machine; empty if it can."""
        if self.name.endswith(OTHER) and not programs.other:
            return "no other ktlsd is given (--against)"
        if self.python:
            if not shutil.which(programs.python):
                return f"no interpreter {programs.python}"
            if not output(programs.python, "-c", f"import {self.program}; print('there')").endswith("there"):
                return f"{programs.python} has no module {self.program} (pip install {self.package})"
        elif not shutil.which(self.program, path=PATH):
            return f"no program {self.program} (Debian package {self.package})"
        return "this kernel has no kTLS (no tls in tcp_available_ulp)" if self.ktls and not has_ktls() else ""


def _launch(place: Place, command: Sequence[str], directory: Path | None = None, **environment: str) -> Launch:
    return Launch(tuple(command), {"PATH": PATH} | environment, directory or place.scratch, place.scratch / "log")


def _write(place: Place, name: str, text: str) -> str:
    (place.scratch / name).write_text(text)
    return str(place.scratch / name)


def _ktlsd(ktls: str) -> Callable[[Place, Programs], Launch]:
    return lambda place, programs: _run_ktlsd(place, programs, ["--listen", f"127.0.0.1:{place.port}", "--ktls", ktls])


def _run_ktlsd(place: Place, programs: Programs, options: Sequence[str]) -> Launch:
    common = ["--root", str(place.root), "--cert", str(place.certificate), "--key", str(place.key)]
    common += ["--workers", str(place.workers), "--log-level", "warning"]
    return _launch(place, [*programs.ktlsd, *common, *options])


def _ktlsd_with_rules(place: Place, programs: Programs) -> Launch:
    """With an access log, a second site, and header rules for all paths."""
    rules = place.root / "_headers"
    if not rules.exists():
        # Rules that have just changed end remembered responses after a second.
        rules.write_text(HEADER_RULES)
        time.sleep(RULES_SETTLED_SECONDS)
    text = f"""headers_file = true
access_log = "{place.scratch}/access.log"

[[site]]
names = ["www.example.org"]
root = "{place.root}"
"""
    configuration = _write(place, "ktlsd.toml", text)
    return _run_ktlsd(place, programs, ["--listen", f"127.0.0.1:{place.port}", "--config", configuration])


def _ktlsd_with_auth(place: Place, programs: Programs) -> Launch:
    """With passwords for paths that nobody requests."""
    users = _write(place, "users", USERS)
    text = f'[[auth]]\npath = "/intern/**"\nusers = "{users}"\n'
    configuration = _write(place, "ktlsd.toml", text)
    return _run_ktlsd(place, programs, ["--listen", f"127.0.0.1:{place.port}", "--config", configuration])


def _ktlsd_http2(ktls: str) -> Callable[[Place, Programs], Launch]:
    def launch(place: Place, programs: Programs) -> Launch:
        # h2load opens no new connection after GOAWAY.
        text = "http2 = true\n\n[limits]\nrequests_per_connection = 0\n"
        configuration = _write(place, "ktlsd.toml", text)
        options = ["--listen", f"127.0.0.1:{place.port}", "--ktls", ktls, "--config", configuration]
        return _run_ktlsd(place, programs, options)

    return launch


def _ktlsd_backend(place: Place, programs: Programs) -> Launch:
    configuration = _write(place, "ktlsd.toml", 'trusted_proxies = ["127.0.0.0/8"]\n')
    options = ["--listen", "127.0.0.1:0", "--backend-listen", f"127.0.0.1:{place.port}", "--config", configuration]
    return _run_ktlsd(place, programs, options)


def _nginx(
    ktls: bool, *, cache: bool = False, plain: bool = False, http2: bool = False
) -> Callable[[Place, Programs], Launch]:
    def launch(place: Place, _: Programs) -> Launch:
        temporary = "".join(
            f"    {kind}_temp_path {place.scratch}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        tls = f"""ssl_certificate {place.certificate};
        ssl_certificate_key {place.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:bench:10m;
        ssl_conf_command Options {"KTLS" if ktls else "-KTLS"};"""
        # nginx 1.25.1 and later warn of this place for it, and know it all the same.
        protocol = "" if plain else "ssl http2" if http2 else "ssl"
        proxied = "set_real_ip_from 127.0.0.0/8; real_ip_header X-Forwarded-For;"
        text = f"""daemon off;
user root;
worker_processes {place.workers};
worker_rlimit_nofile {2 * MOST_CONNECTIONS};
pid {place.scratch}/pid;
events {{ worker_connections {MOST_CONNECTIONS}; }}
http {{
    access_log off;
    log_not_found off;
    types {{ text/html html; }}
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout {IDLE_SECONDS}s;
    keepalive_requests 1000000000;
    {"open_file_cache max=20000 inactive=600s;" if cache else ""}
{temporary}
    server {{
        listen 127.0.0.1:{place.port} {protocol} backlog=4096;
        {proxied if plain else tls}
        root {place.root};
    }}
}}
"""
        configuration = _write(place, "nginx.conf", text)
        return _launch(place, ["nginx", "-p", str(place.scratch), "-e", "stderr", "-c", configuration])

    return launch


def _lighttpd(ktls: bool, *, http2: bool = False) -> Callable[[Place, Programs], Launch]:
    def launch(place: Place, _: Programs) -> Launch:
        workers = place.workers if place.workers > 1 else 0  # 1 is a worker and a watcher
        text = f"""server.modules = ("mod_openssl")
server.document-root = "{place.root}"
server.bind = "127.0.0.1"
server.port = {place.port}
server.max-worker = {workers}
server.max-connections = {MOST_CONNECTIONS}
server.max-fds = {2 * MOST_CONNECTIONS}
server.max-keep-alive-requests = 65535
server.max-keep-alive-idle = {IDLE_SECONDS}
server.listen-backlog = 4096
server.feature-flags = ("server.h2proto" => "{"enable" if http2 else "disable"}")
mimetype.assign = (".html" => "text/html", "" => "application/octet-stream")
ssl.engine = "enable"
ssl.pemfile = "{place.certificate}"
ssl.privkey = "{place.key}"
ssl.openssl.ssl-conf-cmd = ("Options" => "{"KTLS" if ktls else "-KTLS"}")
"""
        return _launch(place, ["lighttpd", "-D", "-f", _write(place, "lighttpd.conf", text)])

    return launch


def _caddy(protocols: str) -> Callable[[Place, Programs], Launch]:
    return lambda place, _: _run_caddy(place, protocols)


def _run_caddy(place: Place, protocols: str) -> Launch:
    text = f"""{{
    admin off
    auto_https off
    servers {{
        protocols {protocols}
    }}
    log {{
        level ERROR
    }}
}}
https://:{place.port} {{
    bind 127.0.0.1
    tls {place.certificate} {place.key}
    root * {place.root}
    file_server
}}
"""
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", _write(place, "Caddyfile", text)]
    home = str(place.scratch)
    return _launch(place, command, GOMAXPROCS=str(place.workers), XDG_DATA_HOME=home, XDG_CONFIG_HOME=home)


def _apache(place: Place, _: Programs) -> Launch:
    modules = ("mpm_event", "authz_core", "socache_shmcb", "ssl", "mime")
    loads = "".join(f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so\n" for name in modules)
    types = _write(place, "types", "text/html html\n")
    text = f"""{loads}ServerRoot {place.scratch}
ServerName localhost
DefaultRuntimeDir {place.scratch}
PidFile {place.scratch}/pid
ErrorLog /dev/stderr
LogLevel error
User www-data
Group www-data
TypesConfig {types}
Listen 127.0.0.1:{place.port}
ListenBacklog 4096
ServerLimit {place.workers}
StartServers {place.workers}
ThreadLimit 64
ThreadsPerChild 64
MaxRequestWorkers {64 * place.workers}
AsyncRequestWorkerFactor 128
KeepAlive On
KeepAliveTimeout {IDLE_SECONDS}
MaxKeepAliveRequests 0
EnableSendfile On
SSLEngine On
SSLCertificateFile {place.certificate}
SSLCertificateKeyFile {place.key}
SSLSessionCache shmcb:{place.scratch}/sessions(512000)
DocumentRoot {place.root}
<Directory {place.root}>
    Require all granted
</Directory>
"""
    return _launch(place, ["apache2", "-DFOREGROUND", "-f", _write(place, "apache.conf", text)])


def _python(place: Place, programs: Programs, module: str, options: Sequence[str]) -> Launch:
    command = [programs.python, "-m", module, *options]
    return _launch(place, command, PYTHONPATH=str(CHECKOUT), BENCH_ROOT=str(place.root))


def _granian(protocol: str) -> Callable[[Place, Programs], Launch]:
    return lambda place, programs: _run_granian(place, programs, protocol)


def _run_granian(place: Place, programs: Programs, protocol: str) -> Launch:
    options = ["--interface", "rsgi", "--http", protocol, "--host", "127.0.0.1", "--port", str(place.port)]
    options += ["--workers", str(place.workers), "--backlog", "4096", "--backpressure", str(MOST_CONNECTIONS)]
    options += ["--ssl-certificate", str(place.certificate), "--ssl-keyfile", str(place.key), "--log-level", "error"]
    options += ["--static-path-route", "", "--static-path-mount", str(place.root), "bench.apps:nothing"]
    return _python(place, programs, "granian", options)


def _uvicorn(place: Place, programs: Programs) -> Launch:
    options = ["--factory", "--host", "127.0.0.1", "--port", str(place.port), "--workers", str(place.workers)]
    options += ["--ssl-certfile", str(place.certificate), "--ssl-keyfile", str(place.key), "--no-access-log"]
    options += ["--log-level", "error", "--timeout-keep-alive", str(IDLE_SECONDS), "bench.apps:static"]
    return _python(place, programs, "uvicorn", options)


def _hypercorn(place: Place, programs: Programs) -> Launch:
    options = ["--worker-class", "trio", "--bind", f"127.0.0.1:{place.port}", "--workers", str(place.workers)]
    options += ["--certfile", str(place.certificate), "--keyfile", str(place.key), "--log-level", "ERROR"]
    options += ["--keep-alive", str(IDLE_SECONDS), "--backlog", "4096", "bench.apps:static()"]
    return _python(place, programs, "hypercorn", options)


def _aiohttp(place: Place, programs: Programs) -> Launch:
    options = [str(place.root), str(place.certificate), str(place.key), str(place.port), str(place.workers)]
    return _python(place, programs, "bench.aiohttp_server", options)


def _s_server(place: Place, _: Programs) -> Launch:
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{place.port}", "-quiet", "-WWW"]
    command += ["-cert", str(place.certificate), "-key", str(place.key)]
    if not has_ktls():
        return _launch(place, command, place.root)
    # The flag -ktls came with OpenSSL 3.1; the setting does the same and 3.0 knows it too.
    settings = _write(place, "openssl.cnf", S_SERVER_SETTINGS)
    return _launch(place, [*command, "-sendfile"], place.root, OPENSSL_CONF=settings)


def _says(*command: str, pattern: str = r"\d+(?:\.\d+)+\S*") -> Callable[[Programs], str]:
    def version(_: Programs) -> str:
        program = shutil.which(command[0], path=PATH) or command[0]
        found = re.search(pattern, output(program, *command[1:]))
        return found[0] if found else "unknown"

    return version


def _distributions(*names: str) -> Callable[[Programs], str]:
    """The versions of Python distributions; those that are not installed are left out."""
    script = (
        "import sys, importlib.metadata as m\n"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(' + '.join(f'{n} {have[n]}' for n in sys.argv[1:] if n in have))"
    )

    def version(programs: Programs) -> str:
        return output(programs.python, "-c", script, *names)

    return version


def _ktlsd_version(programs: Programs) -> str:
    return output(*programs.ktlsd, "--version").removeprefix("ktlsd ")


_NGINX_VERSION: Final = _says("nginx", "-v", pattern=r"(?<=nginx/)\S+")
_LIGHTTPD_VERSION: Final = _says("lighttpd", "-v", pattern=r"(?<=lighttpd/)\S+")
_LIGHTTPD: Final = "lighttpd lighttpd-mod-openssl"
_UVICORN: Final = ("uvicorn", "starlette", "uvloop", "httptools")
_HYPERCORN: Final = ("hypercorn", "starlette", "trio")


def _from_the_other(peer: Peer) -> Peer:
    """The same peer as the other ktlsd runs it."""
    return replace(
        peer,
        name=peer.name + OTHER,
        launch=lambda place, programs: peer.launch(place, programs.of_the_other()),
        version=lambda programs: peer.version(programs.of_the_other()),
    )


_CADDY_VERSION: Final = _says("caddy", "version", pattern=r"\S+")
_OURS: Final = (
    Peer(OURS, "env", "coreutils", _ktlsd("auto"), _ktlsd_version),
    Peer("ktlsd-off", "env", "coreutils", _ktlsd("off"), _ktlsd_version),
    Peer("ktlsd-h2", "env", "coreutils", _ktlsd_http2("auto"), _ktlsd_version, http2=True),
    Peer("ktlsd-h2-off", "env", "coreutils", _ktlsd_http2("off"), _ktlsd_version, http2=True),
    Peer("ktlsd-rules", "env", "coreutils", _ktlsd_with_rules, _ktlsd_version),
    Peer("ktlsd-auth", "env", "coreutils", _ktlsd_with_auth, _ktlsd_version),
    Peer("ktlsd-backend", "env", "coreutils", _ktlsd_backend, _ktlsd_version, plain=True),
)
_ALL: Final = (
    *_OURS,
    *map(_from_the_other, _OURS),
    Peer("nginx", "nginx", "nginx", _nginx(False), _NGINX_VERSION),
    Peer("nginx-ktls", "nginx", "nginx", _nginx(True), _NGINX_VERSION, ktls=True),
    Peer("nginx-h2", "nginx", "nginx", _nginx(False, http2=True), _NGINX_VERSION, http2=True),
    Peer("nginx-h2-ktls", "nginx", "nginx", _nginx(True, http2=True), _NGINX_VERSION, ktls=True, http2=True),
    Peer("nginx-backend", "nginx", "nginx", _nginx(False, plain=True), _NGINX_VERSION, plain=True),
    Peer("nginx-cached", "nginx", "nginx", _nginx(False, cache=True), _NGINX_VERSION),
    Peer("lighttpd", "lighttpd", _LIGHTTPD, _lighttpd(False), _LIGHTTPD_VERSION),
    Peer("lighttpd-ktls", "lighttpd", _LIGHTTPD, _lighttpd(True), _LIGHTTPD_VERSION, ktls=True),
    Peer("lighttpd-h2", "lighttpd", _LIGHTTPD, _lighttpd(False, http2=True), _LIGHTTPD_VERSION, http2=True),
    Peer("caddy", "caddy", "caddy", _caddy("h1"), _CADDY_VERSION),
    Peer("caddy-h2", "caddy", "caddy", _caddy("h1 h2"), _CADDY_VERSION, http2=True),
    Peer("apache", "apache2", "apache2", _apache, _says("apache2", "-v", pattern=r"(?<=Apache/)\S+")),
    Peer("granian", "granian", "granian", _granian("1"), _distributions("granian"), python=True),
    Peer("granian-h2", "granian", "granian", _granian("auto"), _distributions("granian"), python=True, http2=True),
    Peer("uvicorn", "uvicorn", "uvicorn starlette", _uvicorn, _distributions(*_UVICORN), python=True),
    Peer("hypercorn", "hypercorn", "hypercorn[trio] starlette", _hypercorn, _distributions(*_HYPERCORN), python=True),
    Peer("aiohttp", "aiohttp", "aiohttp", _aiohttp, _distributions("aiohttp"), python=True),
    Peer("s_server", "openssl", "openssl", _s_server, _says("openssl", "version"), serial=True),
)
PEERS: Final[dict[str, Peer]] = {peer.name: peer for peer in _ALL}
