"""Requests of HTTP/1.1 that remembered responses answer, without h11.

Strategy: a small response is made once for all connections that ask in the same pass of the event loop, and is one
write. As much as possible goes out without waiting and without a task (answer_known); the rest follows in finish() and
repeat(), when the connection has a task.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

import trio

from ktlsd.connection import driver
from ktlsd.connection.keepalive import PendingWork
from ktlsd.connection.poller import Batch
from ktlsd.connection.transport import AT_ONCE, SMALL, PacedTransport, Rest
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.empty_lines import EmptyLines
from ktlsd.metrics.metrics import IN_FLIGHT, counted
from ktlsd.openssl.results import Wait
from ktlsd.protocol.responder import Found, Responder
from ktlsd.site.response_cache import CacheEntry

if TYPE_CHECKING:
    # It is imported only if there is an access log.
    from ktlsd.logs.exchange_log import RequestLog

_BLANK_LINE: Final = b"\r\n\r\n"
_AT_A_TIME: Final = 4
"""Pipelined requests that are answered before other connections get their turn."""


class CachedResponses:
    """The remembered responses of one connection. To the event loop it is the connection (KeepAliveConnection)."""

    __slots__ = ("_lines", "_log", "_responder", "_shared", "transport")

    def __init__(self, responder: Responder, lines: EmptyLines, log: RequestLog | None) -> None:
        self._responder = responder
        self._shared = responder.shared
        self._lines = lines
        self._log = log
        self.transport: PacedTransport = responder.transport

    # --- without waiting ----------------------------------------------------------------------------------------------

    def answer_known(self, batch: Batch) -> Generator[None, None, PendingWork | None]:
        """Answer the heads that have come and are remembered, as long as that takes one write each and no wait.

        The steps are to receive, and then for each head to make and to send its answer.
        """
        transport, responder, lines = self.transport, self._responder, self._lines
        if transport.stopped:
            return PendingWork(None)
        received = transport.receive()
        if not isinstance(received, bytes):
            return None if received is Wait.READABLE else PendingWork(None)
        if lines.half:
            received = lines.joined(received)
        if not received:
            return PendingWork(received)
        if responder.client.redirected:
            return self._pending_before(received)
        yield
        for _ in range(_AT_A_TIME):
            size = received.find(_BLANK_LINE) + len(_BLANK_LINE)
            found = self._find(received[:size])
            if found is None:
                rest = lines.without_them(received)
                if not rest or len(rest) == len(received):
                    return self._pending_before(rest)
                received = rest
                continue
            remembered = found.remembered
            part = remembered.part
            if part is not None and part.count > SMALL:
                yield
                return self._begin_large(found, part, received, size)
            made = batch.get(remembered)
            if made is None:
                made = self._make(remembered)
                if made is None:
                    return PendingWork(received)
                batch[remembered] = made
            else:
                self._shared.service.response_cache.uses += 1
            data, head_size = made
            yield
            responder.begin_remembered(found, head_size, self._log)
            if remembered.closes:
                transport.hold_back()
            try:
                unsent = transport.send_at_once(data)
            except BaseException:
                self._end(complete=False)
                raise
            received = received[size:]
            if unsent:
                return PendingWork(received, Rest(unsent), ends=remembered.closes)
            left = self._pending_after(remembered, received)
            if left is not None or not received:
                return left
        return PendingWork(received)

    def _pending_before(self, received: bytes) -> PendingWork | None:
        """The rest of the work for received bytes, before an answer; None if that is to wait for more."""
        # Empty lines alone are no request: the time that the connection has been idle goes on.
        if rest := self._lines.without_them(received):
            return PendingWork(rest)
        return PendingWork(None) if self.transport.holds() else None

    def _pending_after(self, remembered: CacheEntry, received: bytes) -> PendingWork | None:
        """The rest of the work after a response that is all sent, of whose request `received` followed.

        None if that is to go on with `received`, or to wait if that is empty.
        """
        # A call of _end() would be one more for each request.
        if self._log is not None:
            self._log.end(complete=True)
        if remembered.closes:
            return PendingWork(b"", ends=True)
        return PendingWork(None) if not received and self.transport.holds() else None

    def _begin_large(self, found: Found, part: ByteRange, received: bytes, size: int) -> PendingWork | None:
        """Answer the head of that size at the beginning of `received`, as far as possible without waiting.

        None once nothing is left of it.
        """
        if part.count > AT_ONCE:
            return PendingWork(received)
        remembered = found.remembered
        recalled = self._responder.recall(remembered)
        if recalled is None:
            return PendingWork(received)
        head, descriptor = recalled
        self._responder.begin_remembered(found, len(head), self._log)
        try:
            rest = self.transport.begin_file(head, descriptor, part.offset, part.count)
        except BaseException:
            os.close(descriptor)
            self._end(complete=False)
            raise
        received = received[size:]
        if rest is not None:
            return PendingWork(received, rest, descriptor, ends=remembered.closes)
        os.close(descriptor)
        left = self._pending_after(remembered, received)
        # A client that asks for many at once lets others have their turn between them.
        return PendingWork(received) if left is None and received else left

    def _make(self, remembered: CacheEntry) -> tuple[bytes | bytearray, int] | None:
        """A small remembered response in one piece, and the size of its head; None as Responder.recall()."""
        recalled = self._responder.recall(remembered)
        if recalled is None:
            return None
        head, descriptor = recalled
        part = remembered.part
        try:
            data = head if part is None else self.transport.gathered(head, descriptor, part.offset, part.count)
        finally:
            os.close(descriptor)
        return None if data is None else (data, len(head))

    # --- with a task --------------------------------------------------------------------------------------------------

    async def finish(self, rest: Rest, descriptor: int) -> None:
        """Send the rest of a response that answer_known() has begun, and close the file, if any."""
        complete = False
        try:
            with counted(self._shared.row, IN_FLIGHT):
                await driver.become_task()
                if rest.size:
                    await self.transport.send_file(bytes(rest.data), descriptor, rest.offset, rest.size)
                else:
                    await self.transport.send_text(rest.data)
            complete = True
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            self._end(complete=complete)

    async def repeat(self, received: bytes) -> bytes | None:
        """Answer the heads at the beginning of `received` that are remembered; the bytes that follow them.

        None if the last of them ends the connection.
        """
        while received := self._lines.without_them(received):
            size = received.find(_BLANK_LINE) + len(_BLANK_LINE)
            found = self._find(received[:size])
            recalled = None if found is None else self._responder.recall(found.remembered)
            if found is None or recalled is None:
                break
            head, descriptor = recalled
            part = found.remembered.part
            self._responder.begin_remembered(found, len(head), self._log)
            complete = False
            try:
                with counted(self._shared.row, IN_FLIGHT):
                    if part is None:
                        await self.transport.send_text(head)
                    else:
                        await self.transport.send_file(head, descriptor, part.offset, part.count)
                complete = True
            finally:
                os.close(descriptor)
                self._end(complete=complete)
            if found.remembered.closes:
                return None
            received = received[size:]
            if received:
                await trio.lowlevel.checkpoint()
        return received

    # --- for both -----------------------------------------------------------------------------------------------------

    def _find(self, head: bytes) -> Found | None:
        """The remembered response for a head, which may lack its end."""
        responder = self._responder
        # The last response on a connection says so in its head, and no remembered one does.
        if responder.requests_left <= 1 or self._shared.idle.draining or self.transport.key_update_owed():
            return None
        found = responder.find(head)
        if found is not None or not head.endswith(_BLANK_LINE):
            return found
        limits = responder.limits
        read = (
            self._shared.service.response_cache.read(head, limits.header_fields)
            if len(head) <= limits.head_bytes
            else None
        )
        # A longer line may have a target that is too long.
        if read is None or len(read[0]) > limits.target_bytes:
            return None
        return responder.find_alike(*read, self._log)

    def _end(self, *, complete: bool) -> None:
        if self._log is not None:
            self._log.end(complete=complete)
