"""Listening sockets, bound before any worker starts.

Strategy: every address that a name has is bound; a name with several needs one that can be (localhost without IPv6).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from typing import Final, NamedTuple

from ktlsd.activation import Passed
from ktlsd.options import Listen

BACKLOG: Final = 1024

_SECURE: Final = {"https": True, "http": False}
"""What is spoken on a passed socket, by its name; TLS on one of another name."""
_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(Exception):
    """An address that cannot be listened on; the text is one line for the operator."""


class Listener(NamedTuple):
    """A bound socket, and whether TLS is spoken on it."""

    socket: socket.socket
    secure: bool

    def url(self) -> str:
        """Its scheme, address and port."""
        host, port = self.socket.getsockname()[:2]
        return f"{'https' if self.secure else 'http'}://{Listen(host, port)}"


def bind_all(https: Iterable[Listen], http: Iterable[Listen] = (), passed: Iterable[Passed] = ()) -> list[Listener]:
    """Non-blocking listening sockets for all addresses, or none at all. Raises ListenError.

    Sockets that were passed stand for all addresses of their kind.
    """
    listeners = [Listener(sock, _SECURE.get(name, True)) for name, sock in passed]
    present = {listener.secure for listener in listeners}
    try:
        for wanted, secure in ((https, True), (http, False)):
            if secure in present:
                continue
            for listen in wanted:
                option = "--listen" if secure else "--http-listen"
                listeners += [Listener(sock, secure) for sock in _bind(listen, option)]
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def bind_metrics(listen: Listen) -> list[socket.socket]:
    """Non-blocking listening sockets for metrics, on loopback where no address is given. Raises ListenError."""
    return _bind(Listen(listen.host or "localhost", listen.port), "--metrics-listen")


def _bind(listen: Listen, option: str) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(
            listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(f"{option} {listen}: {listen.host} is no address or known name: {error}") from error
    sockets: list[socket.socket] = []
    last_error: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        sock = None
        try:
            sock = socket.socket(family, kind, protocol)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            if sock is not None:
                sock.close()
            last_error = error
            if error.errno not in _ABSENT:
                break
        else:
            sockets.append(sock)
            last_error = None
    if last_error is not None and (not sockets or last_error.errno not in _ABSENT):
        for bound in sockets:
            bound.close()
        raise ListenError(f"{option} {listen}: {_advice(last_error)}") from last_error
    return sockets


def _advice(error: OSError) -> str:
    text = os.strerror(error.errno or 0)
    if error.errno == errno.EADDRINUSE:
        return f"{text}: stop what listens there or choose another port"
    if error.errno == errno.EACCES:
        return f"{text}: ports below 1024 need CAP_NET_BIND_SERVICE, or choose a port from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{text}: this machine has no such address"
    return text
