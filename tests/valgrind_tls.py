"""The TLS layer under valgrind: `python -m tests.valgrind_tls`. No pointer is used after its owner has freed it.

Strategy: handshakes, transfers and ends between ssl_ffi's own client and server in one process, owners closed in every
order, with Python's allocator out of the way (PYTHONMALLOC=malloc) and Debian's suppressions for Python. Needs
the package valgrind; takes minutes.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from ktlsd.openssl.algorithms import TICKET_KEY_BYTES, TLS_1_2, TLS_1_3
from ktlsd.openssl.errors import ContextError, TLSError
from ktlsd.openssl.results import Wait
from ktlsd.ssl_ffi import Connection, Context, Library
from ktlsd.tls.certificate import localhost_certificate
from ktlsd.tls.ktls_probe import loopback_pair

INSIDE: Final = "--inside"
SUPPRESSIONS: Final = Path("/usr/lib/valgrind/python3.supp")
TURNS: Final = 1
WHOLE: Final = 1000
"""Steps of a handshake, more than any takes."""
WAIT_SECONDS: Final = 0.05


Ends = tuple[socket.socket, socket.socket]


def shake(ends: Ends, connections: tuple[Connection, Connection], steps: int) -> None:
    """Both sides of a handshake in turns, or its first `steps`."""
    done = [False, False]
    for step in range(steps):
        side = step % 2
        if not done[side]:
            done[side] = connections[side].handshake() is None
        if all(done):
            return
        select.select(ends, [], [], WAIT_SECONDS)


def receive(end: socket.socket, connection: Connection, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.read()
        if isinstance(part, Wait):
            select.select([end], [], [], WAIT_SECONDS)
        else:
            data += part
    return data


def exercise(library: Library, certificate: str, newest: int, order: tuple[str, ...], steps: int) -> None:
    """One connection, whose owners are closed in this order."""
    with loopback_pair() as (near, far):
        server_context = Context(library, newest=newest)
        server_context.use_certificate(certificate, certificate)
        server_context.use_sessions(b"kind", 3600, os.urandom(TICKET_KEY_BYTES))
        client_context = Context(library, server=False, newest=newest)
        server = server_context.connect(far.fileno())
        client = client_context.connect(near.fileno())
        client.ask_for_no_certificate()
        owners: dict[str, Connection | Context] = {
            "server": server,
            "client": client,
            "contexts": server_context,
            "client context": client_context,
        }
        with contextlib.suppress(TLSError):
            shake((near, far), (client, server), steps)
            if steps == WHOLE:
                for connection in (server, client):
                    connection.facts()
                    connection.key_update_owed()
                data = os.urandom(10_000)
                server.write(data)
                assert receive(near, client, len(data)) == data
                with tempfile.TemporaryFile() as file, contextlib.suppress(OSError):
                    file.write(data)
                    file.flush()
                    server.sendfile(file.fileno(), 0, len(data))
                client.write(b"a")
                server.read()
                server.shutdown()
                client.read()
        for owner in order:
            owners[owner].close()
            owners[owner].close()


def inside() -> None:
    library = Library()
    with tempfile.TemporaryDirectory() as folder:
        certificate = str(localhost_certificate(Path(folder)))
        for _ in range(TURNS):
            for newest in (TLS_1_2, TLS_1_3):
                for order in itertools.permutations(("server", "client", "contexts", "client context")):
                    exercise(library, certificate, newest, order, WHOLE)
                for steps in range(6):
                    exercise(library, certificate, newest, ("contexts", "client context", "client", "server"), steps)
            with contextlib.suppress(ContextError):
                Context(library).use_certificate(__file__, __file__)
            gc.collect()


def main() -> int:
    if INSIDE in sys.argv:
        inside()
        return 0
    command = ["valgrind", "--quiet", "--error-exitcode=9", "--undef-value-errors=no", "--leak-check=no"]
    if SUPPRESSIONS.exists():
        command.append(f"--suppressions={SUPPRESSIONS}")
    ended = subprocess.run(
        [*command, sys.executable, "-m", "tests.valgrind_tls", INSIDE],
        env=os.environ | {"PYTHONMALLOC": "malloc"},
        check=False,
    )
    handshakes = TURNS * 2 * 24
    print(f"{handshakes} connections, {TURNS * 12} broken handshakes: exit status {ended.returncode}")
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
