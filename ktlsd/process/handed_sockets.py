"""Listening sockets that a reload adds or removes, on the way from the parent to its workers.

Strategy: each worker has one end of a socket pair of its own, and each message is about one listener: its protocol with
the socket itself (SCM_RIGHTS), or the inode of a socket to close, which is the same in all processes that share it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import trio
from msgspec import Struct

from ktlsd.config.listener_kind import Kind
from ktlsd.config.values import Listen
from ktlsd.connection.listener import Listener, MetricsSockets
from ktlsd.process.configuration import Configuration
from ktlsd.process.opened import Opened

_LONGEST: Final = 1024
_MOST_SOCKETS: Final = 253
"""Most descriptors that the kernel lets one message have (unix(7), SCM_RIGHTS)."""


class _Message(Struct, frozen=True, omit_defaults=True):
    added: Kind | None = None
    removed: int | None = None
    leaves: bool = False
    """Another process takes the place of the parent and its workers."""
    ends: bool = False
    """The worker is one too many."""
    metrics: tuple[str, int] | None = None
    """The address of the sockets for metrics that come with this."""
    without_metrics: bool = False


def make_pair() -> tuple[socket.socket, socket.socket]:
    """The ends of the parent and of a worker. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def tell_leave(worker: socket.socket) -> None:
    """Tell a worker that another process takes its place. Raises OSError."""
    worker.send(msgspec.json.encode(_Message(leaves=True)))


def tell_end(worker: socket.socket) -> None:
    """Tell a worker to leave the work to the others, and to end. Raises OSError."""
    worker.send(msgspec.json.encode(_Message(ends=True)))


def hand_over_metrics(worker: socket.socket, metrics: MetricsSockets | None) -> None:
    """Tell a worker of other sockets for metrics. Raises OSError."""
    if metrics is None:
        worker.send(msgspec.json.encode(_Message(without_metrics=True)))
        return
    message = msgspec.json.encode(_Message(metrics=(metrics.listen.host, metrics.listen.port)))
    socket.send_fds(worker, [message], [sock.fileno() for sock in metrics.sockets])


def hand_over(worker: socket.socket, added: Iterable[Listener], removed: Iterable[Listener]) -> None:
    """Tell a worker of changed listeners. Raises OSError, BlockingIOError for a worker that reads nothing."""
    for listener in added:
        message = msgspec.json.encode(_Message(added=listener.kind))
        socket.send_fds(worker, [message], [listener.socket.fileno()])
    for listener in removed:
        worker.send(msgspec.json.encode(_Message(removed=_inode(listener))))


async def follow_parent(
    parent: socket.socket, opened: Opened, configuration: Configuration, leave: Callable[[], None]
) -> None:
    """Listen as the parent says, until it ends; `leave` is called if others take the place of this worker."""
    while True:
        await trio.lowlevel.wait_readable(parent)
        data, descriptors, _, _ = socket.recv_fds(parent, _LONGEST, _MOST_SOCKETS)
        if not data:
            return
        message = msgspec.json.decode(data, type=_Message)
        if message.leaves or message.ends:
            leave()
            if message.ends:
                os.kill(os.getpid(), signal.SIGTERM)
            continue
        if message.metrics is not None or message.without_metrics:
            sockets = tuple(map(_socket, descriptors))
            opened.change_metrics(
                None if message.metrics is None else MetricsSockets(Listen(*message.metrics), sockets)
            )
            continue
        added = [_received(descriptor, message.added or Kind.HTTPS) for descriptor in descriptors]
        removed = [listener for listener in opened.listeners if _inode(listener) == message.removed]
        kept = [listener for listener in opened.listeners if listener not in removed]
        opened.change_listeners([*kept, *added], added, removed)
        configuration.listeners_changed()


def _received(descriptor: int, kind: Kind) -> Listener:
    return Listener(_socket(descriptor), kind)


def _socket(descriptor: int) -> socket.socket:
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock


def _inode(listener: Listener) -> int:
    return os.fstat(listener.socket.fileno()).st_ino
