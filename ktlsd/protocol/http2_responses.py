"""Requests of HTTP/2 and their responses: remember, decide, and hand the bodies to the sender.

Strategy: what needs no wait is answered on the spot, as in http1_inline.py: a remembered response, or a decision that
is tried (attempt.py). A small body goes with its head; a larger one is offered, and the connection (http2.py) sends it
as windows allow. What would wait is left to tasks of the connection, one for each stream.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Final, cast

import trio

from ktlsd.attempt import WouldWait, attempt
from ktlsd.config.limits import Limit
from ktlsd.config.refusal import cause
from ktlsd.connection.poller import Batch
from ktlsd.connection.transport import SMALL, FileShrank
from ktlsd.file_identity import FileIdentity
from ktlsd.file_threads import Stalled
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Miss, Response, short
from ktlsd.http.multipart import Multipart
from ktlsd.http.request_fields import members
from ktlsd.http.request_head import RequestHead
from ktlsd.http2.errors import ErrorCode
from ktlsd.http2.sender import Sender
from ktlsd.metrics.metrics import IN_FLIGHT, LIMITED
from ktlsd.metrics.site_names import NO_SITE
from ktlsd.protocol import http1_writer
from ktlsd.protocol import http2_writer as writer
from ktlsd.protocol.exchange import Exchange, fields_of
from ktlsd.protocol.http2_body import Body
from ktlsd.protocol.pacing import next_turn
from ktlsd.protocol.refusals import log_refusal
from ktlsd.protocol.responder import Responder
from ktlsd.protocol.response_body import Body as Content
from ktlsd.protocol.response_body import all_pieces, is_made_while_sent, pieces
from ktlsd.site.error_page import for_client
from ktlsd.site.lookup import FilePart, OpenFile
from ktlsd.site.response_cache import CacheEntry
from ktlsd.site.site import Answer

log = logging.getLogger("ktlsd")

Task = Callable[[], Awaitable[None]]

_COLD: Final = 65536
"""Bytes that are read for a stream whose file system keeps nothing in the page cache."""
_EXPECT: Final = b"expect"


class Http2Responses:
    """Those of one connection."""

    __slots__ = (
        "_alike",
        "_counts",
        "_date",
        "_logged",
        "_nic_encrypts",
        "_page_cache",
        "_responder",
        "_row",
        "_sender",
        "_shared",
        "_wake",
        "_whole_since",
        "_whole_sites",
        "bodies",
        "tasks",
        "waiting",
        "whole",
        "whole_sizes",
    )

    def __init__(self, responder: Responder, sender: Sender, wake: Callable[[], None]) -> None:
        """`wake` is called when a task has something for the sender."""
        self._responder = responder
        self._shared = responder.shared
        self._row = responder.shared.row
        self._page_cache = responder.transport.page_cache
        self._nic_encrypts = responder.transport.nic_encrypts
        self._sender = sender
        self._wake = wake
        self._counts = responder.responses
        self._logged = responder.shared.access_log is not None and responder.client.channel is not None
        client = responder.client
        self._alike = responder.partitions, client.origin.https, client.trusted, responder.limits, self._logged
        """The same for connections that get the same remembered response to the same request without checks."""
        self._date = writer.DateField(responder.shared.clock)
        self.bodies: dict[int, Body] = {}
        """Responses that are not sent to their end, by stream."""
        self.tasks: list[Task] = []
        """Work that waits, for the connection to start."""
        self.waiting: dict[int, tuple[RequestHead, float, float]] = {}
        """Requests without a descriptor for their file, since when they wait, and when they arrived (answer()); the
        oldest first."""
        self.whole: list[tuple[Body, int]] = []
        """Logged responses that the sender has as a whole, and the bytes of their bodies."""
        self.whole_sizes: list[int] = []
        """Bytes of the bodies of all responses that the sender has as a whole."""
        self._whole_sites: list[int] = []
        """The numbers of the sites of these responses, if they are counted by site."""
        self._whole_since = 0.0
        """When the request of the first of them arrived."""

    # --- requests -----------------------------------------------------------------------------------------------------

    def answer(self, stream_id: int, head: RequestHead, batch: Batch, arrived: float) -> None:
        """Answer a request that arrived at this time (time.monotonic()), or have a task do it."""
        if self.bodies and not self._shared.files.room:
            # Their files close in a bounded time: a client that takes nothing is cut off (http2.py).
            self.waiting[stream_id] = head, trio.current_time(), arrived
            return
        responder = self._responder
        alike = batch.get(head)
        if alike is not None and alike[0] == self._alike and self._sender.respond(stream_id, alike[2], alike[3]):
            self._shared.service.response_cache.uses += 1
            self._begun_whole(head, alike[1], len(alike[3]), arrived)
            return
        alone = head.of_fields.alone
        expects = not alone and _EXPECT in head.of_fields.values
        entry = None if expects else responder.find(head)
        if entry is not None and self._send_remembered(stream_id, head, entry, batch, arrived):
            return
        if alone and (found := responder.find_file(head, writer.beginning)) is not None:
            self._send_remembered(stream_id, head, found[0], batch, arrived, found[1])
            return
        body = Body(arrived)
        log = body.log = responder.new_log(body)
        if log is not None:
            log.begin(head)
        exchange = Exchange(responder, head, log)
        try:
            answer = attempt(_decide(exchange) if expects else exchange.decide())
        except WouldWait:
            self._hold(stream_id, body)
            self.tasks.append(partial(self._answer_in_task, stream_id, head, body))
        else:
            self._send(stream_id, exchange, answer, body)

    def answer_waiting(self, before: float) -> None:
        """Answer requests for which there are descriptors by now; those that wait since before a time get 503."""
        while self.waiting:
            stream_id, (head, since, arrived) = next(iter(self.waiting.items()))
            if not self.bodies or self._shared.files.room:
                del self.waiting[stream_id]
                self.answer(stream_id, head, {}, arrived)
            elif since <= before:
                del self.waiting[stream_id]
                self._responder.reached(Limit.DESCRIPTORS, "stream %d waited for a descriptor", stream_id)
                missed = Miss.EXHAUSTED
                response = _for_client(
                    short(missed.status, missed.reason), head.method, head.of_fields.values.get(b"accept")
                )
                self._refuse(stream_id, head, response, arrived)
            else:
                return

    def refuse_head(self, stream_id: int, method: bytes, accept: bytes | None, list_bytes: int, arrived: float) -> None:
        """Answer a request whose header fields are beyond the limit, and that arrived at this time."""
        self._row[LIMITED[Limit.HEAD_BYTES]] += 1
        reason = f"header fields of {list_bytes} bytes, more than head_bytes = {self._responder.limits.head_bytes}"
        response = _for_client(short(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason), method, accept)
        self._refuse(stream_id, None, response, arrived)

    def _refuse(self, stream_id: int, head: RequestHead | None, response: Response, arrived: float) -> None:
        body = Body(arrived)
        log = body.log = self._responder.new_log(body)
        if log is not None:
            log.begin(head)
        self._responder.count(response, NO_SITE)
        body.counts = self._counts
        client = self._responder.client
        log_refusal(self._shared.throttle, lambda: client.described(client.origin), head, response)
        if log is not None:
            log.answered(response.status, 0)
        fields = fields_of(response, self._shared.service.server_field)
        block = writer.beginning(response.status, fields) + self._date.block()
        self._give(stream_id, block, cast(bytes, response.body), body)

    async def _answer_in_task(self, stream_id: int, head: RequestHead, body: Body) -> None:
        try:
            exchange = Exchange(self._responder, head, body.log)
            answer = await _decide(exchange)
        except Exception as error:
            self._fail(stream_id, error)
            return
        if self.bodies.get(stream_id) is not body:
            # The client has reset the stream meanwhile.
            if answer.opened is not None:
                answer.opened.close()
            return
        try:
            self._send(stream_id, exchange, answer, body)
        except Exception as error:
            self._fail(stream_id, error)
        self._wake()

    # --- responses ----------------------------------------------------------------------------------------------------

    def _send_remembered(
        self,
        stream_id: int,
        head: RequestHead,
        entry: CacheEntry,
        batch: Batch,
        arrived: float,
        descriptor: int | None = None,
    ) -> bool:
        """Answer with a remembered response; False if it does not hold any more. The descriptor is of its file, if that
        is open; it is taken over."""
        responder, part = self._responder, entry.part
        key = Http2Responses, entry
        known: tuple[bytes, bytes | bytearray] | None = batch.get(key)
        file, data = None, None
        if known is not None:
            self._shared.service.response_cache.uses += 1
            block, data = known
        else:
            recalled = self._shared.service.response_cache.open(entry) if descriptor is None else descriptor
            if recalled is None:
                return False
            try:
                if not entry.block:
                    # It was remembered over HTTP/1.1.
                    entry.block = writer.beginning(entry.response.status, entry.fields)
                date = batch.get(writer.DateField)
                if date is None:
                    date = batch[writer.DateField] = self._date.block()
                block = entry.block + date
                if part is None:
                    data = entry.body
                else:
                    data = self._whole(stream_id, recalled, part, entry.sources[0][2], checked=bool(entry.checks))
                if data is None:
                    file = Body(arrived)
                    file.use_descriptor(recalled, entry.identity)
                else:
                    batch[key] = block, data
            finally:
                if recalled >= 0 and file is None:
                    os.close(recalled)
        if data is not None and not self._logged and not entry.checks and self._sender.respond(stream_id, block, data):
            # As most are: nothing to be logged, no rates, nothing to be closed.
            self._begun_whole(head, entry, len(data), arrived)
            # Clients that send the same requests have the same heads (http2/head_cache.py).
            batch[head] = self._alike, entry, block, data
            return True
        if file is None:
            file = Body(arrived)
        file.log = responder.new_log(file)
        file.in_progress = responder.begin_remembered(entry, head, 0, file.log)
        file.counts, file.site = self._counts, entry.site
        if file.pace is not None:
            self._give_paced(stream_id, block, cast(ByteRange, part) if data is None else bytes(data), file, None)
        elif data is not None:
            self._give(stream_id, block, data, file)
        else:
            self._begin(stream_id, block, file)
            self._offer(stream_id, file, cast(ByteRange, part))
        return True

    def _begun_whole(self, head: RequestHead, entry: CacheEntry, size: int, arrived: float) -> None:
        """The sender has all of a response that is not logged."""
        self._responder.begin_remembered(entry, head, 0, None)
        self._note_whole(arrived, size, entry.site)

    def _send(self, stream_id: int, exchange: Exchange, answer: Answer, body: Body) -> None:
        """Send a decided response, and have it remembered; takes its file over."""
        response, opened = answer.response, answer.opened
        content = response.body
        data: bytes | bytearray | None = content if isinstance(content, bytes) else None
        try:
            self._responder.count(response, exchange.site)
            body.counts, body.site = self._counts, exchange.site
            log_refusal(self._shared.throttle, exchange.described, exchange.head, response)
            if body.log is not None:
                body.log.answered(response.status, 0)
            fields = fields_of(response, self._shared.service.server_field)
            beginning = writer.beginning(response.status, fields)
            if exchange.head.alone:
                head = http1_writer.beginning(response.status, fields)
                entry = exchange.remember(answer, head)
                if entry is not None and entry.head == head:
                    entry.block = beginning
            block = beginning + self._date.block()
            if isinstance(content, ByteRange):
                if not content.count:
                    data = b""
                elif opened is not None and not opened.waits:
                    checked = bool(answer.checks)
                    data = self._whole(stream_id, opened.descriptor, content, opened.identity, checked=checked)
            if data is None and opened is not None:
                body.use_file(opened)
                opened = None
        finally:
            if opened is not None:
                opened.close()
        body.in_progress = self._responder.begin(response, answer.checks, exchange.origin)
        if body.pace is not None:
            self._give_paced(stream_id, block, content if data is None else bytes(data), body, answer.opened)
        elif data is not None:
            self._give(stream_id, block, data, body)
        elif not self._begin(stream_id, block, body):
            return
        elif answer.opened is None or answer.opened.waits or is_made_while_sent(content):
            self.tasks.append(partial(self._produce, stream_id, body, content, answer.opened))
        else:
            self._offer(stream_id, body, cast("ByteRange | Multipart", content))

    def _whole(
        self, stream_id: int, descriptor: int, part: ByteRange, identity: FileIdentity | None, *, checked: bool
    ) -> bytearray | None:
        """A part of a file that goes with the head; None if it is too large for that, or a disk has to be waited for.

        `checked` if the response can have a pace.
        """
        count = part.count
        if count > SMALL and (checked or self._nic_encrypts or not self._sender.takes(stream_id, count)):
            return None
        return self._page_cache.read_after(b"", descriptor, part.offset, count, identity)

    # --- bodies -------------------------------------------------------------------------------------------------------

    def _give(self, stream_id: int, block: bytes, data: bytes | bytearray, body: Body) -> None:
        """Have head and body sent, together if that can be."""
        if stream_id not in self._sender.streams:
            self._release(stream_id, body)
        elif self._sender.respond(stream_id, block, data):
            self._note_whole(body.arrived, len(data), body.site)
            body.counts = None
            if body.log is not None or stream_id in self.bodies:
                self._release(stream_id, None)
                self.whole.append((body, len(data)))
            else:
                body.end(complete=True)
        elif self._begin(stream_id, block, body):
            body.push(data)
            self._sender.offer(stream_id, len(data), last=True)

    def _give_paced(self, stream_id: int, block: bytes, content: Content, body: Body, opened: OpenFile | None) -> None:
        """Have head and body sent, the body at its pace. `opened` is the file if reads of it may have to wait."""
        if content == b"":
            self._give(stream_id, block, b"", body)
        elif self._begin(stream_id, block, body):
            self.tasks.append(partial(self._produce, stream_id, body, content, opened))

    def _note_whole(self, arrived: float, size: int, site: int) -> None:
        if not self.whole_sizes:
            self._whole_since = arrived
        self.whole_sizes.append(size)
        if self._counts.by_site is not None:
            self._whole_sites.append(site)

    def _begin(self, stream_id: int, block: bytes, body: Body) -> bool:
        """Have the head sent, and the body known; False if the stream is gone, and so the body."""
        if not self._sender.begin(stream_id, block):
            self._release(stream_id, body)
            return False
        self._hold(stream_id, body)
        return True

    def _offer(self, stream_id: int, body: Body, content: ByteRange | Multipart) -> None:
        """All of the body, of a file that can be read at once."""
        if stream_id in self.bodies:
            count = 0
            for piece in pieces(content):
                count += piece.count if isinstance(piece, ByteRange) else len(piece)
                body.push(piece)
            self._sender.offer(stream_id, count, last=True)

    async def _produce(self, stream_id: int, body: Body, content: Content, opened: OpenFile | None) -> None:
        """The task of a body that is made while it is sent, whose file is read in a thread, or that has a pace."""
        try:
            async with contextlib.aclosing(all_pieces(content)) as found:
                async for piece in found:
                    if isinstance(piece, FilePart):
                        goes_on = await self._push_part(stream_id, body, piece.file, piece.part)
                    elif isinstance(piece, ByteRange) and opened is not None and opened.waits:
                        goes_on = await self._push_part(stream_id, body, opened, piece)
                    else:
                        goes_on = not piece or await self._push(stream_id, body, piece)
                    if not goes_on:
                        return
                    await trio.lowlevel.checkpoint()
        except Exception as error:
            self._fail(stream_id, error)
            return
        if self.bodies.get(stream_id) is body and self._sender.offer(stream_id, 0, last=True):
            self._release(stream_id, None)
            self.whole.append((body, 0))
        self._wake()

    async def _push_part(self, stream_id: int, body: Body, file: OpenFile, part: ByteRange) -> bool:
        """Have a part of a file read in a thread and sent; False if the stream is gone."""
        offset = part.offset
        while offset < part.end:
            data = await file.read_piece(offset, part.end - offset)
            if not data:
                raise FileShrank
            if not await self._push(stream_id, body, data):
                return False
            offset += len(data)
        return True

    def wait_for_disk(self, stream_id: int, body: Body, offset: int) -> None:
        """Have a task read the part of the file that begins there; the stream has no turn until then."""
        self.tasks.append(partial(self._read_in, stream_id, body, offset))
        self._wake()

    async def _read_in(self, stream_id: int, body: Body, offset: int) -> None:
        if self.bodies.get(stream_id) is not body:
            return
        part = body.part_at(offset)
        data = None
        try:
            if body.cold_at != offset:
                await self._page_cache.read_in(body.descriptor, offset, part.end)
            else:
                # The file system keeps nothing in the page cache, or the file ends here.
                data = await self._page_cache.read(b"", body.descriptor, offset, min(part.count, _COLD))
        except Exception as error:
            if self.bodies.get(stream_id) is body:
                self._fail(stream_id, error)
            return
        if self.bodies.get(stream_id) is body:
            body.cold_at = offset
            if data:
                body.replace(part, data)
            elif data is not None:
                self._fail(stream_id, FileShrank())
                return
            self._sender.resume(stream_id)
            self._wake()

    async def _push(self, stream_id: int, body: Body, piece: bytes | ByteRange) -> bool:
        """Have a piece sent, turn by turn if it has a pace; False if the stream is gone."""
        sent, size = 0, len(piece) if isinstance(piece, bytes) else piece.count
        while sent < size:
            count = size
            if body.pace is not None:
                began = trio.current_time()
                count = await next_turn(body.pace, size - sent)
                if body.noted_at is not None:
                    # It was not the client that was slow.
                    body.noted_at += trio.current_time() - began
            if self.bodies.get(stream_id) is not body:
                return False
            if isinstance(piece, bytes):
                body.push(piece[sent : sent + count])
            else:
                body.push(ByteRange(piece.offset + sent, count))
            sent += count
            self._sender.offer(stream_id, count, last=False)
            self._wake()
            await body.drained()
        return self.bodies.get(stream_id) is body

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _hold(self, stream_id: int, body: Body) -> None:
        if stream_id not in self.bodies:
            self._row[IN_FLIGHT] += 1
            self._shared.files.others += bool(self.bodies)
        self.bodies[stream_id] = body

    def _release(self, stream_id: int, body: Body | None) -> None:
        """Forget a stream; the body ends without having been sent."""
        if self.bodies.pop(stream_id, None) is not None:
            self._row[IN_FLIGHT] -= 1
            self._shared.files.others -= bool(self.bodies)
        if body is not None:
            body.end(complete=False)

    def finish(self, stream_id: int, *, complete: bool) -> None:
        """The response on this stream has ended, if there is one."""
        body = self.bodies.get(stream_id)
        if body is not None:
            self._release(stream_id, None)
            body.end(complete=complete)

    def written(self, *, at_once: bool) -> None:
        """All that the sender gave was sent; `at_once` if in the batch of the poller in which the requests arrived."""
        counts, sizes = self._counts, self.whole_sizes
        if at_once:
            counts.at_once += sizes
            counts.sites_at_once += self._whole_sites
        elif sizes:
            counts.count(self._whole_since, sizes, self._whole_sites)
        sizes.clear()
        self._whole_sites.clear()
        if self.whole:
            for body, count in self.whole:
                body.note_sent(count)
                body.end(complete=True)
            self.whole.clear()

    def fail(self, stream_id: int, error: Exception) -> None:
        """Note that a body cannot be sent to its end; the stream has to be reset."""
        client = self._responder.client.address
        if isinstance(error, FileShrank):
            log.error("%s stream %d reset: the file shrank while it was sent", client, stream_id)
        elif isinstance(error, Stalled):
            self._row[LIMITED[Limit.FILE]] += 1
            text = "%s stream %d reset: the file system did not answer a read within %g s"
            log.error(text, client, stream_id, error.seconds)
        elif isinstance(error, OSError):
            log.error("%s stream %d reset: %s", client, stream_id, cause(error))
        else:
            log.error("%s stream %d reset by a defect in ktlsd, please report it", client, stream_id, exc_info=error)
        self.finish(stream_id, complete=False)

    def _fail(self, stream_id: int, error: Exception) -> None:
        """The same, in a task."""
        self._sender.reset(stream_id, ErrorCode.INTERNAL_ERROR)
        self.fail(stream_id, error)
        self._wake()

    def shrink(self) -> None:
        """Give back the memory that many streams needed, once none is open."""
        for emptied in (self.bodies, self.waiting):
            if not emptied:
                emptied.clear()

    def close(self) -> None:
        """The connection has ended."""
        self.waiting.clear()
        if self.whole_sizes:
            self._counts.count(self._whole_since, [0] * len(self.whole_sizes), self._whole_sites)
            self.whole_sizes.clear()
            self._whole_sites.clear()
        for body, _ in self.whole:
            body.end(complete=False)
        self.whole.clear()
        for stream_id in list(self.bodies):
            self.finish(stream_id, complete=False)


async def _decide(exchange: Exchange) -> Answer:
    """The decision about a request that may expect something (RFC 9110 section 10.1.1)."""
    request = exchange.request
    if any(member.lower() != "100-continue" for member in members(request.fields.get("expect", ""))):
        reason = f"the expectation {request.fields['expect']}"
        return exchange.refused(short(HTTPStatus.EXPECTATION_FAILED, reason))
    return await exchange.decide()


def _for_client(response: Response, method: bytes, accept: bytes | None) -> Response:
    """A refusal in the form that a request with this Accept field wants."""
    wanted = None if accept is None else accept.decode("latin-1")
    return for_client(response, wanted, is_head=method == b"HEAD")
