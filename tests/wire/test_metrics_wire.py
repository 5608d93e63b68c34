"""The metrics of a running ktlsd: exact counts after known requests, through deaths of workers and drains."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from ktlsd.config.options import LimitOptions, Settings
from ktlsd.config.values import Listen, Mode
from ktlsd.connection.transport import DEFAULTS
from ktlsd.metrics.metrics import MetricsStore, slot
from ktlsd.process.listeners import bind_all, bind_metrics
from ktlsd.server import Server
from ktlsd.service import Service
from ktlsd.ssl_ffi import Library
from ktlsd.status import metrics_listener
from ktlsd.status.metrics_listener import MOST_CONNECTIONS, MetricsListener
from ktlsd.tls.ktls_probe import support
from tests.in_process import in_a_thread
from tests.protocols import HTTP_1, HTTP_2, ask_by_both, conversation
from tests.self_signed import self_signed
from tests.serving import (
    WAIT_SECONDS,
    Answer,
    Running,
    children,
    client_context,
    connect,
    connect_plain,
    eventually,
    exchange,
    exchange_plain,
    get,
    is_refused,
    parse,
    parse_all,
    read_to_end,
    run_to_end,
    serving,
)

LARGE = 16 * 1024 * 1024
ON_LOOPBACK = ("--metrics-listen", "127.0.0.1:0")
FAILURES = "ktlsd_handshake_failures_total"

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "small.txt").write_text("small")
    (folder / "medium.bin").write_bytes(os.urandom(400_000))
    (folder / "large.bin").write_bytes(bytes(LARGE))
    return folder


def metrics_port(running: Running) -> int:
    """Its line comes before those of the listeners."""
    return int(running.wait_for_line(r"^metrics on http://127\.0\.0\.1:\d+$").rpartition(":")[2])


def ask(port: int, target: str, *fields: str, method: str = "GET") -> Answer:
    lines = [f"{method} {target} HTTP/1.1", f"Host: localhost:{port}", *fields, "", ""]
    answer, rest = parse(exchange_plain(port, "\r\n".join(lines).encode()), head_only=method == "HEAD")
    assert (rest, answer.fields["connection"]) == (b"", "close")
    return answer


def numbers(port: int) -> Numbers:
    answer = ask(port, "/metrics")
    assert answer.status == 200
    families = list(text_string_to_metric_families(answer.body.decode()))
    assert all(family.documentation for family in families)
    every = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in every}
    assert len(found) == len(every)
    return found


def value(found: Numbers, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


def by_status(found: Numbers, protocol: str = "HTTP/1.1") -> dict[str, float]:
    """Requests over this protocol."""
    mine = (key for key in found if key[0] == "ktlsd_requests_total" and ("protocol", protocol) in key[1])
    return {dict(labels)["status"]: found[name, labels] for name, labels in mine}


def sent(found: Numbers) -> float:
    """Bytes by whatever path: which one is the kernel's matter."""
    return sum(number for (name, _), number in found.items() if name == "ktlsd_sent_bytes_total")


MIXED = b"".join(
    b"%b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (line, fields)
    for line, fields in (
        (b"GET /small.txt", b""),
        (b"GET /medium.bin", b"Range: bytes=0-99999\r\n"),
        (b"GET /nothing", b""),
        (b"OPTIONS /small.txt", b""),
        (b"GET /medium.bin", b"If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n"),
        (b"GET /medium.bin", b"Connection: close\r\n"),
    )
)
AGAIN = b"GET /small.txt HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_exact_counts_after_known_requests(root: Path, tmp_path: Path, workers: str) -> None:
    data = b""
    options = (*ON_LOOPBACK, "--workers", workers)
    with serving(root, *options, state=tmp_path / "state", http_listen=["127.0.0.1:0"]) as running:
        port = metrics_port(running)
        assert {name for (name, _), number in numbers(port).items() if number and name.startswith("ktlsd_")} == {
            "ktlsd_workers",
            "ktlsd_certificate_expiry_timestamp_seconds",
            "ktlsd_build_info",
        }
        for _ in range(3):
            data += exchange(running.port, MIXED)
        # Once a file does not change any more, the same head is answered from memory.
        assert eventually(lambda: time.time_ns() - (root / "small.txt").stat().st_ctime_ns > 2_500_000_000)
        with connect(running.port) as connection:
            for _ in range(10):
                connection.sendall(AGAIN)
                data += connection.recv(65536)
            connection.sendall(b"nonsense\r\n\r\n")
            data += read_to_end(connection)
        older = client_context(newest=ssl.TLSVersion.TLSv1_2, ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")
        data += exchange(running.port, b"GET / HTTP/1.0\r\n\r\n", older)
        data += exchange_plain(running.http_ports[0], b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert eventually(lambda: value(numbers(port), "ktlsd_open_connections", listener="https") == 0)

        found = numbers(port)
        assert by_status(found) == Counter(str(answer.status) for answer in parse_all(data))
        assert by_status(found).keys() == {"200", "204", "206", "301", "304", "400", "403", "404"}
        assert sent(found) == len(data)
        assert value(found, "ktlsd_accepted_connections_total", listener="https") == 5
        assert value(found, "ktlsd_accepted_connections_total", listener="http") == 1
        assert value(found, "ktlsd_handshake_seconds_count") == 5
        assert value(found, "ktlsd_handshake_seconds_sum") > 0
        assert value(found, "ktlsd_requests_in_flight") == 0
        assert value(found, "ktlsd_worker_restarts_total") == 0
        assert value(found, "ktlsd_workers") == int(workers)
        assert value(found, "process_open_fds") > 10 * int(workers)
        assert value(found, "process_cpu_seconds_total") > 0.05
        assert time.time() - WAIT_SECONDS < value(found, "process_start_time_seconds") < time.time()
        promtool = subprocess.run(
            ["promtool", "check", "metrics"], input=ask(port, "/metrics").body, check=True, capture_output=True
        )
        assert (promtool.stdout, promtool.stderr) == (b"", b"")
        assert all(not number for (name, _), number in found.items() if name == FAILURES)
        settled = Counter[tuple[str, str]]()
        for (name, labels), number in found.items():
            if name == "ktlsd_tls_connections_total":
                settled[dict(labels)["protocol"], dict(labels)["cipher"]] += int(number)
        assert settled == {("TLSv1.3", "TLS_AES_128_GCM_SHA256"): 4, ("TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305"): 1}
        certificate = x509.load_pem_x509_certificate(running.certificate.read_bytes())
        file = str(running.certificate)
        ends = value(found, "ktlsd_certificate_expiry_timestamp_seconds", site="default", file=file)
        assert ends == certificate.not_valid_after_utc.timestamp()
        assert running.stop() == 0
        assert is_refused(port)


def test_exact_counts_of_a_conversation(root: Path, tmp_path: Path, protocol: str) -> None:
    """Bytes are those of all frames, by either protocol."""
    with serving(root, *ON_LOOPBACK, "--listing", state=tmp_path / "state") as running:
        port = metrics_port(running)
        bodies, began = 0, time.monotonic()
        with conversation(running.port, protocol) as client:
            for _ in range(3):
                answers = [
                    client.get("/small.txt"),
                    client.get("/medium.bin", "Range: bytes=0-99999"),
                    client.get("/medium.bin", "Range: bytes=0-9,300000-"),
                    client.get("/nothing"),
                    client.get("/"),
                    client.get("/small.txt", method="OPTIONS"),
                    client.get("/medium.bin", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT"),
                    client.get("/medium.bin"),
                    client.get("/large.bin", method="HEAD"),
                    client.get("/small.txt", *(f"X-{number}: a" for number in range(101))),
                    client.get("/" + "a" * 9000),
                ]
                bodies += sum(len(answer.body) for answer in answers)
            assert eventually(lambda: sent(numbers(port)) == client.received_bytes)
            client_seconds = time.monotonic() - began
        assert eventually(lambda: value(numbers(port), "ktlsd_open_connections", listener="https") == 0)
        found = numbers(port)
        versions = {HTTP_1: "HTTP/1.1", HTTP_2: "HTTP/2"}
        assert [by_status(found, version) for one, version in versions.items() if one != protocol] == [{}]
        assert by_status(found, versions[protocol]) == {
            status: 3 * number for status, number in Counter(str(answer.status) for answer in answers).items()
        }
        assert value(found, "ktlsd_accepted_connections_total", listener="https") == 1
        assert value(found, "ktlsd_requests_in_flight") == 0
        mine = {"protocol": versions[protocol]}
        assert value(found, "ktlsd_request_duration_seconds_count", **mine) == 3 * len(answers)
        assert 0 < value(found, "ktlsd_request_duration_seconds_sum", **mine) < client_seconds
        assert value(found, "ktlsd_response_size_bytes_count", **mine) == 3 * len(answers)
        # The chunks of a listing have frames in HTTP/1.1.
        assert 0 <= value(found, "ktlsd_response_size_bytes_sum", **mine) - bodies < (200 if protocol == HTTP_1 else 1)
        small = {**mine, "le": "256.0"}
        assert 12 <= value(found, "ktlsd_response_size_bytes_bucket", **small) <= 3 * len(answers) - 6
        assert value(found, "ktlsd_limited_total", limit="header_fields") == 3
        assert value(found, "ktlsd_limited_total", limit="target_bytes") == 3


def test_fallbacks_by_reason(root: Path, tmp_path: Path) -> None:
    with serving(root, *ON_LOOPBACK, "--ktls", "off", state=tmp_path / "state") as running:
        for _ in range(3):
            exchange(running.port, MIXED)
        found = numbers(metrics_port(running))
        fallbacks = {labels: number for (name, labels), number in found.items() if "fallbacks" in name and number}
        assert fallbacks == {
            frozenset({("direction", direction), ("reason", "switched_off")}): 3 for direction in ("tx", "rx")
        }
        assert value(found, "ktlsd_sent_bytes_total", path="user_space") == sent(found) > 0


def test_bytes_by_path(root: Path, tmp_path: Path) -> None:
    """Plain HTTP goes the kernel's way on every machine."""
    (root / "token").write_bytes(bytes(100_000))
    (root / "short").write_bytes(bytes(1000))
    options = (*ON_LOOPBACK, "--acme-challenges", str(root))
    request = b"GET /.well-known/acme-challenge/%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with serving(root, *options, state=tmp_path / "state", http_listen=["127.0.0.1:0"]) as running:
        data = b"".join(exchange_plain(running.http_ports[0], request % name) for name in (b"token", b"short"))
        found = numbers(metrics_port(running))
        assert value(found, "ktlsd_sent_bytes_total", path="sendfile") == 100_000
        assert value(found, "ktlsd_sent_bytes_total", path="send") == len(data) - 100_000 > 1000
        assert value(found, "ktlsd_sent_bytes_total", path="user_space") == 0


def test_gauges_while_a_download_is_stuck(root: Path, tmp_path: Path, protocol: str) -> None:
    with serving(root, *ON_LOOPBACK, state=tmp_path / "state") as running:
        port = metrics_port(running)
        with conversation(running.port, protocol) as stuck, conversation(running.port, protocol) as idle:
            download = stuck.begin("/large.bin")
            download.read(16384)
            assert idle.get("/small.txt").body == b"small"

            def gauges() -> tuple[float, float, float]:
                found = numbers(port)
                in_tls = sum(number for (name, _), number in found.items() if name == "ktlsd_open_tls_connections")
                open_now = value(found, "ktlsd_open_connections", listener="https")
                return value(found, "ktlsd_requests_in_flight"), open_now, in_tls

            assert eventually(lambda: gauges() == (1, 2, 2))
            some = sent(numbers(port))
            assert 16384 <= some < LARGE
            time.sleep(0.3)
            assert len(download.answer().body) == LARGE
            assert eventually(lambda: gauges() == (0, 2, 2))
        assert eventually(lambda: gauges() == (0, 0, 0))
        found = numbers(port)
        assert sent(found) > LARGE
        mine = {"protocol": {HTTP_1: "HTTP/1.1", HTTP_2: "HTTP/2"}[protocol]}
        assert value(found, "ktlsd_response_size_bytes_sum", **mine) == LARGE + len(b"small")
        assert value(found, "ktlsd_request_duration_seconds_count", **mine) == 2
        assert value(found, "ktlsd_request_duration_seconds_bucket", le="0.25", **mine) == 1


def test_the_counts_of_a_killed_worker_are_not_lost(root: Path, tmp_path: Path) -> None:
    with serving(root, *ON_LOOPBACK, "--workers", "2", state=tmp_path / "state") as running:
        port = metrics_port(running)
        statuses = Counter[str]()

        def kill_one() -> None:
            before = children(running.process.pid)
            os.kill(min(before), signal.SIGKILL)
            assert eventually(lambda: len(children(running.process.pid) - {min(before)}) == 2)

        for _ in range(3):
            for _ in range(6):
                statuses.update(str(answer.status) for answer in parse_all(exchange(running.port, MIXED)))
            with contextlib.ExitStack() as held:
                # Some are the victim's: its gauges must not outlive it.
                for _ in range(6):
                    held.enter_context(connect(running.port))
                kill_one()
            assert eventually(lambda: value(numbers(port), "ktlsd_open_connections", listener="https") == 0)
            assert by_status(numbers(port)) == statuses
        assert value(numbers(port), "ktlsd_worker_restarts_total") == 3


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ready_until_it_drains_and_told_until_it_ends(root: Path, tmp_path: Path, workers: str) -> None:
    options = (*ON_LOOPBACK, "--workers", workers)
    with serving(root, *options, state=tmp_path / "state") as running:
        port = metrics_port(running)
        assert (ask(port, "/readyz").status, ask(port, "/healthz").status) == (200, 200)
        with connect(running.port) as stuck:
            stuck.sendall(b"GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            begun = stuck.recv(16384)
            running.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: is_refused(running.port))
            # A worker that has nothing to finish is gone soon, and its answer may be cut off.
            assert eventually(lambda: len(children(running.process.pid)) == int(workers) - 1)
            assert (ask(port, "/readyz").status, ask(port, "/healthz").status) == (503, 200)
            assert value(numbers(port), "ktlsd_requests_in_flight") == 1
            assert len(begun) + len(read_to_end(stuck)) > LARGE
        assert running.process.wait(timeout=WAIT_SECONDS) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_counts_outlive_a_reload_and_a_renewed_certificate_is_told(root: Path, tmp_path: Path, workers: str) -> None:
    certificate, key = self_signed(tmp_path, "one")
    pair = ("--cert", str(certificate), "--key", str(key))
    with serving(root, *ON_LOOPBACK, *pair, "--workers", workers, state=tmp_path / "state") as running:
        port = metrics_port(running)

        def ends() -> float:
            labels = {"site": "default", "file": str(certificate)}
            return value(numbers(port), "ktlsd_certificate_expiry_timestamp_seconds", **labels)

        exchange(running.port, MIXED)
        before = ends()
        longer = [
            "openssl",
            "req",
            "-x509",
            "-key",
            str(key),
            "-days",
            "90",
            "-subj",
            "/CN=one",
            "-out",
            str(certificate),
        ]
        subprocess.run(longer, check=True, capture_output=True)
        assert ends() == before
        running.process.send_signal(signal.SIGHUP)
        # The first is of 30 days. Any worker may answer: each has to have read the new one.
        assert eventually(lambda: all(ends() > before + 50 * 86400 for _ in range(8)))
        found = numbers(port)
        assert sum(by_status(found).values()) == 6
        assert value(found, "ktlsd_worker_restarts_total") == 0


def test_requests_by_site_from_the_second_site_on(root: Path, tmp_path: Path) -> None:
    """Small and large files, remembered responses, refusals without a site; by both protocols, in both workers."""
    settings, other = tmp_path / "ktlsd.toml", tmp_path / "other"
    shutil.copytree(root, other)
    (other / "new.txt").write_text("new")
    one = f'root = "{root}"\nworkers = 2\nlog_level = "debug"\nmetrics_listen = "127.0.0.1:0"\n'
    settings.write_text(one)
    with serving(None, "--config", str(settings), state=tmp_path / "state") as running:
        port = metrics_port(running)
        assert ask_by_both(running.port, "/small.txt", host="b.example").status == 200
        assert not [name for name, _ in numbers(port) if name.startswith("ktlsd_site_")]
        settings.write_text(f'{one}[[site]]\nnames = ["b.example", "c.example"]\nroot = "{other}"\n')
        running.process.send_signal(signal.SIGHUP)
        # Of both workers, and of their parent.
        assert eventually(lambda: sum("configuration reloaded" in line for line in running.log) == 3)
        assert get(running.port, "/new.txt", host="c.example").status == 200

        def asked(protocol: str, site: str, status: str = "2xx") -> tuple[float, float]:
            labels, found = {"site": site, "protocol": protocol}, numbers(port)
            begun = value(found, "ktlsd_site_requests_total", **labels, **{"class": status})
            return begun, value(found, "ktlsd_site_request_duration_seconds_count", **labels)

        before, _ = asked("HTTP/1.1", "b.example")
        for _ in range(8):
            for name, target in (("b.example", "/small.txt"), ("c.example", "/medium.bin"), ("b.example", "/nothing")):
                ask_by_both(running.port, target, host=name)
            ask_by_both(running.port, "/\\\\%", host="b.example")
        # Of the last response the time is counted a little after the client has it.
        assert eventually(lambda: asked("HTTP/2", "none", "4xx") == (8, 8))
        for protocol, more in (("HTTP/1.1", before), ("HTTP/2", 0)):
            assert asked(protocol, "b.example")[0] == more + 16
            assert asked(protocol, "b.example", "4xx")[0] == 8
            assert asked(protocol, "none", "4xx") == (8, 8)
        assert asked("HTTP/2", "b.example")[1] == 24
        page = ask(port, "/").body.decode()
        assert "Requests by site and protocol" in page
        assert ">b.example<" in page


def test_a_certificate_whose_path_is_no_text_is_told(root: Path, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, os.fsdecode(b"caf\xe9"), "IP:127.0.0.1")
    with serving(
        root, *ON_LOOPBACK, "--cert", str(certificate), "--key", str(key), state=tmp_path / "state"
    ) as running:
        port = metrics_port(running)
        labels = {"site": "default", "file": f"{tmp_path}/caf\\udce9.pem"}
        assert value(numbers(port), "ktlsd_certificate_expiry_timestamp_seconds", **labels) > time.time()
        for target in ("/", "/status.json"):
            assert ask(port, target).status == 200


def test_only_what_is_asked_for_in_order(root: Path, tmp_path: Path) -> None:
    with serving(root, *ON_LOOPBACK, state=tmp_path / "state") as running:
        port = metrics_port(running)
        head = ask(port, "/metrics", method="HEAD")
        assert (head.status, head.body, int(head.fields["content-length"]) > 1000) == (200, b"", True)
        answer = ask(port, "/metrics", method="DELETE")
        assert (answer.status, answer.fields["allow"]) == (405, "GET, HEAD")
        assert ask(port, "/small.txt").status == 404
        assert ask(port, "/../../../etc/passwd").status == 404
        assert ask(port, "/metrics", "Accept: application/openmetrics-text").body.endswith(b"# EOF\n")
        foreign = exchange_plain(port, b"GET /metrics HTTP/1.1\r\nHost: rebound.example\r\n\r\n")
        assert parse(foreign)[0].status == 421
        assert parse(exchange_plain(port, b"GET /healthz HTTP/1.0\r\n\r\n"))[0].body == b"ok\n"
        assert parse(exchange_plain(port, b"nonsense\r\n\r\n"))[0].status == 400
        endless = b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000
        assert parse(exchange_plain(port, endless))[0].status == 431
        body = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000
        assert parse(exchange_plain(port, body))[0].status == 200
        # None of these was a request to what is served.
        assert by_status(numbers(port)) == {}


def test_empty_lines_before_a_request_are_ignored(root: Path, tmp_path: Path) -> None:
    with serving(root, "--metrics-listen", "127.0.0.1:0", state=tmp_path) as server:
        port = metrics_port(server)
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for before, status in ((b"\r\n", b"200"), (b"\r\n" * 3, b"200"), (b"\n", b"400"), (b"\r", b"400")):
            assert exchange_plain(port, before + request).startswith(b"HTTP/1.1 " + status)
        with connect_plain(port) as client:
            for part in (b"\r", b"\n\r", b"\n" + request):
                client.sendall(part)
                time.sleep(0.05)
            assert read_to_end(client).startswith(b"HTTP/1.1 200")


def test_a_port_alone_is_one_of_loopback(root: Path, tmp_path: Path) -> None:
    with serving(root, "--metrics-listen", ":0", state=tmp_path / "state") as running:
        lines = [line for line in running.log if line.startswith("metrics on ")]
        assert lines
        assert all(re.fullmatch(r"metrics on http://(127\.0\.0\.1|\[::1\]):\d+", line) for line in lines)
    with serving(root, state=tmp_path / "state") as running:
        assert not any("metrics" in line for line in running.log)


def test_what_cannot_be_listened_on_is_one_line(root: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run_to_end("--root", str(root), "--listen", "localhost:0", "--metrics-listen", place, state=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"ktlsd: --metrics-listen {place}: Address already in use: ")
    ended = run_to_end("--root", str(root), "--metrics-listen", "9090", state=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("ktlsd: --metrics-listen: '9090' is not ADDR:PORT")


@contextlib.contextmanager
def in_process(
    root: Path, state: Path, mode: Mode, limits: LimitOptions = DEFAULTS
) -> Iterator[tuple[MetricsStore, int, int]]:
    """A server on an event loop of this process, in a thread; its metrics store and its ports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(state))
        library = Library()
        wanted = Listen("127.0.0.1", 0)
        settings = Settings(root=root, metrics_listen=wanted, limits=limits, tls_policy="compatible")
        service = Service(library, settings, support(library, mode))
    listeners = bind_all([wanted])
    store = MetricsStore(1)
    sockets = bind_metrics(wanted)
    one = Server(service, None, store.take(0), MetricsListener(sockets, store))
    with in_a_thread(one, listeners):
        yield store, listeners[0].socket.getsockname()[1], sockets.sockets[0].getsockname()[1]
    service.close()


def test_handshake_failures_by_reason(root: Path, tmp_path: Path) -> None:
    with in_process(root, tmp_path, Mode.AUTO, LimitOptions(handshake_seconds=1)) as (store, port, _):

        def failures() -> dict[str, int]:
            totals = store.totals()
            reasons = ("timeout", "plain_http", "lost", "tls_error", "ktls_required")
            return {reason: number for reason in reasons if (number := totals[slot(FAILURES, reason)])}

        with socket.create_connection(("127.0.0.1", port)) as silent:
            assert silent.recv(1) == b""
        assert failures() == {"timeout": 1}
        assert exchange_plain(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert eventually(lambda: failures() == {"timeout": 1, "plain_http": 1})
        exchange_plain(port, b"\x16\x03\x01\x00\x05hello")
        assert eventually(lambda: failures() == {"timeout": 1, "plain_http": 1, "tls_error": 1})
        socket.create_connection(("127.0.0.1", port)).close()
        assert eventually(lambda: failures() == {"timeout": 1, "plain_http": 1, "tls_error": 1, "lost": 1})
        totals = store.totals()
        assert totals[slot("ktlsd_accepted_connections_total", "https")] == 4
        assert totals[slot("ktlsd_handshake_seconds", "+Inf")] == 0


def test_a_connection_that_require_forbids(root: Path, tmp_path: Path) -> None:
    with in_process(root, tmp_path, Mode.REQUIRE) as (store, port, _):
        # No kernel carries this cipher.
        cipher = "ECDHE-ECDSA-AES256-SHA384"
        older = client_context(newest=ssl.TLSVersion.TLSv1_2, ciphers=cipher)
        assert exchange(port, MIXED, older) == b""
        totals = store.totals()
        assert totals[slot(FAILURES, "ktls_required")] == 1
        assert totals[slot("ktlsd_tls_connections_total", "TLSv1.2", cipher, "none", "none")] == 1


def test_slow_and_many_clients_of_the_metrics(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_listener, "EXCHANGE_SECONDS", 2.0)
    with in_process(root, tmp_path, Mode.AUTO) as (_, _, port), contextlib.ExitStack() as held:
        slow = [
            held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS))
            for _ in range(MOST_CONNECTIONS + 1)
        ]
        # The last connection is closed at once, the others at their deadline.
        slow[0].sendall(b"GET /metrics HTTP/1.1\r\n")
        assert slow[-1].recv(1) == b""
        assert all(one.recv(1) == b"" for one in slow)
        assert ask(port, "/healthz").status == 200
