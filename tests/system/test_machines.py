"""Several machines by docs/beyond-one-machine.md: three ktlsd and HAProxy, each in a network namespace of its own.

They get one certificate by one account of an ACME authority, which asks the balancer. Under load one machine loses its
power, one is shut down, one is upgraded. Clients ask again where HTTP lets them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pebble import Pebble, pebble
from tests.proxies import TOOL_PATH
from tests.serving import Running, end_successors, eventually, parse, read_to_end, serving

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "beyond-one-machine.md"
TOML, HAPROXY = re.findall(r"^```(?:toml|haproxy)\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
NAME = "www.example.org"
BALANCER = "192.0.2.10"
MACHINES = {"one": "192.0.2.11", "two": "192.0.2.12", "three": "192.0.2.13"}
LARGE = 16 << 20
CLONE_NEWNET = 0x40000000
ATTEMPTS = 20
PROXY_HEADER = b"PROXY TCP4 192.0.2.10 192.0.2.10 1 443\r\n"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces"),
    pytest.mark.skipif(
        not all(shutil.which(name, path=TOOL_PATH) for name in ("ip", "haproxy")), reason="no iproute2 or HAProxy"
    ),
]


@dataclass
class Network:
    """The namespaces, by the name of a machine or "balancer"."""

    prefix: str = field(default_factory=lambda: f"ktlsd-{secrets.token_hex(3)}")

    def of(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def within(self, name: str) -> list[str]:
        """The words that run a command there."""
        return ["ip", "netns", "exec", self.of(name)]

    def ip(self, name: str, *words: str) -> None:
        subprocess.run(["ip", "-n", self.of(name), *words], check=True)

    def enter(self, name: str) -> None:
        """Have the calling thread open its sockets there from now on."""
        with open(f"/run/netns/{self.of(name)}") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def network() -> Iterator[Network]:
    """A bridge in the balancer's namespace, and a cable to each machine."""
    made = Network()
    names = ["balancer", *MACHINES]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", made.of(name)], check=True)
            made.ip(name, "link", "set", "lo", "up")
        made.ip("balancer", "link", "add", "bridge", "type", "bridge")
        made.ip("balancer", "address", "add", f"{BALANCER}/24", "dev", "bridge")
        made.ip("balancer", "link", "set", "bridge", "up")
        for name, address in MACHINES.items():
            peer = ["peer", "name", "eth0", "netns", made.of(name)]
            made.ip("balancer", "link", "add", f"to-{name}", "type", "veth", *peer)
            made.ip("balancer", "link", "set", f"to-{name}", "master", "bridge", "up")
            made.ip(name, "address", "add", f"{address}/24", "dev", "eth0")
            made.ip(name, "link", "set", "eth0", "up")
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", made.of(name)], check=False, stderr=subprocess.DEVNULL)


def placed(text: str, replaced: dict[str, str]) -> str:
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def machine(network: Network, folder: Path, name: str, authority: Pebble) -> Iterator[Running]:
    """A ktlsd by the document, with files of its own, the shared state folder, and a field that names it."""
    own = folder / name
    if not own.exists():
        own.mkdir()
        shutil.copytree(folder / "www", own / "www")
    text = placed(TOML, {"/srv/www": f"{own}/www", "[acme]\n": authority.table()})
    config = own / "ktlsd.toml"
    config.write_text(f'{text}[[header]]\npath = "**"\nset = {{ X-Machine = "{name}" }}\n')
    state, wrapper = folder / "shared", network.within(name)
    with serving(None, "--config", str(config), state=state, listen=(), wrapper=wrapper) as server:
        try:
            server.wait_for_line("^listening on ")
            yield server
        finally:
            end_successors(server)


@contextlib.contextmanager
def haproxy(network: Network, folder: Path) -> Iterator[None]:
    """HAProxy by the document, which is quicker to see that a machine is gone."""
    quicker = {"inter 1s": "inter 200ms", "srvtcpka-idle 5s": "srvtcpka-idle 1s", "srvtcpka-cnt 3": "srvtcpka-cnt 1"}
    text = placed(HAPROXY, quicker)
    (folder / "haproxy.cfg").write_text(text)
    binary = shutil.which("haproxy", path=TOOL_PATH)
    assert binary
    command = [*network.within("balancer"), binary, "-db", "-f", str(folder / "haproxy.cfg")]
    with (folder / "haproxy.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()


class Served(NamedTuple):
    """A response, and the TLS session that it came in."""

    machine: str
    body: bytes
    session: ssl.SSLSession | None
    resumed: bool | None


@dataclass
class Client:
    """Asks the balancer, and asks again if a connection breaks (RFC 9110 section 9.2.2)."""

    context: ssl.SSLContext
    retries: int = 0

    def connect(self, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        raw = socket.create_connection((BALANCER, 443), timeout=30)
        try:
            return self.context.wrap_socket(raw, server_hostname=NAME, session=session, suppress_ragged_eofs=False)
        except OSError:
            raw.close()
            raise

    def get(self, session: ssl.SSLSession | None = None) -> Served:
        """The small file."""
        for _ in range(ATTEMPTS):
            try:
                with self.connect(session) as connection:
                    connection.sendall(b"GET /a.txt HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % NAME.encode())
                    answer = parse(read_to_end(connection))[0]
                    assert answer.status == 200
                    machine = answer.fields["x-machine"]
                    return Served(machine, answer.body, connection.session, connection.session_reused)
            except OSError:
                self.retries += 1
                time.sleep(0.05)
        raise AssertionError(f"no answer after {ATTEMPTS} attempts")

    def download(self, path: str, on_machine: list[str], go_on: threading.Event) -> bytearray:
        """A large file: the beginning, and then all, by as many requests as it takes."""
        body, tag = bytearray(), ""
        for _ in range(ATTEMPTS):
            fields = [f"Range: bytes={len(body)}-", f"If-Range: {tag}"] if body else []
            head = [f"GET {path} HTTP/1.1", f"Host: {NAME}", "Connection: close", *fields, "", ""]
            with contextlib.suppress(OSError), self.connect() as connection:
                connection.sendall("\r\n".join(head).encode())
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                response, _, data = data.partition(b"\r\n\r\n")
                assert response.startswith(b"HTTP/1.1 206" if body else b"HTTP/1.1 200"), response
                values = dict(re.findall(r"^([\w-]+): (.*?)\r?$", response.decode().lower(), re.MULTILINE))
                assert tag in ("", values["etag"])
                tag = values["etag"]
                on_machine.append(values["x-machine"])
                body += data
                while some := connection.recv(65536):
                    body += some
                    if len(body) > 1 << 20:
                        go_on.wait(60)
                return body
            time.sleep(0.05)
        raise AssertionError("the download did not end")


class Load:
    """Clients that ask again and again, each time on a new connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.client = Client(context)
        self.served: dict[str, int] = dict.fromkeys(MACHINES, 0)
        self.asking: list[Future[None]] = []
        self.stopped = threading.Event()

    def ask(self) -> None:
        while not self.stopped.is_set():
            served = self.client.get()
            assert served.body == b"hello"
            self.served[served.machine] += 1
            time.sleep(0.02)

    def goes_on(self, *names: str) -> bool:
        """Whether each of these machines serves some more."""
        before = dict(self.served)

        def serve_more() -> bool:
            for client in self.asking:
                if client.done():
                    client.result()
            return all(self.served[name] > before[name] + 2 for name in names)

        return eventually(serve_more)


@contextlib.contextmanager
def acme_authority(clients: ThreadPoolExecutor, folder: Path) -> Iterator[Pebble]:
    """Pebble beside the balancer, which has all names; it does not answer until certified()."""
    made = pebble(folder, address=BALANCER, tlsPort=443)
    authority = clients.submit(made.__enter__).result()
    try:
        clients.submit(authority.stop).result()
        yield authority
    finally:
        clients.submit(made.__exit__, None, None, None).result()


def certified(clients: ThreadPoolExecutor, authority: Pebble, running: Iterable[Running]) -> ssl.SSLContext:
    """Wait until all machines have the certificate; the context of clients that trust its authority."""
    clients.submit(authority.start).result()
    for server in running:
        # It tries at once what has failed.
        server.process.send_signal(signal.SIGHUP)
    context = ssl.create_default_context(cafile=clients.submit(authority.root).result())

    def is_trusted(address: str) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((address, 443), timeout=5) as raw:
            raw.sendall(PROXY_HEADER)
            context.wrap_socket(raw, server_hostname=NAME).close()
            return True
        return False

    assert eventually(lambda: all(clients.submit(is_trusted, address).result() for address in MACHINES.values()))
    return context


def test_a_loss_a_shutdown_and_an_upgrade_under_load(network: Network, tmp_path: Path) -> None:
    for made in ("www", "pebble"):
        (tmp_path / made).mkdir()
    (tmp_path / "www/a.txt").write_text("hello")
    content = os.urandom(1 << 20) * (LARGE >> 20)
    (tmp_path / "www/large.bin").write_bytes(content)
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(ThreadPoolExecutor(8, initializer=network.enter, initargs=("balancer",)))
        stack.enter_context(haproxy(network, tmp_path))
        authority = stack.enter_context(acme_authority(clients, tmp_path / "pebble"))
        stacks = {name: stack.enter_context(contextlib.ExitStack()) for name in MACHINES}
        running = {name: stacks[name].enter_context(machine(network, tmp_path, name, authority)) for name in MACHINES}
        context = certified(clients, authority, running.values())
        load, client = Load(context), Client(context)
        stack.callback(load.stopped.set)
        load.asking += (clients.submit(load.ask) for _ in range(2))
        assert load.goes_on(*MACHINES)

        def begin_download() -> tuple[str, list[str], threading.Event, Future[bytearray]]:
            on_machine: list[str] = []
            go_on = threading.Event()
            stack.callback(go_on.set)
            body = clients.submit(client.download, "/large.bin", on_machine, go_on)
            assert eventually(lambda: bool(on_machine))
            return on_machine[0], on_machine, go_on, body

        # One machine loses its power.
        lost, on_machine, go_on, body = begin_download()
        began = clients.submit(client.get).result()
        network.ip("balancer", "link", "set", f"to-{lost}", "down")
        running[lost].process.send_signal(signal.SIGKILL)
        go_on.set()
        assert body.result() == content
        assert on_machine[0] == lost
        assert set(on_machine[1:]) <= MACHINES.keys() - {lost}
        again: list[Served] = []

        def resumes_elsewhere() -> bool:
            # The load takes turns, too.
            again.append(clients.submit(client.get, began.session).result())
            return again[-1].machine not in (began.machine, lost)

        assert eventually(resumes_elsewhere)
        assert all(served.resumed for served in again)
        assert load.goes_on(*MACHINES.keys() - {lost})

        # It comes back, and another one is shut down.
        network.ip("balancer", "link", "set", f"to-{lost}", "up")
        stacks[lost].close()
        running[lost] = stacks[lost].enter_context(machine(network, tmp_path, lost, authority))
        assert load.goes_on(*MACHINES)
        load.client.retries = 0
        drained, on_machine, go_on, body = begin_download()
        running[drained].process.send_signal(signal.SIGTERM)
        running[drained].wait_for_line("^shutting down on SIGTERM: ")
        assert load.goes_on(*MACHINES.keys() - {drained})
        go_on.set()
        assert body.result() == content
        assert on_machine == [drained]
        assert running[drained].process.wait(30) == 0

        # One of the two that are left is upgraded.
        left = MACHINES.keys() - {drained}
        upgraded = min(left)
        running[upgraded].process.send_signal(signal.SIGRTMIN)
        running[upgraded].wait_for_line(r"^upgrade: process \d+ accepts connections, this one ends$")
        assert running[upgraded].process.wait(30) == 0
        assert load.goes_on(*left)
        assert load.client.retries == 0
        load.stopped.set()
        for one in load.asking:
            one.result()
        # Each machine that has waited for the certificate says that it is there; one has ordered it.
        assert (tmp_path / "pebble/pebble.log").read_text().count("Added order") == 1
        assert len(list((tmp_path / "shared/ktlsd/acme/accounts").glob("*.json"))) == 1
