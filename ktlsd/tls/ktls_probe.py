"""The kTLS of this machine's kernel and OpenSSL, tried on loopback.

Strategy: set the tls ULP on a loopback connection to ask the kernel, and complete a real handshake between two sockets
of our own to ask OpenSSL and the kernel together. Nothing is inferred from a version number.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

from ktlsd.config.values import Mode
from ktlsd.openssl.results import Handshake, Wait
from ktlsd.ssl_ffi import Connection, Context, Library
from ktlsd.system_calls import SOL_TLS, TCP_ULP, TLS_TX_ZEROCOPY_RO
from ktlsd.tls.ktls import Direction, Path, Support, explain
from ktlsd.tls.tls_stat import Offloads

_HANDSHAKE_SECONDS: Final = 5.0
_SAMPLE_SIZE: Final = 100_000


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
        # Not create_connection(), which has Python import its codec for international names.
        near = stack.enter_context(socket.socket(listener.family, socket.SOCK_STREAM))
        near.settimeout(_HANDSHAKE_SECONDS)
        near.connect(listener.getsockname())
        far = stack.enter_context(listener.accept()[0])
        for sock in (near, far):
            sock.setblocking(False)
            # The last part of a flight would wait for the other end's acknowledgement, which is delayed by 40 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield near, far


def has_ulp() -> bool:
    """Whether the kernel has the tls ULP, loading its module if this process may (CAP_NET_ADMIN). Raises OSError."""
    with loopback_pair() as (near, _):
        try:
            near.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as error:
            # ENOENT: no such ULP. ENOPROTOOPT: no ULPs at all. EPERM: a sandbox forbids the option.
            if error.errno in (errno.ENOENT, errno.ENOPROTOOPT, errno.EPERM):
                return False
            raise
        return True


@contextlib.contextmanager
def loopback_session(server: Context, client: Context) -> Iterator[tuple[Connection, Connection, socket.socket]]:
    """Complete a handshake between two contexts over loopback TCP: the server's and the client's ends, the server's
    socket.

    Raises TLSError when the two have no protocol or cipher in common, OSError when loopback is down or too slow.
    """
    with loopback_pair() as (near, far), contextlib.ExitStack() as stack:
        accepting = server.connect(far.fileno())
        stack.callback(accepting.close)
        accepting.ask_for_no_certificate()
        connecting = client.connect(near.fileno())
        stack.callback(connecting.close)
        deadline = time.monotonic() + _HANDSHAKE_SECONDS
        pending = [connecting, accepting]
        # Not select(2), which takes no descriptor from 1024 on: a reloading server may have thousands of connections.
        arrivals = select.poll()
        for sock in (near, far):
            arrivals.register(sock, select.POLLIN)
        while pending:
            pending = [connection for connection in pending if connection.handshake() is not None]
            if time.monotonic() > deadline:
                raise TimeoutError(f"no handshake on loopback within {_HANDSHAKE_SECONDS:g} s")
            if pending:
                arrivals.poll(10)
        yield accepting, connecting, far


def loopback_handshake(server: Context, client: Context) -> Handshake:
    """The server's result of a handshake between two contexts over loopback. Raises as loopback_session does."""
    with loopback_session(server, client) as (accepted, _, _):
        return accepted.facts()


def loopback_paths(server: Context, client: Context, support: Support) -> tuple[Handshake, Path, Path]:
    """The same with the paths of what the server sends and receives, software or device as the kernel has it."""
    with loopback_session(server, client) as (accepted, _, sock), contextlib.closing(Offloads()) as offloads:
        handshake = accepted.facts()
        tx, rx = (explain(support, handshake, way, offloads.of(sock, way)) for way in Direction)
        return handshake, tx, rx


def sends_files(server: Context, client: Context) -> bool:
    """Whether bytes sent by SSL_sendfile arrive as they are in the file. Raises as loopback_session does."""
    content = os.urandom(_SAMPLE_SIZE)
    descriptor = os.memfd_create("ktlsd-probe", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        with loopback_session(server, client) as (sender, receiver, _):
            if not sender.facts().ktls_tx:
                return False
            received, offset = b"", 0
            deadline = time.monotonic() + _HANDSHAKE_SECONDS
            while len(received) < len(content) and time.monotonic() < deadline:
                if offset < len(content):
                    sent = sender.sendfile(descriptor, offset, len(content) - offset)
                    offset += 0 if isinstance(sent, Wait) else sent
                data = receiver.read()
                received += b"" if isinstance(data, Wait) else data
            return received == content
    finally:
        os.close(descriptor)


def zero_copy_refusal(server: Context, client: Context) -> str | None:
    """The reason why a kTLS socket cannot send files without a last copy (TLS_TX_ZEROCOPY_RO); None if it can.

    Raises as loopback_session does.
    """
    with loopback_session(server, client) as (accepted, _, sock):
        if not accepted.facts().ktls_tx:
            return "sends are not offloaded"
        try:
            sock.setsockopt(SOL_TLS, TLS_TX_ZEROCOPY_RO, 1)
        except OSError as error:
            return f"the kernel refuses TLS_TX_ZEROCOPY_RO ({error.strerror}), which came with Linux 5.19"
        return None


def support(library: Library, mode: Mode) -> Support:
    """The abilities of this process. Raises OSError if loopback is down."""
    return Support(mode=mode, openssl=library.version, compiled_in=library.ktls_compiled_in, ulp=has_ulp())
