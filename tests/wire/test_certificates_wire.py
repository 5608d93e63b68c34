"""Certificates of many sites on a running server: each pair separately, every type of key, and the log lines."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ktlsd.config.values import Mode
from ktlsd.process.configuration import Configuration
from ktlsd.process.new_service import make_service
from ktlsd.settings import load
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.authority import Authority
from tests.process.test_privileges import NOBODY, needs_root, open_folder
from tests.serving import (
    Running,
    client_context,
    connect,
    counts,
    eventually,
    exchange_plain,
    get,
    parse,
    read_to_end,
    run_to_end,
    serving,
)

__all__ = ["open_folder"]

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SITES = 200
METRICS = ("--metrics-listen", "127.0.0.1:0")
DAY = datetime.timedelta(days=1)


def name_of(number: int) -> str:
    return f"s{number}.example"


def der(pair: Path) -> bytes:
    """The certificate in a PEM file that has its key too."""
    pem = re.search("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pair.read_text(), re.DOTALL)
    assert pem
    return ssl.PEM_cert_to_DER_cert(pem[0])


def served(server: Running, name: str | None, newest: ssl.TLSVersion = TLS_1_3) -> bytes:
    """The certificate that a handshake for this name gets."""
    with connect(server.port, client_context(newest=newest), name=name) as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


def alert(server: Running, name: str | None, newest: ssl.TLSVersion = TLS_1_3) -> str:
    """The alert that a handshake for this name ends with, by OpenSSL's name."""
    with pytest.raises(ssl.SSLError) as caught:
        served(server, name, newest)
    return str(caught.value.reason)


def unusable(server: Running) -> dict[tuple[str, str], int]:
    """The metric, by site and whether that is served; without what is 0."""
    port = int(server.wait_for_line("^metrics on ").rpartition(":")[2])
    text = exchange_plain(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").decode()
    found = re.findall(r"^ktlsd_unusable_certificates{(.*)} ([\d.]+)$", text, re.MULTILINE)
    assert found
    labelled = [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), int(float(value))) for labels, value in found]
    return {(labels["site"], labels["served"]): value for labels, value in labelled if value}


def lines(server: Running, pattern: str) -> list[str]:
    return [line for line in server.log if re.search(pattern, line)]


class Place:
    """A folder with a configuration file of sites, each with a folder and a certificate of its own."""

    def __init__(self, folder: Path, count: int, *top: str) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.config = folder / "ktlsd.toml"
        text = [*top, ""]
        for number in range(count):
            (folder / f"root{number}").mkdir()
            (folder / f"root{number}/index.html").write_text(name_of(number))
            self.renew(number)
            text += ["[[site]]", f"names = '{name_of(number)}'", f"root = 'root{number}'"]
            text += [f"cert = 's{number}.pem'", f"key = 's{number}.pem'"]
        self.config.write_text("\n".join([*text, ""]))

    def pair(self, number: int) -> Path:
        return self.folder / f"s{number}.pem"

    def renew(self, number: int) -> None:
        """As an ACME client does: another file under the same name."""
        os.replace(self.authority.issue(f"new{number}", [name_of(number)]), self.pair(number))

    def line(self, number: int, key: str) -> str:
        """Where a key of a site stands."""
        at = [row for row, text in enumerate(self.config.read_text().split("\n"), 1) if text.startswith(f"{key} = ")]
        return f"{self.config}:{at[number]}: site[{number}].{key}: "

    @contextlib.contextmanager
    def serving(self, *options: str) -> Iterator[Running]:
        with serving(None, "--config", str(self.config), *options, state=self.folder / "state") as server:
            yield server


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_bad_site_of_many_costs_no_other_its_start_or_its_renewal(tmp_path: Path, workers: str) -> None:
    challenges = tmp_path / "challenges"
    challenges.mkdir()
    place = Place(tmp_path, SITES, f"acme_challenges = '{challenges}'")
    place.pair(7).rename(tmp_path / "kept")
    with place.serving("--workers", workers, *METRICS) as server:
        cause = f"{place.pair(7)} cannot be used as a PEM certificate chain: No such file or directory"
        assert f"site {name_of(7)} is not served: {place.line(7, 'cert')}{cause}" in server.log
        assert unusable(server) == {(name_of(7), "false"): 1}
        for newest in (TLS_1_2, TLS_1_3):
            assert alert(server, name_of(7), newest) == "TLSV1_UNRECOGNIZED_NAME"
            assert served(server, name_of(6), newest) == der(place.pair(6))
        assert counts(server, "ktlsd_handshake_failures_total") == {"no_certificate": 2}
        assert {get(server.port, "/", host=name_of(n), name=name_of(n)).status for n in range(0, SITES, 50)} == {200}
        # A certificate, a key that does not belong to its certificate, a folder, and the challenges go; one is renewed.
        old = {number: der(place.pair(number)) for number in (1, 2, 3)}
        place.pair(1).unlink()
        shutil.copy(place.pair(2), tmp_path / "other.pem")
        text = place.pair(2).read_text()
        place.pair(2).write_text(text[text.index("-----BEGIN CERTIFICATE") :] + place.pair(4).read_text())
        shutil.rmtree(tmp_path / "root3")
        challenges.rmdir()
        since = len(server.log)
        place.renew(0)
        new = der(place.pair(0))
        server.wait_for_line("^certificates reloaded$", since)
        assert eventually(lambda: all(served(server, name_of(0)) == new for _ in range(4)))
        assert {number: served(server, name_of(number)) for number in old} == old
        kept = "not reloaded, the old one stays in force: "
        assert len(lines(server, f"^certificate of {name_of(1)} {kept}{re.escape(place.line(1, 'cert'))}")) == 1
        belongs = f"the key {place.pair(2)} does not belong to the certificate {place.pair(2)}"
        assert f"certificate of {name_of(2)} {kept}{place.line(2, 'key')}{belongs}" in server.log
        # The next one, for which nothing is said again, and the one that was bad at the start.
        (tmp_path / "kept").rename(place.pair(7))
        place.renew(5)
        new = der(place.pair(5))
        assert eventually(lambda: all(served(server, name_of(5)) == new for _ in range(4)))
        # Any worker may answer, and each takes its time.
        left = {(name_of(1), "true"): 1, (name_of(2), "true"): 1}
        assert eventually(lambda: all(unusable(server) == left for _ in range(8)))

        def is_back() -> bool:
            try:
                return get(server.port, "/", host=name_of(7), name=name_of(7)).body == name_of(7).encode()
            except ssl.SSLError:
                return False

        assert eventually(lambda: all(is_back() for _ in range(8)))
        assert len(lines(server, "not served|stays in force")) == 3
        assert server.stop() == 0


def test_what_a_site_without_a_certificate_answers(tmp_path: Path) -> None:
    """Nothing in a handshake; without one, and in one that named no site, its certificate has no part."""
    place = Place(tmp_path, 3)
    text = place.config.read_text().replace("cert = 's2.pem'", f"client_ca = '{place.authority.ca}'\ncert = 's2.pem'")
    place.config.write_text(text)
    for number in (1, 2):
        place.pair(number).unlink()
    options = ("--config", str(place.config))
    with serving(None, *options, state=tmp_path / "state", backend_listen=["127.0.0.1:0"]) as server:
        request = f"GET / HTTP/1.1\r\nHost: {name_of(1)}\r\nConnection: close\r\n\r\n".encode()
        port = int(server.backends[0].rpartition(":")[2])
        assert parse(exchange_plain(port, request))[0].body == name_of(1).encode()
        assert get(server.port, "/", host=name_of(1)).body == name_of(1).encode()
        assert get(server.port, "/", host=name_of(1), name=name_of(0)).status == 421
        # This one would demand a client certificate.
        assert get(server.port, "/", host=name_of(2)).status == 421
        assert parse(exchange_plain(port, request.replace(b"s1", b"s2")))[0].status == 421


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
def test_a_default_site_without_a_certificate_is_not_answered_for_by_another(
    tmp_path: Path, newest: ssl.TLSVersion
) -> None:
    place = Place(tmp_path, 2, "root = 'root0'", "cert = 'absent.pem'", "key = 'absent.pem'")
    with place.config.open("a") as file:
        file.write("[[site]]\nnames = 'shares.example'\nroot = 'root1'\n")
    with place.serving() as server:
        assert served(server, name_of(0), newest) == der(place.pair(0))
        for name in ("unknown.example", "shares.example"):
            assert alert(server, name, newest) == "TLSV1_UNRECOGNIZED_NAME"
        assert alert(server, None, newest) == "SSLV3_ALERT_HANDSHAKE_FAILURE"
        with contextlib.closing(connect(server.port, client_context(newest=newest), name=name_of(1))) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {name_of(1)}\r\nConnection: close\r\n\r\n".encode())
            assert parse(read_to_end(connection))[0].body == name_of(1).encode()
        answer = parse(exchange_plain(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))[0]
        assert (answer.status, b"https://" in answer.body) == (400, True)


@pytest.mark.parametrize("asked_for", ["option", "key"])
def test_strict_refuses_a_start_for_one_bad_certificate(tmp_path: Path, asked_for: str) -> None:
    place = Place(tmp_path, 3, *(("strict = true",) if asked_for == "key" else ()))
    place.pair(1).unlink()
    options = ("--strict",) if asked_for == "option" else ()
    cause = f"{place.pair(1)} cannot be used as a PEM certificate chain: No such file or directory"
    for arguments in (options, ("check",)):
        ended = run_to_end(*arguments, "--config", str(place.config), state=tmp_path)
        assert (ended.returncode, ended.stderr) == (2, f"ktlsd: {place.line(1, 'cert')}{cause}\n")


def test_a_start_without_a_single_certificate_that_can_be_used_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, 2)
    for number in range(2):
        place.pair(number).write_text("nonsense")
    ended = run_to_end("--config", str(place.config), "--listen", "127.0.0.1:0", state=tmp_path)
    cause = f"{place.pair(0)} cannot be used as a PEM certificate chain: it is not PEM"
    assert (ended.returncode, ended.stderr) == (2, f"ktlsd: {place.line(0, 'cert')}{cause}\n")


def test_a_new_configuration_takes_no_new_bad_certificate_and_holds_up_no_renewal(tmp_path: Path) -> None:
    place = Place(tmp_path, 3)
    place.pair(1).unlink()
    with place.serving() as server:
        # What was bad is no reason to refuse what is new.
        since = len(server.log)
        place.pair(2).rename(tmp_path / "kept")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("^configuration reloaded$", since)
        assert lines(server, f"^certificate of {name_of(2)} not reloaded, the old one stays in force: ")
        # A site that is new is.
        good = place.config.read_text()
        place.config.write_text(good + "[[site]]\nnames = 'c.example'\nroot = 'root0'\ncert = 'no'\nkey = 'no'\n")
        since = len(server.log)
        place.renew(0)
        server.process.send_signal(signal.SIGHUP)
        refused = server.wait_for_line("^configuration not reloaded, the old one stays in force: ", since)
        assert "site[3].cert: " in refused
        # The certificate that was renewed meanwhile is loaded in spite of it.
        assert eventually(lambda: served(server, name_of(0)) == der(place.pair(0)))
        assert served(server, name_of(2)) == der(tmp_path / "kept")
        # The strict take nothing bad at all, and say so of what was so before.
        place.config.write_text(f"strict = true\n{good}")
        since = len(server.log)
        server.process.send_signal(signal.SIGHUP)
        assert "site[1].cert: " in server.wait_for_line("^configuration not reloaded, ", since)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_demand_on_clients_outlives_the_file_that_it_came_from(tmp_path: Path, workers: str) -> None:
    place = Place(tmp_path, 2)
    authorities = tmp_path / "clients.pem"
    shutil.copy(place.authority.ca, authorities)
    client = place.authority.issue("client")
    place.config.write_text(place.config.read_text().replace("cert = 's1", "client_ca = 'clients.pem'\ncert = 's1"))
    known = client_context()
    known.load_cert_chain(str(client))
    with place.serving("--workers", workers) as server:
        old = der(place.pair(1))
        authorities.write_text("nonsense")
        place.renew(0)
        cause = f"{authorities} cannot be used as PEM certificates of authorities: it is not PEM"
        line = server.wait_for_line(f"^certificate of {name_of(1)} not reloaded, the old one stays in force: ")
        assert line.endswith(f"site[1].client_ca: {cause}")
        assert eventually(lambda: all(served(server, name_of(0)) == der(place.pair(0)) for _ in range(4)))
        assert get(server.port, "/", host=name_of(1), name=name_of(1), context=known).status == 200
        with pytest.raises(ssl.SSLError):
            get(server.port, "/", host=name_of(1), name=name_of(1))
        with connect(server.port, known, name=name_of(1)) as connection:
            assert connection.getpeercert(binary_form=True) == old


# --- types of keys ----------------------------------------------------------------------------------------------------


def _genpkey(algorithm: str, *options: str) -> list[str]:
    return ["genpkey", "-algorithm", algorithm, *(part for option in options for part in ("-pkeyopt", option))]


USED = {
    "rsa2048": _genpkey("RSA", "rsa_keygen_bits:2048"),
    "rsa3072": _genpkey("RSA", "rsa_keygen_bits:3072"),
    "rsa4096": _genpkey("RSA", "rsa_keygen_bits:4096", "rsa_keygen_primes:4"),
    # With five primes, since two take half a minute to find.
    "rsa8192": _genpkey("RSA", "rsa_keygen_bits:8192", "rsa_keygen_primes:5"),
    "rsa-pss": _genpkey("RSA-PSS", "rsa_keygen_bits:2048"),
    "p256": _genpkey("EC", "ec_paramgen_curve:P-256"),
    "p384": _genpkey("EC", "ec_paramgen_curve:P-384"),
    "p521": _genpkey("EC", "ec_paramgen_curve:P-521"),
    "ed25519": _genpkey("ED25519"),
    "ed448": _genpkey("ED448"),
}
UNUSED = {
    "rsa1024": _genpkey("RSA", "rsa_keygen_bits:1024"),
    "p224": _genpkey("EC", "ec_paramgen_curve:P-224"),
    "secp256k1": _genpkey("EC", "ec_paramgen_curve:secp256k1"),
    "brainpool": _genpkey("EC", "ec_paramgen_curve:brainpoolP256r1"),
}


def openssl_pair(folder: Path, name: str, make: list[str]) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(["openssl", *make, "-out", str(key)], check=True, capture_output=True)
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}.example", "-days", "9"]
    request = ["openssl", "req", "-x509", "-key", str(key), "-out", str(certificate), *subject]
    subprocess.run(request, check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def every_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "www").mkdir()
    text = ""
    for name, make in (USED | UNUSED).items():
        openssl_pair(folder, name, make)
        text += f"[[site]]\nnames = '{name}.example'\nroot = 'www'\ncert = '{name}.pem'\nkey = '{name}.key'\n"
    config = folder / "ktlsd.toml"
    config.write_text(text)
    with serving(None, "--config", str(config), state=folder / "state") as server:
        yield server, folder


@pytest.mark.parametrize("protocol", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("name", USED)
def test_every_type_of_key_that_clients_can_use_is_served(
    every_key: tuple[Running, Path], name: str, protocol: str
) -> None:
    server, folder = every_key
    place = ["-connect", f"127.0.0.1:{server.port}", "-servername", f"{name}.example"]
    check = ["-CAfile", str(folder / f"{name}.pem"), "-verify_return_error", "-verify_hostname", f"{name}.example"]
    command = ["openssl", "s_client", *place, *check, protocol]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Verify return code: 0 (ok)" in done.stdout


@pytest.mark.parametrize("name", UNUSED)
def test_a_key_that_no_client_can_use_is_told_before_anything_is_served(
    every_key: tuple[Running, Path], name: str
) -> None:
    server, folder = every_key
    line = next(line for line in server.log if f"site {name}.example is not served: " in line)
    assert server.log.index(line) < next(number for number, text in enumerate(server.log) if "listening on" in text)
    reason = "short for OpenSSL's security level" if name == "rsa1024" else "no client can make a handshake with a key"
    assert reason in line
    assert f"{folder / name}.pem" in line
    assert alert(server, f"{name}.example") == "TLSV1_UNRECOGNIZED_NAME"


def test_a_certificate_alone_that_no_client_can_use_refuses_the_start(tmp_path: Path) -> None:
    certificate, key = openssl_pair(tmp_path, "k1", UNUSED["secp256k1"])
    options = ("--root", str(tmp_path), "--listen", "127.0.0.1:0", "--cert", str(certificate), "--key", str(key))
    ended = run_to_end(*options, state=tmp_path)
    reason = "no client can make a handshake with a key of the type EC secp256k1: use ECDSA (P-256, P-384 or P-521), "
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"ktlsd: --cert: {certificate} cannot be served: {reason}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("policy", ["modern", "compatible"])
def test_p521_alone_is_served_with_every_policy(tmp_path: Path, policy: str) -> None:
    certificate, key = openssl_pair(tmp_path, "p521", USED["p521"])
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"root = '.'\ntls_policy = '{policy}'\ncert = '{certificate.name}'\nkey = '{key.name}'\n")
    with serving(None, "--config", str(config), state=tmp_path / "state") as server:
        assert ssl.DER_cert_to_PEM_cert(served(server, "p521.example")).strip() == certificate.read_text().strip()
        server.wait_for_line("^kTLS: TLS 1.3 (and TLS 1.2 )?tx=")


# --- log lines --------------------------------------------------------------------------------------------------------


def test_an_expired_certificate_is_told_at_the_start_and_when_it_comes(tmp_path: Path) -> None:
    place = Place(tmp_path, 2)
    os.replace(place.authority.issue("old", [name_of(0)], until=-DAY), place.pair(0))
    with place.serving() as server:
        told = f"^the certificate {place.pair(0)} of site {name_of(0)} expired 1 day ago, on .* UTC: renew it$"
        assert len(lines(server, told)) == 1
        since = len(server.log)
        os.replace(place.authority.issue("old", [name_of(1)], until=-DAY / 2), place.pair(1))
        server.wait_for_line(
            f"^the certificate {place.pair(1)} of site {name_of(1)} expired less than a day ago", since
        )
        # Once a day is enough.
        assert len(lines(server, told)) == 1


def test_a_bad_certificate_is_told_and_tried_again_once_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path, 2)
    place.pair(1).unlink()
    library = Library()
    later = 0.0
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + later)
    build = partial(make_service, library, support(library, Mode.OFF), None, None)
    options = {"config": str(place.config)}
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    configuration = Configuration(lambda: load(options), load(options), build, lambda settings: None)
    with contextlib.closing(configuration):

        def told() -> int:
            return caplog.text.count(f"site {name_of(1)} is not served: ")

        def reload() -> None:
            service = configuration.load(anew=False)
            assert service is not None
            configuration.service.close()
            configuration.take(service)

        assert (told(), configuration.certificates_changed()) == (1, False)
        reload()
        later = 3500.0
        assert (configuration.certificates_changed(), told()) == (False, 1)
        later = 3700.0
        assert (configuration.certificates_changed(), told()) == (True, 2)
        reload()
        assert (configuration.certificates_changed(), told()) == (False, 2)
        # Another cause is news.
        place.pair(1).write_text("nonsense")
        assert [configuration.certificates_changed() for _ in range(2)] == [False, True]
        reload()
        assert (configuration.service.renewed, told()) == (False, 3)
        place.renew(1)
        assert [configuration.certificates_changed() for _ in range(2)] == [False, True]
        reload()
        assert (configuration.service.renewed, configuration.service.faults) == (True, ())


def test_check_warns_of_certificates_with_line_and_remedy(tmp_path: Path) -> None:
    place = Place(tmp_path, 4)
    os.replace(place.authority.issue("old", [name_of(0)], until=-3 * DAY / 2), place.pair(0))
    os.replace(place.authority.issue("other", [f"*.{name_of(1)}"]), place.pair(1))
    os.replace(place.authority.issue("wide", [f"*.{name_of(2)}", name_of(2)]), place.pair(2))
    names = f"names = ['{name_of(2)}', '*.{name_of(2)}']"
    place.config.write_text(place.config.read_text().replace(f"names = '{name_of(2)}'", names))
    ended = run_to_end("check", "--config", str(place.config), "--strict", state=tmp_path)
    expired, uncovered = ended.stderr.splitlines()
    first, second = (place.line(number, "cert").replace(": site", ": warning: site") for number in (0, 1))
    assert re.fullmatch(rf"{re.escape(first)}{place.pair(0)} expired 1 day ago, on .* UTC: renew it", expired)
    remedy = "have one made with these names among its subject alternative names"
    assert uncovered == f"{second}{place.pair(1)} does not cover {name_of(1)}: {remedy}"
    assert (ended.returncode, ended.stdout) == (1, f"{place.config}: ok, 4 sites, 2 warnings\n")


ROOT_FOR_EVERYBODY = (
    'mkdir "$0" && mount --bind /root "$0" && mount -t tmpfs -o mode=755 tmpfs /root && for f in "$0"/* "$0"/.[!.]*; do'
    ' [ -d "$f" ] && mkdir "/root/${f##*/}" && mount --bind "$f" "/root/${f##*/}"; done; exec "$@"'
)
"""Python may be in a folder below /root: let another user have it there, in a namespace of its own."""


@needs_root
@pytest.mark.parametrize("workers", ["1", "2"])
def test_another_user_who_may_not_read_the_keys_is_told_so_and_renewals_are_loaded_where_it_may(
    open_folder: Path, tmp_path: Path, workers: str
) -> None:
    place = Place(open_folder, 2)
    place.pair(0).chmod(0o600)
    place.pair(1).chmod(0o644)
    place.config.chmod(0o600)
    (open_folder / "users").touch(mode=0o600)
    with place.config.open("a") as config:
        config.write("[[auth]]\npath = '/in/**'\nusers = 'users'\n")
    state = open_folder / "state"
    state.mkdir(mode=0o700)
    options = ("--config", str(place.config), "--user", "nobody", "--workers", workers)
    wrapper = ("unshare", "--mount", "sh", "-ec", ROOT_FOR_EVERYBODY, str(tmp_path / "root"))
    with serving(None, *options, state=state, wrapper=wrapper) as server:
        told = lines(server, "^renewed certificates will not be loaded: ")
        who = f"user {NOBODY.pw_uid}, group {NOBODY.pw_gid}"
        assert len(told) == 1
        assert f"{who} may not read {place.pair(0)}: let the user's group read copies of them, or restart" in told[0]
        told = lines(server, "^changes will not be read, and a reload will be refused: ")
        assert len(told) == 1
        assert f"{who} may not read {open_folder / 'users'} and 1 more: let the group read it (chgrp " in told[0]
        # Nothing changed, so nothing is said.
        time.sleep(5)
        assert not lines(server, "reloaded")
        old = der(place.pair(0))
        new = place.authority.issue("next", [name_of(1)])
        new.chmod(0o644)
        os.replace(new, place.pair(1))
        assert eventually(lambda: all(served(server, name_of(1)) == der(place.pair(1)) for _ in range(4)))
        assert served(server, name_of(0)) == old
        # A file that becomes readable is taken.
        place.renew(0)
        place.pair(0).chmod(0o644)
        assert eventually(lambda: all(served(server, name_of(0)) == der(place.pair(0)) for _ in range(4)))
