"""ktlsd behind real nginx, HAProxy and Caddy, configured as docs/proxies.md says."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import http.client
import io
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.proxies import PROXIES, Places, admin_socket, haproxy
from tests.serving import WAIT_SECONDS, Answer, Running, client_context, connect_plain, read_to_end, serving

SIZE = 3_500_001
LARGE = os.urandom(SIZE)
SMALL = 12
CLIENT = "127.0.0.2"
"""An untrusted address of loopback."""

OVER_TLS = ("nginx", "haproxy", "caddy")
LOCAL = ("nginx-local", "haproxy-local", "caddy-local", "haproxy-local-h2", "caddy-local-h2")
PASSED_ON = ("nginx-passed", "haproxy-passed", "haproxy-passed-1")

# proxy.example.org is the name in the proxies' own certificate.
WEB = """
root = "root"
cert = "authority-ktlsd.pem"
key = "authority-ktlsd.pem"
trusted_proxies = ["127.0.0.1", "unix"]
client_ca = "authority.pem"
client_crl = "authority.crl"
client_names = "proxy.example.org"

[hsts]

[[cache]]
path = "/short.bin"
control = "max-age=1"
"""
LOCAL_WEB = """
root = "root"
trusted_proxies = ["127.0.0.1", "unix"]

[hsts]
"""
PASSED = """
root = "root"
cert = "authority-ktlsd.pem"
key = "authority-ktlsd.pem"
proxy_protocol = "127.0.0.1"
"""


@dataclass
class Behind:
    """The ktlsds, and the proxies' ports by what is behind them."""

    places: Places
    revoked: Path
    web: Running
    local: Running
    passed: Running
    ports: dict[str, int]

    def of(self, front: str) -> Running:
        return self.passed if front in PASSED_ON else self.local if front in LOCAL else self.web

    def connect(self, front: str) -> contextlib.closing[http.client.HTTPConnection]:
        """A connection of a client to a proxy."""
        port, source = self.ports[front], (CLIENT, 0)
        if front in PASSED_ON:
            context = client_context()
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=WAIT_SECONDS, source_address=source, context=context
            )
        else:
            made = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS, source_address=source)
        return contextlib.closing(made)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("proxies")
    root = folder / "root"
    root.mkdir()
    for name in ("large.bin", "short.bin"):
        (root / name).write_bytes(LARGE)
    (root / "empty.txt").touch()
    (root / "health.txt").write_text("well")
    for number in range(SMALL):
        (root / f"{number}.txt").write_text(str(number))
    authority = Authority(folder)
    authority.issue("ktlsd", ["example.org"])
    certificate = authority.issue("proxy", ["proxy.example.org"])
    revoked = authority.issue("revoked", ["proxy.example.org"])
    authority.revoke(revoked)
    for name, text in (("web", WEB), ("local", LOCAL_WEB), ("passed", PASSED)):
        (folder / f"{name}.toml").write_text(text)
    socket = f"unix:{folder}/http.sock"
    with contextlib.ExitStack() as stack:

        def start(name: str, *options: str, backend: tuple[str, ...] = ()) -> Running:
            words = ("--config", str(folder / f"{name}.toml"), "--log-level", "debug", *options)
            return stack.enter_context(serving(None, *words, state=folder / "state", backend_listen=backend))

        web, passed = start("web"), start("passed")
        local = start("local", "--access-log", "stderr", backend=(socket, "127.0.0.1:0"))
        path, plain = local.unix_socket, int(local.backends[1].rpartition(":")[2])
        places = Places(folder, web.port, passed.port, path, plain, authority.ca, certificate)
        ports: dict[str, int] = {}
        for proxy in PROXIES.values():
            ports |= stack.enter_context(proxy(places))
        yield Behind(places, revoked, web, local, passed, ports)


def ask(connection: http.client.HTTPConnection, target: str, method: str = "GET", **fields: str) -> Answer:
    """One request; `if_range` is If-Range."""
    names = {name.replace("_", "-"): value for name, value in fields.items()}
    connection.request(method, target, headers={"Host": "example.org", **names})
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@pytest.mark.parametrize("front", [*OVER_TLS, *LOCAL, *PASSED_ON])
def test_every_byte_arrives(behind: Behind, front: str) -> None:
    """On one connection: the whole, only its head, parts of it, and nothing if the client has it."""
    with behind.connect(front) as connection:
        whole = ask(connection, "/large.bin")
        assert (whole.status, len(whole.body)) == (200, SIZE)
        assert whole.body == LARGE
        head = ask(connection, "/large.bin", "HEAD")
        assert (head.status, head.body) == (200, b"")
        for name in ("content-length", "etag", "last-modified"):
            assert head.fields[name] == whole.fields[name]
        tag = whole.fields["etag"]
        part = ask(connection, "/large.bin", range="bytes=1000000-2500000", if_range=tag)
        assert (part.status, part.fields["content-range"]) == (206, f"bytes 1000000-2500000/{SIZE}")
        assert part.body == LARGE[1000000:2500001]
        end = ask(connection, "/large.bin", range="bytes=-5")
        assert (end.status, end.body) == (206, LARGE[-5:])
        same = ask(connection, "/large.bin", if_none_match=tag)
        assert (same.status, same.body, same.fields["etag"]) == (304, b"", tag)


@pytest.mark.parametrize("front", [*OVER_TLS, *LOCAL, *PASSED_ON])
def test_the_log_names_the_client_and_not_what_it_says_of_itself(behind: Behind, front: str) -> None:
    log = behind.of(front)
    since = len(log.log)
    with behind.connect(front) as connection:
        forged = {"x_forwarded_for": "6.6.6.6", "x_request_id": "forged", "forwarded": "for=6.6.6.6"}
        answer = ask(connection, f"/nothing-{front}", x_forwarded_proto="https", **forged)
    assert answer.status == 404
    line = log.wait_for_line(f" 404 GET /nothing-{front}", since)
    proxy = "unix" if front in LOCAL and front != "caddy-local-h2" else r"127\.0\.0\.1:\d+"
    if front in PASSED_ON:
        expected = rf"{re.escape(CLIENT)}:\d+ via {proxy} 404 "
    else:
        # The client speaks no TLS to this proxy, whatever it says.
        assert "strict-transport-security" not in answer.fields
        expected = rf"{re.escape(CLIENT)} via {proxy} \(request [0-9A-Fa-f:_-]{{16,}}\) 404 "
    assert re.match(expected, line), line


@pytest.mark.parametrize("front", LOCAL)
def test_the_protocol_without_tls_is_the_proxys_choice(behind: Behind, front: str) -> None:
    since = len(behind.local.log)
    with behind.connect(front) as connection:
        assert ask(connection, f"/0.txt?{front}").body == b"0"
    line = behind.local.wait_for_line(rf'"GET /0\.txt\?{front} HTTP/', since)
    assert ("HTTP/2.0" if front.endswith("-h2") else "HTTP/1.1") in line


@pytest.mark.parametrize("front", OVER_TLS)
def test_connections_to_ktlsd_are_kept(behind: Behind, front: str) -> None:
    def handshakes() -> int:
        return sum(" ktls tx=" in line and line.endswith("client=/CN=proxy") for line in behind.web.log)

    with behind.connect(front) as connection:
        assert ask(connection, "/0.txt").body == b"0"
        before = handshakes()
        bodies = [ask(connection, f"/{number}.txt").body for number in range(1, SMALL)]
    assert bodies == [str(number).encode() for number in range(1, SMALL)]
    # Health checks are connections too.
    assert handshakes() - before < SMALL - 3


def test_a_range_download_comes_out_of_the_cache(behind: Behind) -> None:
    """nginx asks for slices, keeps them, and puts other ranges together from them."""
    with behind.connect("nginx") as connection:
        first = ask(connection, "/large.bin?cached", range="bytes=1048576-3145727")
        again = ask(connection, "/large.bin?cached", range="bytes=1500000-3000000")
        whole = ask(connection, "/large.bin?cached")
    assert (first.status, first.body) == (206, LARGE[1048576:3145728])
    assert first.fields["x-cache-status"] == "MISS"
    assert (again.status, again.body) == (206, LARGE[1500000:3000001])
    assert again.fields["x-cache-status"] == "HIT"
    assert again.fields["content-range"] == f"bytes 1500000-3000000/{SIZE}"
    assert whole.body == LARGE


def test_an_empty_file_comes_through_a_cache_of_slices(behind: Behind) -> None:
    """nginx asks for the first slice, whatever the client asked for, and hands the answer on."""
    with behind.connect("nginx") as connection:
        for _ in range(2):
            answer = ask(connection, "/empty.txt")
            assert (answer.status, answer.body, answer.fields["content-length"]) == (200, b"", "0")


def test_what_the_cache_has_is_validated_and_not_sent_again(behind: Behind) -> None:
    with behind.connect("nginx") as connection:
        first = ask(connection, "/short.bin", range="bytes=0-99")
        time.sleep(2)
        second = ask(connection, "/short.bin", range="bytes=0-99")
    assert (first.fields["x-cache-status"], second.fields["x-cache-status"]) == ("MISS", "REVALIDATED")
    assert first.body == second.body == LARGE[:100]
    assert first.fields["etag"] == second.fields["etag"]


def states(places: Places) -> dict[str, tuple[str, str]]:
    """What HAProxy's health checks found, by backend: the server's state, and how the last check ended."""
    with connect_plain(admin_socket(places)) as admin:
        admin.sendall(b"show stat\n")
        text = read_to_end(admin).decode()
    rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
    return {row["pxname"]: (row["status"], row["check_status"]) for row in rows if row["svname"] == "ktlsd"}


def test_health_checks_find_it_well(behind: Behind) -> None:
    backends = {"ktlsd", "ktlsd_local", "ktlsd_local_h2", "ktlsd_passed_on", "ktlsd_passed_on_1"}
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := states(behind.places)) != dict.fromkeys(backends, ("UP", "L7OK")):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert not [line for line in behind.passed.log if "cut off" in line]


def test_health_checks_find_out_what_is_not(behind: Behind) -> None:
    """Without PROXY headers ktlsd is no backend for them."""
    folder = behind.places.folder / "wrong"
    folder.mkdir()
    places = dataclasses.replace(behind.places, folder=folder, tls=behind.passed.port)
    with haproxy(places):
        deadline = time.monotonic() + WAIT_SECONDS
        while states(places)["ktlsd"][0] != "DOWN":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert behind.passed.wait_for_line("proxy_protocol names this address, but no PROXY header came")


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_proxy_whose_certificate_is_revoked_gets_nothing(behind: Behind, proxy: str) -> None:
    folder = behind.places.folder / f"revoked-{proxy}"
    folder.mkdir()
    since = len(behind.web.log)
    places = dataclasses.replace(behind.places, folder=folder, certificate=behind.revoked)
    with PROXIES[proxy](places) as ports, dataclasses.replace(behind, ports=ports).connect(proxy) as connection:
        assert ask(connection, "/large.bin").status in (502, 503)
    assert behind.web.wait_for_line("handshake failed: .*certificate revoked", since)
