"""ClientHellos in pieces against the running server: alerts as a real `openssl s_server` has them, and as soon; the
named site's certificate, however many records and bytes a ClientHello has."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.ports import free_ports
from tests.authority import Authority
from tests.serving import WAIT_SECONDS, Running, client_context, eventually, is_refused, parse, read_to_end, serving
from tests.tls.test_client_hello import REAL, record

HANDSHAKE_SECONDS = 300
"""Longer than any client here waits."""
OTHER = "other.example"
ALERT = 21
BETWEEN_SECONDS = 0.1
CONFIGURATION = f"""
root = "root"
cert = "default.pem"
key = "default.pem"

[limits]
handshake_seconds = {HANDSHAKE_SECONDS}

[[site]]
names = "{OTHER}"
cert = "other.pem"
key = "other.pem"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    authority = Authority(folder)
    authority.issue("default", ["localhost"]).rename(folder / "default.pem")
    authority.issue("other", [OTHER]).rename(folder / "other.pem")
    (folder / "ktlsd.toml").write_text(CONFIGURATION)
    (folder / "root").mkdir()
    (folder / "root/a.txt").write_text("content")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    assert HANDSHAKE_SECONDS > 2 * WAIT_SECONDS
    options = ("--config", str(folder / "ktlsd.toml"), "--ktls", "off")
    with serving(None, *options, state=tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="module")
def openssl(folder: Path) -> Iterator[int]:
    """The port of a server that is nothing but OpenSSL."""
    (port,) = free_ports(1)
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-quiet", "-cert", str(folder / "default.pem")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            assert eventually(lambda: not is_refused(port))
            yield port
        finally:
            run.kill()


def connected(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def said(port: int, *writes: bytes) -> bytes:
    """All that a server says to these bytes until it ends the connection, which a client waits a minute for."""
    with connected(port) as client:
        received = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for data in writes:
                client.sendall(data)
                time.sleep(BETWEEN_SECONDS)
            while data := client.recv(65536):
                received += data
        return received


PIECE = record(REAL[5:55])
ALIEN = {
    "empty data": (record(b"\1\0"), record(b"", 23)),
    "empty data after one byte": (record(b"\1"), record(b"", 23)),
    "data": (PIECE, record(b"a", 23)),
    "a fatal alert": (PIECE, record(b"\2\x28", ALERT)),
    "close_notify": (PIECE, record(b"\1\0", ALERT)),
    "an alert byte by byte": (PIECE, *(bytes([byte]) for byte in record(b"\1\0", ALERT))),
    "ChangeCipherSpec": (PIECE, record(b"\1", 20)),
    "a heartbeat": (PIECE, record(b"\1\0\0", 24)),
    "another version": (PIECE, b"\x16\2\0\0\1\0"),
    "a record that is too long": (PIECE, b"\x16\3\1\x48\1"),
    "HTTP": (PIECE, b"GET / HTTP/1.1\r\n\r\n"),
    "after many pieces": (b"".join(record(REAL[place : place + 1]) for place in range(5, 305)), record(b"", 23)),
    "another message in pieces": (record(b"\2"), record(bytes(30))),
    "16 MiB in pieces": (record(b"\1"), record(b"\xff\xff\xff")),
    "a fatal alert first": (record(b"\2\x28", ALERT),),
    "a warning first": (record(b"\1\0", ALERT),),
    "an alert first in pieces": (b"\x15", b"\3\1\0", b"\2\2", b"\x28"),
    "data first": (record(b"abc", 23),),
}


@pytest.mark.parametrize("writes", ALIEN.values(), ids=ALIEN)
def test_an_alert_is_openssls_and_does_not_wait_for_the_time_out(
    server: Running, openssl: int, writes: tuple[bytes, ...]
) -> None:
    since = len(server.log)
    answer = said(server.port, *writes)
    assert answer[:1] == bytes([ALERT])
    assert answer == said(openssl, *writes)
    server.wait_for_line("handshake failed: ", since)
    assert not any("none within" in line for line in server.log[since:])


def shake_hands(port: int, context: ssl.SSLContext, size: int, pause: float = 0.0) -> bytes:
    """The answer to a request on a connection whose ClientHello is in records of this size, and its length."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=OTHER)
    with connected(port) as client:
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        hello, whole = outgoing.read(), b""
        while hello:
            end = 5 + int.from_bytes(hello[3:5])
            whole, hello = whole + hello[5:end], hello[end:]
        for place in range(0, len(whole), size):
            client.sendall(record(whole[place : place + size]))
            time.sleep(pause)

        def more() -> None:
            client.sendall(outgoing.read())
            data = client.recv(65536)
            incoming.write(data) if data else incoming.write_eof()

        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                more()
        tls.write(f"GET /a.txt HTTP/1.1\r\nHost: {OTHER}\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while True:
            try:
                received += tls.read(65536) or b""
                if received.endswith(b"content"):
                    return received
            except ssl.SSLWantReadError:
                more()


@pytest.mark.parametrize(("size", "pause"), [(1, 0.0), (1, 0.0005), (3, 0.0), (100, 0.0)])
def test_a_hello_in_many_records_gets_the_named_sites_certificate(
    server: Running, folder: Path, size: int, pause: float
) -> None:
    context = client_context(cafile=folder / "authority.pem")
    assert parse(shake_hands(server.port, context, size, pause))[0].body == b"content"


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("protocols", [70, 150, 240])
def test_a_hello_of_many_kilobytes_gets_the_named_sites_certificate(
    server: Running, folder: Path, protocols: int, newest: ssl.TLSVersion
) -> None:
    context = client_context(cafile=folder / "authority.pem", newest=newest)
    context.set_alpn_protocols([f"{number:0>255}" for number in range(protocols)])
    raw = connected(server.port)
    with context.wrap_socket(raw, suppress_ragged_eofs=False, server_hostname=OTHER) as tls:
        tls.sendall(f"GET /a.txt HTTP/1.1\r\nHost: {OTHER}\r\nConnection: close\r\n\r\n".encode())
        assert parse(read_to_end(tls))[0].body == b"content"
    assert parse(shake_hands(server.port, context, 1000))[0].body == b"content"
