"""The command line is a contract: what it prints, where it listens, how it refuses."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from bench.ports import free_port
from ktlsd.cli import parsers
from ktlsd.commands.command_parser import COMMANDS
from ktlsd.config.refusal import cause
from ktlsd.ssl_ffi import Library
from tests.self_signed import ECDSA, RSA, self_signed
from tests.serving import (
    client_context,
    command,
    connect,
    eventually,
    exchange_plain,
    get,
    is_refused,
    parse,
    run_to_end,
    serving,
)
from tests.vm.plugin import kernel_has_tls

AS_A_STRANGER = ("unshare", "--user", "--map-user=123456")
"""An unused user number with the rights of the user who runs this."""


def can_be_a_stranger() -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run([*AS_A_STRANGER, "true"], capture_output=True, check=False).returncode == 0
    return False


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "index.html").write_text("hello")
    (folder / ".hidden").write_text("hidden")
    return folder


def test_startup_says_what_is_served_where_and_how(root: Path, tmp_path: Path) -> None:
    with serving(root, state=tmp_path / "state") as server:
        assert re.fullmatch(
            r"no --cert: using the self-signed certificate for localhost in .*/ktlsd/localhost\.pem, "
            r"SHA-256 fingerprint ([0-9A-F]{2}:){31}[0-9A-F]{2}",
            server.log[0],
        )
        assert re.fullmatch(
            rf"ktlsd \S+ serves {re.escape(str(root))} on https://127\.0\.0\.1:{server.port}", server.log[1]
        )
        states = r"(TLS 1\.3 and TLS 1\.2 tx=.* rx=.*|TLS 1\.3 tx=.* rx=.*, TLS 1\.2 tx=.* rx=.*)"
        assert re.fullmatch(
            rf"kTLS: {states}; OpenSSL 3\.\S+ .* \(/\S+libssl\.so\.3\)(; `ktlsd doctor` tells what to do)?",
            server.log[2],
        )
        assert ("running as root" in server.log[3]) == (os.geteuid() == 0)
        assert server.log[-1] == f"listening on https://127.0.0.1:{server.port}"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_start_says_once_why_there_is_no_ktls(root: Path, tmp_path: Path, workers: str) -> None:
    with serving(root, "--ktls", "off", "--workers", workers, state=tmp_path / "state") as server:
        assert get(server.port, "/").body == b"hello"
        line = next(line for line in server.log if line.startswith("kTLS: "))
        assert line.startswith("kTLS: TLS 1.3 and TLS 1.2 tx=none rx=none (switched off by --ktls off); OpenSSL 3.")
        start = server.log[: server.log.index(f"listening on https://127.0.0.1:{server.port}") + 1]
        assert sum("switched off" in line for line in start) == 1
        assert len(set(start)) == len(start)


def test_the_self_signed_certificate_is_kept_and_private_and_valid_for_localhost(root: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    contents = []
    for _ in range(2):
        with serving(root, state=state) as server:
            path = server.certificate
            contents.append(path.read_bytes())
            assert path.stat().st_mode & 0o777 == 0o600
            with connect(server.port, client_context(cafile=path)) as connection:
                assert connection.getpeercert()
            shown = subprocess.run(
                ["openssl", "x509", "-in", str(path), "-noout", "-fingerprint", "-sha256"],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            assert shown.strip().split("=")[1] in server.log[0]
    assert contents[0] == contents[1]


def test_every_listener_gets_its_line_and_serves(root: Path, tmp_path: Path) -> None:
    listen = ["127.0.0.1:0", "[::1]:0", "127.0.0.2:0"] if socket.has_ipv6 else ["127.0.0.1:0", "127.0.0.2:0"]
    with serving(root, state=tmp_path / "state", listen=listen) as server:
        assert len(set(server.ports)) == len(listen)
        for place, port in zip(listen, server.ports, strict=True):
            host = place.rpartition(":")[0]
            got = subprocess.run(["curl", "-ksS", f"https://{host}:{port}/"], capture_output=True, check=True)
            assert got.stdout == b"hello"


def test_localhost_8443_is_the_default(root: Path, tmp_path: Path) -> None:
    if not is_refused(8443):
        pytest.skip("something else listens on port 8443")
    state = tmp_path / "state"
    with serving(root, state=state, listen=[]) as server:
        server.wait_for_line(r"listening on https://127\.0\.0\.1:8443")
        curl = ["curl", "-sS", "--cacert", str(server.certificate), "https://localhost:8443/"]
        assert subprocess.run(curl, capture_output=True, check=True).stdout == b"hello"


def test_a_given_certificate_is_used(root: Path, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "given", "IP:127.0.0.1")
    options = ["--cert", str(certificate), "--key", str(key)]
    with serving(root, *options, state=tmp_path / "state") as server:
        curl = ["curl", "-sS", "--cacert", str(certificate), server.url()]
        assert subprocess.run(curl, capture_output=True, check=True).stdout == b"hello"
        assert not server.certificate.exists()


@pytest.mark.parametrize("order", [("rsa", "ecdsa"), ("ecdsa", "rsa")], ids=repr)
def test_certificates_of_several_types_are_used_together(root: Path, tmp_path: Path, order: tuple[str, str]) -> None:
    pairs = {
        "rsa": self_signed(tmp_path, "rsa", "IP:127.0.0.1", kind=RSA),
        "ecdsa": self_signed(tmp_path, "ecdsa", "IP:127.0.0.1", kind=ECDSA),
    }
    options = [
        part for kind in order for pair in [pairs[kind]] for part in ("--cert", str(pair[0]), "--key", str(pair[1]))
    ]
    with serving(root, *options, state=tmp_path / "state") as server:
        for kind, (certificate, _) in pairs.items():
            ciphers = f"ECDHE-{kind.upper()}-AES128-GCM-SHA256"
            context = client_context(newest=ssl.TLSVersion.TLSv1_2, ciphers=ciphers, cafile=certificate)
            with connect(server.port, context) as connection:
                sent = connection.getpeercert(binary_form=True)
            assert sent == ssl.PEM_cert_to_DER_cert(certificate.read_text())


def test_folders_are_listed_where_that_is_asked_for(root: Path, tmp_path: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder/a file").write_text("a")
    with serving(root, state=tmp_path / "state") as server:
        assert get(server.port, "/folder/").status == 403
    with serving(root, "--listing", state=tmp_path / "state") as server:
        listing = get(server.port, "/folder/")
        assert (listing.status, b"a file" in listing.body) == (200, True)
        assert get(server.port, "/").body == b"hello"


@pytest.mark.parametrize("given", ["root", "index", "listing", "config"])
def test_a_folder_without_an_index_is_told_with_the_remedy(tmp_path: Path, given: str) -> None:
    """Only if nothing but a folder was given: with a configuration, 403 may be intended."""
    (tmp_path / "folder").mkdir()
    if given == "index":
        (tmp_path / "folder/index.html").write_text("hello")
    (tmp_path / "ktlsd.toml").write_text("charset = ''\n")
    options = {"listing": ["--listing"], "config": ["--config", str(tmp_path / "ktlsd.toml")]}.get(given, [])
    with serving(tmp_path / "folder", *options, state=tmp_path / "state") as server:
        told = [line for line in server.log if "403" in line]
        hint = f"{tmp_path}/folder: no index.html: / gets 403 Forbidden; add --listing to list folders"
        assert told == ([hint] if given == "root" else [])
        assert get(server.port, "/").status == (403 if given in ("root", "config") else 200)


def test_plain_http_redirects_and_answers_challenges(root: Path, tmp_path: Path) -> None:
    challenges = tmp_path / "challenges"
    challenges.mkdir()
    (challenges / "token").write_text("token.key")
    places = ["127.0.0.1:0", "127.0.0.2:0"]
    options = ["--acme-challenges", str(challenges)]
    with serving(root, *options, state=tmp_path / "state", http_listen=places) as server:
        first, second = server.http_ports
        urls = f"https://127.0.0.1:{server.port}, http://127.0.0.1:{first}, http://127.0.0.2:{second}"
        assert server.wait_for_line(r"^ktlsd \S+ serves").endswith(f" on {urls}")
        request = "GET {} HTTP/1.1\r\nHost: example.org:80\r\nConnection: close\r\n\r\n".format
        moved, _ = parse(exchange_plain(first, request("/a?b").encode()))
        assert (moved.status, moved.fields["location"]) == (301, f"https://example.org:{server.port}/a?b")
        token, _ = parse(exchange_plain(first, request("/.well-known/acme-challenge/token").encode()))
        assert (token.status, token.body) == (200, b"token.key")
        curl = ["curl", "-ksSL", f"http://127.0.0.1:{first}/"]
        assert subprocess.run(curl, capture_output=True, check=True).stdout == b"hello"
        # They are not of the root.
        assert get(server.port, "/.well-known/acme-challenge/token").status == 404


@pytest.mark.parametrize(("port", "location"), [(443, "https://example.org/a"), (444, "https://example.org:444/a")])
def test_redirects_name_the_port_that_clients_reach(root: Path, tmp_path: Path, port: int, location: str) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"https_port = {port}\n")
    with serving(root, "--config", str(config), state=tmp_path / "state", http_listen=["127.0.0.1:0"]) as server:
        request = b"GET /a HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n"
        moved, _ = parse(exchange_plain(server.http_ports[0], request))
        assert (moved.status, moved.fields["location"]) == (301, location)


def test_a_configuration_file_says_the_same_as_options(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text('root = "root"\nlisten = ["127.0.0.1:0"]\ndotfiles = true\nktls = "off"\n')
    with serving(root, "--config", str(config), state=tmp_path / "state") as server:
        assert get(server.port, "/.hidden").body == b"hidden"
        assert "switched off by --ktls off" in server.wait_for_line(" ktls tx=")


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "config/ktlsd.toml"
    text = re.sub(r"^#(?! |:|$)", "", example.read_text(), flags=re.MULTILINE)
    # Another user needs root, and comes before all else.
    text = re.sub(r"^(user|group) = .*\n", "", text, flags=re.MULTILINE)
    # Logs are opened next.
    text = text.replace("/var/log/ktlsd", str(tmp_path))
    # Files that are read with the configuration.
    text = text.replace("/etc/ktlsd/maintenance.html", str(tmp_path / "users.htpasswd"))
    assert len(tomllib.loads(text)) > len(tomllib.loads(example.read_text())) + 30
    copy = tmp_path / "ktlsd.toml"
    copy.write_text(text)
    (tmp_path / "users.htpasswd").touch()
    (tmp_path / "keys").write_text(f"k1:{32 * 'x'}")
    # With every key uncommented the only fault left is that its paths are not on this machine.
    for arguments in ([], ["check"]):
        ended = run_to_end(*arguments, "--config", str(copy), state=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
        where, _, complaint = ended.stderr.partition(": root ")
        assert re.fullmatch(rf"ktlsd: {copy}:[0-9]+", where)
        assert complaint == "/srv/www: cannot be served: there is no such folder\n"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("user = 'nobody-of-that-name'", "user nobody-of-that-name: there is no such user: create it "),
        ("access_log = 'absent/log'", "access_log {folder}/absent/log: cannot be opened "),
        ("error_log = 'root'", "error_log {folder}/root: cannot be opened (Is a directory): name a file"),
        ("ticket_keys = 'root'", "ticket_keys {folder}/root: cannot keep session ticket keys there: "),
        ("listen = '192.0.2.1:1'", "listen 192.0.2.1:1: Cannot assign requested address: "),
        ("rate = [{ path = '**', requests_per_second = inf }]", "rate[0].requests_per_second: inf is not a number "),
    ],
)
def test_a_start_that_a_file_spoils_names_its_line(root: Path, tmp_path: Path, line: str, complaint: str) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"root = '{root}'\n{line}\n")
    listen = () if "listen" in line else ("--listen", "127.0.0.1:0")
    ended = run_to_end("--config", str(config), *listen, state=tmp_path / "state")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(f"ktlsd: {config}:2: {complaint.format(folder=tmp_path)}")


def test_two_commands_on_one_port_is_one_clear_line(root: Path, tmp_path: Path) -> None:
    with serving(root, state=tmp_path / "state") as server:
        place = f"127.0.0.1:{server.port}"
        ended = run_to_end("--root", str(root), "--listen", place, state=tmp_path / "state")
    assert ended.returncode == 2
    refusal = "Address already in use: stop what listens there or choose another port"
    assert ended.stderr.splitlines()[-1] == f"ktlsd: --listen {place}: {refusal}"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], r"no folder to serve: name one with --root DIR"),
        (["--root", "/nonexistent"], r"--root /nonexistent: cannot be served: there is no such folder"),
        (["--root", "/etc/passwd"], r"--root /etc/passwd: cannot be served: this is a file, not a folder: name .*"),
        (["--root", "/etc/passwd/a"], r"--root /etc/passwd/a: cannot be served: there is no such folder"),
        (["--root"], r"argument --root: expected one argument .*"),
        (["--root", "/tmp", "--bogus"], r"unrecognized arguments: --bogus .*"),
        (["--root", "/tmp", "--listen", "nonsense"], r"--listen: 'nonsense' is not ADDR:PORT .*"),
        (["--root", "/tmp", "--listen", "8443"], r"--listen: '8443' is not ADDR:PORT .*; for port 8443, write :8443"),
        (["--root", "/tmp", "--listen", ":1", "--listen", "2"], r"--listen: '2' is not ADDR:PORT .*, write :2"),
        (["--root", "/tmp", "--metrics-listen", "90"], r"--metrics-listen: '90' is not ADDR:PORT .*, write :90"),
        (["--root", "/tmp", "--listen", "127.0.0.1:99999"], r"--listen: .* with a port from 0 to 65535"),
        (["--root", "/tmp", "--listen", "no.such.host.invalid:1"], r"--listen no\.such\.host\.invalid:1: [^\[]*"),
        (["--root", "/tmp", "--listen", "192.0.2.1:1"], r"--listen 192\.0\.2\.1:1: .*this machine has no such address"),
        (["--root", "/tmp", "--http-listen", "nonsense"], r"--http-listen: 'nonsense' is not ADDR:PORT .*"),
        (["--root", "/tmp", "--http-listen", "192.0.2.1:1"], r"--http-listen 192\.0\.2\.1:1: .*no such address"),
        (
            ["--root", "/tmp", "--acme-challenges", "/no", "--strict"],
            r"--acme-challenges /no: cannot be served: there is no such folder",
        ),
        (
            ["--root", "/tmp", "--acme-challenges", "/etc/passwd"],
            r"--acme-challenges /etc/passwd: cannot be served: this is a file, not a folder: name .*",
        ),
        (["--root", "/tmp", "--listing=yes"], r"argument --listing: ignored explicit argument 'yes' .*"),
        (["--root", "/tmp", "--workers", "0"], r"--workers: '0' is not a number from 1 to 256 or \"auto\""),
        (["--root", "/tmp", "--ktls", "maybe"], r"--ktls: 'maybe' is not one of auto, require, off"),
        (["--root", "/tmp", "--log-level", "loud"], r"--log-level: 'loud' is not one of .*"),
        (["--root", "/tmp", "--cert", "a"], r"--cert without --key: give both, .*"),
        (["--root", "/tmp", "--key", "a"], r"--key without --cert: give both, .*"),
        (
            ["--root", "/tmp", "--cert", "a", "--cert", "b", "--key", "a"],
            r"there are 2 of --cert, but 1 of --key: give every certificate its key, in the same order",
        ),
        (["--root", "/tmp", "--cert", "/no.pem", "--key", "/no.pem"], r"--cert: /no\.pem cannot be used as a PEM .*"),
        (["--root", "/tmp", "--config", "/no.toml"], r"/no\.toml: cannot be read: No such file or directory"),
        (["--root", "/tmp", "--libssl", "/no/libssl.so"], r"cannot open OpenSSL's /no/libssl\.so .*--libssl PATH"),
        (["--root", "/tmp", "--libssl", "libc.so.6"], r"libc\.so\.6 is not OpenSSL's libssl .*"),
        (["doctor", "--bogus"], r"unrecognized arguments: --bogus .*"),
        (["check"], r"one of the arguments --config --schema is required .*"),
        (["check", "--bogus"], r"one of the arguments --config --schema is required .*"),
        (["check", "--config", "/no.toml"], r"/no\.toml: cannot be read: No such file or directory"),
        (["compress"], r"the following arguments are required: DIR .*"),
        (["compress", "--bogus", "/tmp"], r"unrecognized arguments: --bogus .*"),
        (["compress", "/nonexistent"], r"/nonexistent: cannot be read: No such file or directory"),
        (["bogus"], r"unrecognized arguments: bogus .*"),
        # Commands come first.
        (["--root", "/tmp", "check"], r"unrecognized arguments: check \(a command comes first: ktlsd check \.\.\.; .*"),
        # No abbreviations.
        (["--ro", "/tmp"], r"unrecognized arguments: --ro /tmp \(did you mean --root\? .*"),
        # What was probably meant.
        (["doctr"], r"unrecognized arguments: doctr \(did you mean ktlsd doctor\? ktlsd --help shows the usage\)"),
        (["chek", "--config", "a"], r"unrecognized arguments: chek \(did you mean ktlsd check\? .*"),
        (["comprss", "/tmp"], r"unrecognized arguments: comprss /tmp \(did you mean ktlsd compress\? .*"),
        (["--rooot", "/tmp"], r"unrecognized arguments: --rooot /tmp \(did you mean --root\? .*"),
        (["--rooot=/tmp"], r"unrecognized arguments: --rooot=/tmp \(did you mean --root\? .*"),
        (["--root", "/tmp", "--user", "a", "--workrs", "2"], r"unrecognized .* \(did you mean --workers\? .*"),
        (["version"], r"unrecognized arguments: version \(did you mean --version\? .*"),
        (["/tmp"], r"unrecognized arguments: /tmp \(did you mean --root /tmp\? .*"),
        (["check", "--confg", "a"], r"one of the arguments --config --schema is required \(did you mean --config\? .*"),
        (["check", "--config", "a", "--strikt"], r"unrecognized arguments: --strikt \(did you mean --strict\? .*"),
        (["doctor", "--jsn"], r"unrecognized arguments: --jsn \(did you mean --json\? .*"),
        (["doctor", "check"], r"unrecognized arguments: check \(ktlsd doctor --help shows the usage\)"),
        (["compress", "--quite", "/tmp"], r"unrecognized arguments: --quite \(did you mean --quiet\? .*"),
        # Nothing comes near, and the value of an option is no command.
        (["bogus"], r"unrecognized arguments: bogus \(ktlsd --help shows the usage\)"),
        (["--root", "check", "--bogus"], r"unrecognized arguments: --bogus \(ktlsd --help shows the usage\)"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(tmp_path: Path, arguments: list[str], line: str) -> None:
    ended = run_to_end(*arguments, state=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(f"ktlsd: {line}\n", ended.stderr), ended.stderr


def test_no_message_has_what_python_puts_around_it(root: Path, tmp_path: Path) -> None:
    ended = run_to_end("--root", str(root), state=Path("/proc/nowhere"))
    assert "/proc/nowhere" in ended.stderr
    assert "[Errno" not in ended.stderr
    assert cause(OSError(errno.EACCES, "Permission denied", "/a")) == "/a: Permission denied"
    assert cause(OSError(errno.EACCES, "Permission denied", b"/a\xff")) == "/a\udcff: Permission denied"
    assert cause(OSError(errno.EMFILE, "Too many open files")) == "Too many open files"
    assert cause(OSError("no more")) == "no more"
    assert cause(MemoryError()) == "Cannot allocate memory"


def test_check_says_what_a_file_would_serve(root: Path, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "one", "IP:127.0.0.1")
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"root = 'root'\ncert = '{certificate.name}'\nkey = '{key.name}'\n")
    ended = run_to_end("check", "--config", str(config), state=tmp_path / "state")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{config}: ok, 1 site\n", "")
    config.write_text(f"{config.read_text()}[[site]]\nnames = 'a'\n[[site.header]]\npath = '**'\nremove = 'Date'\n")
    ended = run_to_end("check", "--config", str(config), state=tmp_path / "state")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(f"ktlsd: {config}:8: site[0].header[0].remove: ")


def test_check_prints_a_schema(tmp_path: Path) -> None:
    ended = run_to_end("check", "--schema", state=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert {"root", "listen", "site"} <= json.loads(ended.stdout)["properties"].keys()


def test_compress_makes_siblings_that_are_served(root: Path, tmp_path: Path) -> None:
    (root / "a.txt").write_text("text " * 2000)
    ended = run_to_end("compress", str(root), state=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"ktlsd compress: siblings: .*3.*\n", ended.stdout)
    with serving(root, state=tmp_path / "state") as server:
        answer = get(server.port, "/a.txt", "Accept-Encoding: br")
        assert (answer.fields["content-encoding"], answer.fields["vary"]) == ("br", "Accept-Encoding")
        assert answer.body == (root / "a.txt.br").read_bytes()


def test_a_libssl_from_the_environment_is_used(tmp_path: Path) -> None:
    ended = run_to_end("--root", str(tmp_path), state=tmp_path, KTLSD_LIBSSL="/no/libssl.so")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "/no/libssl.so" in ended.stderr


_MAPPED = (
    "sorted({line.split()[-1] for line in open('/proc/self/maps') if 'libcrypto.so' in line or 'libssl.so' in line})"
)


@pytest.mark.parametrize("module", ["cli", "commands.doctor", "commands.version"])
def test_no_openssl_is_there_before_one_is_opened(module: str) -> None:
    code = f"import ktlsd.{module}; print({_MAPPED})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("arguments", [["--version"], ["doctor"], ["check", "--config"]], ids=lambda found: found[0])
def test_a_libssl_goes_with_the_libcrypto_beside_it(root: Path, tmp_path: Path, arguments: list[str]) -> None:
    system = Path(Library().path)
    copies = [str(shutil.copy(system.with_name(name), tmp_path)) for name in ("libcrypto.so.3", "libssl.so.3")]
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"root = '{root}'\nlibssl = '{copies[1]}'\n")
    given = [*arguments, str(config)] if arguments[0] == "check" else [*arguments, "--libssl", copies[1]]
    code = f"import ktlsd.cli; ktlsd.cli.main({given}); print({_MAPPED})"
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == str(copies), ended.stderr


@pytest.mark.parametrize("fault", ["key of another certificate", "encrypted key", "not PEM", "bad TOML", "unknown key"])
def test_bad_files_are_one_line_that_names_them(tmp_path: Path, fault: str) -> None:
    certificate, key = self_signed(tmp_path, "one", "IP:127.0.0.1")
    config = tmp_path / "config.toml"
    config.write_text(f'root = "{tmp_path}"\n')
    named = key
    match fault:
        case "key of another certificate":
            key = named = self_signed(tmp_path, "two", "IP:127.0.0.1")[1]
        case "encrypted key":
            encrypt = ["openssl", "pkey", "-in", str(key), "-aes128", "-passout", "pass:secret", "-out", f"{key}.enc"]
            subprocess.run(encrypt, check=True)
            key = named = Path(f"{key}.enc")
        case "not PEM":
            certificate.write_text("nonsense")
            named = certificate
        case "bad TOML":
            config.write_text("root = \n")
            named = config
        case "unknown key":
            config.write_text("rooot = '/tmp'\n")
            named = config
    arguments = ["--config", str(config), "--cert", str(certificate), "--key", str(key)]
    ended = run_to_end(*arguments, state=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert str(named) in ended.stderr
    # What OpenSSL says for its own sources: library, function, file.
    assert not re.search(r"error:|routines|\.c:", ended.stderr)
    if fault == "encrypted key":
        remedy = "it is encrypted: write it without a passphrase by `openssl pkey -in FILE -out NEW`, mode 0600\n"
        assert ended.stderr.startswith(f"ktlsd: --key: {key} cannot be used as an unencrypted PEM key for ")
        assert ended.stderr.endswith(remedy)


def test_an_unwritable_state_folder_is_one_clear_line(root: Path) -> None:
    ended = run_to_end("--root", str(root), state=Path("/proc/nowhere"))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "give --cert and --key" in ended.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_reader_of_stderr_may_be_gone(root: Path, tmp_path: Path, workers: str) -> None:
    port = free_port()
    reader, writer = os.pipe()
    os.close(reader)
    arguments = command("--root", str(root), "--listen", f"127.0.0.1:{port}", "--workers", workers)
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(arguments, stderr=writer, env=environment) as process:
        assert eventually(lambda: process.poll() is not None or not is_refused(port))
        assert get(port, "/a.txt").status in (200, 404)
        assert subprocess.run(arguments, stderr=writer, env=environment, check=False).returncode == 2
        os.close(writer)
        process.terminate()
        assert process.wait() == 0


@pytest.mark.skipif(not can_be_a_stranger(), reason="no user namespaces here")
@pytest.mark.parametrize("command_line", [["--root"], ["check", "--config"]], ids=["serve", "check"])
def test_a_user_without_a_home_needs_a_certificate(root: Path, tmp_path: Path, command_line: list[str]) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"root = '{root}'\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_STATE_HOME")}
    ended = subprocess.run(
        [*AS_A_STRANGER, *command(*command_line, str(root if command_line == ["--root"] else config))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith(
        "ktlsd: no place to keep a self-signed certificate: this user has no home: give --cert"
    )


@pytest.mark.skipif(kernel_has_tls(), reason="this kernel has kTLS")
def test_require_refuses_to_start_without_ktls(root: Path, tmp_path: Path) -> None:
    ended = run_to_end("--root", str(root), "--ktls", "require", state=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("ktlsd: --ktls require, but sends cannot be offloaded here")
    assert "ktlsd doctor" in ended.stderr


def test_an_openssl_without_sendfile_is_one_clear_line(tmp_path: Path) -> None:
    # This release of a well-known wheel carries OpenSSL 1.1.1, which no current distribution has.
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(tmp_path)]
    wanted = ["--python-version=3.11", "--platform=manylinux2014_x86_64", "psycopg2-binary==2.9.5"]
    subprocess.run([*pip, *wanted], check=True, timeout=300)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    folder = next(tmp_path.glob("*.libs"))
    library = next(folder.glob("libssl-*"))
    ended = run_to_end("--root", str(tmp_path), "--libssl", str(library), state=tmp_path, LD_LIBRARY_PATH=str(folder))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "is OpenSSL 1.1.1" in ended.stderr
    assert "which has no SSL_sendfile: install OpenSSL 3.0 or later" in ended.stderr


def test_sigterm_right_after_the_last_line_exits_0(root: Path, tmp_path: Path) -> None:
    for workers in ("1", "2"):
        for _ in range(5):
            with serving(root, "--workers", workers, state=tmp_path / "state") as server:
                assert server.stop() == 0


def test_version_names_openssl_and_the_kernel_and_their_ktls(tmp_path: Path) -> None:
    ended = run_to_end("--version", state=tmp_path)
    ktlsd, openssl, kernel = ended.stdout.splitlines()
    library = Library()
    compiled_in = "compiled in" if library.ktls_compiled_in else "not compiled in (OPENSSL_NO_KTLS)"
    assert re.fullmatch(r"ktlsd \d+\.\d+\.\d+", ktlsd)
    assert openssl == f"{library.version_text} ({library.path}), kTLS {compiled_in}"
    assert re.fullmatch(rf"Linux {re.escape(platform.release())}, tls ULP (loaded|not loaded .*)", kernel)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("by_environment", [False, True])
def test_version_without_openssl_says_so(tmp_path: Path, by_environment: bool) -> None:
    where = str(tmp_path / "libssl.so.3")
    if by_environment:
        ended = run_to_end("--version", state=tmp_path, KTLSD_LIBSSL=where)
    else:
        ended = run_to_end("--version", "--libssl", where, state=tmp_path)
    assert (ended.returncode, ended.stdout.count("\n")) == (0, 3), ended.stderr
    assert ended.stdout.splitlines()[1].startswith(f"OpenSSL: cannot open OpenSSL's {where}")


def test_version_does_not_load_the_kernels_module(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    strace = ["strace", "-f", "-qq", "-e", "trace=setsockopt", "-o", str(log)]
    subprocess.run([*strace, *command("--version")], check=True, stdout=subprocess.DEVNULL)
    assert log.read_text() == ""


def test_help(tmp_path: Path) -> None:
    assert "--ktls" in run_to_end("--help", state=tmp_path).stdout
    told = run_to_end("--help", state=tmp_path).stdout
    commands = parsers().keys() - {""}
    assert commands == COMMANDS.keys()
    for name in commands:
        assert re.search(rf"^  ktlsd {name} +{re.escape(COMMANDS[name])}$", told, re.MULTILINE)
        assert run_to_end(name, "--help", state=tmp_path).stdout.startswith(f"usage: ktlsd {name} ")
