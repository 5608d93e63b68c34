"""HTTP/2 on one connection: read -> engine (ktlsd/http2/) -> answer (http2_responses.py) -> send, for all streams.

Strategy: an idle connection is one of keepalive.py, whose poller answers what needs no wait without a task. For the
rest the connection has a task: it sends a batch of frames, looks at what the client sent, and goes on, so that streams
share the connection batch by batch. It never reads while a batch waits for the socket. Streams that have to wait for a
file have tasks of their own, which hand their bytes over.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Generator
from typing import Final

import trio

from ktlsd.config.limits import Limit
from ktlsd.config.options import LimitOptions
from ktlsd.connection import driver
from ktlsd.connection.file_frames import FileFrames
from ktlsd.connection.keepalive import PendingWork
from ktlsd.connection.page_cache import PIECE
from ktlsd.connection.poller import PART_SECONDS, Batch
from ktlsd.connection.scheduler import current_scheduler
from ktlsd.connection.transport import FileShrank, PacedTransport
from ktlsd.http.request_head import RequestHead
from ktlsd.http2.connection import Connection
from ktlsd.http2.errors import ErrorCode, Exceeded
from ktlsd.http2.events import (
    BodyTooLarge,
    ConnectionFailed,
    Event,
    HeadTooLarge,
    Request,
    RequestEnded,
    StreamReset,
)
from ktlsd.http2.limits import Http2Limits
from ktlsd.http2.turns import Turn
from ktlsd.metrics.metrics import LIMITED, HttpVersion
from ktlsd.openssl.results import Wait
from ktlsd.protocol.client import Client
from ktlsd.protocol.http2_body import Body, Mark
from ktlsd.protocol.http2_file_frames import file_frames
from ktlsd.protocol.http2_responses import Http2Responses, Task
from ktlsd.protocol.responder import Responder
from ktlsd.protocol.shared import Shared

log = logging.getLogger("ktlsd")

GOODBYE_SECONDS: Final = 2.0
"""Time for a client to hear of the first GOAWAY."""
_CHECK_SECONDS: Final = 1.0
"""Time between two looks at the deadlines of a busy connection."""
_FEW: Final = 4
"""Streams for which a dictionary has room in its smallest size."""
_AT_A_TIME: Final = 2
"""Batches that are sent without a task, so that most requests that come together need none."""
_LEAST_ROOM: Final = 1024
"""Bytes: no turn begins in less of a batch."""


class Http2:
    """One connection that speaks HTTP/2."""

    __slots__ = (
        *("_bodies_since", "_check_at", "_client", "_ended", "_engine", "_failed", "_head_since", "_idle_since"),
        *("_kept", "_large", "_limits", "_moved"),
        *("_refuse_at", "_responder", "_responses", "_sender", "_shared", "_sleep", "_turns", "_unsent", "_used"),
        *("_woken", "transport"),
    )
    says_goodbye = True

    def __init__(self, shared: Shared, transport: PacedTransport, client: Client) -> None:
        self._shared = shared
        self.transport = transport
        self._client = client
        self._responder = Responder(shared, transport, client, HttpVersion.HTTP_2)
        self._limits = limits = self._responder.limits
        self._engine = Connection(http2_limits(limits), shared.head_cache(limits.head_bytes), time.monotonic())
        self._sender = self._engine.sender
        self._responses = Http2Responses(self._responder, self._sender, self._wake)
        self._bodies_since: dict[int, tuple[RequestHead, float, float]] = {}
        """Requests with a body that is being skipped, and when they came by trio's clock and by time.monotonic(); the
        oldest first."""
        self._head_since: float | None = None
        """When a head began that has not ended."""
        self._turns: list[tuple[Turn, Body]] = []
        """Those in the batch that is being sent."""
        self._unsent: bytes | memoryview | FileFrames = b""
        """The rest of that batch."""
        self._kept: memoryview | None = None
        """The memory of the page cache that it is in."""
        self._moved = 0
        """Bytes of bodies that were sent."""
        self._idle_since = 0.0
        """When the last stream ended, on the clock of the keep-alive connections; at first that of the handshake."""
        self._used = True
        """Whether there was a stream since then."""
        self._large = False
        """Whether there were several streams at a time since then."""
        self._check_at = 0.0
        """When deadlines are looked at while there is always something to do."""
        self._refuse_at: float | None = None
        """When the second GOAWAY is sent at the latest."""
        self._ended = False
        """Whether the client has ended the connection."""
        self._failed = False
        self._sleep: trio.CancelScope | None = None
        self._woken = False

    async def serve(self, received: bytes = b"") -> None:
        """Answer requests until the client is done, idle for too long or told to leave, or the server drains.

        `received` are bytes that the client sent before. Raises TLSError, OSError.
        """
        idle, transport = self._shared.idle, self.transport
        try:
            if received:
                self._receive(received, {})
            self._send_at_once()
            while True:
                if self._is_idle():
                    await idle.wait(self)
                await driver.become_task()
                if not await self._work():
                    return
        finally:
            self._give_back()
            self._responses.close()
            if transport.nic_encrypts:
                self._let_go(self._turns)

    def idle_since(self, now: float) -> float:
        if self._used:
            self._used = False
            self._idle_since = now
            if self._large:
                self._large = False
                self._sender.shrink()
                self._responses.shrink()
        return self._idle_since

    # --- without a task -----------------------------------------------------------------------------------------------

    def answer_at_once(self, batch: Batch) -> Generator[None, None, PendingWork | None]:
        """Answer the requests that have come, as long as that takes no wait.

        The steps are to receive, to read frames, to make the responses, and to send. All connections of a batch take a
        step before the next one begins, so that its code stays in the processor's caches.
        """
        transport = self.transport
        if transport.stopped:
            return PendingWork(None)
        received = transport.receive()
        if not isinstance(received, bytes):
            return None if received is Wait.READABLE else PendingWork(None)
        yield
        now = time.monotonic()
        events = self._read(received, now)
        yield
        self._act(events, batch, now)
        idle = False
        for _ in range(_AT_A_TIME):
            yield
            sent = self._send_at_once(in_batch=True)
            idle = self._is_idle()
            if idle or not sent:
                break
        return None if idle and not transport.holds() else PendingWork(None)

    def _is_idle(self) -> bool:
        """Whether there is nothing to do before the client sends something."""
        return not (
            self._sender.streams
            or self._sender.pending
            or self._unsent
            or self._responses.tasks
            or self._head_since is not None
            or self._ended
            or self._failed
            or self._responder.requests_left <= 0
            or self._engine.drained
            or self._shared.idle.draining
            or self.transport.stopped
        )

    # --- with a task --------------------------------------------------------------------------------------------------

    async def _work(self) -> bool:
        """Do what there is to do; True once the connection is idle, False once it is finished."""
        idle = self._shared.idle
        failure, goes_on = None, False
        async with trio.open_nursery() as nursery:
            idle.on_drain[self._wake] = None
            try:
                goes_on = await self._run(nursery)
            except Exception as error:
                # Not from here, where it would become a group of exceptions.
                failure = error
            finally:
                del idle.on_drain[self._wake]
            # Tasks of streams that are gone may wait for a file.
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return goes_on

    async def _run(self, nursery: trio.Nursery) -> bool:
        transport, scheduler = self.transport, current_scheduler()
        while True:
            self._woken = False
            tasks = self._responses.tasks
            while tasks:
                nursery.start_soon(_run_task, tasks.pop())
            self._say_goodbye()
            now = trio.current_time()
            if self._responses.waiting:
                self._responses.answer_waiting(now - self._limits.file_seconds)
            if now >= self._check_at:
                self._enforce_deadlines(now)
                self._check_at = min(self._next_deadline(now), now + _CHECK_SECONDS)
            sent = await self._send()
            if self._ended:
                await transport.finish()
                return False
            if not self._sender.pending and (self._failed or self._engine.drained):
                await transport.finish(unread=True)
                return False
            if self._is_idle() and not transport.holds():
                return True
            # Reading without input would count as a record without data.
            received = transport.receive() if transport.has_input() else None
            if isinstance(received, bytes):
                self._receive(received, {})
                await trio.lowlevel.checkpoint()
            elif sent:
                await scheduler.next()
            elif not self._is_idle():
                await self._wait()

    def _say_goodbye(self) -> None:
        """Tell the client to open no more streams, once that is due."""
        engine = self._engine
        if self._refuse_at is None and (self._shared.idle.draining or self._responder.requests_left <= 0):
            if not self._shared.idle.draining:
                self._shared.row[LIMITED[Limit.REQUESTS]] += 1
            engine.drain()
            self._refuse_at = trio.current_time() + GOODBYE_SECONDS
        if self.transport.stopped:
            # Idle for too long, or closed to make room: it was told nothing, and opened nothing.
            engine.refuse_more()

    async def _wait(self) -> None:
        """Wait until the client sends something, a task of a stream has something, or a deadline passes."""
        now = trio.current_time()
        with trio.CancelScope(deadline=self._next_deadline(now)) as scope, current_scheduler().busy(-1):
            self._sleep = scope
            try:
                if not self._woken:
                    await trio.lowlevel.wait_readable(self.transport.fileno())
                    if self.transport.wakes_early:
                        await trio.sleep(PART_SECONDS)
            finally:
                self._sleep = None
        self._enforce_deadlines(trio.current_time())

    def _wake(self) -> None:
        """End the wait."""
        self._woken = True
        if self._sleep is not None:
            self._sleep.cancel()

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def _next_deadline(self, now: float) -> float:
        """When to look again; notes which bodies wait for the client's windows from now on."""
        deadlines = [] if self._refuse_at is None else [self._refuse_at]
        if self._bodies_since:
            _, since, _ = next(iter(self._bodies_since.values()))
            deadlines.append(since + self._limits.head_seconds)
        if self._head_since is not None:
            deadlines.append(self._head_since + self._limits.head_seconds)
        if self._responses.waiting:
            _, since, _ = next(iter(self._responses.waiting.values()))
            deadlines.append(since + self._limits.file_seconds)
        for body in self._responses.bodies.values():
            if body.waits:
                if body.noted_at is None:
                    self._note(body, now)
                deadlines.append((body.noted_at or now) + self._limits.send_seconds)
        return min(deadlines, default=float("inf"))

    def _note(self, body: Body, now: float) -> None:
        body.noted_at, body.noted, body.noted_moved = now, body.sent, self._moved

    def _enforce_deadlines(self, now: float) -> None:
        if self._refuse_at is not None and now >= self._refuse_at:
            self._engine.refuse_more()
            # Streams under way may last: that time is no reason to look again.
            self._refuse_at = float("inf")
        if self._head_since is not None and now >= self._head_since + self._limits.head_seconds:
            text = "a request head that did not end"
            failed = self._engine.close(ErrorCode.ENHANCE_YOUR_CALM, text, Exceeded.HEAD_TIME)
            self._take_event(failed, {}, time.monotonic())
        while self._bodies_since:
            stream_id, (_, since, _) = next(iter(self._bodies_since.items()))
            if now < since + self._limits.head_seconds:
                break
            # As over HTTP/1.1, the response does not depend on the body; the stream is reset after it.
            self._responder.reached(Limit.HEAD, "stream %d answered without waiting for its request body", stream_id)
            self._answer(stream_id, {})
        for stream_id, body in list(self._responses.bodies.items()):
            if body.noted_at is not None and now >= body.noted_at + self._limits.send_seconds:
                self._judge(stream_id, body, now)

    def _judge(self, stream_id: int, body: Body, now: float) -> None:
        """Reset a stream whose client keeps its windows closed: no socket shows that (TCP may be writable)."""
        stream = self._sender.streams.get(stream_id)
        seconds = self._limits.send_seconds
        least = max(1, self._limits.send_bytes_per_second * seconds)
        # A response may wait for others, but not for ever if none of them moves.
        closed = stream is not None and (stream.window <= 0 or self._moved - body.noted_moved < least)
        held = stream is not None and stream.held
        if body.waits and closed and not held and body.sent - body.noted < least:
            text = "stream %d reset: the client's windows were too small for %g s"
            self._responder.reached(Limit.SEND, text, stream_id, seconds)
            self._sender.reset(stream_id, ErrorCode.CANCEL)
            self._responses.finish(stream_id, complete=False)
        else:
            self._note(body, now)

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _receive(self, received: bytes, batch: Batch) -> None:
        """Take bytes of the client, b"" at their end, and answer the requests in them."""
        now = time.monotonic()
        self._act(self._read(received, now), batch, now)

    def _read(self, received: bytes, now: float) -> list[Event]:
        """Take bytes of the client, b"" at their end, at this time (time.monotonic()); act upon what they mean."""
        if not received:
            self._ended = True
            return []
        events = self._engine.receive(received, now)
        # GOAWAY is the last frame.
        return events[-1:] if self._engine.failed else events

    def _act(self, events: list[Event], batch: Batch, now: float) -> None:
        """Answer requests that came at this time (time.monotonic()), and act upon what else came."""
        if self._ended:
            return
        streams = self._sender.streams
        if len(streams) > _FEW:
            self._large = True
        for event in events:
            if isinstance(event, Request):
                self._used = True
                if event.stream_id not in streams:
                    # The client has reset it by now.
                    continue
                head = event.head
                # After CONNECT there is a tunnel, not a body (RFC 9113 section 8.5).
                if event.ended or b"expect" in head.of_fields.values or head.method == b"CONNECT":
                    self._responses.answer(event.stream_id, head, batch, now)
                else:
                    self._bodies_since[event.stream_id] = head, trio.current_time(), now
            else:
                self._take_event(event, batch, now)
        if not self._engine.in_head:
            self._head_since = None
        elif self._head_since is None:
            self._head_since = trio.current_time()
        if self.transport.key_update_owed:
            self._engine.refuse_more()

    def _take_event(self, event: Event, batch: Batch, now: float) -> None:
        """Act upon an event of this time (time.monotonic())."""
        if isinstance(event, RequestEnded | BodyTooLarge):
            if event.stream_id in self._bodies_since:
                self._answer(event.stream_id, batch)
        elif isinstance(event, HeadTooLarge):
            self._used = True
            self._responses.refuse_head(event.stream_id, event.method, event.accept, event.list_bytes, now)
        elif isinstance(event, StreamReset):
            self._bodies_since.pop(event.stream_id, None)
            self._responses.waiting.pop(event.stream_id, None)
            self._responses.finish(event.stream_id, complete=False)
            if event.exceeded is not None:
                self._responder.reached(Limit(event.exceeded.value), "stream %d reset", event.stream_id)
            elif not event.by_peer:
                log.debug("%s stream %d reset: %s", self._client.address, event.stream_id, event.reason)
        elif isinstance(event, ConnectionFailed):
            if event.exceeded is not None:
                self._responder.reached(Limit(event.exceeded.value), "cut off: HTTP/2: %s", event.reason)
            else:
                log.info("%s cut off: HTTP/2: %s", self._client.address, event.reason)
            self._failed = True
            self._head_since = None
            self._bodies_since.clear()
            self._responses.close()

    def _answer(self, stream_id: int, batch: Batch) -> None:
        """Answer a request whose body is read, or is not to be read."""
        head, _, arrived = self._bodies_since.pop(stream_id)
        self._responses.answer(stream_id, head, batch, arrived)

    # --- sending ------------------------------------------------------------------------------------------------------

    def _send_at_once(self, *, in_batch: bool = False) -> bool:
        """Send one batch as far as that goes without waiting; whether there was one and all of it went. `in_batch` if
        the poller's goes on."""
        data = self._next_batch()
        if not data:
            return False
        self._send_view(data)
        if self._unsent:
            return False
        self._batch_sent(at_once=in_batch)
        return True

    def _send_view(self, data: memoryview | FileFrames) -> None:
        """Send what goes of a batch without waiting; the rest of it becomes `_unsent`."""
        if isinstance(data, FileFrames):
            self.transport.send_frames_at_once(data)
            self._unsent = data or b""
            return
        # A view without bytes would keep those of the batch.
        self._unsent = self.transport.send_view(data) or b""
        if self._unsent and self._turns:
            # Most of it is in memory that the next connection would use.
            page_cache = self.transport.page_cache
            if page_cache.room == PIECE:
                self._kept = page_cache.frames()
                page_cache.keep()
            else:
                self._unsent = bytes(self._unsent)

    async def _send(self) -> bool:
        """Send what waits, or the next batch; whether there was any."""
        if not self._unsent:
            data = self._next_batch()
            if not data:
                return False
            self._send_view(data)
        if self._unsent:
            if isinstance(self._unsent, FileFrames):
                await self.transport.send_frames(self._unsent)
            else:
                await self.transport.send_text(self._unsent)
            self._unsent = b""
            self._give_back()
        self._batch_sent()
        return True

    def _give_back(self) -> None:
        if self._kept is not None:
            self.transport.page_cache.give_back(self._kept)
            self._kept = None

    def _batch_sent(self, *, at_once: bool = False) -> None:
        """The socket has all of the batch; `at_once` as for Http2Responses.written()."""
        if self._turns:
            turns, self._turns = self._turns, []
            for turn, body in turns:
                self._turn_sent(turn, body)
            if self.transport.nic_encrypts:
                self._let_go(turns)
        if self._responses.whole_sizes or self._responses.whole:
            self._responses.written(at_once=at_once)

    def _turn_sent(self, turn: Turn, body: Body) -> None:
        self._sender.sent(turn)
        self._moved += turn.count
        body.note_sent(turn.count)
        if turn.last and self._responses.bodies.get(turn.stream_id) is body:
            self._responses.finish(turn.stream_id, complete=True)

    def _next_batch(self) -> memoryview | FileFrames:
        """Heads, control frames, and bodies as far as windows allow and no disk has to be waited for."""
        sender, bodies = self._sender, self._responses.bodies
        data = sender.take() if sender.pending else b""
        if not bodies:
            return memoryview(data)
        used, room = len(data), self.transport.page_cache.room
        if room - used < _LEAST_ROOM:
            return memoryview(data)
        if self.transport.nic_encrypts:
            return self._next_file_frames(data)
        turn = sender.next_turn(room - used, used)
        if turn is None:
            return memoryview(data)
        memory = self.transport.page_cache.frames()
        memory[:used] = data
        while turn is not None:
            body = bodies[turn.stream_id]
            end = used + turn.frame_bytes
            if self._fill(turn, body, memory[used:end]):
                used = end
            if room - used < _LEAST_ROOM:
                break
            turn = sender.next_turn(room - used, used)
        return memory[:used] if self._turns else memoryview(data)

    def _fill(self, turn: Turn, body: Body, memory: memoryview) -> bool:
        """Write a turn's frames; False if it has to wait for a disk, or cannot be sent."""
        turn.write_headers(memory, 0)
        mark = body.mark()
        reads = body.fill(memory, turn.sizes)
        fill = self.transport.page_cache.fill
        try:
            for read in reads:
                if not fill(read.views(memory), body.descriptor, read.offset, body.identity):
                    self._postpone(turn, body, mark, read.offset)
                    return False
        except OSError as error:
            self._abandon(turn, error)
            return False
        self._turns.append((turn, body))
        return True

    def _next_file_frames(self, data: bytes) -> FileFrames:
        """The batch of a connection whose records a NIC encrypts: the kernel sends the parts of files in it."""
        sender, bodies = self._sender, self._responses.bodies
        frames, room = FileFrames(data), PIECE - len(data)
        while room >= _LEAST_ROOM and (turn := sender.next_turn(room, frames.open_bytes)) is not None:
            if self._add_turn(frames, turn, bodies[turn.stream_id]):
                room -= turn.frame_bytes
        return frames

    def _add_turn(self, frames: FileFrames, turn: Turn, body: Body) -> bool:
        """Add a turn to a batch; False if it has to wait for a disk, or cannot be sent.

        A file that shrinks after this is found only within a frame: the connection is cut off then (FileShrank).
        """
        mark = body.mark()
        try:
            found = file_frames(body, turn, self.transport.page_cache)
        except (OSError, FileShrank) as error:
            self._abandon(turn, error)
            return False
        if isinstance(found, int):
            self._postpone(turn, body, mark, found)
            return False
        frames.extend(found)
        body.hold()
        self._turns.append((turn, body))
        return True

    def _let_go(self, turns: list[tuple[Turn, Body]]) -> None:
        """Their batch was sent, or never will be."""
        for _, body in turns:
            body.let_go()

    def _postpone(self, turn: Turn, body: Body, mark: Mark, offset: int) -> None:
        """A disk has to be waited for, from a place in the file on."""
        body.rewind(mark)
        self._sender.postpone(turn)
        self._responses.wait_for_disk(turn.stream_id, body, offset)

    def _abandon(self, turn: Turn, error: Exception) -> None:
        self._sender.abandon(turn)
        self._responses.fail(turn.stream_id, error)
        # RST_STREAM is in the next batch.
        self._wake()


@functools.lru_cache(maxsize=8)
def http2_limits(limits: LimitOptions) -> Http2Limits:
    """The limits of the engine."""
    return Http2Limits(
        concurrent_streams=limits.http2_concurrent_streams,
        header_list_bytes=limits.head_bytes,
        header_block_bytes=limits.http2_header_block_bytes,
        continuations=limits.http2_continuations,
        resets_per_second=limits.http2_resets_per_second,
        overhead_frames_per_second=limits.http2_overhead_frames_per_second,
    )


async def _run_task(task: Task) -> None:
    await task()
