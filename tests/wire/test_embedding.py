"""ktlsd within a Python program: the examples of docs/python.md, several servers at once, their ends and refusals."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio

import ktlsd
from tests.serving import client_context, connect, get, is_refused, parse, read_to_end

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(), re.DOTALL)
WITH_PYTEST = [example for example in EXAMPLES if "def test_" in example]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.txt").write_text("hello")
    (root / "large").write_bytes(os.urandom(32 << 20))
    return root


def run_python(folder: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example not in WITH_PYTEST])
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(example)
    assert re.fullmatch(r"200|\d+ bytes from https://127.0.0.1:\d+", run_python(tmp_path, "example.py").strip())


def test_the_example_of_a_test_passes(tmp_path: Path) -> None:
    plugin = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert plugin == {"ktlsd": "ktlsd.pytest_plugin"}
    (tmp_path / "test_example.py").write_text(WITH_PYTEST[0])
    # An environment may be older than the entry point.
    told = run_python(tmp_path, "-m", "pytest", "-p", "no:ktlsd", "-p", "ktlsd.pytest_plugin", "-q", ".")
    assert "1 passed" in told


def test_the_package_names_what_is_public_and_imports_nothing_before_it_is_used() -> None:
    program = "import ktlsd, sys; print(*dir(ktlsd), sum(name.startswith('ktlsd.') for name in sys.modules))"
    assert run_python(REPOSITORY, "-c", program).split() == [*ktlsd.__all__, "0"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ktlsd.nothing


async def test_several_servers_in_one_event_loop_and_a_download_that_outlives_the_block(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    settings: dict[str, Any] = {"root": root, "etag": "content"}
    received: list[bytes] = []
    asked = trio.Event()

    def begin(port: int) -> ssl.SSLSocket:
        connection = connect(port)
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received.append(connection.recv(4096))
        return connection

    def download(connection: ssl.SSLSocket) -> None:
        with connection:
            received.append(read_to_end(connection))

    async with (
        trio.open_nursery() as nursery,
        ktlsd.serving(settings) as one,
        ktlsd.serving(settings | {"metrics_listen": "127.0.0.1:0", "access_log": tmp_path / "log"}) as other,
    ):
        assert one.url == f"https://127.0.0.1:{one.port}"
        assert one.certificate is not None
        trusting = client_context(cafile=one.certificate)
        answers = [await trio.to_thread.run_sync(lambda: get(one.port, "/a.txt", context=trusting))]
        answers += [await trio.to_thread.run_sync(get, other.port, "/a.txt")]
        assert [answer.body for answer in answers] == [b"hello"] * 2
        assert answers[0].fields["etag"] == answers[1].fields["etag"]
        assert other.metrics_url is not None
        assert other.metrics_url.startswith("http://127.0.0.1:")
        connection = await trio.to_thread.run_sync(begin, one.port)
        nursery.start_soon(trio.to_thread.run_sync, download, connection)
        asked.set()
    assert parse(b"".join(received))[0].body == (root / "large").read_bytes()
    assert is_refused(one.port)
    assert is_refused(other.port)
    assert "GET /a.txt" in (tmp_path / "log").read_text()
    assert "127.0.0.1:" in caplog.text
    assert not one.certificate.exists()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


async def test_an_exception_in_the_block_arrives_as_it_is_and_connections_are_cut_off(root: Path) -> None:
    connections: list[ssl.SSLSocket] = []

    async def fail() -> None:
        async with ktlsd.serving({"root": root}) as server:
            connections.append(await trio.to_thread.run_sync(connect, server.port))
            raise ZeroDivisionError

    with trio.fail_after(30), pytest.raises(ZeroDivisionError):
        await fail()
    with connections[0] as connection, pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
        await trio.to_thread.run_sync(read_to_end, connection)


async def test_a_cancelled_block_ends(root: Path) -> None:
    with trio.fail_after(30), trio.CancelScope() as scope:
        async with ktlsd.serving({"root": root}) as server:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert is_refused(server.port)


def test_servers_in_threads_end_with_their_blocks(root: Path) -> None:
    before = threading.active_count()
    with ktlsd.serving_in_thread({"root": root}) as one, ktlsd.serving_in_thread({"root": root}) as other:
        assert get(one.port, "/a.txt").body == get(other.port, "/a.txt").body == b"hello"
    assert is_refused(one.port)
    assert sum(thread.name == "ktlsd" for thread in threading.enumerate()) == 0
    # trio keeps some threads for its next call.
    assert threading.active_count() < before + 20


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "no folder to serve: name one with root"),
        ({"root": "nowhere"}, "root nowhere: cannot be served: there is no such folder"),
        ({"root": ".", "listn": 1}, "'listn': no such key; did you mean 'listen'?"),
        ({"root": ".", 5: 1}, "5: no such key; .*"),
        ({"root": ".", "workers": 2}, "workers: has no effect in a Python program: this is one process; leave it out"),
        ({"root": ".", "cert": "a"}, "cert without key: give both, or neither for a self-signed certificate"),
        ({"root": ".", "cert": "a", "key": "b"}, "cert[0]: a cannot be used as a PEM certificate chain: .*"),
        ({"root": ".", "site": [{"names": "a"}, {"names": "a"}]}, "site[1].names[0]: 'a' is a name of site[0] already"),
        ({"root": ".", "listen": "127.0.0.1:{taken}"}, "listen 127.0.0.1:{taken}: Address already in use.*"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_one_line(settings: dict[str, Any], told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        if "listen" in settings:
            settings = settings | {"listen": settings["listen"].replace("{taken}", port)}
        pattern = re.escape(told).replace(r"\.\*", ".*").replace(r"\{taken\}", port)
        with pytest.raises(ktlsd.Refusal, match=f"^{pattern}$"), ktlsd.serving_in_thread(settings):
            pass
