"""The common part of connections with and without TLS: waiting for a client, and sending a file by the kernel.

Strategy: try each call first and wait for the socket only when it says so; give up on a client that takes less than a
pace (limits.py) of what is sent to it, as its acknowledgements tell. No call on a file may wait for a disk on the event
loop.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import select
import socket
import struct
import sys
import termios
import time
from functools import partial
from typing import Final, NamedTuple

import trio

from ktlsd.config.limits import Limit, SendRateCheck
from ktlsd.config.options import LimitOptions
from ktlsd.connection import driver
from ktlsd.connection.file_frames import FileFrames
from ktlsd.connection.page_cache import PageCache, Window
from ktlsd.connection.poller import PART_SECONDS
from ktlsd.connection.scheduler import ALONE_BYTES, SendScheduler, current_scheduler
from ktlsd.file_identity import FileIdentity
from ktlsd.metrics.metrics import LIMITED, SEND, SENDFILE, UNCOUNTED, Row
from ktlsd.openssl.errors import ConnectionLost, TLSError
from ktlsd.openssl.results import Wait

DEFAULTS: Final = LimitOptions()

SMALL: Final = 15360
"""Bytes of a file for which one write, head and body in one record, costs less than two calls that copy less."""

AT_ONCE: Final = 131072
"""Bytes of a file that may go out without a turn, as the answer to a request."""

_MOST_PART_SECONDS: Final = 0.5

_STINT_SECONDS: Final = 1.0
"""Longest time for which a thread sends for a connection, which cannot end before."""
# A struct timeval: how long the kernel may wait for room in the socket at a time.
_KERNEL_WAIT: Final = struct.pack("@ll", 0, 10_000)
_LINGER_SECONDS: Final = 2.0
_LINGER_READ: Final = 65536
# tcpi_bytes_acked in struct tcp_info of linux/tcp.h (Linux 4.1).
_BYTES_ACKED: Final = slice(120, 128)


class FileShrank(Exception):
    """The file ended before the promised length was sent."""


class Rest(NamedTuple):
    """The unsent rest: bytes from memory, and then `size` bytes of a file, if any."""

    data: bytes | bytearray
    offset: int = 0
    size: int = 0


class TooSlow(TLSError):
    """The client takes what it asked for too slowly, or not at all."""


class PacedTransport(abc.ABC):
    """A connection to a client over a non-blocking socket, which close() closes.

    A response is one send_text(), or one or more send_file() and then send_text() for what follows them. A connection
    that ends without finish() ends such that the client sees that something is missing.
    """

    nic_encrypts = False
    """Whether HTTP/2 sends files by send_frames(): a network device encrypts, as the handshake found."""
    key_update_owed = False
    """Whether this connection must end after what is being sent: the client asked for new sending keys.

    With kTLS TX the kernel has the old ones, and Linux before 6.14 takes no others (EBUSY), so that OpenSSL's KeyUpdate
    would be followed by records that the client cannot decrypt. In user space OpenSSL does it all by itself."""

    def __init__(
        self, sock: socket.socket, page_cache: PageCache, row: Row = UNCOUNTED, limits: LimitOptions = DEFAULTS
    ) -> None:
        """`row` counts the bytes that are sent."""
        self._socket = sock
        self._page_cache = self.page_cache = page_cache
        self._row = row
        self._limits = limits
        self._rate_check = SendRateCheck(limits)
        self.sent = 0
        """Bytes that the kernel has taken, as they were before encryption; of a piece in user space, all or none."""
        self.stopped = False
        """Whether stop_reading() was called."""
        self.wakes_early = False
        """Whether the socket may say that there is something to receive when there is but a part of a record: Linux 6.0
        to 6.4 does with kTLS RX, for as long as the rest is missing."""

    async def read(self) -> bytes:
        """Some bytes that the client sent; b"" after its end. Raises TLSError."""
        # Waiting first also gives the others their turn, where a client always has more for us.
        if self.holds():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_readable(self._socket)
        # OpenSSL would answer the end that stop_reading() made with an alert, as if the client had cut the connection.
        pause = PART_SECONDS
        while not (self.stopped and self._at_end()):
            data = self.receive()
            if isinstance(data, bytes):
                return data
            if self.wakes_early:
                await trio.sleep(pause)
                pause = min(2 * pause, _MOST_PART_SECONDS)
            await self._ready(data)
        return b""

    def has_input(self) -> bool:
        """Whether there is something to receive, or the end, without waiting."""
        if self.holds():
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def _gathered(self, head: bytes, descriptor: int, offset: int, count: int) -> bytearray | None:
        """Bytes from memory and a part of a file in one piece, where it is small and no disk is to be waited for."""
        return self.page_cache.read_after(head, descriptor, offset, count) if count <= SMALL else None

    def stop_reading(self) -> None:
        """Have read() find the end of the stream after what the client has sent so far."""
        self.stopped = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def _at_end(self) -> bool:
        try:
            return self._socket.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return False

    @abc.abstractmethod
    def send_at_once(self, data: bytes | bytearray) -> bytes | bytearray:
        """Send bytes from memory without waiting; the unsent rest of them, for send_text(). Raises TLSError."""

    def send_view(self, data: memoryview) -> memoryview:
        """The same as send_at_once() for a batch of frames. Raises TLSError."""
        return data[self._give_to_kernel(data, 0) :]

    def hold_back(self) -> None:
        """Have what is sent from now on share packets with the end of the connection: finish(unread=True) follows."""
        self._fill_segments(True)

    def _fill_segments(self, on: bool) -> None:
        """Whether TCP keeps a segment that is not full for what follows (TCP_CORK, tcp(7)); a Unix socket has none."""
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)
        except OSError:
            return

    @abc.abstractmethod
    async def send_text(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes from memory. Raises TLSError, or TooSlow when the client does not keep pace."""

    @abc.abstractmethod
    async def send_file(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        """Send bytes from memory, such as a response head, and `count` > 0 bytes of a file, without a pause between.

        Raises TLSError, FileShrank, TooSlow, or OSError when the file cannot be read.
        """

    @abc.abstractmethod
    def begin_file(
        self, head: bytes, descriptor: int, offset: int, count: int, identity: FileIdentity | None = None
    ) -> Rest | None:
        """Send what goes without waiting of what send_file() would send; the rest, for send_file() or send_text().

        At most AT_ONCE bytes of the file are sent. The identity is that of PageCache.read_after(). Raises as
        send_file() does, but for TooSlow.
        """

    @abc.abstractmethod
    async def finish(self, *, unread: bool = False) -> None:
        """End the connection in order, after all that was sent. Raises TLSError.

        With `unread`, the client may still be sending: wait for its end for a while, since closing a socket with unread
        data resets the connection and can destroy the response on its way (RFC 9112 section 9.6).
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the socket and free what belongs to the connection."""

    @abc.abstractmethod
    def holds(self) -> bool:
        """Whether there is something to receive that the socket does not show."""

    @abc.abstractmethod
    def receive(self) -> bytes | Wait:
        """Some bytes that the client sent, b"" after its end, without waiting. Raises TLSError."""

    @abc.abstractmethod
    def _sendfile(self, descriptor: int, offset: int, count: int) -> int | Wait:
        """Have the kernel send up to `count` bytes of a file: the number taken, 0 at the end of the file.

        Raises ConnectionLost, or OSError when the file cannot be read.
        """

    async def _send_by_kernel(self, data: bytes | bytearray | memoryview, flags: int) -> None:
        """Give bytes to the socket itself (send(2) flags)."""
        while data and (data := data[self._give_to_kernel(data, flags) :]):
            await self._progress(Wait.WRITABLE)

    def _send_at_once_by_kernel(self, data: bytes | bytearray, flags: int = 0) -> bytes | bytearray:
        """Give the socket what it takes now; the rest."""
        return data[self._give_to_kernel(data, flags) :]

    def _give_to_kernel(self, data: bytes | bytearray | memoryview, flags: int) -> int:
        """Give the socket what it takes now; the number of bytes."""
        try:
            sent = self._socket.send(data, flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(error.strerror) from error
        self.sent += sent
        self._row[SEND] += sent
        return sent

    def _begin_from_page_cache(
        self, head: bytes, descriptor: int, offset: int, count: int, identity: FileIdentity | None
    ) -> Rest | None:
        end = offset + count
        resident, _ = self._page_cache.look(descriptor, offset, min(offset + AT_ONCE, end), identity=identity)
        unsent: bytes | bytearray = head
        if resident > offset and not (unsent := self._send_at_once_by_kernel(head, socket.MSG_MORE)):
            sent = self._send_part(descriptor, offset, resident - offset)
            if isinstance(sent, int):
                offset += sent
        return Rest(unsent, offset, end - offset) if offset < end else None

    async def _send_from_page_cache(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        if (data := self._gathered(head, descriptor, offset, count)) is not None:
            await self._send_by_kernel(data, 0)
            return
        scheduler, end = current_scheduler(), offset + count
        window = Window(self._page_cache, descriptor, end)
        # Residency first: a head left in an open record would reach the client only after the disk.
        if not window.size(offset):
            await window.read_in(offset)
        # sendfile(2) has TCP make segments of half the size that they could have.
        self._fill_segments(True)
        # MSG_MORE keeps the record, or the TCP segment, open for the first bytes of the file.
        await self._send_by_kernel(head, socket.MSG_MORE)
        base = self.sent - offset
        is_fast_enough, marked, since = True, offset, time.perf_counter()
        while True:
            offset = self.sent - base
            if not (size := window.size(offset)):
                # Bytes in an open segment would otherwise wait for the disk, too.
                self._fill_segments(False)
                await window.read_in(offset)
                self._fill_segments(True)
                continue
            if is_fast_enough and end - offset >= ALONE_BYTES and scheduler.alone():
                is_fast_enough = await self._send_in_thread(scheduler, descriptor, offset, end)
                marked, since = self.sent - base, time.perf_counter()
            else:
                began = time.perf_counter()
                sent = self._send_part(descriptor, offset, min(scheduler.share(ALONE_BYTES), size))
                if isinstance(sent, int):
                    scheduler.took(sent, time.perf_counter() - began)
                else:
                    await self._progress(sent)
                    now = time.perf_counter()
                    is_fast_enough = scheduler.is_fast_enough(offset - marked, now - since)
                    marked, since = offset, now
            if self.sent - base == end:
                break
            await scheduler.next()
        self._fill_segments(False)

    def send_frames_at_once(self, frames: FileFrames) -> None:
        """Send what goes without waiting for the socket or a disk. Raises as send_file() does, but for TooSlow.

        Only where the kernel encrypts.
        """
        self._fill_segments(True)
        while frames and self._send_first(frames):
            pass
        self._fill_segments(False)

    async def send_frames(self, frames: FileFrames) -> None:
        """Send all of them. Raises as send_file() does."""
        self._fill_segments(True)
        while frames:
            if self._send_first(frames):
                continue
            part = frames.first
            if isinstance(part, bytes) or part.window.size(part.offset):
                await self._progress(Wait.WRITABLE)
            else:
                # Its pages were dropped while the socket was full.
                self._fill_segments(False)
                await part.window.read_in(part.offset)
                self._fill_segments(True)
        self._fill_segments(False)

    def _send_first(self, frames: FileFrames) -> bool:
        """Send some of what is next; False if that would wait."""
        part = frames.first
        if isinstance(part, bytes):
            sent: int | Wait = self._give_to_kernel(part, socket.MSG_MORE if frames.more else 0)
        else:
            resident = part.window.size(part.offset)
            sent = self._send_part(part.descriptor, part.offset, min(resident, part.count)) if resident else 0
        if not sent or isinstance(sent, Wait):
            return False
        frames.sent(sent)
        return True

    def _send_part(self, descriptor: int, offset: int, count: int) -> int | Wait:
        """Have the kernel send up to `count` bytes of a file: the number taken. Raises as _sendfile(), FileShrank."""
        sent = self._send_uncounted(descriptor, offset, count)
        if isinstance(sent, int):
            self._row[SENDFILE] += sent
        return sent

    def _send_uncounted(self, descriptor: int, offset: int, count: int) -> int | Wait:
        sent = self._sendfile(descriptor, offset, count)
        if isinstance(sent, int):
            if sent == 0:
                raise FileShrank
            self.sent += sent
        return sent

    async def _send_in_thread(self, scheduler: SendScheduler, descriptor: int, offset: int, end: int) -> bool:
        """Send in a thread while no other connection is active; true if the client is fast enough.

        There the kernel waits for the client, and for a disk, which takes less than to hear of it and to give it the
        next part; and the event loop can serve new requests. Raises as _send_part() does.
        """
        before = self.sent
        try:
            return await scheduler.in_thread(partial(self._send_alone, scheduler, descriptor, offset, end))
        finally:
            # Not in the thread: the event loop may be counting for another connection.
            self._row[SENDFILE] += self.sent - before

    def _send_alone(self, scheduler: SendScheduler, descriptor: int, offset: int, end: int) -> bool:
        """The work of the thread. The socket is blocking meanwhile: nothing else uses it."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _KERNEL_WAIT)
        self._socket.setblocking(True)
        try:
            now = time.perf_counter()
            until = now + _STINT_SECONDS
            while offset < end and now < until and scheduler.alone():
                began = now
                sent = self._send_uncounted(descriptor, offset, min(ALONE_BYTES, end - offset))
                now = time.perf_counter()
                if not isinstance(sent, int) or not scheduler.is_fast_enough(sent, now - began):
                    return False
                offset += sent
            return True
        finally:
            self._socket.setblocking(False)

    async def _linger(self) -> None:
        """Throw away what the client still sends, until its end, for a while."""
        try:
            with driver.within(_LINGER_SECONDS, driver.current_time()):
                data = b"unread"
                while data:
                    await driver.ready(self._socket, Wait.READABLE)
                    data = self._socket.recv(_LINGER_READ)
        except (OSError, trio.TooSlowError):
            pass

    async def _ready(self, wait: Wait) -> None:
        await driver.ready(self._socket, wait)

    async def _progress(self, wait: Wait) -> None:
        """Wait for the socket while the client is fast enough; epoll would report it only after many acknowledged
        bytes."""
        await driver.become_task()
        rate_check = self._rate_check
        if rate_check.begins:
            rate_check.begin(self._taken())
        ready = False
        while not ready:
            asked = trio.current_time()
            with trio.move_on_after(rate_check.left):
                await self._ready(wait)
                ready = True
            if rate_check.waited(trio.current_time() - asked) and not rate_check.is_fast_enough(self._taken()):
                self._row[LIMITED[Limit.SEND]] += 1
                least, seconds = self._limits.send_bytes_per_second, self._limits.send_seconds
                raise TooSlow(f"the client took less than {least} bytes a second for {seconds:g} s")

    def _taken(self) -> int:
        """Bytes that the peer has acknowledged, however much the socket holds: with what TLS adds where it is TCP."""
        if self._socket.family == socket.AF_UNIX:
            # SIOCOUTQ of tcp(7), which unix(7) knows too, has the terminals' number TIOCOUTQ.
            unsent = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
            return self.sent - int.from_bytes(unsent, sys.byteorder)
        information = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
        return int.from_bytes(information[_BYTES_ACKED], sys.byteorder)
