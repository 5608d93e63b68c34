"""`ktlsd health`: 0 if a running server answers, 1 if not, 2 without an address; the manifest for Kubernetes."""

from __future__ import annotations

import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from ktlsd.commands.health import ask
from ktlsd.config.environment import names
from ktlsd.config.values import Listen
from tests.serving import connect, eventually, is_refused, run_to_end, serving
from tests.system.test_packaging import REPOSITORY


def health(state: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    ended = run_to_end("health", *arguments, state=state, **environment)
    return ended.returncode, ended.stdout, ended.stderr


def test_a_server_that_answers_then_drains_then_is_gone(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(1 << 24))
    with serving(tmp_path, "--metrics-listen", "127.0.0.1:0", state=tmp_path / "state") as server:
        place = server.wait_for_line("^metrics on ").rpartition("//")[2]
        config = tmp_path / "ktlsd.toml"
        config.write_text(f'metrics_listen = ":{place.rpartition(":")[2]}"\n')
        assert health(tmp_path, KTLSD_METRICS_LISTEN=place) == (0, "ok\n", "")
        assert health(tmp_path, "--ready", "--config", str(config)) == (0, "ready\n", "")
        with connect(server.port) as stuck:
            stuck.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            stuck.recv(16384)
            server.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: is_refused(server.port))
            assert health(tmp_path, "--metrics-listen", place) == (0, "ok\n", "")
            assert health(tmp_path, "--metrics-listen", place, "--ready") == (1, "", "ktlsd health: draining\n")
    refused = f"ktlsd health: {place}: Connection refused\n"
    assert health(tmp_path, "--metrics-listen", place) == (1, "", refused)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1", "localhost"])
def test_the_address_of_a_listener_on_every_address(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert ask(Listen(host, server.getsockname()[1]), "/healthz") == (200, "ok")
        thread.join()


def test_no_address_is_refused(tmp_path: Path) -> None:
    status, out, error = health(tmp_path)
    assert (status, out) == (2, "")
    assert error.startswith("ktlsd: no address to ask: ")


def test_the_manifest_fits_the_image() -> None:
    """Names, paths and numbers of docs/kubernetes.yaml: those of ktlsd and of the Containerfile."""
    manifest = (REPOSITORY / "docs/kubernetes.yaml").read_text(encoding="utf-8")
    image = (REPOSITORY / "packaging/Containerfile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"- name: (KTLSD_\w+)\n +value: \"?(.*?)\"?\n", manifest))
    assert variables.keys() <= set(names())
    assert manifest.count("name: KTLSD_") == len(variables) > 5
    mounts = re.findall(r"mountPath: (\S+)", manifest)
    assert "/var/lib/ktlsd" in mounts
    assert "/var/lib/ktlsd" in image
    for name in ("KTLSD_ROOT", "KTLSD_CERT", "KTLSD_KEY"):
        assert any(variables[name].startswith(mount) for mount in mounts)
    assert set(re.findall(r"(?:runAsUser|runAsGroup|fsGroup): (\d+)", manifest)) == {"33"}
    assert "\nUSER 33:33\n" in image
    assert re.findall(r"KTLSD_LISTEN=:(\d+)", image) == re.findall(r"name: https\n +containerPort: (\d+)", manifest)
    assert variables["KTLSD_METRICS_LISTEN"].endswith(re.findall(r"name: metrics\n +containerPort: (\d+)", manifest)[0])
    grace = int(re.findall(r"terminationGracePeriodSeconds: (\d+)", manifest)[0])
    assert grace > int(variables["KTLSD_DRAIN_SECONDS"]) + 5
