"""Servers for tests, forked from an interpreter that has imported ktlsd: imports take an emulated machine seconds.

Strategy: a helper imports what each start imports and waits. For each server it receives arguments, environment and
standard streams, forks, and reports process id and exit status. The child closes all else and runs `python -m ktlsd`.
KTLSD_TEST_FRESH=1 has every server start an interpreter of its own instead.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).resolve().parents[1]
FRESH = bool(os.environ.get("KTLSD_TEST_FRESH"))
LIMITS = sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")})
"""A server has the limits of the process that asks for it."""
ORDER_BYTES = 128 * 1024
"""Most that arguments and environment of one server take."""


class ForkedServer:
    """The part of subprocess.Popen that tests use, for a process that is the helper's child."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        read_end, write_end = os.pipe()
        self.stderr: IO[str] = os.fdopen(read_end)
        self.returncode: int | None = None
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        limits = [(number, *resource.getrlimit(number)) for number in LIMITS]
        order = {"arguments": arguments, "environment": environment, "folder": os.getcwd(), "limits": limits}
        with theirs:
            streams = array.array("i", [0, 1, write_end, theirs.fileno()])
            _helper().sendmsg([json.dumps(order).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        os.close(write_end)
        self.pid = int(self._status.recv(32))

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; raises subprocess.TimeoutExpired after `timeout` seconds."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("ktlsd", timeout or 0)
        return status

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._status.settimeout(timeout)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                self.returncode = int(self._status.recv(32))
                self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _helper() -> socket.socket:
    """The helper of this process, started once; it ends with its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        helper = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())], cwd=CHECKOUT, pass_fds=[theirs.fileno()]
        )

    def end() -> None:
        ours.close()
        helper.wait()

    atexit.register(end)
    return ours


# --- the helper -----------------------------------------------------------------------------------------------------


def run_server(orders: socket.socket) -> dict[str, Any] | None:
    """Fork a server for each order. None in the helper once its socket has ended; in each child, the child's order."""
    running: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                process, told = running.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                _tell(told, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
                told.close()
                continue
            data, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES, 4)
            if not data:
                return None
            *streams, told_by = descriptors
            process = os.fork()
            if process == 0:
                for target, stream in enumerate(streams):
                    os.dup2(stream, target)
                for descriptor in (*descriptors, *running):
                    os.close(descriptor)
                for _, other in running.values():
                    other.close()
                order: dict[str, Any] = json.loads(data)
                return order
            for stream in streams:
                os.close(stream)
            told = socket.socket(fileno=told_by)
            _tell(told, process)
            watched = os.pidfd_open(process)
            running[watched] = (process, told)
            poll.register(watched, select.POLLIN)


def _tell(told: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # a test that was interrupted waits no more
        told.send(str(number).encode())


def main() -> None:
    from ktlsd.ssl_ffi import Library

    Library()  # before trio brings Python's ssl module along, as in ktlsd/cli.py
    import ktlsd.cli
    import ktlsd.process.serve  # noqa: F401

    with socket.socket(fileno=int(sys.argv[1])) as orders:
        order = run_server(orders)
    if order is not None:
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        for number, *limit in order["limits"]:
            resource.setrlimit(number, (limit[0], limit[1]))
        sys.argv[1:] = order["arguments"]
        runpy.run_module("ktlsd", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
