"""TCP ports for servers that take no listening socket from their parent: nginx, HAProxy, Caddy.

Strategy: below the range that the kernel gives to outgoing connections and to port 0 (ip_local_port_range, ip(7)), so
that no connection of another test takes a port between its choice and the bind(2) of the server; at random, for
parallel runs.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path
from typing import Final

_LOWEST: Final = 10_000
_ATTEMPTS: Final = 1_000


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, each another one. Raises OSError if there are none."""
    highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - 1
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(_ATTEMPTS):
            port = random.randint(_LOWEST, highest)
            with contextlib.suppress(OSError):
                # All addresses, as servers listen on these: a listener of only 127.0.0.1 counts, too.
                held.enter_context(socket.create_server(("0.0.0.0", port)))
                chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise OSError(f"no {count} free ports from {_LOWEST} to {highest}")


def free_port() -> int:
    """One port, as above."""
    return free_ports(1)[0]
