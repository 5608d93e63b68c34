"""One TLS connection on the event loop: handshake, read, send text, send a file, finish.

Strategy: try each OpenSSL call first and wait for the socket only when it says so. A file's bytes go by SSL_sendfile
where the kernel has the sending keys (kTLS TX), and otherwise through one bounded buffer and SSL_write. A body that
cannot be sent whole ends the connection without close_notify, so that no client takes it for whole (RFC 8446 section
6.1).
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
import termios
from typing import Final

import trio

from ktlsd.residency import Residency
from ktlsd.ssl_ffi import Connection, ConnectionLost, Context, Handshake, TLSError, Wait

STALL_SECONDS: Final = 60.0
"""How long a client may take no byte at all of what is sent to it."""

KERNEL_CHUNK: Final = 524288
"""Bytes that one SSL_sendfile may take before other connections get their turn; a multiple of the TLS record size."""

USER_SPACE_CHUNK: Final = 131072
"""Bytes read and encrypted in one turn without kTLS."""

# Longer than this between two sends, and the pages that were in the page cache may have left it.
_RESIDENT_SECONDS: Final = 0.1
_LINGER_SECONDS: Final = 2.0
_LINGER_READ: Final = 65536


class FileShrank(Exception):
    """The file ended before the promised length was sent."""


class Transport:
    """A socket and the TLS connection on it. The socket is non-blocking; both are closed by close()."""

    def __init__(self, context: Context, sock: socket.socket, residency: Residency) -> None:
        self._socket = sock
        self._residency = residency
        self._tls: Connection = context.connect(sock.fileno())
        self._kernel_sends = False
        self._has_waited = True

    async def handshake(self) -> Handshake:
        """Complete the handshake. Raises TLSError."""
        while (wait := self._tls.handshake()) is not None:
            await self._ready(wait)
        facts = self._tls.facts()
        self._kernel_sends = facts.ktls_tx
        return facts

    async def read(self) -> bytes:
        """Some bytes that the client sent; b"" after its close_notify. Raises TLSError."""
        if not self._has_waited:
            # A client that always has more for us must not keep the others from their turn.
            await trio.lowlevel.checkpoint()
        self._has_waited = False
        while isinstance(data := self._tls.read(), Wait):
            await self._ready(data)
            self._has_waited = True
        return data

    def key_update_owed(self) -> bool:
        """Whether this connection must end after what is being sent: the client asked for new sending keys.

        With kTLS TX the kernel has the old ones, and Linux before 6.14 takes no others (EBUSY), so that OpenSSL's
        KeyUpdate would be followed by records that the client cannot decrypt. In user space OpenSSL does it all by
        itself.
        """
        return self._kernel_sends and self._tls.key_update_owed()

    async def send_text(self, data: bytes) -> None:
        """Send bytes from memory. Raises TLSError, or TooSlow when the client takes none of them for STALL_SECONDS."""
        if self._kernel_sends:
            await self._send_by_kernel(data, 0)
        else:
            await self._write(data)

    async def send_file(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        """Send a response head and `count` > 0 bytes of a file, sharing the first record.

        Raises TLSError, FileShrank, TooSlow, or OSError when the file cannot be read.
        """
        if self._kernel_sends:
            await self._send_from_page_cache(head, descriptor, offset, count)
        else:
            await self._send_through_buffer(head, descriptor, offset, count)

    async def _send_by_kernel(self, data: bytes, flags: int) -> None:
        """Send bytes that the kernel makes records of, without OpenSSL, which would first send a KeyUpdate it owes."""
        while data:
            try:
                sent = self._socket.send(data, flags)
            except BlockingIOError:
                await self._progress(Wait.WRITABLE)
            except OSError as error:
                raise ConnectionLost(error.strerror) from error
            else:
                data = data[sent:]

    async def _write(self, data: bytes | memoryview) -> None:
        while (wait := self._tls.write(data)) is not None:
            await self._progress(wait)

    async def _send_from_page_cache(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        # Residency first: a head left in an open record would reach the client only after the disk.
        end = offset + count
        resident = min(offset + KERNEL_CHUNK, end)
        await self._residency.make_resident(descriptor, offset, resident - offset)
        # MSG_MORE keeps the record open for the first bytes of the file.
        await self._send_by_kernel(head, socket.MSG_MORE)
        while True:
            sent = self._tls.sendfile(descriptor, offset, resident - offset)
            if isinstance(sent, Wait):
                asked = trio.current_time()
                await self._progress(sent)
                if trio.current_time() - asked > _RESIDENT_SECONDS:
                    await self._residency.make_resident(descriptor, offset, resident - offset)
                continue
            if sent == 0:
                raise FileShrank
            offset += sent
            if offset == end:
                return
            if offset == resident:
                await trio.lowlevel.checkpoint()
                resident = min(offset + KERNEL_CHUNK, end)
                await self._residency.make_resident(descriptor, offset, resident - offset)

    async def _send_through_buffer(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        buffer = bytearray(min(len(head) + count, USER_SPACE_CHUNK))
        view = memoryview(buffer)
        filled = len(head)
        view[:filled] = head
        end = offset + count
        while True:
            got = await self._residency.read_into(descriptor, view[filled : filled + end - offset], offset)
            if got == 0:
                raise FileShrank
            offset += got
            await self._write(view[: filled + got])
            if offset == end:
                return
            filled = 0
            await trio.lowlevel.checkpoint()

    async def finish(self, *, unread: bool = False) -> None:
        """End the connection in order: what was sent, close_notify, then the TCP stream. Raises TLSError.

        With `unread`, the client may still be sending: wait for its end for a while, since closing a socket with unread
        data resets the connection and can destroy the response on its way (RFC 9112 section 9.6).
        """
        while (wait := self._tls.shutdown()) is not None:
            await self._progress(wait)
        if self._kernel_sends:
            # The kernel has taken the last records but may have had no room to pass all of them to TCP, and close(2)
            # tries once more only: it must find room.
            await self._progress(Wait.WRITABLE)
        if unread:
            with contextlib.suppress(OSError), trio.move_on_after(_LINGER_SECONDS):
                if not self._kernel_sends:
                    self._socket.shutdown(socket.SHUT_WR)
                data = b"unread"
                while data:
                    await trio.lowlevel.wait_readable(self._socket)
                    data = self._socket.recv(_LINGER_READ)

    async def answer_plain_http(self, response: bytes) -> None:
        """Send bytes in the clear, to a client that did not begin with TLS, and end."""
        with contextlib.suppress(OSError):
            self._socket.send(response)
        await self.finish(unread=True)

    def close(self) -> None:
        """Free the SSL object and close the socket."""
        self._tls.close()
        self._socket.close()

    async def _ready(self, wait: Wait) -> None:
        if wait is Wait.READABLE:
            await trio.lowlevel.wait_readable(self._socket)
        else:
            await trio.lowlevel.wait_writable(self._socket)

    async def _progress(self, wait: Wait) -> None:
        """Wait for the socket as long as the client takes something; writability alone would need it to take much."""
        unsent = self._unsent()
        while True:
            with trio.move_on_after(STALL_SECONDS):
                await self._ready(wait)
                return
            before, unsent = unsent, self._unsent()
            if unsent >= before:
                raise TooSlow(f"the client took nothing for {STALL_SECONDS:g} s")

    def _unsent(self) -> int:
        """Bytes that the peer has not acknowledged (tcp(7), SIOCOUTQ, which has the terminals' number TIOCOUTQ)."""
        return int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class TooSlow(TLSError):
    """The client stopped taking what it asked for."""
