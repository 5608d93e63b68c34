"""The NIC that encrypts (tlsnic/), for tests in the machine: two network namespaces with its wire between them.

Strategy: this process moves into the server's namespace, so that whatever it starts and reads, /proc/net/tls_stat
included, is of that one, and no other test sees a device that ever encrypted. Clients run in the other namespace.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.serving import WAIT_SECONDS, client_context

SERVER, CLIENT = "ktlsd-nic", "ktlsd-nic-client"
DEVICE, PEER = "tlsnic0", "tlsnic1"
ADDRESS, ADDRESS_6 = "10.9.0.1", "fd09::1"
PARAMETERS = Path("/sys/module/tlsnic/parameters")
_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSTATS, _GSSET_INFO, _SFEATURES = 0x1B, 0x1D, 0x37, 0x3B
_STATISTICS, _FEATURES = 1, 4
_STRING = 32
_CLONE_NEWNET = 0x40000000


def command(line: str) -> str:
    done = subprocess.run(line.split(), check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def enter(namespace: str) -> None:
    """Have this thread, and what it starts, in a network namespace; "" for the machine's own."""
    path = f"/run/netns/{namespace}" if namespace else "/proc/1/ns/net"
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns: {path}")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def in_client() -> Iterator[None]:
    enter(CLIENT)
    try:
        yield
    finally:
        enter(SERVER)


def _ethtool(device: str, request: bytes) -> bytes:
    data = array.array("B", request)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, _SIOCETHTOOL, struct.pack("16sP16x", device.encode(), data.buffer_info()[0]))
    return data.tobytes()


def _strings(device: str, which: int) -> list[str]:
    count = int.from_bytes(_ethtool(device, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << which, 0))[16:20], "little")
    text = _ethtool(device, struct.pack("=III", _GSTRINGS, which, count) + bytes(count * _STRING))[12:]
    return [text[at : at + _STRING].rstrip(b"\0").decode() for at in range(0, len(text), _STRING)]


def statistics() -> dict[str, int]:
    """`ethtool -S` of the server's device."""
    names = _strings(DEVICE, _STATISTICS)
    reply = _ethtool(DEVICE, struct.pack("=II", _GSTATS, len(names)) + bytes(8 * len(names)))
    return dict(zip(names, struct.unpack_from(f"={len(names)}Q", reply, 8), strict=True))


def offload(*, tx: bool = True, rx: bool = True) -> None:
    """`ethtool -K` of the server's device."""
    names = _strings(DEVICE, _FEATURES)
    blocks = [[0, 0] for _ in range((len(names) + 31) // 32)]
    for feature, on in (("tls-hw-tx-offload", tx), ("tls-hw-rx-offload", rx)):
        block, bit = divmod(names.index(feature), 32)
        blocks[block][0] |= 1 << bit
        blocks[block][1] |= on << bit
    pairs = [number for block in blocks for number in block]
    _ethtool(DEVICE, struct.pack(f"=II{len(pairs)}I", _SFEATURES, len(blocks), *pairs))


@contextlib.contextmanager
def parameter(name: str, value: int) -> Iterator[None]:
    """Set a parameter of the module for a while."""
    path = PARAMETERS / name
    before = path.read_text()
    path.write_text(str(value))
    try:
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def plugged_in() -> Iterator[None]:
    """Load the module and lay the wire; at the end all is as it was."""
    with contextlib.ExitStack() as stack:
        # The kernel's software for what the NIC does not do needs AES-GCM that never sleeps.
        command("modprobe -a tls gcm ctr ghash_generic tcp_diag")
        command(f"insmod {os.environ['KTLSD_VM_NIC']}")
        stack.callback(command, "rmmod tlsnic")
        for namespace, device, host in ((SERVER, DEVICE, 1), (CLIENT, PEER, 2)):
            command(f"ip netns add {namespace}")
            stack.callback(command, f"ip netns delete {namespace}")
            command(f"ip link set {device} netns {namespace}")
            command(f"ip -n {namespace} address add 10.9.0.{host}/24 dev {device}")
            command(f"ip -n {namespace} address add fd09::{host}/64 dev {device} nodad")
            command(f"ip -n {namespace} link set lo up")
            command(f"ip -n {namespace} link set {device} up")
        enter(SERVER)
        stack.callback(enter, "")
        offload()
        yield


def curl(port: int, path: str, *options: str, host: str = ADDRESS) -> subprocess.CompletedProcess[bytes]:
    """A download by curl in the client's namespace."""
    arguments = ["ip", "netns", "exec", CLIENT, "curl", "-ksS", "--http1.1", "--max-time", "60", *options]
    return subprocess.run([*arguments, f"https://{host}:{port}{path}"], check=True, capture_output=True)


class Download:
    """A download over the wire that goes on only when it is told to."""

    def __init__(self, port: int, path: str, context: ssl.SSLContext | None = None) -> None:
        context = context or client_context(newest=ssl.TLSVersion.TLSv1_2)
        with in_client():
            raw = socket.socket()
        raw.settimeout(WAIT_SECONDS)
        # Small, so that most of the file is still to be sent.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.connect((ADDRESS, port))
        self.socket = context.wrap_socket(raw, suppress_ragged_eofs=False)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: nic\r\nConnection: close\r\n\r\n".encode())
        self._data = bytearray()

    def read(self, least: int) -> None:
        while len(self._data) < least:
            data = self.socket.recv(65536)
            assert data
            self._data += data

    def body(self) -> bytes:
        """All of it."""
        with self.socket:
            while data := self.socket.recv(65536):
                self._data += data
        head, _, body = bytes(self._data).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        return body


def in_namespace(arguments: Sequence[str]) -> list[str]:
    return ["ip", "netns", "exec", CLIENT, *arguments]
