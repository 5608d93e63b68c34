"""Ways to send a file in HTTP/2 frames over kTLS, side by side: `python -m bench.frame_ways`, on a kernel with kTLS.

Strategy: the sender is a process of its own with one connection for each sample, so its user and system time are those
of the way; the receiver drops the ciphertext in its kernel (MSG_TRUNC, tcp(7)). Before the first sample each way sends
a part of the file that is decrypted and compared, and its TLS records are counted.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import platform
import resource
import select
import socket
import ssl
import statistics
import struct
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Final, NamedTuple

from bench import wire
from bench.machine import has_ktls
from bench.site import Site
from ktlsd.openssl.results import Wait
from ktlsd.ssl_ffi import Connection, Context, Library

HEADER: Final = struct.Struct(">IBI")
RECORD: Final = 16384
BATCH: Final = 262144
MEBIBYTE: Final = 1 << 20
CHECKED: Final = MEBIBYTE + 12345
"""Bytes of the file that are compared."""
END_SECONDS: Final = 60.0


class Frame(NamedTuple):
    """A DATA frame of the file: `size` bytes from `offset` on."""

    offset: int
    size: int

    @property
    def header(self) -> bytes:
        return HEADER.pack(self.size << 8, 0, 1)


class Sender:
    """One connection that sends a file."""

    def __init__(self, tls: Connection, sock: socket.socket, descriptor: int, size: int) -> None:
        self.tls, self.socket, self.descriptor, self.size = tls, sock, descriptor, size
        self.calls = 0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLOUT)

    def wait(self) -> None:
        self._poll.poll()

    def frames(self, batch: int, frame: int) -> Iterator[list[Frame]]:
        """Frames whose headers and bytes are `frame` bytes, in batches of at most `batch` bytes."""
        offset, payload = 0, frame - HEADER.size
        while offset < self.size:
            found = []
            for _ in range(max(1, batch // frame)):
                count = min(payload, self.size - offset)
                if count:
                    found.append(Frame(offset, count))
                offset += count
            yield found

    def send(self, data: memoryview | bytes, flags: int = 0) -> None:
        """All of it."""
        left = memoryview(data)
        while left:
            try:
                left = left[self.socket.send(left, flags) :]
            except BlockingIOError:
                self.wait()
            self.calls += 1

    def send_file(self, offset: int, count: int) -> None:
        while count:
            sent = self.tls.sendfile(self.descriptor, offset, count)
            self.calls += 1
            if isinstance(sent, Wait):
                self.wait()
                continue
            offset, count = offset + sent, count - sent

    def send_parts(self, parts: list[memoryview | bytes]) -> None:
        """All of them, by as few calls as the socket allows."""
        while parts:
            try:
                sent = self.socket.sendmsg(parts)
            except BlockingIOError:
                self.wait()
                sent = 0
            self.calls += 1
            done = 0
            while done < len(parts) and sent >= len(parts[done]):
                sent -= len(parts[done])
                done += 1
            del parts[:done]
            if sent:
                parts[0] = memoryview(parts[0])[sent:]


def http1(sender: Sender) -> None:
    """SSL_sendfile of the whole file, as HTTP/1.1 sends it."""
    sender.send_file(0, sender.size)


def pairs(sender: Sender, frame: int = RECORD) -> None:
    """The header with MSG_MORE, and SSL_sendfile of the payload."""
    for [one] in sender.frames(frame, frame):
        sender.send(one.header, socket.MSG_MORE)
        sender.send_file(*one)


def user_space(sender: Sender) -> None:
    """preadv behind prewritten headers, and one SSL_write for each batch, without kTLS."""

    def write(data: memoryview) -> None:
        while sender.tls.write(data) is not None:
            sender.wait()
        sender.calls += 1

    copied(sender, send=write)


def copied(
    sender: Sender, frame: int = RECORD, batch: int = BATCH, send: Callable[[memoryview], None] | None = None
) -> None:
    """preadv behind prewritten headers, and one send for each batch."""
    send = send or sender.send
    memory = memoryview(mmap.mmap(-1, batch))
    for found in sender.frames(batch, frame):
        places, end = [], 0
        for one in found:
            begin = end + HEADER.size
            memory[end:begin] = one.header
            end = begin + one.size
            places.append(memory[begin:end])
        os.preadv(sender.descriptor, places, found[0].offset, os.RWF_NOWAIT)
        sender.calls += 1
        send(memory[:end])


def mapped(sender: Sender, frame: int = RECORD, batch: int = BATCH) -> None:
    """One sendmsg for each batch of headers and mapped pages, which the kernel pins and encrypts in place."""
    memory = memoryview(mmap.mmap(sender.descriptor, sender.size, prot=mmap.PROT_READ))
    sender.calls += 1
    for found in sender.frames(batch, frame):
        parts: list[memoryview | bytes] = []
        for one in found:
            parts += (one.header, memory[one.offset : one.offset + one.size])
        sender.send_parts(parts)


USER_SPACE: Final = "user space"
WAYS: Final[dict[str, Callable[[Sender], None]]] = {
    "http/1.1": http1,
    "pairs": pairs,
    "copied": copied,
    "mapped": mapped,
    "pairs of 64 KiB": lambda sender: pairs(sender, 4 * RECORD),
    "copied of 64 KiB": lambda sender: copied(sender, 4 * RECORD),
    "mapped of 64 KiB": lambda sender: mapped(sender, 4 * RECORD),
    "pairs of 8 KiB": lambda sender: pairs(sender, RECORD // 2),
    USER_SPACE: user_space,
}


class Cost(NamedTuple):
    """Of one download."""

    user: float
    system: float
    """Seconds."""
    calls: int


def serve(library: Library, site: Site, listener: socket.socket, path: str, size: int, way: str) -> Cost:
    """Accept a connection, and send the beginning of a file. Raises RuntimeError without kTLS."""
    context = Context(library, ktls=way != USER_SPACE)
    context.use_certificate(str(site.certificate), str(site.key))
    context.use_no_tickets()
    sock, _ = listener.accept()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        tls = context.connect(sock.fileno())
        while tls.handshake() is not None:
            pass
        if tls.facts().ktls_tx != (way != USER_SPACE):
            raise RuntimeError("kTLS is not as the way needs it")
        # The client's first byte: it is done with the handshake.
        while not isinstance(tls.read(), bytes):
            pass
        sock.setblocking(False)
        sender = Sender(tls, sock, descriptor, size)
        before = resource.getrusage(resource.RUSAGE_SELF)
        WAYS[way](sender)
        after = resource.getrusage(resource.RUSAGE_SELF)
        while tls.shutdown() is not None:
            sender.wait()
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(END_SECONDS)
        sock.recv(1)
        tls.close()
    finally:
        os.close(descriptor)
        sock.close()
    return Cost(after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, sender.calls)


def serve_in_process(pipe: Pipe, site: Site, listener: socket.socket, path: str) -> None:
    """Serve what is asked for on the pipe: (way, size), until None."""
    library = Library()
    while (asked := pipe.recv()) is not None:
        way, size = asked
        pipe.send(serve(library, site, listener, path, size, way))


class Checked(NamedTuple):
    records: Counter[int]
    """Number of TLS records by the size of their content."""
    body: bytes
    frames: Counter[int]
    """Number of frames by the size of their payload."""


def receive(port: int, *, framed: bool) -> Checked:
    """All that is sent, decrypted."""
    client = socket.create_connection(("127.0.0.1", port))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = wire.context().wrap_bio(incoming, outgoing)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.sendall(outgoing.read())
            incoming.write(client.recv(MEBIBYTE))
    tls.write(b"x")
    client.sendall(outgoing.read())
    raw = bytearray()
    while data := client.recv(MEBIBYTE):
        raw += data
    client.close()
    records: Counter[int] = Counter()
    at = 0
    while at + 5 <= len(raw):
        size = int.from_bytes(raw[at + 3 : at + 5])
        # Less the content type and the tag of TLS 1.3.
        records[size - 17] += 1
        at += 5 + size
    incoming.write(bytes(raw))
    incoming.write_eof()
    clear = bytearray()
    while True:
        try:
            data = tls.read(MEBIBYTE)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            break
        if not data:
            break
        clear += data
    if not framed:
        return Checked(records, bytes(clear), Counter())
    body, frames, at = bytearray(), Counter[int](), 0
    while at + HEADER.size <= len(clear):
        size = HEADER.unpack_from(clear, at)[0] >> 8
        at += HEADER.size
        body += clear[at : at + size]
        frames[size] += 1
        at += size
    if at != len(clear):
        raise ValueError(f"the last frame ends {at - len(clear)} bytes too late")
    return Checked(records, bytes(body), frames)


def drop(port: int) -> None:
    """Receive all, and look at nothing."""
    connection = wire.Connection(port, wire.context())
    connection.send(b"x")
    connection.socket.settimeout(None)
    scratch = bytearray(MEBIBYTE)
    while connection.socket.recv_into(scratch, 0, socket.MSG_TRUNC):
        pass
    connection.close()


class Measurement:
    """A folder with a file, and a process that sends it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.site = Site(folder)
        self.site.prepare()
        self.path = folder / "file"
        self.size = size
        block = os.urandom(MEBIBYTE)
        with self.path.open("wb") as file:
            for number in range(size // MEBIBYTE + 1):
                file.write(number.to_bytes(8) + block[8:])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(
            target=serve_in_process, args=(theirs, self.site, self._listener, str(self.path)), daemon=True
        )
        self._process.start()

    def check(self, way: str) -> Checked:
        """Have a part of the file sent, and take it apart."""
        self._pipe.send((way, CHECKED))
        found = receive(self.port, framed=way != "http/1.1")
        self._pipe.recv()
        return found

    def sample(self, way: str) -> Cost:
        self._pipe.send((way, self.size))
        dropping = threading.Thread(target=drop, args=(self.port,))
        dropping.start()
        cost: Cost = self._pipe.recv()
        dropping.join()
        return cost

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()
        self._listener.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.frame_ways", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mebibytes", type=int, default=64, help="of each download")
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder for the file")
    options = parser.parse_args()
    if not has_ktls():
        print("bench.frame_ways: this kernel has no kTLS", file=sys.stderr)
        return 1
    ways = options.ways.split(",")
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="ktlsd-bench-", dir=options.scratch) as folder:
        measurement = Measurement(Path(folder), options.mebibytes * MEBIBYTE)
        print(f"Linux {platform.release()}, {ssl.OPENSSL_VERSION}", flush=True)
        expected = measurement.path.read_bytes()[:CHECKED]
        for way in ways:
            found = measurement.check(way)
            if found.body != expected:
                raise ValueError(f"{way}: other bytes arrived")
            print(f"{way}: records {found.records.most_common(4)}, frames {found.frames.most_common(2)}", flush=True)
        for number in range(-1, options.rounds):
            for way in ways:
                cost = measurement.sample(way)
                if number >= 0:
                    costs[way].append(cost)
                print(f"round {number}: {way}: {cost.user:.3f} {cost.system:.3f}", flush=True)
        measurement.close()
    print(f"\nms for {options.mebibytes} MiB, median (least): user, system, both; calls")
    for way, of_way in costs.items():
        columns = ([cost.user for cost in of_way], [cost.system for cost in of_way], [sum(cost[:2]) for cost in of_way])
        shown = ", ".join(f"{statistics.median(one) * 1e3:.0f} ({min(one) * 1e3:.0f})" for one in columns)
        print(f"{way}: {shown}; {of_way[0].calls}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
