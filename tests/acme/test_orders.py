"""Certificates from a real ACME server (Pebble): each challenge, by one process and by workers, and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import ssl
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from acme import client, messages
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from tests.acme.sites import (
    CONTENT,
    ISSUED,
    NAME,
    authority,
    becomes_trusted,
    is_trusted,
    pem,
    record,
    served,
    site,
    www,
)
from tests.pebble import EAB_KEY, Pebble, pebble
from tests.serving import (
    Running,
    client_context,
    connect,
    eventually,
    exchange_plain,
    get,
    parse,
    read_to_end,
    run_to_end,
    serving,
)

__all__ = ["authority", "www"]


@pytest.mark.parametrize(("challenge", "workers"), [("tls-alpn-01", "1"), ("tls-alpn-01", "4"), ("http-01", "4")])
def test_a_first_certificate(authority: Pebble, www: Path, challenge: str, workers: str) -> None:
    with site(authority, www, "--workers", workers, table=f'challenges = "{challenge}"\nemail = "a@b.test"') as server:
        assert not is_trusted(authority), "served at once, self-signed"
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority)
        context = client_context(cafile=authority.root())
        assert get(authority.https, "/a.txt", host=NAME, name=NAME, context=context).body == CONTENT
        moved = exchange_plain(
            authority.http, f"GET /a.txt HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()
        )
        assert parse(moved)[0].fields["location"] == f"https://{NAME}:{authority.https}/a.txt"
        answered = [line for line in server.log if line.endswith(f"ACME challenge answered for {NAME}")]
        assert bool(answered) == (challenge == "tls-alpn-01")
        assert server.stop() == 0
    files = [path for path in (www.parent / "state").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {path.name for path in files} == {
        *("lock", "ticket-keys.json", f"{NAME}.pem", f"{NAME}.json"),
        *(f"localhost_{authority.port}_dir.json", f"localhost_{authority.port}_dir.pem"),
    }
    assert "PRIVATE" not in "\n".join(server.log)
    assert record(www)["problem"] == ""


def test_answers_in_the_operators_folder(authority: Pebble, www: Path) -> None:
    """Another server may answer from there: this one only writes."""
    folder = www.parent / "answers"
    folder.mkdir()
    (folder / "of-another-client").write_text("kept")
    with site(authority, www, "--acme-challenges", str(folder), table='challenges = "http-01"') as server:
        server.wait_for_line(ISSUED)
    assert [path.name for path in folder.iterdir()] == ["of-another-client"]


def test_a_certificate_that_is_there_is_not_ordered_again(authority: Pebble, www: Path) -> None:
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
        first = pem(www).read_bytes()
        assert server.stop() == 0
    with site(authority, www) as server:
        assert is_trusted(authority), "from the first handshake on"
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("^configuration reloaded")
        assert server.stop() == 0
        assert not any("ordered" in line for line in server.log)
    assert pem(www).read_bytes() == first


def test_the_other_challenge_is_tried_if_the_first_fails(authority: Pebble, www: Path) -> None:
    """Another program answers on the port of HTTPS, as a TLS-terminating proxy does; port 80 leads here."""
    config = www.parent / "ktlsd.toml"
    config.write_text(authority.table())
    arguments = ("--config", str(config), *authority.options())
    http = [f"127.0.0.1:{authority.http}"]
    with (
        serving(www, listen=[f"127.0.0.1:{authority.https}"], state=www.parent / "other"),
        serving(www, *arguments, http_listen=http, state=www.parent / "state") as server,
    ):
        server.wait_for_line(f"^certificate for {NAME}: {NAME} by tls-alpn-01: .*; trying http-01")
        server.wait_for_line(ISSUED)


def test_without_the_authority_it_serves_and_says_what_it_waits_for(authority: Pebble, www: Path) -> None:
    authority.stop()
    try:
        with site(authority, www, "--metrics-listen", "127.0.0.1:0") as server:
            line = server.wait_for_line(f"^certificate for {NAME}: not issued: ")
            assert re.search(
                f"localhost:{authority.port} cannot be reached: .*Connection refused.*; a self-signed one is served;"
                " next try 20..-",
                line,
            )
            assert get(authority.https, "/a.txt").body == CONTENT
            before = record(www)
            assert before["failures"] == 1
            page = metrics(server, "/metrics")
            assert f'ktlsd_acme_failures{{certificate="{NAME}"}} 1.0' in page
            assert "not issued: localhost" in metrics(server, "/")
            found = run_to_end("doctor", state=www.parent / "state").stdout
            assert re.search(f"^no  +ACME +{NAME}: not issued: localhost", found, re.MULTILINE)
            authority.start()
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_line(ISSUED)
            assert record(www)["failures"] == 0
            assert f'ktlsd_acme_failures{{certificate="{NAME}"}} 0.0' in metrics(server, "/metrics")
            assert becomes_trusted(authority)
    finally:
        authority.stop()
        authority.start()


def test_a_restart_in_a_pause_says_so_and_another_directory_is_tried_at_once(authority: Pebble, www: Path) -> None:
    mistyped = ("--acme-directory", f"{authority.directory}-of-none")
    with site(authority, www, *mistyped) as server:
        server.wait_for_line(f"^certificate for {NAME}: not issued: ")
    with site(authority, www, *mistyped) as server:
        server.wait_for_line(
            rf"^certificate for {NAME}: there is none yet \(.*\); a self-signed one is served;"
            " next try 20.* UTC, or at once on SIGHUP$"
        )
        assert record(www)["failures"] == 1
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
        assert not any("there is none yet" in line for line in server.log)


def metrics(server: Running, path: str) -> str:
    port = int(server.wait_for_line("^metrics on ").rpartition(":")[2])
    return exchange_plain(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).decode()


def test_the_authoritys_own_words(authority: Pebble, www: Path) -> None:
    authority.dns("add-caa", host="caa.example.test.", policies=[{"tag": "issue", "value": "other.test"}])
    authority.dns("set-default-ipv4", ip="127.0.0.3")
    try:
        with site(authority, www, names="caa.example.test") as server:
            line = server.wait_for_line("^certificate for caa.example.test: not issued: ")
            assert "caa.example.test by http-01: " in line
            assert "connection refused" in line
    finally:
        authority.dns("set-default-ipv4", ip="127.0.0.1")


def revoke(authority: Pebble, www: Path) -> None:
    """As an operator does whose key is stolen, with the account of ktlsd."""
    accounts = pem(www).parents[1] / "accounts"
    key = JWKEC.load((accounts / f"localhost_{authority.port}_dir.pem").read_bytes())
    uri = json.loads((accounts / f"localhost_{authority.port}_dir.json").read_text())["uri"]
    account = messages.RegistrationResource(body=messages.Registration(), uri=uri)
    network = client.ClientNetwork(key, account, ES256, verify_ssl=str(authority.ca))  # type: ignore[arg-type]
    directory = client.ClientV2.get_directory(authority.directory, network)
    client.ClientV2(directory, network).revoke(x509.load_pem_x509_certificate(pem(www).read_bytes()), 1)


@pytest.mark.parametrize(("workers", "revoked"), [("1", False), ("2", True)])
def test_a_renewal_closes_no_connection_and_refuses_no_handshake(
    authority: Pebble, www: Path, workers: str, revoked: bool
) -> None:
    """The authority suggests it by renewal information (RFC 9773), as it does for a revoked certificate."""
    # Two orders of longer certificates would be an hour apart.
    with site(authority, www, "--workers", workers, table='profile = "brief"') as server:
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority)
        context, first = client_context(cafile=authority.root()), served(authority)
        serials, ended = set[int](), threading.Event()

        def shake_hands() -> None:
            while not ended.is_set():
                serials.add(served(authority))
                time.sleep(0.01)

        others = threading.Thread(target=shake_hands)
        with connect(authority.https, context, name=NAME) as download:
            request = f"GET /a.txt HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"
            download.sendall(request.encode())
            begun = download.recv(1000)
            others.start()
            if revoked:
                revoke(authority, www)
            else:
                authority.renew_at_once(pem(www))
            since = len(server.log)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_line("the authority suggests to renew it", since)
            server.wait_for_line(ISSUED, since)
            assert eventually(lambda: serials - {first} != set())
            ended.set()
            others.join()
            assert parse(begun + read_to_end(download))[0].body == CONTENT
        assert len(serials) == 2
        assert server.stop() == 0


def test_a_renewal_by_the_clock(tmp_path: Path, www: Path) -> None:
    """Nonces are rejected and validations delayed, as Pebble does by itself."""
    rude = {"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "2", "PEBBLE_WFE_NONCEREJECT": "50"}
    with pebble(tmp_path, rude) as authority:
        with site(authority, www) as server:
            server.wait_for_line(ISSUED)
            first = pem(www).read_bytes()
        due = record(www) | {"renew_at": time.time() + 3, "issued_at": 0, "by_ari": False, "ask_at": None}
        pem(www).with_suffix(".json").write_text(json.dumps(due))
        with site(authority, www) as server:
            server.wait_for_line("it is time to renew it$")
            assert time.time() > float(str(due["renew_at"]))
            server.wait_for_line(ISSUED)
    assert pem(www).read_bytes() != first


def test_wildcards_by_a_dns_hook(authority: Pebble, www: Path) -> None:
    calls = www.parent / "calls"
    hook = www.parent / "hook"
    management = f"http://127.0.0.1:{authority.dns_management}"
    hook.write_text(
        f"""#!/bin/sh
set -eu
echo "$1 $2 $3" >>{calls}
case $1 in
add) curl -sfd "{{\\"host\\": \\"$2.\\", \\"value\\": \\"$3\\"}}" {management}/set-txt ;;
remove) curl -sfd "{{\\"host\\": \\"$2.\\"}}" {management}/clear-txt ;;
esac
"""
    )
    hook.chmod(0o755)
    names = "example.test,*.example.test"
    with site(authority, www, table=f'dns_hook = "{hook}"', names=names) as server:
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority, "any.example.test")
        assert is_trusted(authority, "example.test")
    said = [line.split() for line in calls.read_text().splitlines()]
    assert [action for action, _, _ in said] == ["add", "add", "wait", "wait", "remove", "remove"]
    assert {name for _, name, _ in said} == {"_acme-challenge.example.test"}
    assert len({text for _, _, text in said}) == 2


def test_records_that_a_killed_process_left_are_removed(authority: Pebble, www: Path) -> None:
    calls, hook = www.parent / "calls", www.parent / "hook"
    hook.write_text(f'#!/bin/sh\necho "$1 $3" >>{calls}\n[ $1 != wait ] || exec sleep 5\n')
    hook.chmod(0o755)

    def called() -> list[str]:
        return calls.read_text().splitlines() if calls.exists() else []

    with site(authority, www, table=f'dns_hook = "{hook}"') as server:
        assert eventually(lambda: any(call.startswith("wait ") for call in called()))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    left = called()[0].removeprefix("add ")
    assert f"remove {left}" not in called()
    hook.write_text(f'#!/bin/sh\necho "$1 $3" >>{calls}\nexit 1\n')
    with site(authority, www, table=f'dns_hook = "{hook}"') as server:
        server.wait_for_line("not issued: dns_hook add ")
    assert f"remove {left}" in called()


def test_a_hook_that_fails_is_named(authority: Pebble, www: Path) -> None:
    hook = www.parent / "hook"
    hook.write_text("#!/bin/sh\necho no such zone >&2\nexit 3\n")
    hook.chmod(0o755)
    with site(authority, www, table=f'dns_hook = "{hook}"') as server:
        server.wait_for_line(rf"not issued: dns_hook add _acme-challenge\.{NAME}: exit status 3: no such zone; ")


def test_an_external_account_binding(tmp_path: Path, www: Path) -> None:
    keys: dict[str, Any] = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {"kid-1": EAB_KEY}}
    secret = tmp_path / "eab"
    secret.write_text(EAB_KEY + "\n")
    with pebble(tmp_path, **keys) as authority:
        with site(authority, www) as server:
            server.wait_for_line("not issued: the authority wants an external account binding: set eab_key_id and eab")
        with site(authority, www, table=f'eab_key_id = "kid-1"\neab_key = "{secret}"') as server:
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_line(ISSUED)
            assert EAB_KEY not in "\n".join(server.log)


def test_key_type_chain_and_profile(tmp_path: Path, www: Path) -> None:
    profiles = {"brief": {"description": "six days", "validityPeriod": 518400}}
    with pebble(tmp_path, {"PEBBLE_ALTERNATE_ROOTS": "2"}, profiles=profiles) as authority:
        other = x509.load_pem_x509_certificate(authority.root(2).read_bytes()).subject
        issuer = other.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        table = f'key_type = "rsa2048"\nchain = "{issuer!s}"\nprofile = "brief"'
        with site(authority, www, table=table) as server:
            server.wait_for_line(ISSUED)
            assert becomes_trusted(authority, root=2)
        chain = x509.load_pem_x509_certificates(pem(www).read_bytes())
        assert isinstance(chain[0].public_key(), rsa.RSAPublicKey)
        assert (chain[0].not_valid_after_utc - chain[0].not_valid_before_utc).days in (5, 6)
        assert chain[-1].issuer == other
        with site(authority, www, table='profile = "classic"') as server:
            server.wait_for_line(
                "not issued: the authority has no certificate profile 'classic'; it has brief; the one"
            )
            served(authority, root=2)


def test_killed_in_the_middle_and_started_again(authority: Pebble, www: Path) -> None:
    """Wherever it is killed, the next start goes on, at once, and leaves nothing behind."""
    folder = pem(www).parent
    moments = (
        folder / f"{NAME}.pending.pem",
        folder / f"{NAME}.json",
        folder.parent / "challenges/tls-alpn" / f"{NAME}.pem",
    )
    for moment in moments:
        with site(authority, www) as server:
            assert eventually(moment.exists)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority)
    assert not moments[0].exists()
    assert not moments[2].exists()


def test_an_order_that_was_paid_for_is_fetched(authority: Pebble, www: Path) -> None:
    """The process ends between the order and the file, as on a full disk: the certificate is not ordered twice."""
    with site(authority, www) as server:
        folder = pem(www).parent
        assert eventually(lambda: bool(pem(www).with_suffix(".json").exists() and record(www)["order"]))
        left = (folder / f"{NAME}.pending.pem").read_bytes(), pem(www).with_suffix(".json").read_bytes()
        stand_in = pem(www).read_bytes()
        server.wait_for_line(ISSUED)
        first = pem(www).read_bytes()

    def restore() -> None:
        (folder / f"{NAME}.pending.pem").write_bytes(left[0])
        pem(www).with_suffix(".json").write_bytes(left[1])
        pem(www).write_bytes(stand_in)

    restore()
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
    assert pem(www).read_bytes() == first
    # It is of no use for other names.
    restore()
    with site(authority, www, names=f"{NAME},other.example.test") as server:
        server.wait_for_line("an earlier order is of no use; ordered anew$")
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority, "other.example.test")


def test_two_servers_with_one_state_folder_order_once(authority: Pebble, www: Path) -> None:
    log = authority.folder / "pebble.log"
    before = log.read_text().count("Added order")
    config = www.parent / "second.toml"
    config.write_text(authority.table())
    second = ("--config", str(config), *authority.options())
    with (
        site(authority, www) as server,
        serving(www, *second, http_listen=["127.0.0.1:0"], state=www.parent / "state") as other,
    ):

        def trusted_by_both() -> bool:
            context = client_context(cafile=authority.root())
            with contextlib.suppress(ssl.SSLCertVerificationError):
                for port in (authority.https, other.port):
                    connect(port, context, name=NAME).close()
                return True
            return False

        assert eventually(trusted_by_both)
        assert eventually(lambda: any(re.search(ISSUED, line) for line in (*server.log, *other.log)))
    assert log.read_text().count("Added order") == before + 1


def test_the_certificate_of_another_client_is_taken_over(authority: Pebble, www: Path) -> None:
    """docs/certificates.md: key and chain in one file are all that it takes."""
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
    first = pem(www).read_bytes()
    pem(www).with_suffix(".json").unlink()
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
        assert not any("ordered" in line for line in server.log)
        assert becomes_trusted(authority)
    assert pem(www).read_bytes() == first
    assert record(www)["terms"] == {"names": [NAME], "directory": "", "key_type": "", "profile": "", "chain": ""}


def test_a_site_of_its_own_and_a_reload(authority: Pebble, www: Path) -> None:
    """ACME begins and ends with a reload of the configuration, without a restart."""
    config = www.parent / "ktlsd.toml"
    sites = '[[site]]\nnames = ["files.example.test", "f.example.test"]\n'
    config.write_text(sites)
    with serving(
        www,
        *("--config", str(config), "--workers", "2"),
        listen=[f"127.0.0.1:{authority.https}"],
        http_listen=[f"127.0.0.1:{authority.http}"],
        state=www.parent / "state",
    ) as server:
        config.write_text(f"{authority.table()}\n{sites}acme = true\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("^certificate for files.example.test, f.example.test: valid until ")
        assert becomes_trusted(authority, "f.example.test")
        assert not is_trusted(authority, "g.example.test")
        config.write_text(sites)
        since = len(server.log)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("^configuration reloaded", since)
        assert eventually(lambda: not is_trusted(authority, "f.example.test"))


def test_an_ip_address(authority: Pebble, www: Path) -> None:
    """RFC 8738: the server name of the challenge is the address in in-addr.arpa."""
    with site(authority, www, table='profile = "default"\nchallenges = "tls-alpn-01"', names="127.0.0.1") as server:
        server.wait_for_line("ACME challenge answered for 1.0.0.127.in-addr.arpa")
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority, "127.0.0.1")


def test_a_challenge_is_for_the_authority_only(authority: Pebble, www: Path) -> None:
    """Without a challenge, and with more protocols than that one, a handshake is that of any client."""
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority)
        for protocols, name in ((["acme-tls/1"], NAME), (["acme-tls/1", "http/1.1"], NAME), (["acme-tls/1"], "x.test")):
            context = client_context()
            context.set_alpn_protocols(protocols)
            with (
                socket.create_connection(("127.0.0.1", authority.https)) as raw,
                context.wrap_socket(raw, server_hostname=name) as connection,
            ):
                assert connection.selected_alpn_protocol() != "acme-tls/1"
