"""Sites by name over the wire: which certificate, which folder, which refusal; and the listener for plain HTTP.

What is over TLS is over both protocols. Here over whatever path this machine gives; test_ktls_sites_wire.py has it over
kTLS.
"""

from __future__ import annotations

import datetime
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tests.protocols import HTTP_1, Conversation, ask, conversation
from tests.serving import Running, client_context, connect, exchange, exchange_plain, parse, parse_all, serving

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
ALPHA, BETA, GAMMA, DEEP = "alpha.example", "beta.example", "gamma.example", "deep.alpha.example"
CERTIFICATES = {
    "default-ec": ("default.example", "localhost", GAMMA, DEEP),
    "default-rsa": ("default.example", "localhost", GAMMA, DEEP),
    "alpha-ec": (ALPHA, f"*.{ALPHA}"),
    "alpha-rsa": (ALPHA, f"*.{ALPHA}"),
    "beta-ec": (BETA,),
}
ROOTS = ("default", "alpha", "beta", "gamma", "deep")
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
"""The token of RFC 8555 section 8.3."""
CONFIGURATION = """
root = "default"
cert = ["default-ec.pem", "default-rsa.pem"]
key = ["default-ec.key", "default-rsa.key"]
acme_challenges = "challenges"

[hsts]

[[site]]
names = ["Alpha.example", "*.alpha.example"]
root = "alpha"
cert = ["alpha-rsa.pem", "alpha-ec.pem"]
key = ["alpha-rsa.key", "alpha-ec.key"]

[[site]]
names = ["beta.example"]
root = "beta"
cert = "beta-ec.pem"
key = "beta-ec.key"

# Without a certificate of its own.
[[site]]
names = ["gamma.example"]
root = "gamma"

# An exact name below another site's wildcard.
[[site]]
names = ["deep.alpha.example"]
root = "deep"
"""


@dataclass
class Place:
    """A running server, and the folder that its configuration is in."""

    server: Running
    folder: Path

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def http(self) -> int:
        return self.server.http_ports[0]

    def browser(self, newest: ssl.TLSVersion = TLS_1_3, ciphers: str | None = None) -> ssl.SSLContext:
        """A client that holds a server to its name."""
        return client_context(newest=newest, ciphers=ciphers, cafile=self.folder / "authority.pem")

    def certificate(self, name: str) -> bytes:
        return ssl.PEM_cert_to_DER_cert((self.folder / f"{name}.pem").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    authority = ec.generate_private_key(ec.SECP256R1())
    write_certificate(folder / "authority", (), authority, authority)
    for name, hosts in CERTIFICATES.items():
        key: Key = (
            rsa.generate_private_key(65537, 2048) if name.endswith("rsa") else ec.generate_private_key(ec.SECP256R1())
        )
        write_certificate(folder / name, hosts, key, authority)
    for name in ROOTS:
        (folder / name).mkdir()
        (folder / name / "index.html").write_text(name)
        (folder / name / f"only-{name}.txt").write_text(name)
    (folder / "beta/stolen.txt").symlink_to("../alpha/only-alpha.txt")
    challenges = folder / "challenges"
    (challenges / "sub").mkdir(parents=True)
    (challenges / TOKEN).write_text(f"{TOKEN}.thumbprint")
    (challenges / "with.dot").write_text("dot")
    (challenges / ".hidden").write_text("hidden")
    (challenges / "sub/inner").write_text("inner")
    (challenges / "outside").symlink_to("../alpha/only-alpha.txt")
    (folder / "outside-of-challenges").write_text("outside")
    config = folder / "ktlsd.toml"
    config.write_text(CONFIGURATION)
    options = ("--config", str(config))
    with serving(None, *options, state=folder, http_listen=["127.0.0.1:0"]) as server:
        yield Place(server, folder)


def write_certificate(path: Path, hosts: tuple[str, ...], key: Key, signer: Key) -> None:
    """PATH.pem and PATH.key: a server's certificate for these names, or without names the authority's own."""
    now = datetime.datetime.now(datetime.UTC)
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None), critical=True)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), False)
    pem = serialization.Encoding.PEM
    path.with_suffix(".pem").write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(pem))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def peer_certificate(connection: Conversation) -> bytes | None:
    assert isinstance(connection.socket, ssl.SSLSocket)
    return connection.socket.getpeercert(binary_form=True)


# --- which site ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "root", "certificate"),
    [
        (ALPHA, "alpha", "alpha-ec"),
        ("ALPHA.Example", "alpha", "alpha-ec"),
        ("www.alpha.example", "alpha", "alpha-ec"),
        (BETA, "beta", "beta-ec"),
        (GAMMA, "gamma", "default-ec"),
        (DEEP, "deep", "default-ec"),
        ("default.example", "default", "default-ec"),
        ("localhost", "default", "default-ec"),
    ],
)
@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
def test_a_name_gets_its_certificate_and_its_folder(
    place: Place, protocol: str, newest: ssl.TLSVersion, name: str, root: str, certificate: str
) -> None:
    with conversation(place.port, protocol, context=place.browser(newest), name=name) as connection:
        assert peer_certificate(connection) == place.certificate(certificate)
        assert connection.get("/", host=name).body == root.encode()


@pytest.mark.parametrize(
    ("name", "root", "certificate"),
    [
        # A wildcard is for every name below, although a certificate's is only for one label.
        ("a.b.alpha.example", "alpha", "alpha-ec"),
        ("x.deep.alpha.example", "alpha", "alpha-ec"),
        ("notalpha.example", "default", "default-ec"),
        ("www.beta.example", "default", "default-ec"),
        ("unknown.example", "default", "default-ec"),
        (None, "default", "default-ec"),
    ],
)
def test_other_names_get_the_nearest_wildcard_or_the_default(
    place: Place, protocol: str, name: str | None, root: str, certificate: str
) -> None:
    with conversation(place.port, protocol, name=name) as connection:
        assert peer_certificate(connection) == place.certificate(certificate)
        assert connection.get("/", host=name or "127.0.0.1").body == root.encode()


@pytest.mark.parametrize(
    ("name", "key", "certificate"),
    [
        (ALPHA, "ECDSA", "alpha-ec"),
        (ALPHA, "RSA", "alpha-rsa"),
        (GAMMA, "ECDSA", "default-ec"),
        (GAMMA, "RSA", "default-rsa"),
    ],
)
def test_a_client_gets_the_key_type_that_its_ciphers_are_for(
    place: Place, name: str, key: str, certificate: str
) -> None:
    context = place.browser(TLS_1_2, f"ECDHE-{key}-AES128-GCM-SHA256")
    with connect(place.port, context, name=name) as connection:
        assert connection.getpeercert(binary_form=True) == place.certificate(certificate)


@pytest.mark.parametrize(
    ("algorithm", "certificate"),
    [
        ("ecdsa_secp256r1_sha256", "alpha-ec"),
        ("rsa_pss_rsae_sha256", "alpha-rsa"),
        ("rsa_pss_rsae_sha256:ecdsa_secp256r1_sha256", "alpha-ec"),
    ],
)
def test_a_tls_1_3_client_gets_the_key_type_that_it_can_verify(place: Place, algorithm: str, certificate: str) -> None:
    arguments = ["-connect", f"127.0.0.1:{place.port}", "-servername", ALPHA, "-tls1_3", "-sigalgs"]
    done = subprocess.run(
        ["openssl", "s_client", *arguments, algorithm], input=b"", capture_output=True, timeout=120, check=False
    )
    output = done.stdout.decode()
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    assert begin in output, output + done.stderr.decode()
    pem = output[output.index(begin) : output.index(end) + len(end)]
    assert ssl.PEM_cert_to_DER_cert(pem) == place.certificate(certificate)


def test_a_client_that_can_verify_no_key_of_a_site_is_refused(place: Place) -> None:
    context = place.browser(TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        connect(place.port, context, name=BETA)


@pytest.mark.parametrize(
    "target", ["/only-alpha.txt", "/stolen.txt", "/alpha/only-alpha.txt", "//alpha.example/only-alpha.txt"]
)
def test_no_file_of_one_site_comes_from_another(place: Place, protocol: str, target: str) -> None:
    answer = ask(place.port, target, protocol=protocol, host=BETA, name=BETA)
    assert (answer.status, answer.body) == (404, b"404 Not Found\n")


def test_a_path_out_of_a_site_is_refused(place: Place, protocol: str) -> None:
    assert ask(place.port, "/../alpha/only-alpha.txt", protocol=protocol, host=BETA, name=BETA).status == 400


# --- 421 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (ALPHA, BETA),
        (BETA, ALPHA),
        (BETA, "www.alpha.example"),
        # These two share a certificate, which makes no site of both.
        (GAMMA, "default.example"),
        ("default.example", GAMMA),
        (GAMMA, DEEP),
        ("www.alpha.example", DEEP),
        (ALPHA, "unknown.example"),
        ("unknown.example", ALPHA),
        (ALPHA, "127.0.0.1"),
    ],
)
def test_a_host_of_another_site_than_the_handshakes_is_misdirected(
    place: Place, protocol: str, name: str, host: str
) -> None:
    with conversation(place.port, protocol, name=name) as connection:
        misdirected, right = connection.get("/", host=host), connection.get("/", host=name)
        page = connection.get("/", "Accept: text/html", host=host)
    assert (misdirected.status, right.status, page.status) == (421, 200, 421)
    assert misdirected.body == b"421 Misdirected Request\n"
    assert b"</span> Misdirected Request</h1>" in page.body


@pytest.mark.parametrize(
    ("name", "host", "root"),
    [
        (ALPHA, "ALPHA.EXAMPLE:8443", "alpha"),
        (ALPHA, "alpha.example.", "alpha"),
        (ALPHA, "other.alpha.example", "alpha"),
        ("other.alpha.example", ALPHA, "alpha"),
        ("unknown.example", "127.0.0.1:1", "default"),
        ("unknown.example", "[::1]:1", "default"),
        (DEEP, f"{DEEP}:443", "deep"),
    ],
)
def test_a_host_of_the_handshakes_site_is_served(place: Place, protocol: str, name: str, host: str, root: str) -> None:
    answer = ask(place.port, "/", protocol=protocol, host=host, name=name)
    assert (answer.status, answer.body) == (200, root.encode())


@pytest.mark.parametrize(
    ("host", "root"), [(ALPHA, "alpha"), (BETA, "beta"), (GAMMA, "gamma"), (DEEP, "deep"), ("x", "default")]
)
def test_a_client_without_a_server_name_may_ask_for_any_site(place: Place, protocol: str, host: str, root: str) -> None:
    assert ask(place.port, "/", protocol=protocol, host=host).body == root.encode()


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_other_methods_are_misdirected_too(place: Place, protocol: str, method: str) -> None:
    assert ask(place.port, "/", protocol=protocol, method=method, host=BETA, name=ALPHA).status == 421


@pytest.mark.parametrize(
    ("name", "target", "host", "status", "body"),
    [
        (BETA, f"https://{BETA}/", ALPHA, 200, b"beta"),
        (BETA, f"https://{ALPHA}/", BETA, 421, b"421 Misdirected Request\n"),
        (None, f"https://{BETA}/only-beta.txt", ALPHA, 200, b"beta"),
        (None, f"https://{GAMMA.upper()}:8443", ALPHA, 200, b"gamma"),
    ],
)
def test_an_absolute_target_stands_before_host(
    place: Place, protocol: str, name: str | None, target: str, host: str, status: int, body: bytes
) -> None:
    answer = ask(place.port, target, protocol=protocol, host=host, name=name)
    assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize("request_bytes", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\nHost:\r\n\r\n"])
@pytest.mark.parametrize(("name", "root"), [(BETA, b"beta"), (None, b"default")])
def test_without_a_host_the_handshake_says_which_site(
    place: Place, name: str | None, root: bytes, request_bytes: bytes
) -> None:
    assert parse(exchange(place.port, request_bytes, name=name))[0].body == root


# --- resumption ------------------------------------------------------------------------------------------------------


def session_of(place: Place, protocol: str, context: ssl.SSLContext, name: str) -> ssl.SSLSession:
    with conversation(place.port, protocol, context=context, name=name) as connection:
        # Tickets come before it.
        connection.get("/", host=name)
        assert isinstance(connection.socket, ssl.SSLSocket)
        assert connection.socket.session is not None
        return connection.socket.session


def is_resumed(connection: Conversation) -> bool:
    assert isinstance(connection.socket, ssl.SSLSocket)
    return bool(connection.socket.session_reused)


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize(("name", "other"), [(ALPHA, BETA), (GAMMA, "default.example")])
def test_a_resumed_session_is_for_its_own_site_alone(
    place: Place, protocol: str, newest: ssl.TLSVersion, name: str, other: str
) -> None:
    context = client_context(newest=newest)
    session = session_of(place, protocol, context, name)
    with conversation(place.port, protocol, context=context, session=session, name=name) as connection:
        assert is_resumed(connection)
        misdirected, right = connection.get("/", host=other), connection.get("/", host=name)
    assert (misdirected.status, right.status) == (421, 200)


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize(("of", "to"), [(ALPHA, BETA), (ALPHA, GAMMA), (GAMMA, ALPHA), (ALPHA, None)])
def test_a_session_of_one_site_is_not_resumed_by_another(
    place: Place, newest: ssl.TLSVersion, of: str, to: str | None
) -> None:
    context = client_context(newest=newest)
    session = session_of(place, HTTP_1, context, of)
    with connect(place.port, context, session, to) as connection:
        assert not connection.session_reused
        certificate = {BETA: "beta-ec", ALPHA: "alpha-ec"}.get(to or "", "default-ec")
        assert connection.getpeercert(binary_form=True) == place.certificate(certificate)


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
def test_a_session_of_a_shared_certificate_follows_the_name_of_the_new_handshake(
    place: Place, protocol: str, newest: ssl.TLSVersion
) -> None:
    context = client_context(newest=newest)
    session = session_of(place, protocol, context, "default.example")
    with conversation(place.port, protocol, context=context, session=session, name=GAMMA) as connection:
        misdirected, right = connection.get("/", host="default.example"), connection.get("/", host=GAMMA)
    assert (misdirected.status, right.body) == (421, b"gamma")


# --- plain HTTP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "host", "location"),
    [
        ("/", ALPHA, f"https://{ALPHA}:PORT/"),
        ("/a/b?c=d&e", ALPHA, f"https://{ALPHA}:PORT/a/b?c=d&e"),
        ("/a/", "ALPHA.example:80", "https://ALPHA.example:PORT/a/"),
        ("/", "[::1]", "https://[::1]:PORT/"),
        ("/", "[2001:db8::1]:8080", "https://[2001:db8::1]:PORT/"),
        ("/", "127.0.0.1", "https://127.0.0.1:PORT/"),
        ("/", "nobody.example", "https://nobody.example:PORT/"),
        ("/caf%C3%A9%20%25?q=%20", ALPHA, f"https://{ALPHA}:PORT/caf%C3%A9%20%25?q=%20"),
        ("/%0d%0aSet-Cookie:x", ALPHA, f"https://{ALPHA}:PORT/%0D%0ASet-Cookie:x"),
        ("//evil.example/x", ALPHA, f"https://{ALPHA}:PORT/evil.example/x"),
        ("/a/../b", ALPHA, f"https://{ALPHA}:PORT/b"),
        (f"http://{BETA}:80/x", ALPHA, f"https://{BETA}:PORT/x"),
        ("/only-default.txt", ALPHA, f"https://{ALPHA}:PORT/only-default.txt"),
        ("/.well-known/acme-challenge/", ALPHA, f"https://{ALPHA}:PORT/.well-known/acme-challenge/"),
        ("/.well-known/acme-challenge", ALPHA, f"https://{ALPHA}:PORT/.well-known/acme-challenge"),
        ("/.well-known/other", ALPHA, f"https://{ALPHA}:PORT/.well-known/other"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_plain_http_is_sent_to_https(place: Place, method: str, target: str, host: str, location: str) -> None:
    request = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer, rest = parse(exchange_plain(place.http, request.encode()), head_only=method == "HEAD")
    assert (answer.status, rest) == (301, b"")
    assert answer.fields["location"] == location.replace("PORT", str(place.port))
    assert "strict-transport-security" not in answer.fields


def test_hsts_is_said_over_tls_alone(place: Place, protocol: str) -> None:
    assert ask(place.port, "/", protocol=protocol).fields["strict-transport-security"] == "max-age=31536000"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n", 204),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204),
        (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /../x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ],
)
def test_other_requests_on_plain_http_get_their_status_and_keep_the_connection(
    place: Place, request_bytes: bytes, status: int
) -> None:
    last = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answers = parse_all(exchange_plain(place.http, request_bytes + last))
    assert [answer.status for answer in answers] == [status, 301]
    assert answers[0].fields.get("allow") == ("GET, HEAD, OPTIONS" if status in (204, 405) else None)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: :80\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_plain_http_without_a_good_host_or_frame_gets_400(place: Place, request_bytes: bytes) -> None:
    answer, rest = parse(exchange_plain(place.http, request_bytes))
    assert (answer.status, answer.fields["connection"], rest) == (400, "close", b"")


def test_http_1_0_with_a_host_is_sent_to_https(place: Place) -> None:
    answer, rest = parse(exchange_plain(place.http, b"GET /x HTTP/1.0\r\nHost: a\r\n\r\n"))
    assert (answer.status, answer.fields["connection"], rest) == (301, "close", b"")
    assert answer.fields["location"] == f"https://a:{place.port}/x"


# --- ACME ------------------------------------------------------------------------------------------------------------


def ask_for_challenge(place: Place, token: str, *fields: str, method: str = "GET") -> bytes:
    lines = [f"{method} /.well-known/acme-challenge/{token} HTTP/1.1", "Host: a", "Connection: close", *fields, "", ""]
    return exchange_plain(place.http, "\r\n".join(lines).encode())


def test_a_challenge_is_answered_in_the_clear(place: Place) -> None:
    answer, rest = parse(ask_for_challenge(place, TOKEN))
    assert (answer.status, answer.body, rest) == (200, f"{TOKEN}.thumbprint".encode(), b"")
    assert answer.fields["content-type"] == "application/octet-stream"
    head, rest = parse(ask_for_challenge(place, TOKEN, method="HEAD"), head_only=True)
    assert (head.status, rest) == (200, b"")
    assert head.fields["content-length"] == answer.fields["content-length"]
    tag = answer.fields["etag"]
    assert parse(ask_for_challenge(place, TOKEN, f"If-None-Match: {tag}"))[0].status == 304
    part = parse(ask_for_challenge(place, TOKEN, "Range: bytes=0-2"))[0]
    assert (part.status, part.body) == (206, TOKEN[:3].encode())


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("absent", 404),
        ("with.dot", 404),
        (".hidden", 404),
        ("%2ehidden", 404),
        ("sub", 404),
        ("outside", 404),
        ("..%2foutside-of-challenges", 400),
        ("..%5coutside-of-challenges", 404),
        (f"{TOKEN}%00", 400),
        (f"{TOKEN}%0a", 404),
        (f"{TOKEN}.", 404),
        ("a" * 4000, 404),
        # These are other addresses, for HTTPS.
        ("../outside-of-challenges", 301),
        ("../../outside-of-challenges", 301),
        ("%2e%2e/%2e%2e/outside-of-challenges", 301),
        ("sub/inner", 301),
        ("sub/", 301),
        (f"{TOKEN}/", 301),
        ("../../../outside-of-challenges", 400),
    ],
)
def test_nothing_else_of_the_folder_or_beside_it_is_a_challenge(place: Place, token: str, status: int) -> None:
    data = ask_for_challenge(place, token)
    answer, rest = parse(data)
    assert (answer.status, rest) == (status, b"")
    assert answer.body.startswith(f"{status} ".encode())


def test_a_new_challenge_is_there_at_once_and_gone_at_once(place: Place) -> None:
    path = place.folder / "challenges/new_TOKEN-1"
    assert parse(ask_for_challenge(place, path.name))[0].status == 404
    path.write_text("new")
    assert parse(ask_for_challenge(place, path.name))[0].body == b"new"
    path.unlink()
    assert parse(ask_for_challenge(place, path.name))[0].status == 404


def test_challenges_are_for_plain_http_alone(place: Place, protocol: str) -> None:
    assert ask(place.port, f"/.well-known/acme-challenge/{TOKEN}", protocol=protocol).status == 404
