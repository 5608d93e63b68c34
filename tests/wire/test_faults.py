"""What breaks under a server while it sends: a worker, a file, a mount, a call to the kernel. The others are served on,
and no client takes a part for the whole.

Files that shrink, grow or are replaced: test_lifecycle.py. Full disks and stuck readers of logs: test_logs.py.

Here over whatever path this machine gives; test_ktls_hostile.py has what differs over kTLS.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktlsd.connection.scheduler import ALONE_BYTES
from ktlsd.logs.batch import GATHER_SECONDS
from tests.authority import Authority
from tests.downloads import REQUEST, Outcome, download, download_side_by_side, judge, make_files, read_all
from tests.protocols import HTTP_2, ask_by_both, conversation
from tests.serving import Running, children, client_context, connect, eventually, exchange, get, parse_all, serving

MIB = 1024 * 1024
SIZES = {"small.bin": 10_000, "medium.bin": MIB + 1, "pieces.bin": 2 * ALONE_BYTES + 1, "large.bin": 16 * MIB}
"""The large one is more than the sockets of both sides hold; the one before needs three calls of sendfile or more."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and namespaces need root")


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make_files(tmp_path_factory.mktemp("made") / "files", SIZES)


@pytest.fixture
def root(contents: dict[str, bytes], tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def begin(port: int, name: str = "large.bin") -> tuple[ssl.SSLSocket, bytes]:
    """A download in the middle of which the server is stuck, since its client reads no further."""
    connection = connect(port)
    connection.sendall(REQUEST % (name.encode(), b""))
    return connection, connection.recv(16384)


# --- workers ---------------------------------------------------------------------------------------------------------


def owner(port: int, connection: socket.socket, workers: set[int]) -> int:
    """Which worker has the other end of a connection to this machine (proc(5), net/tcp)."""
    near, far = f":{port:04X}", f":{connection.getsockname()[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    [inode] = [row[9] for row in rows if row[1].endswith(near) and row[2].endswith(far)]
    for worker in workers:
        for descriptor in Path(f"/proc/{worker}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    return worker
    raise AssertionError("nobody has it")


def test_a_killed_worker_breaks_its_own_downloads_alone(root: Path, contents: dict[str, bytes], tmp_path: Path) -> None:
    with serving(root, "--workers", "2", state=tmp_path / "state") as server:
        workers = children(server.process.pid)
        downloads: dict[int, list[tuple[ssl.SSLSocket, bytes]]] = {worker: [] for worker in workers}
        count = 0
        while not all(downloads.values()) or count < 8:
            connection, begun = begin(server.port)
            downloads[owner(server.port, connection, workers)].append((connection, begun))
            count += 1
            assert count < 200, "all connections go to one worker"
        victim = min(workers)
        os.kill(victim, signal.SIGKILL)
        server.wait_for_line(rf"worker {victim} ended \(signal 9\)")
        for worker, begun_downloads in downloads.items():
            wanted = Outcome.BROKEN if worker == victim else Outcome.WHOLE
            for connection, begun in begun_downloads:
                with connection:
                    data, in_order = read_all(connection)
                assert judge(begun + data, in_order, contents["large.bin"]) is wanted
        assert download(server.port, "medium.bin", contents["medium.bin"]) is Outcome.WHOLE


# --- files and mounts ------------------------------------------------------------------------------------------------


def unlink(path: Path) -> None:
    path.unlink()


def lock(path: Path) -> None:
    path.chmod(0)


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_away(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere.bin")


@pytest.mark.parametrize(
    ("fault", "after"),
    [(unlink, 404), (lock, 403), (remove_folder, 404), (move_away, 404)],
)
def test_a_file_that_goes_away_arrives_whole_and_is_then_gone(
    root: Path, contents: dict[str, bytes], tmp_path: Path, fault: Callable[[Path], None], after: int
) -> None:
    # Root may read anything; without these capabilities a file's mode means what it says.
    wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    (root / "sub").mkdir()
    os.rename(root / "large.bin", root / "sub/large.bin")
    with serving(root, state=tmp_path / "state", wrapper=wrapper) as server:
        connection, begun = begin(server.port, "sub/large.bin")
        with conversation(server.port, HTTP_2) as client:
            over_http2 = client.begin("/sub/large.bin")
            over_http2.read(1)
            fault(root / "sub/large.bin")
            assert over_http2.answer().body == contents["large.bin"]
        with connection:
            data, in_order = read_all(connection)
        assert judge(begun + data, in_order, contents["large.bin"]) is Outcome.WHOLE
        assert ask_by_both(server.port, "/sub/large.bin").status == after
        assert ask_by_both(server.port, "/small.bin").body == contents["small.bin"]


MOUNTED = 'mount -t tmpfs tmpfs "$0" && cp -a "$0".made/. "$0" && exec "$@"'


@needs_root
@pytest.mark.parametrize("below", ["", "sub"])
def test_a_mount_that_goes_away_ends_no_download(
    root: Path, contents: dict[str, bytes], tmp_path: Path, below: str
) -> None:
    """The root itself, or a folder below it, is unmounted in the server's own mount namespace."""
    place = root / below
    made = Path(f"{place}.made")
    place.mkdir(exist_ok=True)
    make_files(made, SIZES)
    wrapper = ("unshare", "--mount", "sh", "-ec", MOUNTED, str(place))
    prefix = f"{below}/" if below else ""
    if not below:
        shutil.rmtree(root)
        root.mkdir()
    with serving(root, state=tmp_path / "state", wrapper=wrapper) as server:
        inside = ("nsenter", "--mount", f"--target={server.process.pid}")
        connection, begun = begin(server.port, f"{prefix}large.bin")
        refused = subprocess.run([*inside, "umount", str(place)], capture_output=True, check=False)
        assert refused.returncode != 0, "what is in use cannot be unmounted but by force"
        subprocess.run([*inside, "umount", "--lazy", str(place)], check=True)
        with connection:
            data, in_order = read_all(connection)
        assert judge(begun + data, in_order, contents["large.bin"]) is Outcome.WHOLE
        # The root is a descriptor, which keeps its file system; a folder below is looked up again.
        assert get(server.port, f"/{prefix}small.bin").status == (404 if below else 200)


# --- certificates and logs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("gone", ["certificate.pem", "key.pem", "folder"])
def test_certificates_that_vanish_leave_the_old_ones_in_force(
    root: Path, contents: dict[str, bytes], tmp_path: Path, gone: str, workers: str
) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    pair = Authority(tmp_path).issue("localhost", ["localhost"])
    for name in ("certificate.pem", "key.pem"):
        shutil.copy(pair, folder / name)
    options = ("--cert", str(folder / "certificate.pem"), "--key", str(folder / "key.pem"), "--workers", workers)
    with serving(root, *options, state=tmp_path / "state") as server:
        before = ssl.get_server_certificate(("127.0.0.1", server.port))
        connection, begun = begin(server.port)
        kept = tmp_path / "kept"
        os.rename(folder if gone == "folder" else folder / gone, kept)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("not reloaded, the old one stays in force")
        assert ssl.get_server_certificate(("127.0.0.1", server.port)) == before
        with connection:
            data, in_order = read_all(connection)
        assert judge(begun + data, in_order, contents["large.bin"]) is Outcome.WHOLE
        lines = len(server.log)
        os.rename(kept, folder if gone == "folder" else folder / gone)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded", since=lines)
        assert ssl.get_server_certificate(("127.0.0.1", server.port)) == before


FULL = 'mount -t tmpfs -o size=16k tmpfs "$0" && exec "$@"'


@needs_root
def test_full_logs_hold_up_nobody_and_go_on_when_there_is_room(
    root: Path, contents: dict[str, bytes], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    wrapper = ("unshare", "--mount", "sh", "-ec", FULL, str(logs))
    options = ("--access-log", str(logs / "access.log"), "--error-log", str(logs / "error.log"))
    request = b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /small.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with serving(root, *options, state=tmp_path / "state", wrapper=wrapper) as server:
        # Through the process: the mount is only in its namespace.
        inside = Path(f"/proc/{server.process.pid}/root{logs}")
        for _ in range(5):
            answers = parse_all(exchange(server.port, request * 100 + last))
            assert [answer.status for answer in answers] == [404] * 100 + [200]
        assert eventually(lambda: os.statvfs(inside).f_bavail == 0)
        assert download(server.port, "large.bin", contents["large.bin"]) is Outcome.WHOLE

        def written_again() -> bool:
            # Lines that still wait may fill it once more, and those that come then are lost: so each has a new chance.
            for log in ("access.log", "error.log"):
                os.truncate(inside / log, 0)
            assert get(server.port, "/small.bin?afterwards").status == 200
            time.sleep(2 * GATHER_SECONDS)
            return b"/small.bin?afterwards" in (inside / "access.log").read_bytes()

        assert eventually(written_again)
        assert server.stop() == 0


def test_what_cannot_be_read_is_said_and_cuts_nobody_off(tmp_path: Path) -> None:
    """proc(5) has files that can be opened and not read: pread(2) at the beginning of /proc/PID/mem gives EIO."""
    folder = Path(f"/proc/{os.getpid()}")
    config = tmp_path / "ktlsd.toml"
    config.write_text(f'root = "{folder}"\netag = "content"\nerror_pages = {{ 412 = "/mem" }}\n')
    with serving(None, "--config", str(config), state=tmp_path / "state") as server:
        files = server.open_files()
        for _ in range(5):
            assert ask_by_both(server.port, "/mem").status == 500
            answer = ask_by_both(server.port, "/cmdline", 'If-Match: "another"')
            assert (answer.status, answer.body) == (412, b"412 Precondition Failed\n")
        server.wait_for_line("error page /mem for 412 in .*Input/output error")
        assert eventually(lambda: server.open_files() <= files)
        assert not [line for line in server.log if "cut off" in line]


# --- calls to the kernel that fail -----------------------------------------------------------------------------------

_ABORTED = ("EIO", "ENOMEM", "EINTR", "EAGAIN")
_LOST = ("ECONNRESET", "EPIPE", "ETIMEDOUT")
CALLS = {
    "accept4": ("EINTR", "EAGAIN", "ECONNABORTED", "EPERM", "ENOMEM", "ENOBUFS", "EMFILE", "ENFILE"),
    "setsockopt": ("EINVAL", "ENOMEM", "ENOTCONN"),
    # No more of these: trio's own wake-ups come through this call too, from a pair of sockets that never fails.
    "recvfrom": ("EINTR", "EAGAIN"),
    "read": (*_ABORTED, *_LOST),
    "write": (*_ABORTED, *_LOST, "ENOBUFS"),
    "sendto": (*_ABORTED, *_LOST, "ENOBUFS"),
    "sendfile": (*_ABORTED, *_LOST, "EINVAL"),
    "preadv2": (*_ABORTED, "EOPNOTSUPP", "ESTALE"),
    "openat2": (*_ABORTED, "EMFILE", "ENFILE", "EACCES", "ELOOP", "ESTALE", "EXDEV"),
    "fstat,newfstatat": ("EIO", "ENOMEM", "ESTALE"),
    "ioctl": ("EIO", "ENOTTY"),
    "shutdown": ("ENOTCONN",),
    "epoll_wait": ("EINTR",),
}
"""The calls on the path of a request, and what each may say by its manual page or a failing disk or network."""
WHEN = ("1+4", "2+3")
"""The first and each fourth after it, or the second and each third."""


@contextlib.contextmanager
def failing(process: int, call: str, error: str, when: str, trace: Path) -> Iterator[None]:
    """Have the calls of a process's event loop fail with an error, those that `when` counts (strace(1)).

    Of sendfile those of the thread of an only download, too.

    Afterwards `trace` has a line for each call.
    """
    inject = f"inject={call}:error={error}:when={when}"
    options = ["-q", "-o", str(trace), "-e", f"trace={call}", "-e", inject, "-p", str(process)]
    if call == "sendfile":
        options.append("-f")
    with subprocess.Popen(["strace", *options], stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert eventually(lambda: tracer.poll() is not None or _is_traced(process, tracer.pid))
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                pytest.skip(f"strace may not attach: {tracer.stderr.read()}")
            yield
        finally:
            # It lets go of the process, which goes on.
            tracer.terminate()


def _is_traced(process: int, tracer: int) -> bool:
    return f"TracerPid:\t{tracer}\n" in Path(f"/proc/{process}/status").read_text()


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture(scope="module")
def faulty(contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("faulty")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    state = tmp_path_factory.mktemp("state")
    log = state / "access.log"
    with serving(folder, "--access-log", str(log), state=state, backend_listen=("127.0.0.1:0",)) as running:
        # What is opened once and kept is opened before descriptors are counted.
        run_everything(running, contents)
        yield running


def run_everything(server: Running, contents: dict[str, bytes], patience: float = 20.0) -> list[Outcome]:
    """Requests that together make every call on the path of a request."""
    backend = int(server.backends[0].rpartition(":")[2])
    outcomes = []
    for name in ("small.bin", "pieces.bin"):
        for secure in (True, False, True):
            place = server.port if secure else backend
            outcomes.append(download(place, name, contents[name], secure=secure, patience=patience))
    wanted = {name: contents[name] for name in ("pieces.bin", "small.bin")}
    return outcomes + download_side_by_side(server.port, wanted, patience=patience)


@needs_strace
@pytest.mark.parametrize(
    ("call", "error", "when"),
    [(call, error, WHEN[turn % 2]) for call, errors in CALLS.items() for turn, error in enumerate(errors)],
)
def test_a_call_that_fails_breaks_at_most_the_response_that_made_it(
    faulty: Running, contents: dict[str, bytes], tmp_path: Path, call: str, error: str, when: str
) -> None:
    lines, files, trace = len(faulty.log), faulty.open_files(), tmp_path / "trace"
    with failing(faulty.process.pid, call, error, when, trace):
        outcomes = run_everything(faulty, contents, patience=3.0)
    injected = trace.read_text().count("(INJECTED)")
    print(f"{injected} calls failed;", *(f"{outcomes.count(outcome)} {outcome.name}" for outcome in Outcome))
    assert injected
    assert faulty.process.poll() is None, "\n".join(faulty.log[lines:])
    assert set(run_everything(faulty, contents)) == {Outcome.WHOLE}
    assert eventually(lambda: faulty.open_files() <= files), (files, faulty.open_files())
    assert not [line for line in faulty.log[lines:] if "defect" in line or "Traceback" in line]


@needs_strace
def test_accepting_outlives_a_kernel_without_memory_for_a_wait(
    root: Path, contents: dict[str, bytes], tmp_path: Path
) -> None:
    # Of workers, whose event loops wait only for connections, one that has all of them.
    with serving(root, "--workers", "2", state=tmp_path / "state") as server:
        asleep, worker = children(server.process.pid)
        os.kill(asleep, signal.SIGSTOP)
        try:
            assert download(server.port, "small.bin", contents["small.bin"]) is Outcome.WHOLE
            turns = itertools.cycle(("1+3", "2+3", "3+3"))

            def fails_the_poller() -> bool:
                # Which of the calls is the poller's depends on what the others had to wait for.
                with failing(worker, "epoll_ctl", "ENOMEM", next(turns), tmp_path / "trace"):
                    for _ in range(2):
                        download(server.port, "small.bin", contents["small.bin"], patience=3.0)
                return any("cannot poll connections, retrying: " in line for line in server.log)

            assert eventually(fails_the_poller)
            for _ in range(3):
                assert download(server.port, "small.bin", contents["small.bin"]) is Outcome.WHOLE
            assert children(server.process.pid) == {asleep, worker}, "\n".join(server.log)
        finally:
            os.kill(asleep, signal.SIGCONT)


# --- networks --------------------------------------------------------------------------------------------------------

TCP_WINDOW_CLAMP = 10
SMALLEST_SEGMENT = 88


@pytest.mark.parametrize(
    "narrow",
    [
        ((socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALLEST_SEGMENT),),
        ((socket.SOL_SOCKET, socket.SO_RCVBUF, 1), (socket.IPPROTO_TCP, TCP_WINDOW_CLAMP, 1)),
        (
            (socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALLEST_SEGMENT),
            (socket.SOL_SOCKET, socket.SO_RCVBUF, 1),
            (socket.IPPROTO_TCP, TCP_WINDOW_CLAMP, 1),
        ),
    ],
    ids=["segments of 88 bytes", "the smallest window", "both"],
)
def test_narrow_connections_get_every_byte(
    faulty: Running, contents: dict[str, bytes], narrow: tuple[tuple[int, int, int], ...]
) -> None:
    raw = socket.socket()
    for level, option, value in narrow:
        raw.setsockopt(level, option, value)
    raw.settimeout(60)
    raw.connect(("127.0.0.1", faulty.port))
    with client_context().wrap_socket(raw, suppress_ragged_eofs=False) as connection:
        # Four records: through the smallest window Linux 6.12 may take 0.2 s for 300 bytes, from nginx, too.
        connection.sendall(REQUEST % (b"medium.bin", b"Range: bytes=0-49999\r\n"))
        data, in_order = read_all(connection)
    assert in_order
    assert data.endswith(contents["medium.bin"][:50_000])


@contextlib.contextmanager
def black_hole(name: str, probing: int) -> Iterator[None]:
    """Three network namespaces: a server's (10.111.1.1), a client's (10.111.2.1), and a router's between them.

    The router passes no more than 1400 bytes on to the client, and reports it to neither side.
    """
    server, router, client = name, f"{name}-router", f"{name}-client"
    setup = f"""
        ip netns add {server}
        ip netns add {router}
        ip netns add {client}
        ip -n {server} link set lo up
        ip -n {server} link add near type veth peer name far netns {router}
        ip -n {client} link add near type veth peer name farther netns {router}
        ip -n {server} address add 10.111.1.1/24 dev near
        ip -n {client} address add 10.111.2.1/24 dev near
        ip -n {router} address add 10.111.1.254/24 dev far
        ip -n {router} address add 10.111.2.254/24 dev farther
        ip -n {router} link set farther mtu 1400
        ip -n {server} link set near up
        ip -n {client} link set near up
        ip -n {router} link set far up
        ip -n {router} link set farther up
        ip -n {server} route add default via 10.111.1.254
        ip -n {client} route add default via 10.111.2.254
        ip -n {router} rule add iif lo to 10.111.1.0/24 blackhole
        ip netns exec {router} sysctl -q net.ipv4.ip_forward=1
        ip netns exec {server} sysctl -q net.ipv4.tcp_mtu_probing={probing}
        ip netns exec {server} sysctl -q net.ipv4.tcp_retries1=1
        ip netns exec {server} sysctl -q net.ipv4.tcp_congestion_control=reno
    """
    try:
        for line in setup.strip().splitlines():
            subprocess.run(line.split(), check=True, capture_output=True)
        yield
    finally:
        for namespace in (server, router, client):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


@needs_root
@pytest.mark.parametrize("probing", [1, 0])
def test_a_path_mtu_black_hole(root: Path, contents: dict[str, bytes], tmp_path: Path, probing: int) -> None:
    """Where the kernel probes for a path's MTU the file arrives; where it does not, no other client is delayed."""
    name = f"ktlsd-hole{os.getpid()}"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(black_hole(name, probing))
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"no such network can be made here: {error}")
        wrapper = ("ip", "netns", "exec", name)
        server = stack.enter_context(
            serving(root, state=tmp_path / "state", wrapper=wrapper, listen=("10.111.1.1:0", "127.0.0.1:0"))
        )
        output = tmp_path / "output"
        # A handshake with X25519MLKEM768 (OpenSSL 3.5) is too large for the hole itself.
        curl = ["ip", "netns", "exec", f"{name}-client", "curl", "-ksS", "--curves", "X25519", "-o", str(output)]
        url = f"https://10.111.1.1:{server.ports[0]}"
        # With kTLS the first connection opens what the kernel is asked by.
        subprocess.run([*curl, f"{url}/nothing"], check=True, timeout=60)
        files = server.open_files()
        arrives = [*curl, "--max-time", "60" if probing else "6", f"{url}/medium.bin"]
        with subprocess.Popen(arrives, stderr=subprocess.PIPE) as waiting:
            beside = ["ip", "netns", "exec", name, "curl", "-ksS", f"https://127.0.0.1:{server.ports[1]}/small.bin"]
            for _ in range(5):
                assert subprocess.check_output(beside, timeout=60) == contents["small.bin"]
        if probing:
            assert waiting.returncode == 0, "\n".join(server.log)
            assert output.read_bytes() == contents["medium.bin"]
        else:
            assert waiting.returncode == 28, "curl's time-out"
            # The server would wait for the client, whose end it cannot see, for as long as it waits for any.
            server.process.kill()
        if probing:
            assert eventually(lambda: server.open_files() <= files)
        assert not [line for line in server.log if re.search("defect|Traceback", line)]
