"""A server under test: started on its own cores, watched through /proc, and gone at the end with all its processes.

Strategy: each server leads a session of its own, so that its session number finds every process of it; what it says
goes to a file, whose end explains a failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.machine import set_session_priority

TICKS: Final = os.sysconf("SC_CLK_TCK")
START_SECONDS: Final = 120.0
"""An emulated machine needs half a minute only for Python's imports."""
STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.001
STILL_SECONDS: Final = 20.0
STILL_LOOK_SECONDS: Final = 0.25
MOST_STILL_TICKS: Final = 1
HIDDEN: Final = ("OPENSSL_CONF", "PYTHONDONTWRITEBYTECODE")
"""The clients' cipher is no server's business; and Python servers may keep their compiled modules as usual."""
SESSION, USER_TICKS, SYSTEM_TICKS = 3, 11, 12
"""Fields of /proc/PID/stat, counted from the one after the name (proc(5))."""


class ServerError(Exception):
    """A server that did not start or did not live."""


@dataclass(frozen=True)
class Launch:
    """How to start a server."""

    command: tuple[str, ...]
    environment: dict[str, str]
    directory: Path
    log: Path


@dataclass(frozen=True)
class Server:
    """A started server: the leader of its session, its port on 127.0.0.1 and its log."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started: float
    """time.monotonic() when it was started."""
    plain: bool = False
    """True for HTTP without TLS."""
    http2: bool = False
    """True if it is to speak HTTP/2 with clients that can."""

    def url(self, path: str) -> str:
        return f"{'http' if self.plain else 'https'}://127.0.0.1:{self.port}{path}"

    def processes(self) -> dict[int, list[str]]:
        """The stat fields after the name, by process number, of all its processes that still run."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                    if int(fields[SESSION]) == self.process.pid and fields[0] != "Z":
                        found[int(entry)] = fields
        return found

    def cpu_seconds(self) -> float:
        """User and system time of all its processes, in steps of a clock tick."""
        return sum(self.cpu_times())

    def cpu_times(self) -> tuple[float, float]:
        """The same apart: seconds in user space, seconds in the kernel."""
        user, system = 0, 0
        for fields in self.processes().values():
            user, system = user + int(fields[USER_TICKS]), system + int(fields[SYSTEM_TICKS])
        return user / TICKS, system / TICKS

    def wait_until_still(self) -> None:
        """Wait until it does nothing, for a while: Linux (6.1, 6.12) goes on taking a file over kTLS for clients that
        are gone, where the server does not look, and another server's sample would share its memory and core."""
        deadline = time.monotonic() + STILL_SECONDS
        before, now = 0.0, self.cpu_seconds()
        while now - before > MOST_STILL_TICKS / TICKS and time.monotonic() < deadline:
            time.sleep(STILL_LOOK_SECONDS)
            before, now = now, self.cpu_seconds()

    def resident_kib(self) -> int:
        """Resident memory of all its processes (VmRSS, proc(5))."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process}/status").read_text()
                total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        return total

    def proportional_kib(self) -> int:
        """Memory of all its processes, with a share of what they have in common (Pss of smaps_rollup, proc(5))."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
                total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return total

    def wait_until_listening(self) -> None:
        """Raises ServerError with the end of its log where it dies or takes too long."""
        deadline = self.started + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(POLL_SECONDS)
        raise ServerError(f"does not start: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])[-400:] or f"exit status {self.process.poll()}, and it said nothing"

    def stop(self) -> None:
        """End the session: politely at first, and then every process that is left."""
        _signal_group(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


@contextlib.contextmanager
def running(
    name: str, launch: Launch, port: int, cores: Sequence[int], *, plain: bool = False, http2: bool = False
) -> Iterator[Server]:
    """Start a server on these cores and stop it at the end. It may not be listening yet."""
    environment = {key: value for key, value in os.environ.items() if key not in HIDDEN} | launch.environment
    # setpriv: a server must not outlive a benchmark that is killed.
    prefix = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", ",".join(map(str, cores))]
    with launch.log.open("wb") as handle:
        started = time.monotonic()
        process = subprocess.Popen(
            [*prefix, *launch.command],
            env=environment,
            cwd=launch.directory,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if nice := os.getpriority(os.PRIO_PROCESS, 0):
            set_session_priority(process.pid, nice)
    server = Server(name, process, port, launch.log, started, plain, http2)
    try:
        yield server
    finally:
        server.stop()
