"""A handshake of an ACME server gets the certificate of a challenge (RFC 8737), and disturbs no other connection."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from ktlsd.acme.answers import publish_tls
from ktlsd.acme.folder import AcmeFolder
from tests.serving import (
    WAIT_SECONDS,
    Running,
    client_context,
    connect,
    exchange_plain,
    get,
    parse,
    read_to_end,
    serving,
)

NAME = "www.example.test"
CONTENT = bytes(range(256)) * 20_000
IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """One that has an authority which cannot be reached."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.bin").write_bytes(CONTENT)
    options = ("--acme", NAME, "--acme-directory", "https://127.0.0.1:1/dir", "--log-level", "debug")
    with serving(root, *options, state=tmp_path / "state", http_listen=["127.0.0.1:0"]) as running:
        # From here on its client, which clears the folder of answers, waits a minute.
        running.wait_for_line("cannot be reached")
        yield running


def answers(server: Running) -> AcmeFolder:
    return AcmeFolder(server.state / "ktlsd/acme")


def ask(server: Running, name: str) -> tuple[str | None, x509.Certificate]:
    """The protocol and the certificate of a handshake as an authority makes it."""
    context = client_context()
    context.set_alpn_protocols(["acme-tls/1"])
    with (
        socket.create_connection(("127.0.0.1", server.port)) as raw,
        context.wrap_socket(raw, server_hostname=name) as connection,
    ):
        der = connection.getpeercert(binary_form=True)
        assert der
        assert connection.recv(1) == b"", "it ends with close_notify"
        return connection.selected_alpn_protocol(), x509.load_der_x509_certificate(der)


def paths(server: Running, since: int) -> set[str]:
    """The TLS paths of the connections in the log, from that line on."""
    return {line.partition(" ktls ")[2].partition(" alpn=")[0] for line in server.log[since:] if " ktls tx=" in line}


def test_a_challenge_is_answered_beside_downloads(server: Running) -> None:
    publish_tls(answers(server).tls_answers, NAME, "token.thumbprint")
    context = client_context()
    request = f"GET /a.bin HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()
    with connect(server.port, context, name=NAME) as download:
        download.sendall(request)
        begun = download.recv(1000)
        protocol, certificate = ask(server, NAME.upper())
        server.wait_for_line(f"ACME challenge answered for {NAME}")
        since = len(server.log)
        assert protocol == "acme-tls/1"
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [NAME]
        identifier = certificate.extensions.get_extension_for_oid(IDENTIFIER)
        assert identifier.critical
        assert isinstance(identifier.value, x509.UnrecognizedExtension)
        assert identifier.value.value[:2] == b"\x04\x20"
        assert parse(begun + read_to_end(download))[0].body == CONTENT
    assert get(server.port, "/a.bin", host=NAME, name=NAME).body == CONTENT
    server.wait_for_line(" ktls tx=", since)
    assert paths(server, since) == paths(server, 0), "as before"


def test_a_damaged_answer_is_none(server: Running) -> None:
    (answers(server).tls_answers / f"{NAME}.pem").write_text("-----BEGIN")
    context = client_context()
    context.set_alpn_protocols(["acme-tls/1"])
    with connect(server.port, context, name=NAME) as connection:
        assert connection.selected_alpn_protocol() is None
        connection.sendall(b"GET /a.bin HTTP/1.1\r\nHost: www.example.test\r\nConnection: close\r\n\r\n")
        assert parse(read_to_end(connection))[0].body == CONTENT


def test_an_answer_in_the_clear_and_none_for_another_token(server: Running) -> None:
    (answers(server).http_answers / "token").write_text("token.thumbprint")
    (answers(server).http_answers.parent / "secret").write_text("not to be seen")

    def asked(path: str) -> tuple[int, bytes, str]:
        data = f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()
        answer, _ = parse(exchange_plain(server.http_ports[0], data))
        return answer.status, answer.body, answer.fields.get("location", "")

    assert asked("/.well-known/acme-challenge/token")[:2] == (200, b"token.thumbprint")
    for other in ("other", "../secret", "%2e%2e/secret", "token/"):
        status, body, location = asked(f"/.well-known/acme-challenge/{other}")
        assert status in (301, 400)
        assert b"not to be seen" not in body
        # Where a [[redirect]] may forward it to the machine that ordered (docs/certificates.md).
        assert status == 400 or location.startswith(f"https://{NAME}")


def test_a_handshake_of_an_authority_has_the_time_of_any_other(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    configuration = tmp_path / "ktlsd.toml"
    configuration.write_text(
        f'root = "{root}"\nhttp_listen = ["127.0.0.1:0"]\n[acme]\nnames = ["{NAME}"]\n'
        'directory = "https://127.0.0.1:1/dir"\n[limits]\nhandshake_seconds = 1\n'
    )
    context = client_context()
    context.set_alpn_protocols(["acme-tls/1"])
    leaving = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), leaving, server_hostname=NAME).do_handshake()
    with (
        serving(None, "--config", str(configuration), state=tmp_path / "state") as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        connection.settimeout(WAIT_SECONDS)
        connection.sendall(leaving.read())
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
