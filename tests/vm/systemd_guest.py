"""ktlsd as a service of a real systemd: runs in the machine, as root, and writes what became of each case.

Strategy: the steps of docs/operations.md, then one service's life from start to stop, since a start costs an emulated
machine many seconds. Nothing but the standard library is imported, for the same reason. Each case is a function, which
raises where something is wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = Path("/results")
PATIENCE = 300.0
CLIENTS = 4
ROOT = Path("/srv/www")
SITE = "example.org"
LARGE = 300_000


def sh(command: str) -> str:
    """Run a line of the guide; what it prints. A failure carries it."""
    done = subprocess.run(
        ["bash", "-euc", command], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


def prop(name: str, unit: str = "ktlsd.service") -> str:
    return sh(f"systemctl show --property {name} --value {unit}").strip()


def journal() -> str:
    return sh("journalctl --no-pager --output cat --unit ktlsd.service")


def main_pid() -> int:
    return int(prop("MainPID"))


def workers() -> set[int]:
    pid = main_pid()
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s"
        time.sleep(0.5)


class Unanswered(Exception):
    """The server closed before it sent a byte: a client asks again (RFC 9110 section 9.2.2)."""


def get(target: str = "/index.html", port: int = 443) -> bytes:
    """One request over TLS, with the certificate verified; the body of a 200."""
    context = ssl.create_default_context(cafile="/etc/ktlsd/fullchain.pem")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw,
        context.wrap_socket(raw, server_hostname=SITE, suppress_ragged_eofs=False) as connection,
    ):
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n".encode())
        data = bytearray()
        try:
            while chunk := connection.recv(65536):
                data += chunk
        except ConnectionResetError:
            # A request that comes once the socket is closed is answered by a reset.
            if data:
                raise
    if not data:
        raise Unanswered
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body


def pip_install() -> None:
    """What `/opt/ktlsd/bin/pip install` does, which takes an emulated machine minutes."""
    [wheel] = RESULTS.glob("ktlsd-*.whl")
    [packages] = Path("/opt/ktlsd/lib").glob("python3*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    sh(f"/opt/ktlsd/bin/python -m compileall -q {packages}/ktlsd")
    script = Path("/opt/ktlsd/bin/ktlsd")
    script.write_text("#!/opt/ktlsd/bin/python\nimport sys\nfrom ktlsd.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)


# --- the cases, in their order


def install() -> None:
    sh("python3 -m venv --without-pip /opt/ktlsd")
    [theirs] = Path(sys.prefix, "lib").glob("python3*/site-packages")
    [ours] = Path("/opt/ktlsd/lib").glob("python3*/site-packages")
    (ours / "dependencies.pth").write_text(f"{theirs}\n")
    pip_install()
    os.chdir(CHECKOUT)
    sh("install -m 644 systemd/ktlsd.service systemd/ktlsd.socket systemd/ktlsd-http.socket /etc/systemd/system/")
    sh("install -m 644 systemd/ktlsd.modules-load.conf /etc/modules-load.d/ktlsd.conf")
    sh("install -m 644 systemd/ktlsd.tmpfiles.conf /etc/tmpfiles.d/ktlsd.conf")
    sh("install -m 644 -D systemd/ktlsd.sysusers.conf /etc/sysusers.d/ktlsd.conf")
    sh("systemd-sysusers ktlsd.conf")
    sh("systemd-tmpfiles --create ktlsd.conf")
    make_certificate("one")
    ROOT.mkdir(parents=True)
    (ROOT / "index.html").write_text("hello\n")
    (ROOT / "large.bin").write_bytes(os.urandom(LARGE))
    Path("/etc/ktlsd/ktlsd.toml").write_text(
        f'root = "{ROOT}"\nworkers = 2\n'
        'cert = "/etc/ktlsd/fullchain.pem"\nkey = "/run/credentials/ktlsd.service/keys_privkey.pem"\n'
        'acme_challenges = "/var/lib/ktlsd-acme/.well-known/acme-challenge"\n'
        'access_log = "/var/log/ktlsd/access.log"\n'
        'backend_listen = ["unix:/run/ktlsd/http.sock"]\n'
    )


def make_certificate(organisation: str) -> None:
    """What an ACME client's hook leaves; the key stays the same (certbot --reuse-key)."""
    key = "/etc/ktlsd/keys/privkey.pem"
    if not Path(key).exists():
        sh(f"umask 077; openssl ecparam -name prime256v1 -genkey -noout -out {key}")
    subject = f"-subj /O={organisation}/CN={SITE} -addext subjectAltName=DNS:{SITE}"
    sh(f"openssl req -x509 -key {key} -days 30 {subject} -out /etc/ktlsd/fullchain.pem")


def modules_load_brings_tls() -> None:
    sh("modprobe -r tls")
    assert "tls" not in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    sh("systemctl restart systemd-modules-load.service")
    assert "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()


def start() -> None:
    # An emulated machine on a busy host may need minutes to import what a real one does in a blink.
    Path("/etc/systemd/system/ktlsd.service.d").mkdir()
    Path("/etc/systemd/system/ktlsd.service.d/patience.conf").write_text("[Service]\nTimeoutStartSec=10min\n")
    sh("systemctl daemon-reload")
    sh("systemctl start ktlsd.socket ktlsd-http.socket")
    # It comes back only once READY=1 has come: Type=notify-reload.
    sh("systemctl start ktlsd.service")
    assert prop("ActiveState") == "active"
    assert prop("Type") == "notify-reload"
    assert get() == b"hello\n"
    assert len(workers()) == 2


def ktls_under_the_hardened_unit() -> None:
    assert get("/large.bin") == (ROOT / "large.bin").read_bytes()
    eventually(lambda: re.search(r"TLSv1\.3 \S+ ktls tx=software rx=software", journal()))


def status_text() -> None:
    expected = r"\d+ connections? now, \d+ handshakes?, 100 % of them with kTLS"
    eventually(lambda: re.fullmatch(expected, prop("StatusText")))


def plain_http_socket() -> None:
    Path("/var/lib/ktlsd-acme/.well-known/acme-challenge/token").write_text("answer")
    for target, expected in (("/x", b"301"), ("/.well-known/acme-challenge/token", b"200")):
        with socket.create_connection(("127.0.0.1", 80), timeout=PATIENCE) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(100).split()[1] == expected


def unix_socket_for_a_proxy() -> None:
    path = Path("/run/ktlsd/http.sock")
    assert (path.stat().st_mode & 0o777, path.group()) == (0o660, "ktlsd")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(f"GET /index.html HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def key_is_a_credential() -> None:
    key = Path("/etc/ktlsd/keys/privkey.pem")
    assert (key.stat().st_uid, key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0, 0o600, 0o700)
    # Root sees what the service sees, so that `ktlsd check` can read the same configuration.
    assert Path("/run/credentials/ktlsd.service/keys_privkey.pem").read_bytes() == key.read_bytes()
    denied = in_the_service("cat /etc/ktlsd/keys/privkey.pem")
    assert "Permission denied" in denied, denied


def in_the_service(command: str) -> str:
    """What a command prints that does what ktlsd's process could: its user, its view of the file system."""
    pid = main_pid()
    user = Path(f"/proc/{pid}").stat().st_uid
    enter = f"nsenter --target {pid} --mount setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs"
    return subprocess.run(
        [*enter.split(), "sh", "-c", command], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout


def unprivileged_and_confined() -> None:
    for pid in {main_pid(), *workers()}:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines)
        assert "0" not in status["Uid"].split(), status["Uid"]
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    # Neither a file's mode nor its owner decides.
    ROOT.chmod(0o777)
    refused = in_the_service(f"touch {ROOT}/written /opt/ktlsd/written /etc/ktlsd/written")
    assert refused.count("Read-only file system") == 3, refused
    ROOT.chmod(0o755)


def security_score() -> None:
    text = sh("systemd-analyze security --no-pager ktlsd.service")
    found = re.search(r"Overall exposure level for ktlsd\.service: (\d+\.\d)", text)
    assert found, text
    print(f"systemd-analyze security: {found[1]}")
    assert float(found[1]) <= 2.0, text


def reload() -> None:
    main, served = main_pid(), get()
    make_certificate("two")
    sh("systemctl reload ktlsd.service")
    assert prop("ActiveState") == "active"
    assert main_pid() == main
    # get() verifies against the new certificate, which is its own issuer.
    eventually(lambda: takes_the_new_certificate(served))
    assert "configuration reloaded" in journal()


def logs_are_rotated() -> None:
    access = Path("/var/log/ktlsd/access.log")
    eventually(lambda: "GET /index.html" in access.read_text())
    access.rename("/var/log/ktlsd/access.log.1")
    sh("systemctl kill --kill-whom=main --signal=USR1 ktlsd.service")
    eventually(access.exists)
    get("/large.bin")
    eventually(lambda: "GET /large.bin" in access.read_text())


def takes_the_new_certificate(served: bytes) -> bool:
    try:
        return get() == served
    except ssl.SSLCertVerificationError:
        return False


def killed_worker_is_replaced() -> None:
    main, before = main_pid(), workers()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    assert get() == b"hello\n"
    eventually(lambda: len(workers() - {victim}) == 2)
    assert get() == b"hello\n"
    assert (main_pid(), prop("NRestarts")) == (main, "0")


@contextlib.contextmanager
def clients() -> Iterator[list[str]]:
    """Clients that come one after the other, until the block ends; how each fared ("" is well)."""
    fates: list[str] = []
    ended = threading.Event()

    def come() -> None:
        while not ended.is_set():
            try:
                fates.append("" if get() == b"hello\n" else "another body")
            except Unanswered:
                # Accepted just before the restart, with its request still under way.
                continue
            except Exception as error:
                fates.append(repr(error))

    threads = [threading.Thread(target=come) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield fates
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def upgrade_refuses_nobody() -> None:
    before = main_pid()
    pip_install()
    with clients() as fates:
        eventually(lambda: len(fates) >= CLIENTS)
        sh("systemctl restart ktlsd.service")
        served = len(fates)
        eventually(lambda: len(fates) >= served + CLIENTS)
    assert main_pid() != before
    assert set(fates) == {""}, fates


def watchdog_ends_a_stuck_process() -> None:
    before = main_pid()
    os.kill(before, signal.SIGSTOP)
    eventually(lambda: main_pid() not in (0, before) and prop("ActiveState") == "active")
    assert prop("NRestarts") == "1"
    assert "Watchdog timeout" in sh("journalctl --no-pager --output cat UNIT=ktlsd.service")
    assert get() == b"hello\n"


def root_steps_down_without_systemd() -> None:
    """A port of root's, a key that only root can read, and then neither root nor a way back."""
    command = "/opt/ktlsd/bin/ktlsd --listen 127.0.0.1:444 --user nobody"
    files = f"--root {ROOT} --cert /etc/ktlsd/fullchain.pem --key /etc/ktlsd/keys/privkey.pem"
    logs = Path("/var/log/steps-down")
    logs.mkdir()
    shutil.chown(logs, "nobody")
    command += f" --access-log {logs}/access.log"
    with subprocess.Popen([*command.split(), *files.split()], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = next((line for line in server.stderr if "listening on" in line), "")
        assert said == "listening on https://127.0.0.1:444\n"
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == ["65534"] * 4
        assert (status["Groups"].split(), status["NoNewPrivs"], int(status["CapPrm"], 16)) == ([], "1", 0)
        assert get(port=444) == b"hello\n"
        (logs / "access.log").rename(logs / "access.log.1")
        server.send_signal(signal.SIGUSR1)
        eventually((logs / "access.log").exists)
        server.terminate()
    assert server.returncode == 0


def certificates_by_acme() -> None:
    """Their client runs in the sandbox; this machine has no authority, and the unit says so."""
    Path("/etc/ktlsd/ktlsd.toml").write_text(
        f'root = "{ROOT}"\nworkers = 2\n[acme]\nnames = "{SITE}"\ndirectory = "https://127.0.0.1:1/dir"\n'
    )
    sh("systemctl restart ktlsd.service")
    trouble = f"certificate for {SITE}: not issued: 127.0.0.1:1 cannot be reached"
    eventually(lambda: trouble in journal())
    eventually(lambda: trouble in prop("StatusText"))
    assert "Connection refused; a self-signed one is served; next try" in journal()
    status = Path(f"/var/lib/ktlsd/acme/certificates/{SITE}.pem").stat()
    assert (pwd.getpwuid(status.st_uid).pw_name, status.st_mode & 0o777) == ("ktlsd", 0o600)


def stop() -> None:
    sh("systemctl stop ktlsd.socket ktlsd-http.socket ktlsd.service")
    assert (prop("ActiveState"), prop("Result"), prop("ExecMainStatus")) == ("inactive", "success", "0")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 443)) != 0


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        *(install, modules_load_brings_tls, start, ktls_under_the_hardened_unit, status_text, plain_http_socket),
        *(
            unix_socket_for_a_proxy,
            key_is_a_credential,
            unprivileged_and_confined,
            security_score,
            reload,
            logs_are_rotated,
        ),
        *(killed_worker_is_replaced, upgrade_refuses_nobody, watchdog_ends_a_stuck_process),
        *(root_steps_down_without_systemd, certificates_by_acme, stop),
    )
}


def main() -> None:
    with (RESULTS / "cases.jsonl").open("a") as outcomes:
        for name, case in CASES.items():
            began = time.monotonic()
            outcome = {"case": name, "failure": ""}
            try:
                case()
            except Exception:
                trouble = shutil.which("journalctl") and sh("journalctl --no-pager --lines 40")
                outcome["failure"] = f"{traceback.format_exc()}\n{trouble}"
            print(f"{name}: {time.monotonic() - began:.0f} s")
            print(json.dumps(outcome), file=outcomes, flush=True)


if __name__ == "__main__":
    main()
