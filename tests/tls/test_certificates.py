"""Certificates of several key types in one context, and sessions that stay in the context that made them."""

from __future__ import annotations

import contextlib
import datetime
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from ktlsd.openssl.algorithms import CIPHER_LIST
from ktlsd.openssl.errors import ContextError
from ktlsd.openssl.results import Handshake, Wait
from ktlsd.ssl_ffi import Connection, Context, Library
from ktlsd.tls.ktls_probe import loopback_pair
from tests.serving import client_context

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
WAIT_SECONDS = 30.0
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


MAKERS: dict[str, Callable[[], Key]] = {
    "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa": rsa_key,
    "rsa-other": rsa_key,
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@dataclass
class Authority:
    """A root, and below it an intermediate authority for each leaf, which a client must get from the server."""

    folder: Path

    def __post_init__(self) -> None:
        self.key = MAKERS["ec"]()
        self.root = self._certify("root", self.key, "root", self.key)
        self.cafile = self.folder / "root.pem"
        self.cafile.write_bytes(_pem(self.root))

    def _certify(self, subject: str, key: Key, issuer: str, signer: Key, *, is_leaf: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject_name, issuer_name = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject_name)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not is_leaf, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())

    def issue(self, name: str) -> None:
        """Write name.pem, a chain without the root, and name.key."""
        middle_key, key = MAKERS["ec"](), MAKERS[name]()
        middle = self._certify(f"{name} authority", middle_key, "root", self.key)
        leaf = self._certify(name, key, f"{name} authority", middle_key, is_leaf=True)
        self.certificate(name).write_bytes(_pem(leaf) + _pem(middle))
        pem, pkcs8, clear = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        self.key_of(name).write_bytes(key.private_bytes(pem, pkcs8, clear))

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key_of(self, name: str) -> Path:
        return self.folder / f"{name}.key"


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    for name in MAKERS:
        made.issue(name)
    return made


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@contextlib.contextmanager
def context_with(library: Library, authority: Authority, *names: str) -> Iterator[Context]:
    """A server's context with these certificates; "a/b" is a's certificate with b's key."""
    with contextlib.closing(Context(library)) as context:
        for name in names:
            certificate, _, key = name.partition("/")
            context.use_certificate(str(authority.certificate(certificate)), str(authority.key_of(key or certificate)))
        yield context


@dataclass
class Met:
    """What both sides know after a handshake."""

    server: Handshake
    subject: str
    session: ssl.SSLSession | None


def until_done(connection: Connection, sock: socket.socket, call: Callable[[], object]) -> None:
    while (wait := call()) is not None:
        readable, writable = ([sock], []) if wait is Wait.READABLE else ([], [sock])
        ready = select.select(readable, writable, [], WAIT_SECONDS)
        assert any(ready), "no progress"


def meet(
    server: Context, client: ssl.SSLContext, *, name: str | None = "localhost", session: ssl.SSLSession | None = None
) -> Met:
    """A handshake, a byte from the server, and an orderly end."""
    found: list[tuple[str, ssl.SSLSession | None]] = []
    failures: list[BaseException] = []
    with loopback_pair() as (near, far), contextlib.closing(server.connect(far.fileno())) as connection:

        def visit() -> None:
            try:
                near.settimeout(WAIT_SECONDS)
                with client.wrap_socket(near, server_hostname=name, session=session) as visitor:
                    assert visitor.recv(10) == b"x"
                    der = visitor.getpeercert(binary_form=True)
                    assert der is not None
                    subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
                    found.append((subject.removeprefix("CN="), visitor.session))
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=visit)
        thread.start()
        try:
            until_done(connection, far, connection.handshake)
            until_done(connection, far, lambda: connection.write(b"x"))
            facts = connection.facts()
            until_done(connection, far, connection.shutdown)
        finally:
            thread.join()
    assert failures == []
    return Met(facts, *found[0])


def tls_1_2(authority: Authority, authentication: str) -> ssl.SSLContext:
    ciphers = ":".join(cipher for cipher in CIPHER_LIST.split(":") if authentication in cipher.split("-"))
    return client_context(newest=TLS_1_2, ciphers=ciphers, cafile=authority.cafile)


@pytest.mark.parametrize("order", [("ec", "rsa"), ("rsa", "ec")])
@pytest.mark.parametrize(("authentication", "subject"), [("ECDSA", "ec"), ("RSA", "rsa")])
def test_a_tls_1_2_client_gets_the_certificate_that_it_can_verify(
    library: Library, authority: Authority, order: tuple[str, str], authentication: str, subject: str
) -> None:
    """With its own chain: the client knows the root only."""
    with context_with(library, authority, *order) as context:
        assert meet(context, tls_1_2(authority, authentication)).subject == subject


@pytest.mark.parametrize("order", [("ec", "rsa"), ("rsa", "ec"), ("rsa", "ed25519", "ec")])
@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
def test_a_client_that_can_verify_all_gets_ecdsa(
    library: Library, authority: Authority, order: tuple[str, ...], newest: ssl.TLSVersion
) -> None:
    with context_with(library, authority, *order) as context:
        assert meet(context, client_context(newest=newest, cafile=authority.cafile)).subject == "ec"


@pytest.mark.parametrize(
    ("algorithms", "subject"),
    [("ECDSA+SHA256", "ec"), ("RSA-PSS+SHA256", "rsa"), ("RSA-PSS+SHA256:ECDSA+SHA256", "ec"), ("ed25519", "ed25519")],
)
def test_a_tls_1_3_client_gets_the_certificate_that_it_can_verify(
    library: Library, authority: Authority, algorithms: str, subject: str
) -> None:
    with (
        context_with(library, authority, "rsa", "ec", "ed25519") as context,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        port = listener.getsockname()[1]
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-sigalgs", algorithms]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            sock, _ = listener.accept()
            sock.setblocking(False)
            with sock, contextlib.closing(context.connect(sock.fileno())) as connection:
                until_done(connection, sock, connection.handshake)
                until_done(connection, sock, connection.shutdown)
            shown = run.communicate(timeout=WAIT_SECONDS)[0].decode()
    assert f"subject=CN = {subject}\n" in shown or f"subject=CN={subject}\n" in shown


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ec", "ec384"), r"\S*/ec384\.pem and \S*/ec\.pem both have EC keys: one of each type can be used"),
        (("ec", "ec"), r"\S*/ec\.pem and \S*/ec\.pem both have EC keys: .*"),
        (("ec", "rsa", "rsa-other"), r"\S*/rsa-other\.pem and \S*/rsa\.pem both have RSA keys: .*"),
        (("rsa/ec",), r"the key \S*/ec\.key does not belong to the certificate \S*/rsa\.pem"),
        (("ec/rsa",), r"the key \S*/rsa\.key does not belong to the certificate \S*/ec\.pem"),
        # The key belongs to a certificate that was loaded before.
        (("ec", "rsa/ec"), r"the key \S*/ec\.key does not belong to the certificate \S*/rsa\.pem"),
        (("ec/ec384",), r"the key \S*/ec384\.key does not belong to the certificate \S*/ec\.pem"),
        (("ec", "rsa/rsa-other"), r"the key \S*/rsa-other\.key does not belong to the certificate \S*/rsa\.pem"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(
    library: Library, authority: Authority, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ContextError, match=f"^{message}$"), context_with(library, authority, *names):
        pass


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
def test_a_session_is_resumed_in_its_own_context_only(
    library: Library, authority: Authority, newest: ssl.TLSVersion
) -> None:
    """Also when both have the same certificate: each SSL_CTX has ticket keys of its own."""
    client = client_context(newest=newest, cafile=authority.cafile)
    with context_with(library, authority, "ec") as one, context_with(library, authority, "ec") as other:
        session = meet(one, client).session
        assert session is not None
        assert session.has_ticket
        assert not meet(other, client, session=session).server.resumed
        assert meet(one, client, session=session).server.resumed


@pytest.mark.parametrize(
    ("newest", "resumed_name"), [(TLS_1_2, None), (TLS_1_3, "localhost")], ids=["TLS 1.2", "TLS 1.3"]
)
def test_what_openssl_tells_of_the_name(
    library: Library, authority: Authority, newest: ssl.TLSVersion, resumed_name: str | None
) -> None:
    client = client_context(newest=newest, cafile=authority.cafile)
    with context_with(library, authority, "ec") as context:
        met = meet(context, client)
        assert (met.server.resumed, met.server.server_name) == (False, "localhost")
        again = meet(context, client, session=met.session)
        assert (again.server.resumed, again.server.server_name) == (True, resumed_name)
        client.check_hostname = False
        assert meet(context, client, name=None).server.server_name is None
