"""The machine of a run: processor, kernel, OpenSSL, kTLS and load, for later readers of the figures.

Strategy: read /proc and ask the programs themselves; nothing is taken from memory.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import ssl
import subprocess
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[1]
COMMAND_SECONDS: Final = 60.0


def output(*command: str) -> str:
    """What a command prints on both streams, empty where it cannot run."""
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=CHECKOUT,
            timeout=COMMAND_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def has_ktls() -> bool:
    """True if the kernel's tls module is loaded (Documentation/networking/tls.rst)."""
    return "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()


def ktls_sends() -> int:
    """How many connections have had their sends taken over by this kernel so far (/proc/net/tls_stat)."""
    try:
        counters = Path("/proc/net/tls_stat").read_text()
    except FileNotFoundError:
        return 0
    return sum(int(number) for number in re.findall(r"^TlsTx(?:Sw|Device)\s+(\d+)$", counters, re.MULTILINE))


def set_priority(nice: int) -> None:
    """Set the scheduling priority of this process, its later children, and their session (sched(7), autogroups).

    Raises PermissionError below 0 without CAP_SYS_NICE.
    """
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    set_session_priority(os.getpid(), nice)


def set_session_priority(process: int, nice: int) -> None:
    """Set the priority of a session among all others.

    Nothing on a kernel without autogroups. Nothing for a process that has been in no session of its own since the
    start of the machine: the kernel answers EINVAL, as such a process belongs to the root of all groups, which has no
    weight (sched_group_set_shares(), Linux 6.18), and there the priority of the process itself decides.
    """
    try:
        Path(f"/proc/{process}/autogroup").write_text(str(nice))
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def load() -> float:
    """The load average of the last minute (proc(5))."""
    return os.getloadavg()[0]


def describe() -> dict[str, str]:
    """One line of text for each thing that the figures depend on."""
    processor = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    commit = output("git", "rev-parse", "--short=12", "HEAD")
    changed = bool(output("git", "status", "--porcelain", "--untracked-files=no"))
    return {
        "processor": processor[1] if processor else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) // 1024} MiB" if memory else "unknown",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "kernel": platform.release(),
        "TCP congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "kTLS": "yes" if has_ktls() else "no",
        "OpenSSL": ssl.OPENSSL_VERSION,
        "Python": platform.python_version(),
        "ktlsd commit": (commit or "unknown") + (", changed" if changed else ""),
        "load at the start": f"{load():.2f}",
    }
