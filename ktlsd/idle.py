"""Connections that wait for a request: the only ones that may be ended at any moment.

Strategy: to end a wait, its socket is told that nothing more will come (shutdown(2), SHUT_RD). What came before is
still read, so no request is lost, and a wait needs no cancel scope of its own. The oldest waits come first.
"""

from __future__ import annotations

import time

import trio

from ktlsd.pacing import PacedTransport
from ktlsd.ssl_ffi import ConnectionLost


class Idle:
    """One process's idle connections."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is how long a connection may wait, and a quarter more at most."""
        self._seconds = seconds
        self._since: dict[PacedTransport, float] = {}
        self.draining = False
        """Whether no request is waited for any more."""

    async def wait(self, transport: PacedTransport) -> bytes:
        """What the client sends next; b"" when it is done, sent nothing for too long, or the server drains.

        Raises TLSError.
        """
        if self.draining:
            return b""
        self._since[transport] = time.monotonic()
        try:
            return await transport.read()
        except ConnectionLost:
            if transport.stopped:
                return b""
            raise
        finally:
            del self._since[transport]

    def drain(self) -> None:
        """End all waits, and let none begin."""
        self.draining = True
        for transport in self._since:
            transport.stop_reading()

    async def watch(self) -> None:
        """End the waits that take too long, for ever."""
        while True:
            await trio.sleep(self._seconds / 4)
            oldest = time.monotonic() - self._seconds
            for transport, since in self._since.items():
                if since > oldest:
                    break
                transport.stop_reading()
