"""Fair scheduling of large sends, so that small requests are not delayed.

Strategy: in one iteration of the event loop all large sends together take about PASS_SECONDS; later ones queue, and
each iteration admits the first of the queue. Between two pieces a sender lets the poller answer new requests
(poller.py). The size of a piece is the amount that the kernel takes in that time, estimated from earlier pieces, unless
there are no new requests. If one connection is the only active one, it sends from a thread, where the kernel waits for
the client.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import trio

PASS_SECONDS: Final = 0.0005
"""Time that large sends may block the event loop in one iteration."""
ALONE_SECONDS: Final = 0.2
"""Time without a new request after which large sends need no fairness."""
QUIET_SECONDS: Final = 0.02
"""The same for a send from a thread, which does not block the event loop."""
ALONE_BYTES: Final = 4 << 20
"""Maximum bytes of a file for one call without fairness; a multiple of the TLS record size."""
_MOST_WAITING: Final = 9
"""Maximum ratio of the time waiting for the client to the kernel's own work in a thread."""
_LEAST: Final = 131072
"""Minimum bytes of one piece."""
_TELLING: Final = 65536
"""Minimum bytes of a piece for the estimate: smaller ones measure the cost of the call itself."""


def _noop() -> None:
    pass


class SendScheduler:
    """The queue of large sends of one event loop."""

    def __init__(self) -> None:
        self._line: deque[trio.lowlevel.Task] = deque()
        self._until = 0.0
        """The end of this iteration's time slice."""
        self._asked = -ALONE_SECONDS
        """The time of the last request."""
        self._rate = 0.0
        """Estimate of the bytes of files a second that the kernel takes."""
        self._tasks = 0
        """Number of active connections with a trio task; `_look` serves all others."""
        self._look: Callable[[], None] = _noop
        self._thread = trio.CapacityLimiter(1)

    def asked(self) -> None:
        """Note a new request from a connection outside the queue."""
        self._asked = time.perf_counter()

    def share(self, most: int) -> int:
        """The size of the next piece of a file, up to `most` bytes."""
        if time.perf_counter() - self._asked > ALONE_SECONDS:
            return most
        return min(max(_LEAST, int(self._rate * PASS_SECONDS)), most)

    def took(self, count: int, seconds: float) -> None:
        """Update the estimate: the kernel took `count` bytes of a file in `seconds`."""
        if count >= _TELLING:
            self._rate += (count / seconds - self._rate) / 4

    def is_fast_enough(self, count: int, seconds: float) -> bool:
        """True if a client that took `count` bytes in `seconds` is not much slower than the kernel."""
        return (1 + _MOST_WAITING) * count > self._rate * seconds > 0

    @contextlib.contextmanager
    def looking(self, look: Callable[[], None]) -> Iterator[None]:
        """Call `look` between two pieces, to answer new requests, until the context ends."""
        self._look = look
        try:
            yield
        finally:
            if self._look == look:
                self._look = _noop

    @contextlib.contextmanager
    def busy(self, tasks: int = 1) -> Iterator[None]:
        """Count that many more active connections with a task until the context ends."""
        self._tasks += tasks
        try:
            yield
        finally:
            self._tasks -= tasks

    def alone(self) -> bool:
        """True if the sender has been the only active connection for QUIET_SECONDS. Callable from any thread."""
        return self._tasks == 1 and time.perf_counter() - self._asked > QUIET_SECONDS

    async def in_thread(self, send: Callable[[], bool]) -> bool:
        """Run `send` in a thread and return its result; False if the system has no more threads."""
        try:
            return await trio.to_thread.run_sync(send, limiter=self._thread)
        except RuntimeError:
            return False

    async def next(self) -> None:
        """Wait until the next piece may be sent: now, or in a later iteration. Raises trio.Cancelled."""
        if time.perf_counter() >= self._until:
            await self._next_pass()
        self._look()

    async def _next_pass(self) -> None:
        if self._line:
            await self._wait()
        else:
            self._line.append(trio.lowlevel.current_task())
            try:
                await trio.lowlevel.checkpoint()
            except BaseException:
                self._leave()
                raise
        self._leave()
        self._until = time.perf_counter() + PASS_SECONDS

    async def _wait(self) -> None:
        """Queue until the sender in front leaves the queue."""
        task = trio.lowlevel.current_task()
        self._line.append(task)

        def give_up(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._line.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def _leave(self) -> None:
        """Leave the head of the queue; the next sender runs in the next iteration."""
        self._line.popleft()
        if self._line:
            trio.lowlevel.reschedule(self._line[0])


_scheduler: trio.lowlevel.RunVar[SendScheduler] = trio.lowlevel.RunVar("ktlsd.connection.scheduler")


def current_scheduler() -> SendScheduler:
    """The scheduler of the running event loop."""
    try:
        return _scheduler.get()
    except LookupError:
        scheduler = SendScheduler()
        _scheduler.set(scheduler)
        return scheduler
