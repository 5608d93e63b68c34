"""Clients that ask for names of no site: the alert in the handshake, 421 where there is none, over both protocols."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.protocols import PROTOCOLS, conversation, plain_conversation
from tests.serving import Running, client_context, counts, exchange, exchange_plain, serving

CONFIGURATION = """
root = "www"
unknown_names = "refuse"

[[site]]
names = ["known.example", "*.wild.example"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("names")
    (folder / "www").mkdir()
    (folder / "www" / "index.html").write_text("home")
    (folder / "ktlsd.toml").write_text(CONFIGURATION)
    options = "--config", str(folder / "ktlsd.toml"), "--metrics-listen", "127.0.0.1:0"
    with serving(
        *(None, *options), state=folder / "state", backend_listen=("127.0.0.1:0",), http_listen=("127.0.0.1:0",)
    ) as running:
        yield running


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handshakes_for_unknown_names_are_refused(server: Running, newest: ssl.TLSVersion) -> None:
    for name, shown in (("unknown.example", "no site has the name unknown.example"), (None, "it names no site")):
        context, since = client_context(), len(server.log)
        context.maximum_version = newest
        with pytest.raises(ssl.SSLError) as refused, socket.create_connection(("127.0.0.1", server.port)) as raw:
            context.wrap_socket(raw, server_hostname=name)
        assert refused.value.reason == "TLSV1_UNRECOGNIZED_NAME"
        server.wait_for_line(f"handshake refused: {shown}$", since)
    assert counts(server, "ktlsd_handshake_failures_total")["unknown_name"] >= 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_known_names_are_served(server: Running, protocol: str) -> None:
    for name in ("known.example", "a.wild.example", "KNOWN.example"):
        with conversation(server.port, protocol, name=name) as connection:
            assert connection.get("/", host=name).body == b"home"
            # A remembered response is for its name only.
            assert connection.get("/", host="unknown.example").status == 421


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hosts_that_no_site_has_get_421(server: Running, protocol: str) -> None:
    port = int(server.backends[0].rpartition(":")[2])
    with plain_conversation(port, protocol) as connection:
        for _ in range(2):
            assert connection.get("/", host="a.wild.example").body == b"home"
            for host in ("wild.example", "127.0.0.1"):
                assert connection.get("/", host=host).status == 421
    server.wait_for_line("421 GET /: no site has the name wild.example")
    assert b" 421 " in exchange_plain(port, b"GET / HTTP/1.0\r\n\r\n")


def test_what_is_no_client_hello_gets_its_own_answer(server: Running) -> None:
    assert exchange_plain(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 400")
    redirect = exchange_plain(server.http_ports[0], b"GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
    assert redirect.startswith(b"HTTP/1.1 301 ")
    assert exchange(server.port, b"GET / HTTP/1.0\r\n\r\n", name="known.example").startswith(b"HTTP/1.1 200")
