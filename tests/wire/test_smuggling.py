"""Request smuggling beyond the shapes of test_framing_wire.py: a corpus (corpus/smuggling.toml), over TLS, without it,
and through a real nginx in front, where no client may get the response to another's request.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.ports import free_ports
from ktlsd.http2.frames import PREFACE
from tests.downloads import read_all
from tests.proxies import TOOL_PATH
from tests.serving import Running, eventually, exchange, exchange_plain, is_refused, parse_all, serving

NAMES = ("first", "smuggled", "last")
BODIES = {name: f"this is {name}\n".encode() for name in NAMES}
SMUGGLED = b"GET /smuggled.txt HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    sent: bytes
    outcome: str


CASES = [
    Case(case["name"], case["sent"].encode("latin-1"), case["outcome"])
    for case in tomllib.loads((Path(__file__).parents[1] / "corpus/smuggling.toml").read_text())["case"]
]
NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream ktlsd {{ server 127.0.0.1:{backend}; keepalive 1; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://ktlsd; proxy_http_version 1.1; proxy_request_buffering off;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("root")
    for name, body in BODIES.items():
        (root / f"{name}.txt").write_bytes(body)
    with serving(root, state=tmp_path_factory.mktemp("state"), backend_listen=("127.0.0.1:0",)) as running:
        yield running


def backend(server: Running) -> int:
    return int(server.backends[0].rpartition(":")[2])


@pytest.fixture(scope="module")
def nginx(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx with one kept connection to the server."""
    program = shutil.which("nginx", path=TOOL_PATH)
    if program is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    [port] = free_ports(1)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, backend=backend(server), port=port))
    with subprocess.Popen([program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]) as process:
        try:
            assert eventually(lambda: not is_refused(port))
            yield port
        finally:
            process.terminate()


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "backend"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_reading_alone(server: Running, case: Case, secure: bool) -> None:
    sent = case.sent + SMUGGLED + LAST
    data = exchange(server.port, sent) if secure else exchange_plain(backend(server), sent)
    if not secure and sent.startswith(PREFACE):
        # It is HTTP/2, which the rest is not.
        assert b"HTTP/1.1" not in data
        assert not any(body in data for body in BODIES.values())
        return
    answers = parse_all(data)
    if case.outcome == "refused":
        [answer] = answers
        assert answer.status >= 400
        assert answer.fields["connection"] == "close"
    else:
        first, *others = answers
        assert first.status in (200, 405)
        assert [answer.body for answer in others] == [BODIES["smuggled"], BODIES["last"]]


@pytest.mark.parametrize("begun", [b"", b"GET /smuggled.txt HTTP/1.1\r\n"], ids=["nothing of it", "a part of it"])
def test_behind_nginx_a_body_that_stays_away_takes_no_request_of_others(
    server: Running, nginx: int, begun: bytes
) -> None:
    """The answer comes before the body: its connection must not go to others, whose requests would be read as that."""
    head = b"GET /first.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 200\r\n\r\n"
    with socket.create_connection(("127.0.0.1", nginx), timeout=60) as attacker:
        attacker.sendall(head + begun)
        for name in NAMES:
            request = f"GET /{name}.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
            [answer] = parse_all(exchange_plain(nginx, request))
            assert (answer.status, answer.body) == (200, BODIES[name])
        attacker.shutdown(socket.SHUT_WR)
        data, _ = read_all(attacker)
    assert data.count(b"HTTP/1.1 200") <= 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_behind_nginx_nobody_gets_anothers_answer(server: Running, nginx: int, case: Case) -> None:
    with socket.create_connection(("127.0.0.1", nginx), timeout=60) as attacker:
        attacker.sendall(case.sent)
        attacker.shutdown(socket.SHUT_WR)
        data, _ = read_all(attacker)
    # Whatever became of that, those who come next over the same connection to the server get their own.
    for name in NAMES:
        request = f"GET /{name}.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        [answer] = parse_all(exchange_plain(nginx, request))
        assert (answer.status, answer.body) == (200, BODIES[name])
    assert data.count(b"HTTP/1.1 200") <= 1
