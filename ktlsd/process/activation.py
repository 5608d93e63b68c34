"""Sockets that systemd bound for this service and passed on (sd_listen_fds(3)).

Strategy: LISTEN_PID names the process, LISTEN_FDS the number of descriptors from 3 on, LISTEN_FDNAMES their
names; a name says what is spoken on a socket. systemd keeps its own copy, so clients queue there while this service is
restarted.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping
from typing import Final, NamedTuple

from ktlsd.config.refusal import Refusal

_FIRST: Final = 3
_MOST: Final = 1024
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_FIX: Final = "the .socket unit needs ListenStream=, and Accept=no"


class ActivationError(Refusal):
    """A passed socket cannot be used; the text is one line for the operator."""


class Passed(NamedTuple):
    """A listening stream socket, non-blocking, and its FileDescriptorName= (systemd.socket(5))."""

    name: str
    socket: socket.socket


def take(environment: MutableMapping[str, str] = os.environ) -> list[Passed]:
    """The sockets passed to this process, once: the variables are taken away, since no child is meant by them.

    Raises ActivationError.
    """
    meant, count, names = (environment.pop(name, "") for name in _VARIABLES)
    if meant != str(os.getpid()) or not count.isascii() or not count.isdecimal() or len(count) > 9:
        return []
    descriptors = range(_FIRST, _FIRST + min(int(count), _MOST))
    called = names.split(":") if names else []
    called += [""] * (len(descriptors) - len(called))
    return [Passed(name, _listening(descriptor, name)) for descriptor, name in zip(descriptors, called, strict=False)]


def _listening(descriptor: int, name: str) -> socket.socket:
    what = f"descriptor {descriptor} ({name or 'without a name'}) from systemd"
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ActivationError(f"{what} is no socket: {_FIX}")
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ActivationError(f"{what}: {error.strerror}") from error
    stream = sock.family in _FAMILIES and sock.type == socket.SOCK_STREAM
    if not stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ActivationError(f"{what} is no listening stream socket: {_FIX}")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
