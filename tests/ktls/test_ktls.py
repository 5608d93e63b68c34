"""kTLS, proven by the kernel's own evidence: tls_stat, strace, and bytes that match. Needs the tls ULP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktlsd.connection.page_cache import STRIDE
from ktlsd.connection.transport import SMALL
from ktlsd.ssl_ffi import Context, Library
from ktlsd.tls.ktls import Direction, Offload
from ktlsd.tls.ktls_probe import loopback_session
from ktlsd.tls.tls_stat import ask_kernel, counters
from tests.serving import Running, client_context, connect, counts, exchange, get, parse, run_to_end, serving
from tests.vm.plugin import EVERY_MACHINE

pytestmark = pytest.mark.ktls

MIB = 1024 * 1024
PART, QUARTER, GIBIBYTE = 32 * MIB, 256 * MIB, 1024 * MIB
CIPHERS = {
    ("TLSv1.3", "TLS_AES_128_GCM_SHA256"),
    ("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
    ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256"),
    ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ("TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305"),
}
# A GiB takes some minutes in an emulated machine: one cipher has a quarter of it, in one machine.
LONGEST = ("debian13", "TLS_AES_128_GCM_SHA256")


def size_for(cipher: str) -> int:
    """Bytes of a long download."""
    machine = os.environ.get("KTLSD_VM", "")
    if EVERY_MACHINE or not machine:
        return GIBIBYTE
    return QUARTER if (machine, cipher) == LONGEST else PART


def curl_options(protocol: str, cipher: str) -> list[str]:
    if protocol == "TLSv1.3":
        return ["--tlsv1.3", "--tls13-ciphers", cipher]
    return ["--tls-max", "1.2", "--ciphers", cipher]


def counter(name: str) -> int:
    values = counters()
    assert values is not None
    return values[name]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "small.txt").write_text("small")
    (folder / "medium.bin").write_bytes(os.urandom(5 * MIB + 1))
    return folder


def with_cbc(folder: Path) -> tuple[str, str]:
    """The option for a configuration whose policy has ciphers that kTLS never carries."""
    config = folder / "compatible.toml"
    config.write_text("tls_policy = 'compatible'\n")
    return "--config", str(config)


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("state")
    with serving(root, *with_cbc(state), "--log-level", "debug", state=state) as running:
        yield running


@pytest.fixture(scope="module")
def long_file(root: Path) -> Iterator[Path]:
    """A file of up to 1 GiB in which every MiB differs, so that a part in the wrong place shows."""
    block = os.urandom(MIB)
    path = root / "long.bin"
    with open(path, "wb") as file:
        for index in range(max(size_for(cipher) for _, cipher in CIPHERS) // MIB):
            file.write(index.to_bytes(8) + block[8:])
    yield path
    path.unlink()


def test_each_connection_is_one_more_in_the_kernels_count(server: Running) -> None:
    for _ in range(5):
        before = counter("TlsTxSw")
        assert get(server.port, "/small.txt").body == b"small"
        assert counter("TlsTxSw") == before + 1
    print("\n".join(f"{name} {value}" for name, value in (counters() or {}).items()))


@pytest.mark.parametrize(("protocol", "cipher"), sorted(CIPHERS))
def test_a_long_download_arrives_whole(server: Running, long_file: Path, protocol: str, cipher: str) -> None:
    size = size_for(cipher)
    before, lines = counter("TlsTxSw"), len(server.log)
    started = time.monotonic()
    part = [] if size == long_file.stat().st_size else ["-r", f"0-{size - 1}"]
    curl = ["curl", "-ksS", "--http1.1", "-w", "%{stderr}%{size_download}", *curl_options(protocol, cipher), *part]
    curl.append(server.url("/long.bin"))
    with subprocess.Popen(curl, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as download:
        subprocess.run(["cmp", f"--bytes={size}", "-", long_file], stdin=download.stdout, check=True)
        assert download.communicate()[1] == str(size)
    assert download.returncode == 0
    assert counter("TlsTxSw") == before + 1
    assert f"{protocol} {cipher} ktls tx=software" in server.wait_for_line(" ktls tx=", since=lines)
    print(f"{protocol} {cipher}: {size} bytes in {time.monotonic() - started:.0f} s, each as in the file")


class ByPieces:
    """A TLS 1.2 client, which the kernel of the server also receives from, that gives records out of its hand."""

    def __init__(self, port: int) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context(newest=ssl.TLSVersion.TLSv1_2)
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._until_done(self._tls.do_handshake)

    def _until_done(self, step: Callable[[], bytes | None]) -> bytes:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                done = None
                self.socket.sendall(self._outgoing.read())
                self._incoming.write(self.socket.recv(65536))
            else:
                self.socket.sendall(self._outgoing.read())
                return done or b""

    def record(self, data: bytes) -> bytes:
        """Bytes as a record that is not sent yet."""
        self._tls.write(data)
        return self._outgoing.read()

    def answer(self) -> bytes:
        return self._until_done(lambda: self._tls.read(65536))


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spent_seconds(process: int, seconds: float) -> float:
    """Processor time of a process within so many seconds."""
    began = processor_seconds(process)
    time.sleep(seconds)
    return processor_seconds(process) - began


@pytest.mark.parametrize("before", [b"", b"GET /small.txt HTTP/1.1\r\n"], ids=["idle", "within a head"])
def test_a_part_of_a_record_keeps_no_processor_busy(server: Running, before: bytes) -> None:
    """Linux 6.0 to 6.4 calls a socket readable that has a part of a record."""
    lines = len(server.log)
    client = ByPieces(server.port)
    with client.socket as connection:
        assert " rx=software" in server.wait_for_line(" ktls tx=", since=lines)
        head = b"GET /small.txt HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(2):
            connection.sendall(client.record(head))
            assert client.answer().startswith(b"HTTP/1.1 200 ")
        if before:
            connection.sendall(client.record(before))
            time.sleep(0.5)
        record = client.record(head.removeprefix(before))
        connection.sendall(record[:20])
        time.sleep(0.5)
        # On a busy host the emulated machine's clock also counts what other processes took.
        assert any(spent_seconds(server.process.pid, 2) < 0.5 for _ in range(3))
        connection.sendall(record[20:])
        assert client.answer().startswith(b"HTTP/1.1 200 ")
        connection.sendall(client.record(head))
        assert client.answer().startswith(b"HTTP/1.1 200 ")


def test_the_kernel_reads_the_file_and_the_server_does_not(root: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    size = (root / "medium.bin").stat().st_size
    # A file for each thread: in one file, calls of two threads cut each other's lines in two.
    wrapper = ["strace", "-ff", "-y", "-o", str(trace), "-e", "trace=desc,network"]
    with serving(root, state=tmp_path / "state", wrapper=wrapper) as server:
        assert get(server.port, "/medium.bin").body == (root / "medium.bin").read_bytes()
        # Terminating strace would leave its child behind.
        subprocess.run(["pkill", "-TERM", "-P", str(server.process.pid)], check=True)
        server.process.wait(timeout=60)
    lines = [line for part in tmp_path.glob("trace.*") for line in part.read_text().splitlines()]
    calls = [line for line in lines if "/medium.bin>" in line]
    sent = 0
    touched = 0
    for call in calls:
        if match := re.match(r"sendfile\(\d+<socket:\[\d+\]>, \d+</.*/medium\.bin>, .* = (\d+)$", call):
            sent += int(match[1])
        elif match := re.match(r"preadv2\(.*iov_len=1}\], 1, \d+, RWF_NOWAIT\) = 1$", call):
            # The residency probe: one byte, only if it is in memory.
            touched += 1
        else:
            assert re.match(r"(newfstatat|fstat|statx|close|openat2|sendfile\(.*EAGAIN)", call), call
    print(f"sendfile carried {sent} bytes; {touched} one-byte probes; {len(calls)} calls on the file")
    assert sent == size
    assert 0 < touched <= 2 * (size // STRIDE + 2)


@pytest.mark.parametrize(
    ("count", "call"),
    [
        # What is small goes out in one write, what is larger by sendfile after a head that waits for it.
        (1000, r'sendto\(\d+, "HTTP/1\.1 206.*, 1\d{3}, 0, NULL'),
        (SMALL + 1, r'sendto\(\d+, "HTTP/1\.1 206.*MSG_MORE'),
    ],
)
def test_head_and_file_share_the_first_record(root: Path, tmp_path: Path, count: int, call: str) -> None:
    trace = tmp_path / "trace"
    wrapper = ["strace", "-ff", "-o", str(trace), "-e", "trace=sendto,sendfile"]
    with serving(root, state=tmp_path / "state", wrapper=wrapper) as server:
        client = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-msg", "-ign_eof"]
        last = str(count - 1).encode()
        request = b"GET /medium.bin HTTP/1.1\r\nHost: a\r\nRange: bytes=0-%b\r\nConnection: close\r\n\r\n" % last
        shown = subprocess.run(client, input=request, capture_output=True, check=False).stdout.decode("latin-1")
        subprocess.run(["pkill", "-TERM", "-P", str(server.process.pid)], check=True)
        server.process.wait(timeout=60)
    assert any(re.search(call, part.read_text()) for part in tmp_path.glob("trace.*"))
    # Received records of application data: their header gives type 23 and the length. One carries head and body
    # (`count` bytes and more); the others are the tickets before and close_notify after.
    headers = re.findall(r"<<< TLS 1\.\d, RecordHeader.*\n\s+17 03 03 (\w\w) (\w\w)", shown)
    lengths = [int(high + low, 16) for high, low in headers]
    assert len([length for length in lengths if length > count + 200]) == 1, lengths


def test_a_download_ends_with_its_client(tmp_path: Path) -> None:
    """Linux takes records of a file forever when the client has reset the connection, and keeps them in memory."""
    (tmp_path / "root").mkdir()
    with open(tmp_path / "root/large.bin", "wb") as file:
        file.truncate(8 * PART)
    options = ("--metrics-listen", "127.0.0.1:0", "--log-level", "debug")
    with serving(tmp_path / "root", *options, state=tmp_path) as server:
        with connect(server.port) as connection:
            connection.sendall(b"GET /large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65536)
            # FIN, and a reset when more comes.
            connection.shutdown(socket.SHUT_RDWR)
        assert server.wait_for_line(" disconnected: ")
        assert counts(server, "ktlsd_sent_bytes_total").get("sendfile", 0) < PART


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_64_downloads_through_a_bad_network_arrive_whole(root: Path, tmp_path: Path) -> None:
    name = "ktlsd-netem"
    run = ["ip", "netns", "exec", name]
    setup = f"""
        ip netns add {name}
        ip link add ktlsd0 type veth peer name ktlsd1 netns {name}
        ip address add 10.111.0.1/24 dev ktlsd0
        ip link set ktlsd0 up
        ip -n {name} address add 10.111.0.2/24 dev ktlsd1
        ip -n {name} link set ktlsd1 up
        ip -n {name} link set lo up
        tc qdisc add dev ktlsd0 root netem delay 20ms 5ms loss 1% limit 20000
        ip netns exec {name} tc qdisc add dev ktlsd1 root netem delay 20ms 5ms loss 1% limit 20000
    """
    content = (root / "medium.bin").read_bytes()[:MIB]
    (root / "part.bin").write_bytes(content)
    try:
        for line in setup.strip().splitlines():
            subprocess.run(line.split(), check=True)
        options = ("--log-level", "debug")
        # On a busy host 64 handshakes take an emulated machine longer than the 10 s that each has by default.
        with serving(
            root,
            *options,
            state=tmp_path / "state",
            listen=["10.111.0.1:0"],
            KTLSD_LIMITS_HANDSHAKE_SECONDS="300",
        ) as server:
            before = counter("TlsTxSw")
            url = f"https://10.111.0.1:{server.port}/part.bin"
            each = [part for index in range(64) for part in (url, "-o", str(tmp_path / f"{index}.out"))]
            subprocess.run(
                [*run, "curl", "-ks", "--http1.1", "--parallel", "--parallel-immediate", "--parallel-max", "64", *each],
                check=True,
                timeout=600,
            )
            connections = [line for line in server.log if " ktls tx=" in line]
            assert len(connections) > 60
            assert all(" ktls tx=software" in line for line in connections)
            assert counter("TlsTxSw") == before + len(connections)
            for index in range(64):
                assert (tmp_path / f"{index}.out").read_bytes() == content
            lost = subprocess.check_output(["tc", "-s", "qdisc", "show", "dev", "ktlsd0"], text=True)
            dropped = re.search(r"dropped (\d+)", lost)
            assert dropped is not None
            assert int(dropped[1]) > 0
            print(f"64 downloads of 1 MiB, {dropped[1]} packets lost on the server's side alone")
    finally:
        subprocess.run(["ip", "link", "delete", "ktlsd0"], check=False)
        subprocess.run(["ip", "netns", "delete", name], check=False)


CBC_CLIENT = ["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES128-SHA256"]


def test_a_cbc_only_client_gets_the_same_bytes_from_user_space(server: Running, root: Path, tmp_path: Path) -> None:
    before, lines = counter("TlsTxSw"), len(server.log)
    output = tmp_path / "output"
    curl = ["curl", "-ksS", "--http2", *CBC_CLIENT, "-w", "%{http_version}", "-o", str(output)]
    done = subprocess.run([*curl, server.url("/medium.bin")], check=True, capture_output=True, text=True)
    # HTTP/2 refuses such ciphers (RFC 9113 appendix A).
    assert done.stdout == "1.1"
    assert output.read_bytes() == (root / "medium.bin").read_bytes()
    assert counter("TlsTxSw") == before
    assert "ktls tx=none (kTLS carries no such cipher)" in server.wait_for_line("AES128-SHA256 ktls", since=lines)


@pytest.mark.parametrize("protocol", ["-tls1_2", "-tls1_3"])
def test_a_client_with_max_fragment_length_gets_the_same_bytes(server: Running, root: Path, protocol: str) -> None:
    before, lines = counter("TlsTxSw"), len(server.log)
    client = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", protocol, "-maxfraglen", "1024", "-quiet"]
    request = b"GET /medium.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    received = subprocess.run(client, input=request, capture_output=True, check=False).stdout
    assert parse(received)[0].body == (root / "medium.bin").read_bytes()
    assert counter("TlsTxSw") == before
    line = server.wait_for_line(" ktls tx=", since=lines)
    assert "tx=none (the client negotiated max_fragment_length)" in line


def test_require_serves_with_ktls_and_closes_a_connection_without(root: Path, tmp_path: Path) -> None:
    with serving(root, *with_cbc(tmp_path), "--ktls", "require", state=tmp_path / "state") as server:
        assert get(server.port, "/small.txt").body == b"small"
        curl = subprocess.run(["curl", "-ks", "--http1.1", *CBC_CLIENT, server.url("/small.txt")], check=False)
        assert curl.returncode == 52  # CURLE_GOT_NOTHING
        server.wait_for_line("closed: --ktls require, and sends are not offloaded: kTLS carries no such cipher")
        assert get(server.port, "/small.txt").body == b"small"


def test_off_keeps_the_kernel_out(root: Path, tmp_path: Path) -> None:
    with serving(root, "--ktls", "off", state=tmp_path / "state") as server:
        before = counter("TlsTxSw"), counter("TlsRxSw")
        assert get(server.port, "/medium.bin").body == (root / "medium.bin").read_bytes()
        assert (counter("TlsTxSw"), counter("TlsRxSw")) == before
        server.wait_for_line(r"ktls tx=none \(switched off by --ktls off\) rx=none \(switched off by --ktls off\)")


def test_sock_diag_tells_software_from_none(tmp_path: Path) -> None:
    from ktlsd.tls.certificate import localhost_certificate

    library = Library()
    certificate = str(localhost_certificate(tmp_path))
    for ktls in (True, False):
        server, client = Context(library, ktls=ktls), Context(library, server=False, ktls=False)
        server.use_certificate(certificate, certificate)
        with loopback_session(server, client) as (accepted, _, sock):
            facts = accepted.facts()
            engaged = {Direction.TX: facts.ktls_tx, Direction.RX: facts.ktls_rx}
            kinds = {direction: Offload.SOFTWARE for direction, on in engaged.items() if on}
            assert bool(kinds) is ktls
            told = ask_kernel(sock)
            assert {direction: kind for direction, kind in told.items() if kind is not Offload.NONE} == kinds
        server.close()
        client.close()


def test_the_doctor_finds_it_all(tmp_path: Path) -> None:
    ended = run_to_end("doctor", "--json", state=tmp_path)
    report = json.loads(ended.stdout)
    assert ended.returncode == 0
    assert report["sends_offloaded"] is True
    assert all(link["ok"] for link in report["links"] if link["needed"]), report["links"]
    rows = {(row["protocol"], row["cipher"]): row for row in report["ciphers"]}
    assert {key for key, row in rows.items() if row["tx"] == "software"} >= CIPHERS
    modern = Library().version >= (3, 2, 0)
    for key in CIPHERS:
        received = "none" if key[0] == "TLSv1.3" and not modern else "software"
        assert rows[key]["rx"] == received, key
        assert rows[key]["rx_reason"] == (None if received == "software" else "TLS 1.3 RX needs OpenSSL 3.2")
    zero_copy = next(link for link in report["links"] if link["name"] == "zero-copy sendfile")
    assert not zero_copy["ok"]
    assert zero_copy["found"] == "the kernel has it, but no interface encrypts"
    assert report["nics"] == []
    assert report["counters"]["TlsTxSw"] > 0
    text = run_to_end("doctor", state=tmp_path)
    assert text.returncode == 0
    assert text.stdout.endswith("sends are offloaded to the kernel\n")
    print(text.stdout)


@contextlib.contextmanager
def without_tls_module() -> Iterator[None]:
    """Unload the tls module, and keep the kernel from loading it again when asked for the ULP."""
    loader = Path("/proc/sys/kernel/modprobe")
    before = loader.read_text()
    loader.write_text("/bin/false\n")
    try:
        deadline = time.monotonic() + 60
        # A socket that is still closing holds the module.
        while subprocess.run(["rmmod", "tls"], check=False).returncode != 0:
            assert time.monotonic() < deadline, "the tls module stays in use"
            time.sleep(0.5)
        yield
    finally:
        loader.write_text(before)
        subprocess.run(["modprobe", "tls"], check=True)


@pytest.mark.skipif(not os.environ.get("KTLSD_VM"), reason="unloading the tls module would disturb this machine")
def test_without_the_module_each_part_says_so(root: Path, tmp_path: Path) -> None:
    with without_tls_module():
        doctor = run_to_end("doctor", "--json", state=tmp_path)
        assert doctor.returncode == 1
        report = json.loads(doctor.stdout)
        link = next(link for link in report["links"] if link["name"] == "tls ULP")
        assert not link["ok"]
        assert "modprobe tls" in link["advice"]
        assert {row["tx_reason"] for row in report["ciphers"] if not row["error"]} == {"the kernel has no tls ULP"}
        refused = run_to_end("--root", str(root), "--ktls", "require", state=tmp_path)
        assert refused.returncode == 2
        assert "the kernel has no tls ULP" in refused.stderr.splitlines()[-1]
        with serving(root, state=tmp_path) as server:
            assert get(server.port, "/medium.bin").body == (root / "medium.bin").read_bytes()
            server.wait_for_line(r"ktls tx=none \(the kernel has no tls ULP\)")
    with serving(root, state=tmp_path) as server:
        assert get(server.port, "/small.txt").body == b"small"
        server.wait_for_line("ktls tx=software")


# With OpenSSL 3.2 and later a leak was suspected (rust-openssl pull request 2203).
@pytest.mark.ktls(machine="debian13")
def test_handshakes_leave_nothing_behind(server: Running) -> None:
    context = client_context()

    def handshakes(count: int) -> None:
        for _ in range(count):
            # The server's close_notify too, so that there is never more than one connection.
            connect(server.port, context).unwrap().close()

    # A few hundred only, since one takes the emulated machine 0.2 s; test_memory.py makes ten thousand without kTLS.
    handshakes(100)
    before, files = server.resident_kib(), server.open_files()
    handshakes(300)
    assert get(server.port, "/small.txt").body == b"small"
    grown = server.resident_kib() - before
    print(f"300 handshakes with kTLS: RssAnon from {before} by {grown} KiB")
    # An SSL object is 20 KiB and more.
    assert grown < 512
    assert server.open_files() <= files + 1


def test_pipelined_requests_over_ktls_keep_their_order(server: Running, root: Path) -> None:
    targets = [b"/medium.bin", b"/small.txt", b"/small.txt", b"/medium.bin", b"/small.txt"]
    requests = [b"GET %b HTTP/1.1\r\nHost: a\r\n" % target for target in targets]
    requests[-1] += b"Connection: close\r\n"
    data = exchange(server.port, b"\r\n".join([*requests, b""]))
    bodies = []
    while data:
        answer, data = parse(data)
        bodies.append(answer.body)
    assert bodies == [(root / target[1:].decode()).read_bytes() for target in targets]
