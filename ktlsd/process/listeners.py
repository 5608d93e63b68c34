"""Listening sockets, bound before any worker starts.

Strategy: every address that a name has is bound; a name with several needs one that can be (localhost without IPv6).
The file of a Unix socket is replaced only if no process answers on it, and removed only while it is still the same
file. A reload binds what is new before anything that is no longer wanted is closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from ktlsd.config.listener_kind import Kind
from ktlsd.config.refusal import PlacedError, cause
from ktlsd.config.values import WILDCARDS, BackendListen, Listen
from ktlsd.connection.listener import BACKLOG, Listener, MetricsSockets, SocketFile
from ktlsd.process.activation import Passed
from ktlsd.process.privileges import Identity, acting_as

log = logging.getLogger("ktlsd")

_LONGEST_BACKLOG: Final = Path("/proc/sys/net/core/somaxconn")

_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(PlacedError):
    """An address that cannot be listened on; the text is one line for the operator."""

    def __init__(self, key: str, listen: Listen | BackendListen, complaint: str) -> None:
        super().__init__((), key, f"{key} {listen}: {complaint}")


_PASSED: Final = {kind.value: kind for kind in Kind}
"""The protocol of a passed socket, by its name; TLS for any other name."""


def bind_all(
    https: Iterable[Listen],
    http: Iterable[Listen] = (),
    backend: Iterable[BackendListen] = (),
    backend_mode: int = 0o660,
    passed: Iterable[Passed] = (),
    owner: Identity | None = None,
    known: Sequence[Listener] = (),
) -> list[Listener]:
    """Non-blocking listening sockets for all addresses, or none at all; `known` ones are used again.

    Unix sockets' files get the permissions and, where this is root, the owner given. Sockets that were passed stand for
    all addresses of their kind. Raises ListenError, PrivilegeError.
    """
    listeners = [Listener(sock, _PASSED.get(name, Kind.HTTPS)) for name, sock in passed]
    listeners += [listener for listener in known if listener.place is None]
    present = {listener.kind for listener in listeners}
    keys = {Kind.HTTPS: "listen", Kind.REDIRECT: "http_listen", Kind.BACKEND: "backend_listen"}
    wanted: list[tuple[Kind, Listen | Path]] = [(Kind.HTTPS, place) for place in https]
    wanted += ((Kind.REDIRECT, place) for place in http)
    wanted += ((Kind.BACKEND, listen.place) for listen in backend)
    try:
        for kind, place in wanted:
            if kind in present:
                continue
            again = [listener for listener in known if (listener.kind, listener.place) == (kind, place)]
            if again and again[0] not in listeners:
                listeners += again
            elif isinstance(place, Path):
                with acting_as(owner):
                    listeners.append(_bind_unix(place, backend_mode))
            else:
                own = {one: one.place is None or (one.kind, one.place) in wanted for one in (*known, *listeners)}
                listeners += [Listener(sock, kind, place=place) for sock in _bind(place, keys[kind], own)]
    except BaseException:
        close_all(listener for listener in listeners if listener not in known)
        raise
    return listeners


def close_all(listeners: Iterable[Listener]) -> None:
    """Close the sockets and remove their files."""
    for listener in listeners:
        listener.socket.close()
        if listener.file is not None:
            listener.file.remove()


def https_port(listeners: Iterable[Listener]) -> int:
    """The port of the first listener for HTTPS over TCP; 443 if systemd passed none."""
    bound = [listener.socket.getsockname() for listener in listeners if listener.kind is Kind.HTTPS]
    return next((int(name[1]) for name in bound if isinstance(name, tuple)), 443)


def warn_short_backlog() -> None:
    """Log a queue of new connections that the kernel makes shorter than it was asked to be (listen(2))."""
    try:
        most = int(_LONGEST_BACKLOG.read_text("ascii"))
    except (OSError, ValueError):
        return
    if most < BACKLOG:
        log.warning(
            "listen backlog lowered from %d to %d: net.core.somaxconn is %d, and clients that find the queue full wait"
            " for a second or more; raise it (sysctl -w net.core.somaxconn=4096)",
            *(BACKLOG, most, most),
        )


def bind_metrics(listen: Listen) -> MetricsSockets:
    """Non-blocking listening sockets for metrics, on loopback where no address is given. Raises ListenError."""
    return MetricsSockets(listen, tuple(_bind(Listen(listen.host or "localhost", listen.port), "metrics_listen")))


def _bind_unix(path: Path, mode: int) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(path.parent):
            _clear(path)
            # No client can connect before listen(2), and by then the permissions are set.
            sock.bind(os.fspath(path))
            os.chmod(path, mode)
            made = os.lstat(path)
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        text = os.strerror(error.errno) if error.errno else str(error)
        advice = _UNIX_ADVICE.get(error.errno or 0, "")
        raise ListenError("backend_listen", BackendListen(path), f"{text}{advice}") from error
    return Listener(sock, Kind.BACKEND, SocketFile(path, made.st_dev, made.st_ino), path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others that do the same out of a folder, so that none takes a socket for stale that is just being made."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove the file of a stale socket. Raises OSError for any other file."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(os.fspath(path))
    if refused != errno.ECONNREFUSED:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    os.unlink(path)


_UNIX_ADVICE: Final = {
    errno.EADDRINUSE: ": stop what listens there or choose another path",
    errno.EEXIST: ": it is no socket; remove it or choose another path",
    errno.ENOENT: ": there is no such folder; make it first",
    errno.EACCES: ": this user may not make files in that folder",
}


def _bind(listen: Listen, key: str, own: Mapping[Listener, bool] | None = None) -> list[socket.socket]:
    """The sockets of an address. `own` are the listeners of this process, and whether the settings want them.

    Raises ListenError.
    """
    # A text would have Python import its codec for international names.
    host = listen.host.encode() if listen.host.isascii() else listen.host
    flags = socket.AI_PASSIVE | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(host or None, listen.port, type=socket.SOCK_STREAM, flags=flags)
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(key, listen, f"{listen.host} is no address or known name: {cause(error)}") from error
    sockets: list[socket.socket] = []
    last_error: OSError | None = None
    failed: tuple[object, ...] = ()
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
            last_error, failed = error, (family, *address[:2])
            if error.errno not in _ABSENT:
                break
        else:
            sockets.append(sock)
            last_error = None
    if last_error is not None and (not sockets or last_error.errno not in _ABSENT):
        for bound in sockets:
            bound.close()
        overlap = _overlap(failed, own or {}) if last_error.errno == errno.EADDRINUSE else ""
        raise ListenError(key, listen, overlap or _advice(last_error)) from last_error
    return sockets


def _overlap(address: tuple[object, ...], own: Mapping[Listener, bool]) -> str:
    """The reason why an address is in use: a listener of this process; "" if it is none of them."""
    family, host, port = address
    for listener, wanted in own.items():
        if listener.socket.family != family or (name := listener.socket.getsockname())[1] != port:
            continue
        if host == name[0] or {host, name[0]} & WILDCARDS:
            overlap = f"it overlaps {listener.url()}, where this ktlsd listens"
            if wanted:
                return f"{overlap}: leave one of the two out, or give it another port"
            return f"{overlap}, and a reload opens before it closes: restart, or leave both out for one reload"
    return ""


def _advice(error: OSError) -> str:
    text = os.strerror(error.errno or 0)
    if error.errno == errno.EADDRINUSE:
        return f"{text}: stop what listens there or choose another port"
    if error.errno == errno.EACCES:
        return f"{text}: ports below 1024 need CAP_NET_BIND_SERVICE, or choose a port from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{text}: this machine has no such address"
    return text
