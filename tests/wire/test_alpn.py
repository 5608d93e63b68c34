"""ALPN (RFC 7301): the protocol that is chosen, also where no memory may be writable and executable."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.alpn import choose
from tests.http2_client import Http2Client, h2_context
from tests.self_signed import RSA, self_signed
from tests.serving import WAIT_SECONDS, Running, client_context, connect, get, serving

MDWE = """
    import ctypes, mmap, os, resource, sys
    PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
    def forbid_executable_memory():
        # Linux 6.3; systemd's MemoryDenyWriteExecute= uses it, too.
        assert ctypes.CDLL(None, use_errno=True).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) == 0
        try:
            mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError:
            return
        raise AssertionError("memory is writable and executable")
"""
WRAPPER = f"{textwrap.dedent(MDWE)}\nforbid_executable_memory()\nos.execv(sys.argv[1], sys.argv[1:])"


def config(folder: Path, *, http2: bool) -> Path:
    root = folder / "www"
    root.mkdir(exist_ok=True)
    (root / "index.html").write_text("<p>Start</p>")
    path = folder / "ktlsd.toml"
    path.write_text(f"root = {json.dumps(str(root))}\nhttp2 = {json.dumps(http2)}\n")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("alpn")
    with serving(None, "--config", str(config(folder, http2=True)), state=folder) as running:
        yield running


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (b"\x02h2\x08http/1.1", b"h2"),
        (b"\x08http/1.1\x02h2", b"h2"),
        (b"\x08http/1.1", b"http/1.1"),
        (b"\x08http/1.0\x03h2c", None),
        (b"\x05ah2ha\x02h3", None),
        (b"", None),
        (b"\x00\x02h2", b"h2"),
    ],
)
def test_choice(offered: bytes, chosen: bytes | None) -> None:
    assert choose(offered) == chosen


def chosen(server: Running, *protocols: str) -> str | None:
    context = h2_context(*protocols) if protocols else client_context()
    with connect(server.port, context) as connection:
        return connection.selected_alpn_protocol()


def test_chosen_protocol(server: Running) -> None:
    assert chosen(server, "h2", "http/1.1") == "h2"
    assert chosen(server, "http/1.1", "h2") == "h2"
    assert chosen(server, "http/1.1") == "http/1.1"
    assert chosen(server, "h3", "http/1.0") is None
    assert chosen(server) is None
    server.wait_for_line(" alpn=h2$")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl(server: Running, version: str) -> None:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", version, "-alpn", "h2,http/1.1"]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=WAIT_SECONDS, check=False)
    assert b"ALPN protocol: h2" in done.stdout


def test_resumed_session_chooses_anew(server: Running) -> None:
    context = h2_context("h2")
    with connect(server.port, context) as connection:
        client = Http2Client(connection)
        assert client.get("/").status == 200
        session = connection.session
    with connect(server.port, context, session) as connection:
        assert connection.session_reused
        assert connection.selected_alpn_protocol() == "h2"
        assert Http2Client(connection).get("/").status == 200


@pytest.fixture(scope="module")
def compatible(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that has ciphers which HTTP/2 refuses."""
    folder = tmp_path_factory.mktemp("compatible")
    path = config(folder, http2=True)
    path.write_text(f"{path.read_text()}tls_policy = 'compatible'\n")
    with serving(None, "--config", str(path), state=folder) as running:
        yield running


def test_no_http2_with_a_cipher_that_it_refuses(compatible: Running) -> None:
    """RFC 9113 section 9.2.2: a client may end such a connection with INADEQUATE_SECURITY."""

    def context(ciphers: str, *protocols: str) -> ssl.SSLContext:
        made = client_context(newest=ssl.TLSVersion.TLSv1_2)
        made.set_ciphers(ciphers)
        made.set_alpn_protocols(protocols)
        return made

    cbc, both = "ECDHE-ECDSA-AES128-SHA256", ("h2", "http/1.1")
    for ciphers, protocols, chosen in (
        (cbc, both, "http/1.1"),
        (cbc, ("h2",), None),
        (f"{cbc}:ECDHE-ECDSA-AES128-GCM-SHA256", both, "h2"),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", both, "h2"),
    ):
        offering = context(ciphers, *protocols)
        with connect(compatible.port, offering) as connection:
            assert connection.selected_alpn_protocol() == chosen
            session = connection.session
        # A resumed session has the cipher that it had.
        with connect(compatible.port, offering, session) as connection:
            assert connection.session_reused
            assert connection.selected_alpn_protocol() == chosen
        assert get(compatible.port, "/", context=context(ciphers, "http/1.1")).body == b"<p>Start</p>"
    with connect(compatible.port, h2_context()) as connection:
        assert connection.version() == "TLSv1.3"
        assert Http2Client(connection).get("/").status == 200


def test_no_http2_with_static_rsa(tmp_path: Path) -> None:
    """AEAD, but no ephemeral key exchange: only a list of one's own has such a cipher."""
    path = config(tmp_path, http2=True)
    certificate, key = self_signed(tmp_path, "localhost", kind=RSA)
    lists = f"cert = '{certificate}'\nkey = '{key}'\ntls_ciphers = 'ECDHE+AESGCM:AES128-GCM-SHA256'\n"
    path.write_text(path.read_text() + lists)
    with serving(None, "--config", str(path), state=tmp_path) as server:
        for cipher, chosen in (("AES128-GCM-SHA256", "http/1.1"), ("ECDHE-RSA-AES128-GCM-SHA256", "h2")):
            context = client_context(newest=ssl.TLSVersion.TLSv1_2)
            context.set_ciphers(cipher)
            context.set_alpn_protocols(["h2", "http/1.1"])
            with connect(server.port, context) as connection:
                assert connection.selected_alpn_protocol() == chosen


def test_http_1_1_for_clients_that_choose_it(server: Running) -> None:
    assert get(server.port, "/", context=h2_context("http/1.1")).status == 200
    assert get(server.port, "/", context=h2_context("http/0.9")).status == 200
    assert get(server.port, "/").status == 200


def test_without_http2_no_protocol_is_chosen(tmp_path: Path) -> None:
    with serving(None, "--config", str(config(tmp_path, http2=False)), state=tmp_path) as server:
        assert chosen(server, "h2", "http/1.1") is None
        assert get(server.port, "/", context=h2_context()).status == 200


def test_without_executable_memory(tmp_path: Path) -> None:
    """As under systemd's MemoryDenyWriteExecute=yes, with workers that inherit the callback."""
    path = config(tmp_path, http2=True)
    path.write_text(path.read_text() + "workers = 2\n")
    wrapper = (sys.executable, "-c", WRAPPER)
    with serving(None, "--config", str(path), state=tmp_path, wrapper=wrapper) as server:
        for _ in range(20):
            with connect(server.port, h2_context()) as connection:
                assert connection.selected_alpn_protocol() == "h2"
                assert Http2Client(connection).get("/").status == 200


def test_no_callback() -> None:
    """Where no closure can be made, the reason is known and nothing fails."""
    program = f"""{textwrap.dedent(MDWE)}
forbid_executable_memory()
# libffi keeps closures in a file in memory, which may not grow any more; those that are left are used up.
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
make = ctypes.CFUNCTYPE(ctypes.c_int)
used = []
try:
    while True:
        used.append(make(int))
except (MemoryError, OSError):
    pass
from ktlsd import alpn
print(alpn.ADDRESS, len(alpn.REASON) > 0)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert (done.stdout, done.stderr) == ("None True\n", "")
