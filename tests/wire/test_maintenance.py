"""Maintenance over the wire, over both protocols: who gets 503 and which page, also from memory, and what goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import write_all
from tests.protocols import PROTOCOLS, plain_conversation
from tests.serving import Answer, Running, exchange_plain, parse, serving
from tests.wire.test_metrics_wire import ask as ask_metrics
from tests.wire.test_metrics_wire import metrics_port, numbers, value

CONFIGURATION = """
root = "www"
trusted_proxies = "unix"
metrics_listen = "127.0.0.1:0"
acme_challenges = "challenges"
error_pages = { 503 = "/503.html" }

[maintenance]
file = "switch"
page = "down.html"
retry_after = 120
allow = ["10.0.0.0/8"]

[[site]]
names = ["always.example"]
maintenance = { enabled = true }

[[site]]
names = ["ready.example"]
maintenance = { page = "down.html" }
"""
INSIDE, OUTSIDE = "X-Forwarded-For: 10.1.2.3", "X-Forwarded-For: 192.0.2.1"
PAGE = b"<!doctype html><title>Down</title><p>Back soon."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_all(tmp_path / "www", {name: name for name in ("a.txt", "503.html", ".well-known/acme-challenge/token")})
    (tmp_path / "challenges").mkdir()
    (tmp_path / "challenges" / "token").write_text("answer")
    (tmp_path / "down.html").write_bytes(PAGE)
    (tmp_path / "ktlsd.toml").write_text(CONFIGURATION)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    backend = f"unix:{folder / 'socket'}"
    options = ("--config", str(folder / "ktlsd.toml"))
    with serving(
        None, *options, state=folder / "state", backend_listen=(backend,), http_listen=("127.0.0.1:0",)
    ) as running:
        yield running


def ask(folder: Path, protocol: str, target: str, *fields: str, method: str = "GET", host: str = "a") -> Answer:
    with plain_conversation(str(folder / "socket"), protocol) as connection:
        return connection.get(target, *fields, method=method, host=host)


def test_a_file_switches_maintenance_on_and_off(server: Running, folder: Path) -> None:
    with (
        plain_conversation(str(folder / "socket"), PROTOCOLS[0]) as one,
        plain_conversation(str(folder / "socket"), PROTOCOLS[1]) as other,
    ):
        for _ in range(2):
            # The second is remembered.
            for connection in (one, other):
                assert connection.get("/a.txt", OUTSIDE).body == b"a.txt"
        (folder / "switch").touch()
        began = time.monotonic()
        while one.get("/a.txt", OUTSIDE).status == 200:
            assert time.monotonic() < began + 10
            time.sleep(0.02)
        for connection in (one, other):
            for target in ("/a.txt", "/absent", "/"):
                answer = connection.get(target, OUTSIDE)
                assert (answer.status, answer.body) == (503, PAGE)
                assert answer.fields["retry-after"] == "120"
                assert answer.fields["content-type"] == "text/html; charset=utf-8"
                assert answer.fields["cache-control"] == "no-store"
            head = connection.get("/a.txt", OUTSIDE, method="HEAD")
            assert (head.status, head.fields["content-length"], head.body) == (503, str(len(PAGE)), b"")
            assert connection.get("/a.txt", INSIDE).body == b"a.txt"
            assert connection.get("/absent", INSIDE).status == 404
            # Names are verified by it, with or without a folder of their own.
            assert connection.get("/.well-known/acme-challenge/token", OUTSIDE).status == 200
            assert connection.get("/a.txt", OUTSIDE, host="ready.example").status == 200
        request = b"GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        challenge, _ = parse(exchange_plain(server.http_ports[0], request))
        assert (challenge.status, challenge.body) == (200, b"answer")
        for target in ("/healthz", "/readyz"):
            assert ask_metrics(metrics_port(server), target).status == 200
        assert value(numbers(metrics_port(server)), "ktlsd_access_denied_total", reason="maintenance") >= 8
        server.wait_for_line("maintenance begins: .*/switch")
        assert sum(" 503 " in line for line in server.log) == 1
        (folder / "switch").unlink()
        while other.get("/a.txt", OUTSIDE).status == 503:
            assert time.monotonic() < began + 20
            time.sleep(0.02)
        assert one.get("/a.txt", OUTSIDE).status == 200
        server.wait_for_line("maintenance ends: .*/switch")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_key_switches_maintenance_on(server: Running, folder: Path, protocol: str) -> None:
    answer = ask(folder, protocol, "/a.txt", INSIDE, host="always.example")
    assert (answer.status, answer.body, answer.fields["retry-after"]) == (503, b"503.html", "600")
    # The page of a root that is gone meanwhile is a line.
    (folder / "www").rename(folder / "elsewhere")
    assert ask(folder, protocol, "/a.txt", host="always.example").status == 503
