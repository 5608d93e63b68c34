"""What each policy offers, to real clients; what no policy offers: renegotiation, early data, costly groups."""

from __future__ import annotations

import itertools
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.config.values import Mode, TlsPolicy
from ktlsd.openssl.algorithms import CIPHERSUITES, TLS_1_2
from ktlsd.openssl.results import Handshake
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls import Direction, Reason, Support, explain
from ktlsd.tls.policy import EVERY_CIPHER, POLICIES
from tests.serving import Running, client_context, connect, get, run_to_end, serving

CBC = "ECDHE-ECDSA-AES128-SHA256"
REQUEST = "GET /a.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
GROUPS_OF_OPENSSL = ("X25519", "P-256", "P-384", "P-521", "X448", "ffdhe2048", "ffdhe8192")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "a.txt").write_text("content")
    return folder


def write(folder: Path, policy: TlsPolicy) -> Path:
    config = folder / "ktlsd.toml"
    config.write_text(f"tls_policy = '{policy}'\n")
    return config


@pytest.fixture(scope="module", params=POLICIES)
def offered(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TlsPolicy, Running]]:
    """A policy, and a server that has it."""
    folder = tmp_path_factory.mktemp("server")
    with serving(root, "--config", str(write(folder, request.param)), state=folder) as server:
        yield request.param, server


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With the default policy."""
    with serving(root, state=tmp_path_factory.mktemp("state")) as running:
        yield running


def s_client(server: Running, *options: str, typed: str = REQUEST) -> str:
    """What `openssl s_client` shows."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-ign_eof", *options]
    ended = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, check=False)
    return ended.stdout + ended.stderr


def settle(server: Running, protocol: str, cipher: str) -> tuple[str, str] | None:
    """Protocol and cipher with a client that has only these; None for no handshake."""
    command = ["-tls1_3", "-ciphersuites", cipher] if protocol == "TLSv1.3" else ["-tls1_2", "-cipher", cipher]
    shown = s_client(server, *command)
    if "HTTP/1.1 200 OK" not in shown:
        assert "alert" in shown, shown
        return None
    return protocol, next(line for line in shown.splitlines() if line.startswith("New, ")).rpartition(" ")[2]


ECDSA = [cipher for cipher in EVERY_CIPHER.split(":") if "ECDSA" in cipher]


@pytest.mark.parametrize(
    ("protocol", "cipher"),
    [
        *(("TLSv1.3", cipher) for cipher in CIPHERSUITES.split(":")),
        *(("TLSv1.2", cipher) for cipher in ECDSA),
        ("TLSv1.3", "TLS_AES_128_CCM_SHA256"),
        ("TLSv1.2", "ECDHE-ECDSA-AES256-SHA"),
        ("TLSv1.2", "ECDHE-ECDSA-AES256-CCM"),
    ],
)
def test_a_client_gets_what_the_policy_has(offered: tuple[TlsPolicy, Running], protocol: str, cipher: str) -> None:
    policy, server = offered
    oldest, ciphers, *_ = POLICIES[policy]
    suites = CIPHERSUITES if protocol == "TLSv1.3" else ciphers
    has = cipher in suites.split(":") and (protocol == "TLSv1.3" or oldest == TLS_1_2)
    assert settle(server, protocol, cipher) == ((protocol, cipher) if has else None)


@pytest.mark.parametrize("protocol", ["-tls1", "-tls1_1"])
def test_older_protocols_get_an_alert(offered: tuple[TlsPolicy, Running], protocol: str) -> None:
    _, server = offered
    assert "alert protocol version" in s_client(server, protocol, "-cipher", "ALL:@SECLEVEL=0")


@pytest.mark.parametrize("group", GROUPS_OF_OPENSSL)
def test_groups(offered: tuple[TlsPolicy, Running], group: str) -> None:
    """An exchange in ffdhe8192 would cost the server a hundred times what it costs in X25519."""
    _, server = offered
    shown = s_client(server, "-tls1_3", "-groups", group)
    expected = "HTTP/1.1 200 OK" if group in ("X25519", "P-256", "P-384") else "alert handshake failure"
    assert expected in shown


@pytest.mark.skipif(Library().version < (3, 5, 0), reason="OpenSSL has no hybrid group before 3.5")
@pytest.mark.parametrize("groups", ["X25519MLKEM768", "X25519:X25519MLKEM768", "P-256:X25519MLKEM768"])
def test_the_hybrid_group_wins(server: Running, groups: str) -> None:
    """Also where the client has sent no key share for it and has to try again (HelloRetryRequest)."""
    assert "Negotiated TLS1.3 group: X25519MLKEM768" in s_client(server, "-tls1_3", "-groups", groups)


def test_the_server_chooses_the_cipher(server: Running) -> None:
    """AES-GCM first, which network devices can do: whatever the client would like best."""
    suites = ":".join(reversed(CIPHERSUITES.split(":")))
    assert settle(server, "TLSv1.3", suites) == ("TLSv1.3", CIPHERSUITES.split(":")[0])
    assert settle(server, "TLSv1.2", ":".join(reversed(ECDSA))) == ("TLSv1.2", ECDSA[0])


@pytest.mark.parametrize(("policy", "direction"), list(itertools.product(POLICIES, Direction)))
def test_ktls_carries_what_mozillas_policies_have(policy: TlsPolicy, direction: Direction) -> None:
    def never_carried(protocol: str, cipher: str) -> bool:
        settled = Handshake(protocol, cipher, False, False, False, False)
        return explain(support, settled, direction).reason is Reason.CIPHER_NEVER_CARRIED

    support = Support(Mode.AUTO, (3, 5, 0), True, True)
    assert not any(never_carried("TLSv1.3", cipher) for cipher in CIPHERSUITES.split(":"))
    never = [cipher for cipher in POLICIES[policy].ciphers.split(":") if never_carried("TLSv1.2", cipher)]
    assert bool(never) == (policy == "compatible")


# --- chosen lists


def test_chosen_lists_are_what_is_offered(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "ktlsd.toml"
    lists = {
        "tls_policy": "modern",
        "tls_min_version": "1.2",
        "tls_ciphers": CBC,
        "tls_ciphersuites": "TLS_CHACHA20_POLY1305_SHA256",
        "tls_groups": "secp384r1",
    }
    config.write_text("".join(f"{key} = '{value}'\n" for key, value in lists.items()))
    with serving(root, "--config", str(config), state=tmp_path) as server:
        for cipher in (CBC, "ECDHE-ECDSA-AES128-GCM-SHA256"):
            assert settle(server, "TLSv1.2", cipher) == (("TLSv1.2", cipher) if cipher == CBC else None)
        for suite in CIPHERSUITES.split(":"):
            assert settle(server, "TLSv1.3", suite) == (("TLSv1.3", suite) if "CHACHA" in suite else None)
        assert "alert" in s_client(server, "-tls1_3", "-groups", "X25519")
        # A list that OpenSSL does not take is refused, and the former one stays in force.
        config.write_text("tls_groups = 'nonsense'\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line(r"ktlsd\.toml:1: tls_groups: OpenSSL has no group nonsense")
        assert settle(server, "TLSv1.2", CBC) == ("TLSv1.2", CBC)


def test_a_list_that_openssl_does_not_take_refuses_the_start(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"root = '{root}'\n\ntls_ciphers = 'ECDHE+AESGCM:NONSENSE'\n")
    for arguments in (("--config", str(config)), ("check", "--config", str(config))):
        ended = run_to_end(*arguments, state=tmp_path)
        assert ended.returncode == 2
        told = "OpenSSL has no cipher NONSENSE for a server with a certificate: see openssl ciphers -v"
        assert ended.stderr == f"ktlsd: {config}:3: tls_ciphers: {told}\n"


# --- a policy that changes


def test_another_policy_is_taken_with_a_reload(root: Path, tmp_path: Path) -> None:
    """And a session with a cipher that is no longer offered is not resumed."""
    client = client_context(newest=ssl.TLSVersion.TLSv1_2, ciphers=f"{CBC}:ECDHE-ECDSA-AES128-GCM-SHA256")
    cbc = client_context(newest=ssl.TLSVersion.TLSv1_2, ciphers=CBC)
    config = write(tmp_path, "compatible")
    with serving(root, "--config", str(config), state=tmp_path / "state") as server:

        def reload(policy: TlsPolicy) -> None:
            write(tmp_path, policy)
            lines = len(server.log)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_line("configuration reloaded", since=lines)

        with connect(server.port, cbc) as connection:
            connection.sendall(REQUEST.encode())
            assert connection.recv(100)
            session = connection.session
        with connect(server.port, cbc, session) as connection:
            assert connection.session_reused
        reload("intermediate")
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            connect(server.port, cbc, session)
        assert get(server.port, "/a.txt", context=client).body == b"content"
        reload("modern")
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            connect(server.port, client)
        assert get(server.port, "/a.txt").body == b"content"
        server.wait_for_line("TLSv1.3")


def test_a_policy_that_there_is_not_is_one_line(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text("root = '.'\ntls_policy = 'old'\n")
    ended = run_to_end("--config", str(config), state=tmp_path)
    complaint = "tls_policy: 'old' is not one of modern, intermediate, compatible, nic"
    assert (ended.returncode, ended.stderr) == (2, f"ktlsd: {config}:2: {complaint}\n")


# --- what no policy has


def test_renegotiation_is_refused(server: Running) -> None:
    """s_client asks for it when a line is an R. The request before it is answered, none after it."""
    with subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        shown = ""
        client.stdin.write(REQUEST.replace("Connection: close\r\n", ""))
        client.stdin.flush()
        while not shown.endswith("content"):
            character = client.stdout.read(1)
            assert character, shown
            shown += character
        client.stdin.write("R\n")
        client.stdin.flush()
        # s_client takes a line for a command only where it begins what is read from the terminal.
        time.sleep(0.2)
        rest, _ = client.communicate(REQUEST, timeout=60)
    assert "RENEGOTIATING" in rest
    assert "no renegotiation" in rest
    assert "HTTP/1.1" not in rest
    assert get(server.port, "/a.txt").body == b"content"


def test_tickets_allow_no_early_data(server: Running, tmp_path: Path) -> None:
    session, early = tmp_path / "session.pem", tmp_path / "early"
    early.write_text(REQUEST)
    assert "HTTP/1.1 200 OK" in s_client(server, "-tls1_3", "-sess_out", str(session))
    shown = s_client(server, "-tls1_3", "-sess_in", str(session), "-early_data", str(early))
    assert "Reused, TLSv1.3" in shown
    assert "Max Early Data: 0" in s_client(server, "-tls1_3", "-sess_in", str(session))
    assert "Early data was not sent" in shown


@pytest.mark.parametrize(
    ("line", "ktls"),
    [("zerocopy_sendfile = true", "auto"), ('tls_policy = "nic"', "auto"), ('tls_policy = "nic"', "off")],
)
def test_without_a_nic_one_line_says_why_a_key_has_no_effect(root: Path, tmp_path: Path, line: str, ktls: str) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"{line}\n")
    reasons = {
        "auto": r"(no network interface encrypts: ethtool .*|sends are not offloaded \(the kernel has no tls ULP\))",
        "off": "kTLS is switched off",
    }
    with serving(root, "--config", str(config), "--ktls", ktls, state=tmp_path) as server:
        assert server.wait_for_line(f"^{line.removesuffix(' = true')} has no effect: {reasons[ktls]}$")
        assert get(server.port, "/a.txt").body == b"content"
