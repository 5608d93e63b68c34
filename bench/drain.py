"""Downloads that cost the client next to nothing: `python -m bench.drain PORT PATH SIZE CONNECTIONS RATE SECONDS`.

Strategy: after handshake and request the ciphertext is dropped in the kernel (MSG_TRUNC, tcp(7)), paced to RATE bytes a
second for each connection, or as fast as it comes for 0. When a whole response must have come, the file is asked for
again. Prints "ready", then and every second the time and the number of bytes so far, and once more at the end, which is
after SECONDS or SIGTERM.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from typing import Final

from bench import wire

TICK_SECONDS: Final = 0.001
TURNS: Final = 10
"""A paced download has its turn in each tenth tick, so that the downloads together cause no bursts."""
LOWER_PRIORITY: Final = 5
QUIET_SECONDS: Final = 0.002
MOST_AT_ONCE: Final = 1 << 20
PACED_BUFFER: Final = 256 * 1024
"""Bytes of receive buffer, so that a slow reader holds its server back instead of having its kernel take it all."""


class _Stopped(Exception):
    pass


class _Download:
    def __init__(self, port: int, path: str, size: int, rate: float) -> None:
        self._connection = wire.Connection(port, wire.context(), PACED_BUFFER if rate else 0)
        self._request, self._size = wire.request(path, {}), size
        self.received, self._total, self._last = 0, 0, 0.0
        self._connection.socket.setblocking(False)
        self._ask()

    def fileno(self) -> int:
        return self._connection.socket.fileno()

    def _ask(self) -> None:
        self.received, self._last = 0, time.monotonic()
        self._connection.send(self._request)

    def drop(self, scratch: memoryview) -> int:
        """Drop up to len(scratch) bytes and give their number; ConnectionError at the end of the connection."""
        try:
            count = self._connection.socket.recv_into(scratch, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            # The ciphertext's length is not known, but it is longer than the file; silence after that is its end.
            if self.received > self._size and time.monotonic() - self._last > QUIET_SECONDS:
                self._ask()
            return 0
        if count == 0:
            raise ConnectionError("the server closed a download")
        self.received += count
        self._last = time.monotonic()
        return count


def _stop(*_: object) -> None:
    raise _Stopped


def main() -> None:
    port, size, connections = int(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
    path, rate, seconds = sys.argv[2], float(sys.argv[5]), float(sys.argv[6])
    signal.signal(signal.SIGTERM, _stop)
    os.nice(LOWER_PRIORITY)  # the requests that are timed come from the same core
    scratch, total = memoryview(bytearray(MOST_AT_ONCE)), 0
    try:
        downloads = [_Download(port, path, size, rate) for _ in range(connections)]
        watch = select.epoll()
        for download in downloads:
            watch.register(download.fileno(), select.EPOLLIN)
        print("ready", flush=True)
        started, told = time.monotonic(), 0.0
        allowance, turn = int(rate * TICK_SECONDS * TURNS), 0
        while (now := time.monotonic()) - started < seconds:
            if now - told >= 1:
                told = now
                print(now, total, flush=True)
            if allowance:
                total += sum(download.drop(scratch[:allowance]) for download in downloads[turn::TURNS])
                turn = (turn + 1) % TURNS
                time.sleep(max(0.0, now + TICK_SECONDS - time.monotonic()))
            else:
                watch.poll(QUIET_SECONDS)
                total += sum(download.drop(scratch) for download in downloads)
    except _Stopped:
        pass
    print(time.monotonic(), total, flush=True)


if __name__ == "__main__":
    main()
