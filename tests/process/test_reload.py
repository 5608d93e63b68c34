"""A running server takes a new configuration and new certificates, and loses no connection and no byte over it."""

from __future__ import annotations

import os
import re
import resource
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio

from ktlsd.config.options import Settings
from ktlsd.config.values import Mode
from ktlsd.process.configuration import RESTART_ONLY
from ktlsd.process.notify import Notifier
from ktlsd.process.reload import Reloader
from ktlsd.service import Service
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.protocols import HTTP_2, conversation
from tests.serving import (
    Running,
    children,
    client_context,
    command,
    connect,
    eventually,
    exchange_plain,
    get,
    parse,
    read_to_end,
    serving,
)
from tests.tls.test_certificates import Authority
from tests.wire.test_lifecycle import LARGE, begin_download

RELOADS = 12
KEPT = b"GET /small.txt HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "large.bin").write_bytes(os.urandom(1024 * 1024) * (LARGE // 1024 // 1024))
    (folder / "small.txt").write_text("small")
    return folder


class Config:
    """A configuration file whose version every response has."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.path = folder / "ktlsd.toml"
        self._lines = lines
        self.write("0")

    def write(self, version: str, *lines: str) -> None:
        rule = ["[[header]]", "path = '**'", f"set = {{ X-Version = '{version}' }}"]
        self.path.write_text("\n".join([*self._lines, *lines, *rule, ""]))


def version_of(server: Running) -> str:
    return get(server.port, "/small.txt").fields["x-version"]


def reload_to(server: Running, config: Config, version: str) -> None:
    """Reload, and wait until every worker has done it."""
    config.write(version)
    since = len(server.log)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_line("^configuration reloaded$", since)
    assert eventually(lambda: all(version_of(server) == version for _ in range(4)))


class Busy:
    """Clients that do not stop."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.done: dict[str, int] = {}
        self._stop = threading.Event()

    @contextmanager
    def __call__(self, *tasks: Callable[[], None]) -> Iterator[None]:
        """Do each task again and again, in a thread of its own; what goes wrong ends it and is kept."""

        def repeat(task: Callable[[], None]) -> None:
            try:
                while not self._stop.is_set():
                    task()
                    self.done[task.__name__] = self.done.get(task.__name__, 0) + 1
            except BaseException as error:
                self.failures.append(error)

        threads = [threading.Thread(target=repeat, args=(task,)) for task in tasks]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_reloads_cost_no_connection_and_no_byte(root: Path, tmp_path: Path, workers: int) -> None:
    config = Config(tmp_path, f"workers = {workers}", f"root = '{root}'")
    with serving(None, "--config", str(config.path), state=tmp_path / "state") as server:
        download, data = begin_download(server.port)
        kept = connect(server.port)
        received = bytearray(data)
        http2 = ExitStack()
        kept_http2, downloading = (http2.enter_context(conversation(server.port, HTTP_2)) for _ in range(2))
        download_http2 = downloading.begin("/large.bin")
        processes = children(server.process.pid)

        def handshake() -> None:
            assert get(server.port, "/small.txt").body == b"small"

        def request() -> None:
            kept.sendall(KEPT)
            answer, rest = parse(kept.recv(65536))
            assert (answer.status, answer.body, rest) == (200, b"small", b"")
            assert "connection" not in answer.fields

        def request_http2() -> None:
            assert kept_http2.get("/small.txt").body == b"small"

        def read_slowly() -> None:
            received.extend(download.recv(1024))
            time.sleep(0.005)

        busy = Busy()
        with download, kept, http2:
            with busy(handshake, request, request_http2, read_slowly):
                for version in range(1, RELOADS + 1):
                    if version % 4 == 0:
                        since = len(server.log)
                        config.write("bad", "wrong = 1")
                        server.process.send_signal(signal.SIGHUP)
                        server.wait_for_line("not reloaded, the old one stays in force", since)
                    reload_to(server, config, str(version))
                # Here, since a keep-alive connection is one that lived through all of it.
                kept_version = busy.done["request"]
            assert busy.failures == []
            assert kept_version > RELOADS
            kept.sendall(KEPT)
            assert parse(kept.recv(65536))[0].fields["x-version"] == str(RELOADS)
            assert kept_http2.get("/small.txt").fields["x-version"] == str(RELOADS)
            assert download_http2.answer().body == (root / "large.bin").read_bytes()
            received.extend(read_to_end(download))
        assert parse(bytes(received))[0].body == (root / "large.bin").read_bytes()
        assert busy.done.keys() == {"handshake", "request", "request_http2", "read_slowly"}
        assert children(server.process.pid) == processes
        assert len([line for line in server.log if line == "configuration reloaded"]) == RELOADS
        assert not [line for line in server.log if "defect" in line or "Traceback" in line]
        assert server.stop() == 0


def is_blocked(process: int, number: signal.Signals) -> bool:
    found = re.search(r"SigBlk:\s+([0-9a-f]+)", Path(f"/proc/{process}/status").read_text())
    return found is not None and bool(int(found[1], 16) & 1 << number - 1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_may_come_before_the_start_is_done_and_after_the_end_began(
    root: Path, tmp_path: Path, workers: str
) -> None:
    arguments = command("--root", str(root), "--listen", "127.0.0.1:0", "--workers", workers)
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert eventually(lambda: is_blocked(process.pid, signal.SIGHUP))
        process.send_signal(signal.SIGHUP)
        assert process.stderr
        assert any(line == "configuration reloaded\n" for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGUSR2)
            time.sleep(0.001)
        assert process.wait() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_is_possible_with_more_than_1024_open_files(root: Path, tmp_path: Path, workers: str) -> None:
    """select(2) knows no more; each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this machine allows too few open files")
    open_many = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000));"
        " [os.set_inheritable(os.open('/dev/null', os.O_RDONLY), True) for _ in range(1100)];"
        " os.execv(sys.argv[1], sys.argv[1:])"
    )
    config = Config(tmp_path, f"workers = {workers}", f"root = '{root}'")
    options = ("--config", str(config.path))
    wrapper = (sys.executable, "-c", open_many)
    with serving(None, *options, state=tmp_path / "state", wrapper=wrapper) as server:
        assert server.open_files() > 1100
        reload_to(server, config, "1")


def test_a_worker_that_cannot_do_what_its_parent_could_tries_again(root: Path, tmp_path: Path) -> None:
    config = Config(tmp_path, "workers = 2", f"root = '{root}'")
    with serving(None, "--config", str(config.path), state=tmp_path / "state") as server:
        assert version_of(server) == "0"
        hindered, other = children(server.process.pid)
        soft, hard = resource.prlimit(hindered, resource.RLIMIT_NOFILE)
        resource.prlimit(hindered, resource.RLIMIT_NOFILE, (3, hard))
        config.write("1")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("^configuration reloaded$")
        server.wait_for_line("^configuration not reloaded, .*Too many open files")
        resource.prlimit(hindered, resource.RLIMIT_NOFILE, (soft, hard))
        os.kill(other, signal.SIGSTOP)
        try:
            assert eventually(lambda: version_of(server) == "1")
        finally:
            os.kill(other, signal.SIGCONT)
        # A last line may still be on its way.
        time.sleep(0.5)
        tries = len([line for line in server.log if "not reloaded" in line])
        reload_to(server, config, "2")
        assert len([line for line in server.log if "not reloaded" in line]) == tries


async def test_what_was_loaded_is_in_force_before_anything_else_is_loaded() -> None:
    events: list[str] = []
    configuration = Mock(take=lambda _: events.append("take"))

    def load(*, anew: bool) -> Mock:
        events.append("load")
        return Mock()

    configuration.load = load
    # Time enough for another thread to begin.
    server = Mock(replace=lambda _: time.sleep(0.01))
    reloader = Reloader(server, configuration, Notifier({}), alone=True)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(partial(reloader._reload, anew=bool(number % 2)))
    assert events == ["load", "take"] * 20


def test_what_is_not_served_any_more_is_closed(root: Path, tmp_path: Path) -> None:
    config = Config(tmp_path, f"root = '{root}'")
    with serving(None, "--config", str(config.path), state=tmp_path / "state") as server:
        reload_to(server, config, "1")
        before = server.open_files()
        for version in range(2, 6):
            since = len(server.log)
            config.write("bad", "[[site]]", "names = ['a']", f"root = '{tmp_path / 'absent'}'")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_line("absent: cannot be served: there is no such folder", since)
            reload_to(server, config, str(version))
        assert eventually(lambda: server.open_files() <= before), server.open_files()


def test_a_service_stays_open_for_its_last_user(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    library = Library()
    service = Service(library, Settings(root=root), support(library, Mode.OFF))
    descriptor = service.sites.default.site.root.descriptor
    with service.in_use():
        with service.in_use():
            service.retire()
        assert os.path.samestat(os.fstat(descriptor), root.stat())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["wrong = 1"], r"ktlsd\.toml:\d: 'wrong': no such key"),
        (["root = ["], r"ktlsd\.toml:\d: column \d: is not TOML: invalid value"),
        (["cert = 'absent.pem'", "key = 'absent.key'"], r"absent\.pem cannot be used as a PEM certificate chain: "),
        (
            ["listen = ['127.0.0.1:1']", "workers = 2"],
            r"ktlsd\.toml:\d: workers: a change from 1, where one process does ",
        ),
        (
            ["metrics_listen = ':0'", "user = '1'", "group = '1'"],
            r"ktlsd\.toml:\d: user, group: a change needs a restart",
        ),
        (
            ["ticket_keys = 'nowhere/keys'"],
            r"ktlsd\.toml:\d: ticket_keys .*nowhere/keys: cannot keep session ticket keys",
        ),
    ],
)
def test_a_configuration_that_is_wrong_changes_nothing(
    root: Path, tmp_path: Path, lines: list[str], complaint: str
) -> None:
    config = Config(tmp_path)
    with serving(root, "--config", str(config.path), state=tmp_path / "state") as server:
        config.write("wrong", *lines)
        server.process.send_signal(signal.SIGHUP)
        line = server.wait_for_line("not reloaded")
        assert line.startswith("configuration not reloaded, the old one stays in force: ")
        server.wait_for_line(complaint)
        assert version_of(server) == "0"
        reload_to(server, config, "1")
        assert len([line for line in server.log if "not reloaded" in line]) == 1


def test_the_keys_that_need_a_restart_are_told() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs/lifecycle.md").read_text(encoding="utf-8")
    told = document.partition("These keys cannot change while ktlsd runs")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"`(\w+)`", told)) == RESTART_ONLY


def test_redirects_lead_to_the_port_of_the_new_configuration(root: Path, tmp_path: Path) -> None:
    config = Config(tmp_path, f"root = '{root}'")
    with serving(None, "--config", str(config.path), state=tmp_path / "state", http_listen=("127.0.0.1:0",)) as server:
        bound = server.port

        def location() -> str:
            request = b"GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            return parse(exchange_plain(server.http_ports[0], request))[0].fields["location"]

        assert location() == f"https://localhost:{bound}/a"
        for line, port in (("https_port = 444", ":444"), ("https_port = 443", ""), ("", f":{bound}")):
            since = len(server.log)
            config.write("1", line)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_line("^configuration reloaded$", since)
            assert location() == f"https://localhost{port}/a"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue("ec")
    made.issue("ec384")
    return made


def served_certificate(server: Running, authority: Authority) -> bytes:
    """In DER, verified."""
    with connect(server.port, client_context(cafile=authority.cafile), name="localhost") as connection:
        connection.sendall(KEPT)
        assert parse(connection.recv(65536))[0].body == b"small"
        certificate = connection.getpeercert(binary_form=True)
        assert certificate
        return certificate


def der(path: Path) -> bytes:
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(path.read_text().partition(end)[0] + end)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_certificates_are_taken_when_their_links_are_swapped(
    root: Path, tmp_path: Path, authority: Authority, workers: str
) -> None:
    live = tmp_path / "live"
    live.mkdir()

    def point(name: str, target: Path) -> None:
        """As certbot does."""
        (live / "new").symlink_to(target)
        os.replace(live / "new", live / name)

    point("fullchain.pem", authority.certificate("ec"))
    point("privkey.pem", authority.key_of("ec"))
    options = ("--cert", str(live / "fullchain.pem"), "--key", str(live / "privkey.pem"), "--workers", workers)
    with serving(root, *options, state=tmp_path / "state") as server, connect(server.port) as kept:
        kept.sendall(KEPT)
        assert parse(kept.recv(65536))[0].body == b"small"
        assert served_certificate(server, authority) == der(authority.certificate("ec"))
        # Until the key follows, the two do not belong together.
        point("fullchain.pem", authority.certificate("ec384"))
        line = server.wait_for_line("^certificate of default not reloaded, the old one stays in force: --key: ")
        assert line.endswith(f"the key {live}/privkey.pem does not belong to the certificate {live}/fullchain.pem")
        assert served_certificate(server, authority) == der(authority.certificate("ec"))
        point("privkey.pem", authority.key_of("ec384"))
        server.wait_for_line("^certificates reloaded$")
        expected = der(authority.certificate("ec384"))
        assert eventually(lambda: all(served_certificate(server, authority) == expected for _ in range(4)))
        kept.sendall(KEPT)
        assert parse(kept.recv(65536))[0].body == b"small"
        assert len([line for line in server.log if "not reloaded" in line]) == 1


def test_a_certificate_that_is_half_written_waits_for_its_rest(
    root: Path, tmp_path: Path, authority: Authority
) -> None:
    certificate, private = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_bytes(authority.certificate("ec").read_bytes())
    private.write_bytes(authority.key_of("ec").read_bytes())
    options = ("--cert", str(certificate), "--key", str(private))
    with serving(root, *options, state=tmp_path / "state") as server:
        new = authority.certificate("ec384").read_bytes()
        private.write_bytes(authority.key_of("ec384").read_bytes())
        certificate.write_bytes(new[:300])
        server.wait_for_line("^certificate of default not reloaded, the old one stays in force: --cert: ")
        assert served_certificate(server, authority) == der(authority.certificate("ec"))
        certificate.write_bytes(new)
        server.wait_for_line("^certificates reloaded$")
        assert served_certificate(server, authority) == der(authority.certificate("ec384"))
