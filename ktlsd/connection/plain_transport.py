"""One plain TCP connection on the event loop: read, send text, send a file, finish.

Strategy: send(2) with MSG_MORE for a head and sendfile(2) for the file. A connection that is closed without finish() is
reset, so that a client that reads to the end of the stream does not take a part of a body for the whole (RFC 9112
section 8).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Final

from ktlsd.config.options import LimitOptions
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.transport import DEFAULTS, PacedTransport, Rest
from ktlsd.file_identity import FileIdentity
from ktlsd.metrics.metrics import UNCOUNTED, Row
from ktlsd.openssl.errors import PEER_IS_GONE, ConnectionLost
from ktlsd.openssl.results import READ_SIZE, Wait

# struct linger of socket(7): on, with no time. close(2) then resets the connection and drops what is unsent.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class PlainTransport(PacedTransport):
    """A socket without TLS. Errors of the connection are raised as with TLS: ConnectionLost or TooSlow."""

    def __init__(
        self, sock: socket.socket, page_cache: PageCache, row: Row = UNCOUNTED, limits: LimitOptions = DEFAULTS
    ) -> None:
        super().__init__(sock, page_cache, row, limits)
        self._must_reset = True

    def send_at_once(self, data: bytes | bytearray) -> bytes | bytearray:
        return self._send_at_once_by_kernel(data)

    async def send_text(self, data: bytes | bytearray | memoryview) -> None:
        await self._send_by_kernel(data, 0)

    async def send_file(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        await self._send_from_page_cache(head, descriptor, offset, count)

    def begin_file(
        self, head: bytes, descriptor: int, offset: int, count: int, identity: FileIdentity | None = None
    ) -> Rest | None:
        return self._begin_from_page_cache(head, descriptor, offset, count, identity)

    async def finish(self, *, unread: bool = False) -> None:
        self._must_reset = False
        if unread:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            await self._linger()

    def close(self) -> None:
        if self._must_reset:
            self._must_reset = False
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._socket.close()

    def holds(self) -> bool:
        return False

    def receive(self) -> bytes | Wait:
        try:
            return self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return Wait.READABLE
        except OSError as error:
            raise ConnectionLost(error.strerror) from error

    def _sendfile(self, descriptor: int, offset: int, count: int) -> int | Wait:
        try:
            return os.sendfile(self._socket.fileno(), descriptor, offset, count)
        except BlockingIOError:
            return Wait.WRITABLE
        except OSError as error:
            if error.errno in PEER_IS_GONE:
                raise ConnectionLost(error.strerror) from error
            raise
