"""Client certificates that only some paths need: who gets in, over both protocols, and what a handshake is good for."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.authority import Authority
from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS, conversation, plain_conversation
from tests.serving import Running, counts, serving
from tests.wire.test_client_certificates import client

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
CONFIGURATION = """
root = "www"

[[site]]
names = "some.example"
client_ca = "authority.pem"
client_certificates = "optional"
client_crl = "authority.crl"
error_pages = { 403 = "/403.html" }

[[site.access]]
path = "/intern/**"
certificate = true

[[site.access]]
path = "/intern/edge/**"
certificate_names = ["edge.example", "*.edges.example", "Edge 1"]

[[site]]
names = "other.example"
client_ca = "other.pem"
client_certificates = "optional"

[[site.access]]
path = "/intern/**"
certificate = true

[[site]]
names = "all.example"
client_ca = "authority.pem"
client_crl = "authority.crl"
"""
FILES = ("shown.txt", "intern/x.txt", "intern/edge/y.txt", "403.html")
SOME, OTHER, ALL = "some.example", "other.example", "all.example"
# Whether the site's paths, and those for named certificates, are there for them; and the reason in the log.
CLIENTS = {
    "nobody": (403, 403, "no client certificate"),
    "user": (200, 403, "the client certificate /CN=user has none of the names"),
    "edge": (200, 200, ""),
    "below": (200, 200, ""),
    "Edge 1": (200, 200, ""),
    "expired": (403, 403, "the client certificate is not accepted: certificate has expired"),
    "revoked": (403, 403, "the client certificate is not accepted: certificate revoked"),
    "foreign": (403, 403, "the client certificate is not accepted: "),
    "own": (403, 403, "the client certificate is not accepted: "),
}
NAMES = {"edge": ("edge.example",), "below": ("a.edges.example",), "Edge 1": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("optional")
    for name in FILES:
        path = base / "www" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (base / "ktlsd.toml").write_text(CONFIGURATION)
    return base


def self_signed(path: Path) -> Path:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "own")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(scope="module")
def certificates(folder: Path) -> dict[str, Path | None]:
    own, other = Authority(folder), Authority(folder, "other")
    made: dict[str, Path | None] = {"nobody": None, "own": self_signed(folder / "own.pem")}
    for name in CLIENTS.keys() - made:
        until = datetime.timedelta(days=-1 if name == "expired" else 1)
        made[name] = (other if name == "foreign" else own).issue(name, NAMES.get(name, ("user.example",)), until=until)
    revoked = made["revoked"]
    assert revoked is not None
    own.revoke(revoked)
    return made


@pytest.fixture(scope="module")
def server(folder: Path, certificates: dict[str, Path | None]) -> Iterator[Running]:
    assert certificates
    arguments = ("--config", str(folder / "ktlsd.toml"), "--metrics-listen", "127.0.0.1:0")
    with serving(None, *arguments, state=folder / "state", backend_listen=("127.0.0.1:0",)) as running:
        yield running


@pytest.mark.parametrize(("protocol", "newest"), [(HTTP_1, TLS_1_2), (HTTP_2, TLS_1_3)])
@pytest.mark.parametrize("name", CLIENTS)
def test_who_gets_in(
    server: Running, certificates: dict[str, Path | None], protocol: str, name: str, newest: ssl.TLSVersion
) -> None:
    paths, named, reason = CLIENTS[name]
    context, since = client(certificates[name], newest), len(server.log)
    session = None
    # The second time by a ticket, which keeps what was verified.
    for _ in range(2):
        with conversation(server.port, protocol, context=context, name=SOME, session=session) as connection:
            assert isinstance(connection.socket, ssl.SSLSocket)
            for _ in range(2):
                assert connection.get("/shown.txt", host=SOME).body == b"shown.txt"
                answer = connection.get("/intern/x.txt", host=SOME)
                assert answer.status == paths
                assert answer.fields["cache-control"] == ("private" if paths == 200 else "no-store")
                assert answer.body == (b"intern/x.txt" if paths == 200 else b"403.html")
                assert connection.get("/intern/absent", host=SOME).status == (404 if paths == 200 else 403)
                assert connection.get("/intern/edge/y.txt", host=SOME).status == named
            assert connection.socket.session_reused == (session is not None)
            session = connection.socket.session
            assert session is not None
    if reason:
        assert server.wait_for_line(f" 403 GET /intern/edge/y.txt: {reason}", since)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_handshake_for_another_site_is_good_for_nothing(
    server: Running, certificates: dict[str, Path | None], protocol: str
) -> None:
    """Also if the certificate was verified there, by another authority."""
    for name, certificate, asked in (
        (SOME, certificates["user"], OTHER),
        (OTHER, certificates["foreign"], SOME),
        (ALL, certificates["user"], SOME),
        (None, certificates["user"], SOME),
    ):
        with conversation(server.port, protocol, context=client(certificate), name=name) as connection:
            for _ in range(2):
                assert connection.get("/intern/x.txt", host=asked).status == 421
                known = name is not None
                assert connection.get("/shown.txt", host=asked).status == (421 if known else 200)
                if name == OTHER:
                    assert connection.get("/intern/x.txt", host=OTHER).status == 200
    # Nor does an optional certificate lead around a required one.
    with conversation(server.port, protocol, context=client(certificates["user"]), name=SOME) as connection:
        assert connection.get("/shown.txt", host=ALL).status == 421
    with plain_conversation(int(server.backends[0].rpartition(":")[2]), protocol) as connection:
        assert connection.get("/intern/x.txt", host=SOME).status == 403
        assert connection.get("/shown.txt", host=SOME).status == 200


def test_a_session_without_a_certificate_leads_not_around_a_required_one(
    server: Running, certificates: dict[str, Path | None]
) -> None:
    for newest in (TLS_1_2, TLS_1_3):
        context = client(None, newest)
        with conversation(server.port, PROTOCOLS[0], context=context, name=SOME) as connection:
            assert connection.get("/shown.txt", host=SOME).status == 200
            assert isinstance(connection.socket, ssl.SSLSocket)
            session = connection.socket.session
        with (
            pytest.raises(ssl.SSLError, match=r"alert|ALERT"),
            conversation(server.port, PROTOCOLS[0], context=context, name=ALL, session=session) as connection,
        ):
            connection.get("/shown.txt", host=ALL)


def test_metrics(server: Running, certificates: dict[str, Path | None]) -> None:
    before = counts(server, "ktlsd_client_certificates_total")
    for name in ("nobody", "user", "expired"):
        with conversation(server.port, PROTOCOLS[0], context=client(certificates[name]), name=SOME) as connection:
            connection.get("/shown.txt", host=SOME)
    after = counts(server, "ktlsd_client_certificates_total")
    assert {name: after[name] - before.get(name, 0) for name in after} == {"none": 1, "verified": 1, "refused": 1}


def test_depth(folder: Path, certificates: dict[str, Path | None], tmp_path: Path) -> None:
    """An intermediate authority between the client and the one that is known."""
    root, between = Authority(tmp_path, "root"), Authority(tmp_path, "between")
    leaf = between.issue("leaf")
    chained = tmp_path / "chained.pem"
    chained.write_bytes(leaf.read_bytes() + root.certify(between))
    lines = "client_ca = 'root.pem'\nclient_certificates = 'optional'\nclient_verify_depth = {}\n"
    rule = "[[access]]\npath = '/intern/**'\ncertificate = true\n"
    for depth, status in ((0, 403), (1, 200)):
        path = tmp_path / f"{depth}.toml"
        path.write_text(f"root = '{folder / 'www'}'\n{lines.format(depth)}{rule}")
        with (
            serving(None, "--config", str(path), state=folder / "state") as running,
            conversation(running.port, PROTOCOLS[0], context=client(chained)) as connection,
        ):
            assert connection.get("/intern/x.txt").status == status
