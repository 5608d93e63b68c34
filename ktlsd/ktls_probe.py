"""What this machine's kernel and OpenSSL really do about kTLS, found by trying it on loopback.

Strategy: set the tls ULP on a loopback connection to ask the kernel, and complete a real handshake between two sockets of
our own to ask OpenSSL and the kernel together. Nothing is inferred from a version number.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

from ktlsd.ktls import Mode, Support
from ktlsd.ssl_ffi import Context, Handshake, Library, TLSError

_TCP_ULP: Final = 31
_HANDSHAKE_SECONDS: Final = 5.0


@contextlib.contextmanager
def loopback_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection on loopback, non-blocking. Raises OSError where loopback is down."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        try:
            listener.bind(("127.0.0.1", 0))
        except OSError:
            listener = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
            listener.bind(("::1", 0))
        listener.listen(1)
        near = stack.enter_context(socket.create_connection(listener.getsockname()[:2], timeout=_HANDSHAKE_SECONDS))
        far = stack.enter_context(listener.accept()[0])
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


def has_ulp() -> bool:
    """Whether the kernel has the tls ULP, loading its module if this process may (CAP_NET_ADMIN). Raises OSError."""
    with loopback_pair() as (near, _):
        try:
            near.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError as error:
            # ENOENT: no such ULP. ENOPROTOOPT: no ULPs at all. EPERM: a sandbox forbids the option.
            if error.errno in (errno.ENOENT, errno.ENOPROTOOPT, errno.EPERM):
                return False
            raise
        return True


def loopback_handshake(server: Context, client: Context) -> Handshake:
    """Complete a handshake between two contexts over loopback TCP and tell what the server side got.

    Raises TLSError when the two have no protocol or cipher in common, OSError when loopback is down.
    """
    with loopback_pair() as (near, far), contextlib.ExitStack() as stack:
        accepting = server.connect(far.fileno())
        stack.callback(accepting.close)
        connecting = client.connect(near.fileno())
        stack.callback(connecting.close)
        deadline = time.monotonic() + _HANDSHAKE_SECONDS
        pending = [connecting, accepting]
        while pending:
            pending = [connection for connection in pending if connection.handshake() is not None]
            if time.monotonic() > deadline:
                raise TLSError(f"no handshake on loopback within {_HANDSHAKE_SECONDS} s")
            if pending:
                select.select([near, far], [], [], 0.01)
        return accepting.facts()


def support(library: Library, mode: Mode) -> Support:
    """What this process can have. Raises OSError when loopback is down."""
    return Support(mode=mode, openssl=library.version, compiled_in=library.ktls_compiled_in, ulp=has_ulp())
