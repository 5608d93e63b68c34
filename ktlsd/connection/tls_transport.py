"""One TLS connection on the event loop: handshake, read, send text, send a file, finish.

Strategy: a file's bytes go by SSL_sendfile where the kernel has the sending keys (kTLS TX), and otherwise through one
bounded buffer and SSL_write. A body that cannot be sent whole ends the connection without close_notify, so that no
client takes it for whole (RFC 8446 section 6.1).
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from ktlsd.config.limits import Limit
from ktlsd.config.options import LimitOptions
from ktlsd.connection import driver
from ktlsd.connection.page_cache import PIECE, PageCache
from ktlsd.connection.scheduler import current_scheduler
from ktlsd.connection.transport import AT_ONCE, DEFAULTS, FileShrank, PacedTransport, Rest
from ktlsd.connection.zero_copy import ZeroCopy
from ktlsd.file_identity import FileIdentity, identify
from ktlsd.metrics.metrics import LIMITED, UNCOUNTED, USER_SPACE, Row
from ktlsd.openssl.algorithms import TLS_1_2
from ktlsd.openssl.errors import ConnectionLost, TLSError
from ktlsd.openssl.results import READ_SIZE, Handshake, Wait
from ktlsd.ssl_ffi import Connection, Context
from ktlsd.tls.client_hello import host_name

__all__ = ["USER_SPACE_CHUNK", "FileShrank", "Transport"]

USER_SPACE_CHUNK: Final = 131072
"""Bytes read and encrypted at once without kTLS, at first."""
_AFTER_WAIT: Final = 65536
"""The same if the socket was full: the rest is read a second time."""
_RECORD: Final = 16384
"""Bytes of the largest TLS record."""
_LONGEST_HEAD: Final = 65536
"""Bytes before a file that go out with its first ones."""
_UNRECOGNIZED_NAME: Final = b"\x15\x03\x03\x00\x02\x02\x70"
"""A record with an alert (RFC 8446 section 5.1, 6), fatal, of the number 112."""
_TCP_CLOSE: Final = 7
"""The state of a connection that is no more (tcp_info's first byte, net/tcp_states.h)."""


class Transport(PacedTransport):
    """A socket and the TLS connection on it."""

    def __init__(
        self,
        context: Context,
        sock: socket.socket,
        page_cache: PageCache,
        row: Row = UNCOUNTED,
        limits: LimitOptions = DEFAULTS,
    ) -> None:
        super().__init__(sock, page_cache, row, limits)
        self._context = context
        self._key_updates = 0
        self._may_hold = True
        self._tls: Connection = context.connect(sock.fileno())
        self._kernel_sends = self._kernel_receives = False
        self._zero_copy: ZeroCopy | None = None

    def allow_only_tls_1_2(self) -> None:
        """Negotiate no later protocol; call it before the handshake."""
        self._tls.allow_at_most(TLS_1_2)

    def use_zero_copy(self) -> None:
        """Send files that can never change without the kernel's copy; call it if a NIC encrypts."""
        self._zero_copy = ZeroCopy(self._socket)

    async def handshake(self, ticket_key: bytes | None = None) -> Handshake:
        """Complete the handshake; the client's ticket, if all of its ClientHello is there, is read with `ticket_key`.

        Raises TLSError.
        """
        if ticket_key is None:
            wait = self._tls.handshake()
        else:
            # A client can be so quick that one call completes the handshake, and with the old key no ticket is made.
            with self._context.reading_tickets_with(ticket_key), self._tls.making_no_tickets():
                wait = self._tls.handshake()
        while wait is not None:
            await driver.ready(self._socket, wait)
            wait = self._tls.handshake()
        facts = self._tls.facts()
        self._kernel_sends, self._kernel_receives = facts.ktls_tx, facts.ktls_rx
        self.wakes_early = facts.ktls_rx
        asked = facts.server_name
        name = None if asked is None else host_name(asked)
        return facts if name == asked else facts._replace(server_name=name)

    def hold_back(self) -> None:
        # finish() leaves the end of one whose records the kernel makes to close(2).
        if not self._kernel_sends:
            super().hold_back()

    def send_at_once(self, data: bytes | bytearray) -> bytes | bytearray:
        if self._kernel_sends:
            return self._send_at_once_by_kernel(data)
        if self._tls.write(data) is not None:
            return data
        self._note_written(len(data))
        return b""

    def send_view(self, data: memoryview) -> memoryview:
        if self._kernel_sends:
            return super().send_view(data)
        if self._write_records(data) is not None:
            return data
        self._note_written(len(data))
        return data[:0]

    def _write_records(self, data: bytes | bytearray | memoryview) -> Wait | None:
        """SSL_write; several records, each of which is a write(2) of OpenSSL's, share TCP segments."""
        several = len(data) > _RECORD
        if several:
            self._fill_segments(True)
        wait = self._tls.write(data)
        if several:
            self._fill_segments(False)
        return wait

    async def send_text(self, data: bytes | bytearray | memoryview) -> None:
        if self._kernel_sends:
            # Without OpenSSL, which would first send a KeyUpdate that it owes.
            await self._send_by_kernel(data, 0)
        else:
            await self._write(data)

    async def send_file(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        """Head and file share the first record; the last record ends with the file."""
        if self._kernel_sends:
            await self._send_from_page_cache(head, descriptor, offset, count)
        else:
            await self._send_through_buffer(head, descriptor, offset, count)

    def begin_file(
        self, head: bytes, descriptor: int, offset: int, count: int, identity: FileIdentity | None = None
    ) -> Rest | None:
        if self._kernel_sends:
            return self._begin_from_page_cache(head, descriptor, offset, count, identity)
        piece = None
        if len(head) <= _LONGEST_HEAD:
            piece = self._page_cache.load(head, descriptor, offset, min(count, AT_ONCE), identity)
        if piece is None:
            return Rest(head, offset, count)
        taken = len(piece) - len(head)
        self._fill_segments(True)
        wait = self._tls.write(piece)
        self._fill_segments(False)
        if wait is not None:
            # SSL_write must be given the same bytes again, when their memory may have other content.
            return Rest(bytes(piece), offset + taken, count - taken)
        self._note_written(len(piece))
        return Rest(b"", offset + taken, count - taken) if count > taken else None

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        while (wait := self._write_records(data)) is not None:
            await self._progress(wait)
        self._note_written(len(data))

    def _note_written(self, count: int) -> None:
        self.sent += count
        self._row[USER_SPACE] += count

    async def _send_through_buffer(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        if (data := self._gathered(head, descriptor, offset, count)) is not None:
            await self._write(data)
            return
        if len(head) > _LONGEST_HEAD:
            await self._write(head)
            head = b""
        page_cache, scheduler = self._page_cache, current_scheduler()
        identity = identify(descriptor)
        most = USER_SPACE_CHUNK
        # Each record is a write(2) of OpenSSL's.
        self._fill_segments(True)
        while True:
            piece = page_cache.load(head, descriptor, offset, min(count, most), identity)
            loads: int | None = page_cache.loads
            if piece is None:
                # Bytes in an open segment would otherwise wait for the disk, too.
                self._fill_segments(False)
                piece, loads = await page_cache.read(head, descriptor, offset, min(count, USER_SPACE_CHUNK)), None
                self._fill_segments(True)
            size = len(piece)
            taken = size - len(head)
            if taken == 0:
                raise FileShrank
            most = min(2 * most, PIECE)
            while (wait := self._tls.write(piece)) is not None:
                most = _AFTER_WAIT
                await self._progress(wait)
                await scheduler.next()
                if loads is not None and loads != page_cache.loads:
                    # Others have used the memory. SSL_write skips what it has sent and encrypts the rest.
                    piece, loads = page_cache.load(head, descriptor, offset, taken, identity), page_cache.loads
                    if piece is None or len(piece) < size:
                        piece, loads = await page_cache.read(head, descriptor, offset, taken), None
                    if len(piece) < size:
                        raise FileShrank
            self._note_written(size)
            offset += taken
            count -= taken
            if count == 0:
                break
            head = b""
            await scheduler.next()
        self._fill_segments(False)

    async def finish(self, *, unread: bool = False) -> None:
        while (wait := self._tls.shutdown()) is not None:
            await self._progress(wait)
        if self._kernel_sends:
            # The kernel has taken the last records but may have had no room to pass all of them to TCP, and close(2)
            # tries once more only: it must find room.
            await self._progress(Wait.WRITABLE)
        if unread:
            if not self._kernel_sends:
                try:
                    self._socket.shutdown(socket.SHUT_WR)
                except OSError:
                    return
            await self._linger()

    async def end_refused(self) -> None:
        """End a connection whose handshake failed, such that its client gets the alert."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        await self._linger()

    async def refuse_name(self) -> None:
        """End a connection whose ClientHello asks for a name that is not served, by the alert that says so.

        RFC 6066 section 3: fatal unrecognized_name, in a record in the clear as nothing was agreed yet.
        """
        with contextlib.suppress(OSError):
            self._socket.send(_UNRECOGNIZED_NAME)
        await self.end_refused()

    async def answer_plain_http(self, response: bytes) -> None:
        """Send bytes in the clear, to a client that did not begin with TLS, and end."""
        with contextlib.suppress(OSError):
            self._socket.send(response)
        await self.finish(unread=True)

    def close(self) -> None:
        """Free the SSL object and close the socket."""
        self._tls.close()
        self._socket.close()

    def holds(self) -> bool:
        return self._may_hold and self._tls.has_pending()

    def receive(self) -> bytes | Wait:
        received = self._tls.read()
        # A read that is not full is the last of its record, and OpenSSL takes no more than one from the socket. After a
        # Wait it has a part of one at most (SSL_has_pending(3) is true then): the socket shows the rest.
        self._may_hold = isinstance(received, bytes) and len(received) == READ_SIZE
        if isinstance(received, bytes):
            return received
        # OpenSSL comes back after each record that has no data, and after a part of one that may have some. Where the
        # kernel receives, it may keep parts to itself, and no connection outlives a KeyUpdate.
        self.key_update_owed = self._kernel_sends and self._tls.key_update_owed()
        if not self._kernel_receives and self._tls.between_records():
            self._key_updates += 1
            if self._key_updates > self._limits.key_updates_per_connection:
                self._row[LIMITED[Limit.KEY_UPDATES]] += 1
                raise TLSError(f"more than {self._limits.key_updates_per_connection} TLS records without data")
        return received

    def _sendfile(self, descriptor: int, offset: int, count: int) -> int | Wait:
        if self._zero_copy is not None:
            self._zero_copy.prepare(descriptor)
        sent = self._tls.sendfile(descriptor, offset, count)
        # Linux (6.1, 6.12) goes on taking a file for a client that ended its side and then reset the connection, and
        # keeps all of its records in memory, until the machine has none for TCP.
        if self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            raise ConnectionLost("the connection was reset")
        return sent
