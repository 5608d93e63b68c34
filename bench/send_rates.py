"""Two ways to slow a response down: the kernel's pacing (SO_MAX_PACING_RATE), and turns of sendfile with sleeps.

    python -m bench.send_rates kernel|turns CONNECTIONS BYTES_PER_SECOND SECONDS

Strategy: a child process takes the same file on all connections and notes when each ends; this one sends, and prints
its processor time and the ends. `unshare -n` with `ip link set lo mtu 1500 up` before it gives segments as those of a
network.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import sys
import tempfile
import time
from collections.abc import Sequence

import trio

from ktlsd.http.byte_rate import ByteBucket, Pace

_SO_MAX_PACING_RATE = 47
"""Of asm-generic/socket.h."""


def take(address: tuple[str, int], connections: int) -> Sequence[float]:
    """Read everything that comes; when each connection ended, in rising order."""
    waiting = select.epoll()
    sockets = {}
    for _ in range(connections):
        sock = socket.create_connection(address)
        sock.setblocking(False)
        sockets[sock.fileno()] = sock
        waiting.register(sock, select.EPOLLIN)
    began, ends, memory = time.monotonic(), [], bytearray(1 << 20)
    while len(ends) < connections:
        for descriptor, _ in waiting.poll():
            if not sockets[descriptor].recv_into(memory):
                waiting.unregister(descriptor)
                ends.append(time.monotonic() - began)
    return ends


async def send(sock: socket.socket, file: int, size: int, pace: Pace | None) -> None:
    """Send the file; without a pace, as fast as the socket takes it."""
    sock.setblocking(False)
    offset = 0
    while offset < size:
        now = time.monotonic()
        count, at = (size - offset, now) if pace is None else pace.next_turn(size - offset, now)
        await trio.sleep(max(0, at - now))
        end = offset + count
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        while offset < end:
            try:
                offset += os.sendfile(sock.fileno(), file, offset, end - offset)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    sock.close()


async def send_all(way: str, sockets: Sequence[socket.socket], file: int, size: int, rate: int) -> None:
    """Send the file on all connections."""
    async with trio.open_nursery() as nursery:
        for sock in sockets:
            if way == "kernel":
                sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)
            pace = Pace([ByteBucket(rate, 0, time.monotonic())]) if way == "turns" else None
            nursery.start_soon(send, sock, file, size, pace)


def main(way: str, connections: int, rate: int, seconds: int) -> None:
    """Measure one way."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=connections)
    reading, writing = os.pipe()
    if not (child := os.fork()):
        ends = take(listener.getsockname(), connections)
        os.write(writing, f"ends {ends[0]:.2f} to {ends[-1]:.2f} s".encode())
        os._exit(0)
    sockets = [listener.accept()[0] for _ in range(connections)]
    with tempfile.TemporaryFile() as file:
        file.truncate(rate * seconds)
        before = resource.getrusage(resource.RUSAGE_SELF)
        trio.run(send_all, way, sockets, file.fileno(), rate * seconds, rate)
        os.waitpid(child, 0)
        after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{way}: {used:.2f} s of a core, {os.read(reading, 100).decode()} of {seconds} s")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
