"""Mutual TLS: who has the right certificate gets in and is known, all others get an alert, and no way leads around.

Over both protocols.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.protocols import HTTP_1, HTTP_2, ask, conversation, plain_conversation
from tests.serving import (
    Running,
    client_context,
    connect,
    connect_plain,
    get,
    parse,
    read_to_end,
    run_to_end,
    serving,
)

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
PRIVATE = "private.example"
REQUEST = b"GET /name.txt HTTP/1.1\r\nHost: private.example\r\nConnection: close\r\n\r\n"

CONFIGURATION = """
root = "public"

[[site]]
names = "private.example"
root = "private"
client_ca = "authority.pem"
client_crl = "authority.crl"
client_names = ["proxy.example", "*.proxies.example", "Edge 1"]

[[site]]
names = "anyone.example"
root = "anyone"
client_ca = "authority.pem"
"""

ALPN = {HTTP_1: "", HTTP_2: " alpn=h2"}
"""At the end of a connection's log line."""

# Subject, DNS names, and what the log says where it is refused.
CLIENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "exact": (("other.example", "proxy.example"), ""),
    "below": (("a.b.proxies.example",), ""),
    "Edge 1": ((), ""),
    "": (("proxy.example",), ""),
    "edge 2": ((), "hostname mismatch"),
    "stranger": (("stranger.example",), "hostname mismatch"),
    "itself": (("proxies.example",), "hostname mismatch"),
    "evil": (("evilproxies.example",), "hostname mismatch"),
    "proxy.example": (("named-otherwise.example",), "hostname mismatch"),
    "revoked": (("proxy.example",), "certificate revoked"),
    "expired": (("proxy.example",), "certificate has expired"),
    "foreign": (("proxy.example",), "unable to get local issuer certificate"),
    "nobody": ((), "peer did not return a certificate"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("mutual")
    for name in ("public", "private", "anyone"):
        (base / name).mkdir()
        (base / name / "name.txt").write_text(name)
    (base / "ktlsd.toml").write_text(CONFIGURATION)
    return base


@pytest.fixture(scope="module")
def certificates(folder: Path) -> dict[str, Path]:
    own, other = Authority(folder), Authority(folder, "other")
    made = {}
    for name, (names, _) in CLIENTS.items():
        until = datetime.timedelta(days=-1 if name == "expired" else 1)
        if name != "nobody":
            made[name] = (other if name == "foreign" else own).issue(name, names, until=until)
    own.revoke(made["revoked"])
    return made


@pytest.fixture(scope="module")
def server(folder: Path, certificates: dict[str, Path]) -> Iterator[Running]:
    assert certificates
    arguments = ("--config", str(folder / "ktlsd.toml"), "--log-level", "debug")
    with serving(None, *arguments, state=folder / "state", backend_listen=("127.0.0.1:0",)) as running:
        yield running


def client(certificate: Path | None, newest: ssl.TLSVersion = TLS_1_3) -> ssl.SSLContext:
    context = client_context(newest=newest)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("name", CLIENTS, ids=lambda name: name or "no subject")
def test_who_gets_in(
    server: Running, certificates: dict[str, Path], protocol: str, name: str, newest: ssl.TLSVersion
) -> None:
    reason = CLIENTS[name][1]
    since = len(server.log)
    context = client(certificates.get(name), newest)
    if not reason:
        with conversation(server.port, protocol, context=context, name=PRIVATE) as connection:
            assert connection.get("/name.txt", host=PRIVATE).body == b"private"
        whose = f"/CN={name}" if name else r"\(no subject\)"
        assert server.wait_for_line(rf" client={whose}{ALPN[protocol]}$", since)
        return
    with pytest.raises(ssl.SSLError, match=r"alert|ALERT"):
        ask(server.port, "/name.txt", protocol=protocol, context=context, host=PRIVATE, name=PRIVATE)
    assert server.wait_for_line(f"handshake failed: .*{reason}", since)


def test_a_new_revocation_list_counts_for_the_next_handshake(tmp_path: Path) -> None:
    """Also for a session that was made before it."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private/name.txt").write_text("private")
    (tmp_path / "ktlsd.toml").write_text(
        'root = "private"\nclient_ca = "authority.pem"\nclient_crl = "authority.crl"\n'
    )
    authority = Authority(tmp_path)
    certificate = authority.issue("leaver", ("proxy.example",))
    context = client(certificate, TLS_1_2)
    with serving(None, "--config", str(tmp_path / "ktlsd.toml"), state=tmp_path) as running:
        with connect(running.port, context) as connection:
            connection.sendall(REQUEST)
            assert parse(read_to_end(connection))[0].body == b"private"
            session = connection.session
        with connect(running.port, context, session=session) as connection:
            assert connection.session_reused
        authority.revoke(certificate)
        running.wait_for_line("certificates reloaded")
        since = len(running.log)
        with pytest.raises(ssl.SSLError, match=r"alert|ALERT"):
            connect(running.port, context, session=session)
        assert running.wait_for_line("handshake failed: .*certificate revoked", since)


def test_the_alert_is_not_lost_to_a_reset(server: Running) -> None:
    """A client of TLS 1.3 sends its request before it can know: closing over that would reset the connection."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client(None).wrap_bio(incoming, outgoing, server_hostname=PRIVATE)
    with connect_plain(server.port) as raw:
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(65536))
        tls.write(REQUEST)
        raw.sendall(outgoing.read())
        # Late enough to come to a socket that would be closed already.
        time.sleep(0.2)
        tls.write(REQUEST)
        raw.sendall(outgoing.read())
        time.sleep(0.2)
        incoming.write(read_to_end(raw))
    with pytest.raises(ssl.SSLError, match=r"ALERT_CERTIFICATE_REQUIRED"):
        tls.read(1)


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
def test_a_resumed_session_has_its_identity(
    server: Running, certificates: dict[str, Path], protocol: str, newest: ssl.TLSVersion
) -> None:
    context = client(certificates["exact"], newest)
    session = session_of(server, protocol, context, PRIVATE)
    since = len(server.log)
    with conversation(server.port, protocol, context=context, session=session, name=PRIVATE) as connection:
        assert isinstance(connection.socket, ssl.SSLSocket)
        assert connection.socket.session_reused
        assert connection.get("/name.txt", host=PRIVATE).body == b"private"
    assert server.wait_for_line(rf" resumed ktls .* client=/CN=exact{ALPN[protocol]}$", since)


def session_of(server: Running, protocol: str, context: ssl.SSLContext, name: str | None) -> ssl.SSLSession:
    with conversation(server.port, protocol, context=context, name=name) as connection:
        assert connection.get("/name.txt", host=name or "public.example").status == 200
        assert isinstance(connection.socket, ssl.SSLSocket)
        assert connection.socket.session is not None
        return connection.socket.session


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("first", [None, "anyone.example"])
def test_a_session_of_another_site_opens_nothing(
    server: Running, certificates: dict[str, Path], protocol: str, newest: ssl.TLSVersion, first: str | None
) -> None:
    """One without a certificate, and one whose certificate was enough there."""
    certificate = certificates["stranger"] if first else None
    context = client(certificate, newest)
    session = session_of(server, protocol, context, first)
    with pytest.raises(ssl.SSLError, match=r"alert|ALERT"):
        ask(server.port, "/name.txt", protocol=protocol, context=context, host=PRIVATE, name=PRIVATE, session=session)


@pytest.mark.parametrize("asked", [None, "unknown.example"])
def test_no_name_in_the_handshake_leads_around_it(server: Running, protocol: str, asked: str | None) -> None:
    since = len(server.log)
    # Twice: the second time from memory, if it were there.
    with conversation(server.port, protocol, name=asked) as connection:
        for _ in range(2):
            assert connection.get("/name.txt", host=PRIVATE).status == 421
        assert connection.get("/name.txt", host="public.example").body == b"public"
    if asked is None:
        assert server.wait_for_line(f" 421 .*{PRIVATE} demands a client certificate", since)


def test_a_weaker_demand_leads_not_around_a_stronger(
    server: Running, certificates: dict[str, Path], protocol: str
) -> None:
    context = client(certificates["stranger"])
    with conversation(server.port, protocol, context=context, name="anyone.example") as connection:
        assert connection.get("/name.txt", host="anyone.example").status == 200
        assert connection.get("/name.txt", host=PRIVATE).status == 421
        # The connection is still good.
        assert connection.get("/name.txt", host="anyone.example").body == b"anyone"


def test_a_listener_without_tls_leads_not_around_it(server: Running, protocol: str) -> None:
    with plain_conversation(int(server.backends[0].rpartition(":")[2]), protocol) as connection:
        assert connection.get("/name.txt", host=PRIVATE).status == 421
        assert connection.get("/name.txt", host="public.example").body == b"public"


def test_the_default_site_may_demand_certificates(folder: Path, certificates: dict[str, Path]) -> None:
    path = folder / "all.toml"
    path.write_text("root = 'public'\nclient_ca = 'authority.pem'\n")
    with serving(None, "--config", str(path), state=folder / "state") as running:
        assert get(running.port, "/name.txt", context=client(certificates["stranger"])).body == b"public"
        with pytest.raises(ssl.SSLError):
            get(running.port, "/name.txt")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("client_ca = 'absent'", "absent cannot be used as PEM certificates of authorities: "),
        ("client_ca = 'public/name.txt'", "name.txt cannot be used as PEM certificates of authorities: "),
        ("client_ca = 'authority.pem'\nclient_crl = 'absent'", "absent cannot be used as PEM revocation lists: "),
        ("client_ca = 'authority.pem'\nclient_crl = 'other.pem'", "other.pem cannot be used as PEM revocation lists"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    folder: Path, certificates: dict[str, Path], tmp_path: Path, lines: str, said: str
) -> None:
    assert certificates
    path = folder / "bad.toml"
    path.write_text(f"root = 'public'\n{lines}\n")
    ended = run_to_end("check", "--config", str(path), state=tmp_path)
    assert ended.returncode == 2
    assert re.fullmatch(r"ktlsd: .*\n", ended.stderr)
    assert said in ended.stderr


def test_an_authority_without_a_list_is_refused_where_lists_count(folder: Path, certificates: dict[str, Path]) -> None:
    path = folder / "lists.toml"
    path.write_text("root = 'public'\nclient_ca = 'authority.pem'\nclient_crl = 'other.crl'\n")
    with serving(None, "--config", str(path), state=folder / "state") as running:
        with pytest.raises(ssl.SSLError):
            get(running.port, "/name.txt", context=client(certificates["exact"]))
        assert running.wait_for_line("handshake failed: .*unable to get certificate CRL")
