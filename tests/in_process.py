"""A server on an event loop of this process, for tests that look into its memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import trio

from ktlsd.connection.listener import Listener
from ktlsd.server import Server
from tests.serving import WAIT_SECONDS


@contextlib.contextmanager
def in_a_thread(server: Server, listeners: Sequence[Listener]) -> Iterator[None]:
    """Serve in a thread until this closes; then the server has drained."""
    token: list[trio.lowlevel.TrioToken] = []
    listening = threading.Event()

    def ready() -> None:
        token.append(trio.lowlevel.current_trio_token())
        listening.set()

    thread = threading.Thread(target=lambda: trio.run(server.serve, listeners, ready))
    thread.start()
    assert listening.wait(WAIT_SECONDS)
    try:
        yield
    finally:
        token[0].run_sync_soon(server.drain)
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
