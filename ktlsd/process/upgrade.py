"""Another ktlsd takes the place of this one, with its listening sockets: new code without a refused connection.

Strategy: the same command is started again, with the listening sockets as descriptors that an environment variable
describes. It says on a pipe that it accepts connections; only then this process drains. If it ends before, or takes too
long, this process goes on as if nothing had been asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Final

import msgspec
import trio
from msgspec import Struct

from ktlsd.config.listener_kind import Kind
from ktlsd.config.refusal import Refusal, cause
from ktlsd.config.values import Listen
from ktlsd.connection.listener import Listener, MetricsSockets, SocketFile
from ktlsd.logs.error_log import NOTICE
from ktlsd.logs.reload_signals import UPGRADE, unblock_upgrade_signal
from ktlsd.process.configuration import Configuration
from ktlsd.process.opened import Opened
from ktlsd.tls.pairs import FaultKey

log = logging.getLogger("ktlsd")

START_SECONDS: Final = 60.0
"""Longest start of the new process."""

LOOK_SECONDS: Final = 0.05
"""Interval of looks whether it accepts connections."""

_VARIABLE: Final = "KTLSD_INHERITED"
_READY: Final = b"1"
_FIRST_PROCESS: Final = 1


class _Socket(Struct, frozen=True, omit_defaults=True):
    """A listening socket: its descriptor, its protocol (None for metrics), and what it was bound for."""

    descriptor: int
    kind: Kind | None = None
    address: tuple[str, int] | None = None
    file: tuple[str, int, int] | None = None
    """Path, device and inode."""


class _Handed(Struct, frozen=True):
    ready: int
    """The descriptor to write to."""
    sockets: list[_Socket]
    faults: list[FaultKey] = []
    """Certificates that cannot be used."""


class Inherited:
    """What the process before this one handed over; nothing after a usual start."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Takes the variable away, since no child is meant by it. Raises Refusal."""
        self.listeners: list[Listener] = []
        self.metrics: list[tuple[Listen, socket.socket]] = []
        self.faults: list[FaultKey] | None = None
        """Certificates that it could not use: the only ones that may be left out."""
        self._ready: int | None = None
        self._owned = True
        """False as long as the process before this one serves."""
        text = environment.pop(_VARIABLE, "")
        if not text:
            return
        try:
            self._take(msgspec.json.decode(text, type=_Handed))
        except (OSError, ValueError) as error:
            raise Refusal(f"{_VARIABLE}: nothing that an upgrade hands over ({cause(error)}): unset it") from error

    def _take(self, handed: _Handed) -> None:
        """Raises OSError for what is no socket."""
        self._ready, self._owned, self.faults = handed.ready, False, handed.faults
        os.set_inheritable(handed.ready, False)
        for told in handed.sockets:
            os.set_inheritable(told.descriptor, False)
            sock = socket.socket(fileno=told.descriptor)
            sock.setblocking(False)
            listen = None if told.address is None else Listen(*told.address)
            file = None if told.file is None else SocketFile(Path(told.file[0]), *told.file[1:])
            if told.kind is not None:
                self.listeners.append(Listener(sock, told.kind, file, listen if file is None else file.path))
            elif listen is not None:
                self.metrics.append((listen, sock))

    def owns(self, listener: Listener) -> bool:
        """Whether this process may remove the file of a listener."""
        return self._owned or listener not in self.listeners

    def tell_ready(self, used: Iterable[Listener], metrics: Listen | None) -> None:
        """Tell the process before this one that connections are accepted; close what is not used."""
        kept = set(used)
        self._owned = True
        for listener in self.listeners:
            if listener not in kept:
                listener.socket.close()
                if listener.file is not None:
                    listener.file.remove()
        for listen, sock in self.metrics:
            if listen != metrics:
                sock.close()
        if self._ready is not None:
            with contextlib.suppress(OSError):
                os.write(self._ready, _READY)
            os.close(self._ready)


class Successor:
    """The process that is to take the place of this one."""

    def __init__(
        self,
        listeners: Iterable[Listener],
        metrics: MetricsSockets | None,
        faults: Iterable[FaultKey],
    ) -> None:
        """Start it. Raises OSError."""
        told = [_described(listener) for listener in listeners]
        if metrics is not None:
            address = metrics.listen.host, metrics.listen.port
            told += [_Socket(sock.fileno(), address=address) for sock in metrics.sockets]
        self.ready, ready = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._deadline = time.monotonic() + START_SECONDS
        handed = msgspec.json.encode(_Handed(ready, told, list(faults))).decode()
        descriptors = [ready, *(one.descriptor for one in told)]
        command = [sys.executable, *sys.orig_argv[1:]]
        try:
            for descriptor in descriptors:
                os.set_inheritable(descriptor, True)
            # This process blocks signals that are for the new one.
            self.process = os.posix_spawn(sys.executable, command, os.environ | {_VARIABLE: handed}, setsigmask=[])
        except OSError:
            os.close(self.ready)
            raise
        finally:
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            os.close(ready)
        log.log(NOTICE, "upgrade: process %d started, with the listening sockets of this one", self.process)

    def took_over(self) -> bool | None:
        """True once it accepts connections, False once that has failed, after a line in the log; None before."""
        try:
            said = os.read(self.ready, 1)
        except BlockingIOError:
            if time.monotonic() < self._deadline:
                return None
            os.kill(self.process, signal.SIGKILL)
            reason = f"process {self.process} accepted no connection within {START_SECONDS:g} s and was killed"
        else:
            os.close(self.ready)
            if said:
                log.log(NOTICE, "upgrade: process %d accepts connections, this one ends", self.process)
                return True
            reason = f"process {self.process} has ended"
        with contextlib.suppress(OSError):
            status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
            reason += f" (exit status {status})" if status >= 0 else ""
        log.error("not upgraded, this process goes on: %s", reason)
        return False


class Upgrades:
    """Upgrades of a whole process."""

    def __init__(self, opened: Opened, configuration: Configuration, *, managed: bool) -> None:
        """`managed` if systemd has started this process."""
        self._opened = opened
        self._configuration = configuration
        self._managed = managed

    def begin(self) -> Successor | None:
        """Start a successor; None if there can be none, after a line in the log."""
        if self._managed:
            reason = "systemd manages this process: systemctl restart keeps its sockets open"
        elif os.getpid() == _FIRST_PROCESS:
            reason = "a container ends with its process 1: start another container"
        else:
            try:
                opened, faults = self._opened, self._configuration.service.faults
                return Successor(opened.listeners, opened.metrics, [fault.key for fault in faults])
            except OSError as error:
                reason = f"no process can be started: {cause(error)}"
        log.error("not upgraded, this process goes on: %s", reason)
        return None

    def leave(self) -> None:
        """Leave to the successor what only one process may do."""
        self._opened.leave()
        self._configuration.stop_orders()

    async def follow_signal(self) -> None:
        """Let a successor take the place of this process when the signal comes, until cancelled."""
        signal.signal(UPGRADE, lambda number, frame: None)
        with trio.open_signal_receiver(UPGRADE) as signals:
            unblock_upgrade_signal()
            async for _ in signals:
                successor = self.begin()
                while successor is not None:
                    took_over = successor.took_over()
                    if took_over is not None:
                        break
                    await trio.sleep(LOOK_SECONDS)
                if successor is not None and took_over:
                    self.leave()
                    os.kill(os.getpid(), signal.SIGTERM)


def _described(listener: Listener) -> _Socket:
    place, file = listener.place, listener.file
    return _Socket(
        listener.socket.fileno(),
        listener.kind,
        (place.host, place.port) if isinstance(place, Listen) else None,
        None if file is None else (os.fspath(file.path), file.device, file.inode),
    )
