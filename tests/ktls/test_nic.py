"""The NIC encrypts: the device path of kernel, OpenSSL and ktlsd, over a NIC that is a kernel module (tests/vm/tlsnic).

What arrives is compared byte for byte; /proc/net/tls_stat and the NIC's own counters tell who encrypted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktlsd.commands.doctor import examine
from ktlsd.http2.errors import ErrorCode
from ktlsd.tls.tls_stat import counters
from tests.http2_client import Http2Client
from tests.serving import Running, client_context, eventually, get, parse_all, read_to_end, serving
from tests.vm import nic
from tests.vm.nic import ADDRESS, ADDRESS_6, DEVICE, Download, curl, parameter, statistics
from tests.vm.plugin import IN_MACHINE, drop_page_cache

pytestmark = pytest.mark.ktls

KIB = 1024
MIB = 1024 * KIB
TLS12 = ("--tls-max", "1.2")
LISTEN = (f"{ADDRESS}:0", f"[{ADDRESS_6}]:0", "127.0.0.1:0")
# A process of its own, which is born in this namespace.
OWN = ("env",)
FS_IOC_ENABLE_VERITY = 0x40806685  # linux/fsverity.h
NEVER_WRITTEN = ("squashfs", "erofs")
IDLE = "encrypts TLS 1.2 with AES-GCM, but clients negotiate TLS 1.3"


@pytest.fixture(scope="module", autouse=True)
def plugged_in() -> Iterator[None]:
    if not IN_MACHINE:
        pytest.skip("only the virtual machine has a NIC that encrypts")
    with nic.plugged_in():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    for name, size in (("small.bin", 100 * KIB + 1), ("medium.bin", MIB + 1), ("large.bin", 6 * MIB + 1)):
        (folder / name).write_bytes(os.urandom(size))
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("state")
    with serving(root, "--log-level", "debug", state=state, listen=LISTEN, wrapper=OWN) as running:
        yield running


class Counted:
    """What the kernel and the NIC counted meanwhile."""

    def __enter__(self) -> Counted:
        self._kernel, self._nic = counters() or {}, statistics()
        return self

    def __exit__(self, *_: object) -> None:
        kernel, device = counters() or {}, statistics()
        self.kernel = {name: value - self._kernel[name] for name, value in kernel.items()}
        self.nic = {name: value - self._nic[name] for name, value in device.items()}
        print({name: value for name, value in {**self.kernel, **self.nic}.items() if value})


def path_of(server: Running, since: int) -> str:
    return server.wait_for_line(" ktls tx=", since=since)


def test_the_start_and_the_doctor_tell_what_the_nic_takes(server: Running) -> None:
    line = server.wait_for_line("^kTLS: ")
    assert f"; NIC {DEVICE} encrypts TLS 1.2 with AES-128-GCM, AES-256-GCM" in line
    assert "TLS 1.2 tx=software" in line or "TLS 1.3 and TLS 1.2 tx=software" in line
    with Counted() as counted:
        report = examine()
    rows = {(row.protocol, row.cipher): (row.tx, row.rx) for row in report.nics}
    taken = {("TLSv1.2", "AES-128-GCM"), ("TLSv1.2", "AES-256-GCM")}
    assert {key for key, paths in rows.items() if paths == ("device", "device")} == taken
    assert {paths for key, paths in rows.items() if key not in taken} == {("software", "software")}
    # Tried with keys that the device was given, without a packet.
    assert counted.nic["tx_tls_ctx"] == counted.nic["rx_tls_ctx"] == len(taken)
    assert counted.nic["tx_tls_encrypted_packets"] == 0
    assert (DEVICE, "on", "on") in report.interfaces
    # Loopback has no device.
    assert {row.tx for row in report.ciphers if not row.error} <= {"software", "none"}
    text = report.to_text()
    assert re.search(rf"^yes  NIC offload +{DEVICE}: TLS 1.2 with AES-128-GCM, AES-256-GCM; ", text, re.MULTILINE)
    assert re.search(rf"^{DEVICE} +TLSv1.2 +AES-128-GCM +device +device$", text, re.MULTILINE)


@pytest.mark.parametrize("host", [ADDRESS, f"[{ADDRESS_6}]"], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"])
def test_the_nic_encrypts_and_decrypts(server: Running, root: Path, cipher: str, host: str) -> None:
    lines, port = len(server.log), server.ports[LISTEN.index(f"{host}:0")]
    with Counted() as counted:
        received = curl(port, "/medium.bin", *TLS12, "--ciphers", cipher, host=host).stdout
    content = (root / "medium.bin").read_bytes()
    assert received == content
    assert f" TLSv1.2 {cipher} ktls tx=device rx=device" in path_of(server, lines)
    assert counted.kernel["TlsTxDevice"] == counted.kernel["TlsRxDevice"] == 1
    assert counted.kernel["TlsTxSw"] == counted.kernel["TlsRxSw"] == 0
    assert counted.nic["tx_tls_encrypted_bytes"] >= len(content)
    # The client's first request is on its way before the NIC has its keys.
    assert counted.nic["rx_tls_resync_res_ok"] == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--tlsv1.3", "--tls13-ciphers", "TLS_AES_128_GCM_SHA256"),
        (*TLS12, "--ciphers", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ],
    ids=["TLS 1.3", "ChaCha20"],
)
def test_the_rest_is_the_kernels(server: Running, root: Path, options: tuple[str, ...]) -> None:
    lines = len(server.log)
    with Counted() as counted:
        assert curl(server.port, "/small.bin", *options).stdout == (root / "small.bin").read_bytes()
    assert " ktls tx=software rx=" in path_of(server, lines)
    assert (counted.kernel["TlsTxSw"], counted.kernel["TlsTxDevice"]) == (1, 0)
    assert counted.nic["tx_tls_ctx"] == 0


def test_one_line_says_that_the_nic_is_idle(server: Running) -> None:
    for _ in range(2):
        lines = len(server.log)
        curl(server.port, "/small.bin", "--tlsv1.3")
        path_of(server, lines)
    assert get(server.ports[2], "/small.bin").status == 200
    told = [line for line in server.log if IDLE in line]
    assert len(told) == 1
    assert f'for clients over {DEVICE}, tls_policy = "nic" prefers TLS 1.2' in told[0]


def test_what_is_lost_is_sent_again_and_whole(server: Running, root: Path) -> None:
    with parameter("drop_every", 25), Counted() as counted:
        assert curl(server.port, "/large.bin", *TLS12).stdout == (root / "large.bin").read_bytes()
    assert counted.nic["tx_tls_ooo"] > 0
    assert counted.nic["tx_tls_drop_no_sync_data"] == 0
    assert counted.kernel["TlsTxDevice"] == 1


def tls_socket(port: int, context: ssl.SSLContext, buffer: int | None = None) -> ssl.SSLSocket:
    """A connection of the client's namespace, with a receive buffer of so many bytes."""
    with nic.in_client():
        raw = socket.socket()
    if buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    raw.settimeout(60)
    raw.connect((ADDRESS, port))
    return context.wrap_socket(raw, suppress_ragged_eofs=False)


@contextlib.contextmanager
def losing() -> Iterator[None]:
    with parameter("drop_every", 100):
        yield


@contextlib.contextmanager
def reordering() -> Iterator[None]:
    """Every tenth packet of clients overtakes those that wait for 3 ms."""
    nic.command(f"ip netns exec {nic.CLIENT} tc qdisc add dev {nic.PEER} root netem delay 3ms reorder 10% gap 10")
    try:
        yield
    finally:
        nic.command(f"ip netns exec {nic.CLIENT} tc qdisc delete dev {nic.PEER} root")


@pytest.mark.parametrize("wire", [contextlib.nullcontext, losing, reordering])
def test_requests_arrive_by_the_nic_and_in_order(
    server: Running, root: Path, wire: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    requests = [
        f"GET /small.bin HTTP/1.1\r\nHost: nic\r\nRange: bytes={n}-{n}\r\nCookie: {'c' * 6000}\r\n" for n in range(200)
    ]
    requests[-1] += "Connection: close\r\n"
    context = client_context(newest=ssl.TLSVersion.TLSv1_2)
    with wire(), Counted() as counted, tls_socket(server.port, context) as connection:
        connection.sendall("\r\n".join([*requests, ""]).encode())
        answers = parse_all(read_to_end(connection))
    assert b"".join(answer.body for answer in answers) == (root / "small.bin").read_bytes()[:200]
    assert counted.kernel["TlsRxDevice"] == 1
    if wire is contextlib.nullcontext:
        # Out of order, the NIC leaves any number of records to the kernel.
        assert counted.nic["rx_tls_decrypted_bytes"] > MIB
    assert (counted.nic["wire_lost"] > 0) == (wire is losing)
    assert counted.nic["rx_tls_bad_tag"] == 0


def test_64_connections_at_once(server: Running, root: Path, tmp_path: Path) -> None:
    lines = len(server.log)
    url = f"https://{ADDRESS}:{server.port}/small.bin"
    each = [part for number in range(63) for part in ("-o", str(tmp_path / str(number)), url)]
    with Counted() as counted:
        curl(
            *(server.port, "/small.bin", *TLS12, "-Z", "--parallel-immediate", "--parallel-max", "64"),
            *(*each, "-o", str(tmp_path / "63")),
        )
    content = (root / "small.bin").read_bytes()
    assert all((tmp_path / str(number)).read_bytes() == content for number in range(64))
    connections = [line for line in server.log[lines:] if " ktls tx=" in line]
    assert len(connections) > 60
    assert all(" tx=device rx=device" in line for line in connections)
    assert counted.kernel["TlsTxDevice"] == len(connections)


def test_a_full_table_leaves_the_rest_to_the_kernel(server: Running, root: Path) -> None:
    lines = len(server.log)
    with parameter("limit_tx", 0), Counted() as counted:
        assert curl(server.port, "/medium.bin", *TLS12).stdout == (root / "medium.bin").read_bytes()
    assert " ktls tx=software rx=device" in path_of(server, lines)
    assert (counted.nic["tx_tls_refused"], counted.kernel["TlsTxSw"]) == (1, 1)


def test_offload_off_during_a_download_is_for_the_next(server: Running, root: Path) -> None:
    content = (root / "large.bin").read_bytes()
    download = Download(server.port, "/large.bin")
    try:
        download.read(100 * KIB)
        nic.offload(tx=False, rx=False)
        lines = len(server.log)
        assert curl(server.port, "/small.bin", *TLS12).stdout == (root / "small.bin").read_bytes()
        assert " ktls tx=software rx=software" in path_of(server, lines)
        with Counted() as counted:
            assert download.body() == content
        assert counted.nic["tx_tls_encrypted_bytes"] > MIB
    finally:
        nic.offload()


def test_nic_down_and_up_during_a_download(server: Running, root: Path) -> None:
    download = Download(server.port, "/large.bin")
    download.read(100 * KIB)
    with Counted() as counted:
        nic.command(f"ip link set {DEVICE} down")
        nic.command(f"ip link set {DEVICE} up")
        nic.command(f"ip address replace {ADDRESS_6}/64 dev {DEVICE} nodad")
        assert download.body() == (root / "large.bin").read_bytes()
    # Its keys are gone with it: the kernel goes on in software.
    assert counted.nic["tx_tls_del"] == 1
    lines = len(server.log)
    curl(server.port, "/small.bin", *TLS12)
    assert " ktls tx=device rx=device" in path_of(server, lines)


def test_another_route_during_a_download(server: Running, root: Path) -> None:
    nic.command(f"ip link add side0 type veth peer name side1 netns {nic.CLIENT}")
    try:
        nic.command("ip link set side0 up")
        nic.command(f"ip -n {nic.CLIENT} link set side1 up")
        download = Download(server.port, "/large.bin")
        download.read(100 * KIB)
        with Counted() as counted:
            nic.command("ip route add 10.9.0.2/32 dev side0 src 10.9.0.1")
            download.read(3 * MIB)
            nic.command("ip route delete 10.9.0.2/32 dev side0")
            assert download.body() == (root / "large.bin").read_bytes()
        # Both ways were used; what went the other one left the NIC behind, which asked to be brought into step.
        assert 0 < counted.nic["tx_tls_encrypted_bytes"] < 6 * MIB
    finally:
        nic.command("ip link delete side0")


def test_another_mtu_during_a_download(server: Running, root: Path) -> None:
    download = Download(server.port, "/large.bin")
    try:
        download.read(100 * KIB)
        nic.command(f"ip link set {DEVICE} mtu 1300")
        download.read(3 * MIB)
        nic.command(f"ip link set {DEVICE} mtu 1500")
        assert download.body() == (root / "large.bin").read_bytes()
    finally:
        nic.command(f"ip link set {DEVICE} mtu 1500")


def http2_client(port: int, window: int | None = None, buffer: int | None = None) -> Http2Client:
    """The caller closes its socket."""
    context = client_context(newest=ssl.TLSVersion.TLSv1_2)
    context.set_alpn_protocols(["h2"])
    return Http2Client(tls_socket(port, context, buffer), window)


def test_http2_over_the_nic(server: Running, root: Path) -> None:
    lines = len(server.log)
    with Counted() as counted:
        client = http2_client(server.port)
        with client.socket:
            large = client.ask("/large.bin")
            while not client.streams[large].body:
                assert client.receive()
            streams = {client.ask(f"/{name}.bin"): name for name in ("small", "medium", "small")}
            parts = client.ask("/large.bin", ("range", "bytes=5-40000,100000-200000,-1"))
            client.wait_for(*streams, parts)
            # None of them waited for the large one.
            assert not client.streams[large].ended
            for stream, name in streams.items():
                assert client.streams[stream].answer().body == (root / f"{name}.bin").read_bytes()
            content = (root / "large.bin").read_bytes()
            body = client.streams[parts].answer().body
            for part in (content[5:40001], content[100000:200001], content[-1:]):
                assert b"\r\n\r\n" + part + b"\r\n--" in body
            client.wait_for(large)
            assert client.streams[large].answer().body == content
    assert " ktls tx=device rx=device alpn=h2" in path_of(server, lines)
    assert counted.nic["tx_tls_encrypted_bytes"] > 6 * MIB
    assert counted.kernel["TlsTxDevice"] == 1


def test_http2_by_curl_with_loss_and_a_disk(server: Running, root: Path, tmp_path: Path) -> None:
    """Streams of one connection, whose files have to come from the disk."""
    url = f"https://{ADDRESS}:{server.port}"
    names = ("large", "medium", "small")
    others = [part for name in names for part in ("-o", str(tmp_path / name), f"{url}/{name}.bin")]
    drop_page_cache()
    with parameter("drop_every", 50), Counted() as counted:
        curl(server.port, "/large.bin", *TLS12, "--http2", "-Z", *others, "-o", str(tmp_path / "again"))
    for name, arrived in (*zip(names, names, strict=True), ("large", "again")):
        assert (tmp_path / arrived).read_bytes() == (root / f"{name}.bin").read_bytes()
    assert counted.kernel["TlsTxDevice"] == 1
    assert counted.nic["tx_tls_ooo"] > 0
    assert counted.nic["tx_tls_drop_no_sync_data"] == 0


def test_an_http2_file_that_shrinks(server: Running, root: Path) -> None:
    """Between frames its stream is reset; within a frame nothing can be said, and the connection ends."""
    shrinking, content = root / "shrinking.bin", (root / "large.bin").read_bytes()
    shrinking.write_bytes(content)
    client = http2_client(server.port, window=200_000)
    with client.socket:
        stream = client.ask("/shrinking.bin")
        while len(client.streams[stream].body) < 200_000:
            assert client.receive()
        os.truncate(shrinking, 200_000)
        client.http.increment_flow_control_window(MIB, stream)
        client.flush()
        client.wait_for(stream)
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert client.get("/small.bin").body == (root / "small.bin").read_bytes()
    shrinking.write_bytes(content)
    lines = len(server.log)
    client = http2_client(server.port, window=1 << 30, buffer=65536)
    with client.socket:
        stream = client.ask("/shrinking.bin")
        while not client.streams[stream].body:
            assert client.receive()
        os.truncate(shrinking, 0)
        # No close_notify.
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            client.read_to_end()
        received = client.streams[stream]
        assert not received.ended
        assert received.body == content[: len(received.body)]
    server.wait_for_line("cut off: the file shrank while it was sent", since=lines)


def test_a_client_that_updates_its_keys_is_the_kernels(server: Running, root: Path) -> None:
    """TLS 1.3 only has it, which no NIC takes: docs/key-update.md holds as without one."""
    arguments = ["openssl", "s_client", "-connect", f"{ADDRESS}:{server.port}", "-tls1_3", "-quiet", "-no_ign_eof"]
    lines = len(server.log)
    request = b"GET /small.bin HTTP/1.1\r\nHost: nic\r\n\r\n"
    with subprocess.Popen(
        nic.in_namespace(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(request)
        client.stdin.flush()
        assert client.stdout.read(100 * KIB).startswith(b"HTTP/1.1 200 ")
        # s_client looks for a command at the start of each read: two writes must not become one.
        client.stdin.write(b"K\n")
        client.stdin.flush()
        time.sleep(0.5)
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(request)
            client.stdin.close()
        rest = client.stdout.read()
    assert " ktls tx=software " in path_of(server, lines)
    # Answered whole, and then closed, or closed at once.
    body = (root / "small.bin").read_bytes()
    assert rest.count(b"HTTP/1.1 200 ") == 0 or rest.endswith(body)


@pytest.mark.parametrize("protocol", ["--http1.1", "--http2"])
def test_the_server_only_calls_sendfile(server: Running, root: Path, tmp_path: Path, protocol: str) -> None:
    trace, lines = tmp_path / "trace", len(server.log)
    calls = "trace=read,readv,pread64,preadv,preadv2,mmap,sendfile"
    arguments = ["strace", "-ff", "-y", "-o", str(trace), "-e", calls, "-p", str(server.process.pid)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        assert " attached" in tracer.stderr.readline()
        assert curl(server.port, "/medium.bin", *TLS12, protocol).stdout == (root / "medium.bin").read_bytes()
        tracer.terminate()
        tracer.communicate(timeout=60)
    assert " ktls tx=device" in path_of(server, lines)
    traced = [line for part in tmp_path.glob("trace.*") for line in part.read_text().splitlines()]
    of_file = [line for line in traced if "/medium.bin>" in line]
    # A byte here and there shows whether a disk has to be waited for.
    sent = [line for line in of_file if not re.match(r"preadv2\(.*iov_len=1}\], 1, \d+, RWF_NOWAIT\) = 1$", line)]
    assert sent
    assert all(line.startswith("sendfile(") for line in sent), sent


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with mounts: of ext4 with a file that has fs-verity, sealed.bin, and one that anybody may write,
    plain.bin; of file systems that nobody can write, with sealed.bin."""
    images, root = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("sealed")
    (images / "content").mkdir()
    (images / "content/sealed.bin").write_bytes(os.urandom(3 * MIB))
    with (images / "ext4").open("wb") as file:
        file.truncate(16 * MIB)
    nic.command(f"mke2fs -q -t ext4 -b 4096 -O verity {images}/ext4")
    nic.command(f"mksquashfs {images}/content {images}/squashfs -quiet -no-progress")
    nic.command(f"mkfs.erofs {images}/erofs {images}/content")
    nic.command("modprobe -a loop squashfs erofs")
    with contextlib.ExitStack() as stack:
        for kind in ("ext4", *NEVER_WRITTEN):
            (root / kind).mkdir()
            nic.command(f"mount -t {kind} -o loop {images}/{kind} {root}/{kind}")
            stack.callback(nic.command, f"umount {root}/{kind}")
        for name in ("sealed.bin", "plain.bin"):
            (root / "ext4" / name).write_bytes(os.urandom(3 * MIB))
        with (root / "ext4/sealed.bin").open("rb") as file:
            fcntl.ioctl(file, FS_IOC_ENABLE_VERITY, struct.pack("=III", 1, 1, 4096).ljust(128, b"\0"))
        yield root


@pytest.fixture(scope="module")
def for_nics(sealed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server without privileges, as a service is: these kernels do not tell it who encrypts."""
    state = tmp_path_factory.mktemp("for-nics")
    config = state / "nic.toml"
    config.write_text("tls_policy = 'nic'\nzerocopy_sendfile = true\n")
    options = ("--config", str(config), "--log-level", "debug")
    wrapper = ("setpriv", "--bounding-set", "-net_admin")
    with serving(sealed, *options, state=state, listen=LISTEN, wrapper=wrapper) as running:
        yield running


def test_the_policy_for_nics_prefers_tls_1_2_only_there(for_nics: Running) -> None:
    def negotiated(*chosen: str, host: str = ADDRESS) -> tuple[str, int]:
        """What the log says, and how many connections the NIC has taken."""
        lines, port = len(for_nics.log), for_nics.ports[LISTEN.index(f"{host}:0")]
        with Counted() as counted:
            assert len(curl(port, "/ext4/sealed.bin", "-r", "0-999", *chosen, host=host).stdout) == 1000
        return path_of(for_nics, lines), counted.kernel["TlsTxDevice"]

    assert f"; NIC {DEVICE} offers to encrypt" in for_nics.wait_for_line("^kTLS: ")
    preferred = " TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256 ktls tx=software or device rx=software or device"
    for chosen, host in (((), ADDRESS), ((), f"[{ADDRESS_6}]"), (TLS12, ADDRESS)):
        line, taken = negotiated(*chosen, host=host)
        assert preferred in line
        assert taken == 1
    # Clients that lack what TLS 1.2 and the NIC need get TLS 1.3.
    for lacking in (("--tlsv1.3",), ("--ciphers", "ECDHE-ECDSA-CHACHA20-POLY1305"), ("--curves", "X25519")):
        line, taken = negotiated(*lacking)
        assert " TLSv1.3 TLS_AES_128_GCM_SHA256 " in line
        assert taken == 0
    # Loopback has no NIC.
    lines = len(for_nics.log)
    assert get(for_nics.ports[2], "/ext4/sealed.bin").status == 200
    assert " TLSv1.3 " in path_of(for_nics, lines)
    assert not [line for line in for_nics.log if IDLE in line]


@pytest.mark.parametrize("kind", ["ext4", *NEVER_WRITTEN])
def test_zero_copy_is_for_files_that_never_change(for_nics: Running, sealed: Path, kind: str) -> None:
    assert for_nics.wait_for_line("zerocopy_sendfile: NICs read files with fs-verity, ")
    path = f"/{kind}/sealed.bin"
    content = (sealed / path[1:]).read_bytes()
    with pytest.raises(OSError, match=r"not permitted|Read-only"):
        (sealed / path[1:]).open("r+b")
    with parameter("drop_every", 20), Counted() as counted:
        download = Download(for_nics.port, path)
        download.read(100 * KIB)
        assert "zc_ro_tx" in nic.command("ss -tie state established")
        assert download.body() == content
        client = http2_client(for_nics.port, buffer=65536)
        with client.socket:
            # Headers of frames are copied, in the same records.
            stream, other = client.ask(path), client.ask("/ext4/plain.bin", ("range", "bytes=0-99999"))
            while not client.streams[stream].body:
                assert client.receive()
            client.wait_for(stream, other)
            assert client.streams[stream].answer().body == content
            assert client.streams[other].answer().body == (sealed / "ext4/plain.bin").read_bytes()[:100_000]
            assert client.get(path, ("range", "bytes=0-99999")).body == content[:100_000]
            assert "zc_ro_tx" in nic.command("ss -tie state established")
    assert counted.kernel["TlsTxDevice"] == 2
    assert counted.nic["tx_tls_ooo"] > 0


def test_nghttp(for_nics: Running, sealed: Path) -> None:
    url = f"https://{ADDRESS}:{for_nics.port}/ext4"
    with Counted() as counted:
        command = nic.in_namespace(["nghttp", "--no-verify-peer", f"{url}/plain.bin"])
        done = subprocess.run(command, check=True, capture_output=True)
    assert done.stdout == (sealed / "ext4/plain.bin").read_bytes()
    assert counted.kernel["TlsTxDevice"] == 1


def test_writing_in_place_spoils_no_record_that_is_sent_again(for_nics: Running, sealed: Path) -> None:
    """The kernel has made its copy of a file that may be written."""
    before = (sealed / "ext4/plain.bin").read_bytes()
    with parameter("drop_every", 20), Counted() as counted:
        download = Download(for_nics.port, "/ext4/plain.bin")
        download.read(100 * KIB)
        assert "zc_ro_tx" not in nic.command("ss -tie state established")
        with (sealed / "ext4/plain.bin").open("r+b") as file:
            file.write(bytes(len(before)))
        body = download.body()
    assert counted.nic["tx_tls_ooo"] > 0
    assert len(body) == len(before)
    # Old bytes, then those that were written, and nothing else.
    kept = len(body.rstrip(b"\0"))
    assert kept >= 100 * KIB
    assert body[:kept] == before[:kept]


def test_the_nic_is_free_again(server: Running) -> None:
    """Every key that was given to it has been taken back, once connections are gone."""
    assert eventually(lambda: statistics()["tx_tls_ctx"] == statistics()["tx_tls_del"])
    assert eventually(lambda: statistics()["rx_tls_ctx"] == statistics()["rx_tls_del"])
