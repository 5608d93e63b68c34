"""A Transport and a real TLS client over loopback: how long a slow client is waited for."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ktlsd import transport as transport_module
from ktlsd.certificate import localhost_certificate
from ktlsd.ktls_probe import loopback_pair
from ktlsd.residency import Residency
from ktlsd.ssl_ffi import Context, Library
from ktlsd.transport import TooSlow, Transport
from tests.serving import client_context

DATA = bytes(20_000_000)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    context = Context(Library())
    certificate = str(localhost_certificate(tmp_path))
    context.use_certificate(certificate, certificate)
    yield context
    context.close()


@contextlib.contextmanager
def reader(near: socket.socket, amount: int, pause: float) -> Iterator[list[int]]:
    """A client thread that reads `amount` bytes every `pause` seconds; how many bytes it has, in a list of one."""
    received = [0]
    stop = threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError), client_context().wrap_socket(near) as connection:
            while not stop.wait(pause) and (data := connection.recv(amount)):
                received[0] += len(data)

    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    near.settimeout(30)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield received
    finally:
        stop.set()
        near.close()
        thread.join()


async def test_a_steady_reader_is_waited_for_however_slow(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "STALL_SECONDS", 0.5)
    library = Library()
    with loopback_pair() as (near, far), reader(near, 20_000, 0.05) as received:
        transport = Transport(context, far, Residency(library.file_system_type))
        await transport.handshake()
        with trio.move_on_after(4):
            await transport.send_text(DATA)
        transport.close()
        # Slow it was: the socket did not become writable again within several stall times, and was not given up.
        assert 0 < received[0] < len(DATA) // 2


async def test_a_reader_that_stops_is_given_up(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "STALL_SECONDS", 0.5)
    library = Library()
    with loopback_pair() as (near, far), reader(near, 2000, 30.0):
        transport = Transport(context, far, Residency(library.file_system_type))
        await transport.handshake()
        started = time.monotonic()
        with pytest.raises(TooSlow, match="took nothing"), trio.fail_after(20):
            await transport.send_text(DATA)
        assert time.monotonic() - started >= transport_module.STALL_SECONDS
        transport.close()
