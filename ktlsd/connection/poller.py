"""One epoll for the sockets of all connections that wait without a trio task.

Strategy: trio waits for the epoll itself, and all ready sockets are handled in one batch: a trio wait for each would
cost more than most of the work. A batch runs step by step, all sockets together: code that has just run is in the
caches, and clients that get their responses in a row do not fall asleep in between. A large send polls between two
pieces (scheduler.py), which is sooner than the next iteration of the event loop.
"""

from __future__ import annotations

import contextlib
import logging
import select
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import trio

from ktlsd.config.refusal import cause
from ktlsd.connection.scheduler import current_scheduler

log = logging.getLogger("ktlsd")

PART_SECONDS: Final = 0.02
"""Pause before a socket with a partial TLS record is polled again, if the kernel reports it as readable."""
_PAUSE_SECONDS: Final = 0.1
_EACH_PART_SECONDS: Final = 0.0005
_AT_ONCE: Final = 32
"""Maximum sockets in a batch; other tasks run between two batches."""
_LAST: Final = object()

Batch = dict[Any, Any]
"""Intermediate results that sockets of one batch share: all their requests arrived before the first response is
made."""
Steps = Iterator[None]
"""The work for one socket; each step runs for all sockets of a batch before the next one."""


class PolledSocket(Protocol):
    """The handler of a socket."""

    low_priority: bool
    """True if other sockets of the batch come first, since this handler may be slow."""

    def ready(self, batch: Batch) -> Steps | None:
        """Handle a ready socket: the steps to run, or None if there are none. The socket is polled until remove().

        Steps that were not started have no effect; started ones run to their end.
        """


class Poller:
    """The polled sockets of one process. The creator closes it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.now = time.monotonic()
        """The time at which the current batch began: read once, since a look at the clock can be a system call."""
        self._polled: dict[int, tuple[PolledSocket, int]] = {}
        """The handler and the events of each socket."""
        self._paused: list[int] = []
        self._pause_begins = trio.Event()
        self.on_batch_end: list[Callable[[float], None]] = []
        """Called after each batch with the time at which it began."""

    def close(self) -> None:
        self._epoll.close()

    def set(self, number: int, polled: PolledSocket, events: int = select.EPOLLIN) -> None:
        """Poll a socket; the handler replaces an earlier one. Raises OSError."""
        before = self._polled.get(number)
        if before is None:
            self._epoll.register(number, events)
        elif before[1] != events:
            self._epoll.modify(number, events)
        elif before[0] is polled:
            return
        self._polled[number] = polled, events

    def remove(self, number: int) -> None:
        """Stop polling a socket."""
        self.forget(number)
        self._unregister(number)

    def forget(self, number: int) -> None:
        """Forget a closed socket."""
        self._polled.pop(number, None)

    def pause(self, number: int) -> None:
        """Stop polling a socket for a while: the kernel may report a partial TLS record as readable
        (PacedTransport.wakes_early)."""
        self.set(number, self._polled[number][0], 0)
        self._paused.append(number)
        self._pause_begins.set()

    async def run(self) -> None:
        """Handle ready sockets until cancelled."""
        self._scheduler = current_scheduler()
        with self._scheduler.looking(self._look):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_sockets)
                nursery.start_soon(self._end_pauses)

    async def _watch_sockets(self) -> None:
        while True:
            try:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                left = _AT_ONCE
                while count := self._look_after(left):
                    left -= count
                    if left <= 0:
                        await trio.lowlevel.checkpoint()
                        left = _AT_ONCE
            except (OSError, MemoryError) as error:
                # No memory for the wait (epoll_ctl(2)): the server must not stop forever.
                log.error("cannot poll connections, retrying: %s", cause(error))
                await trio.sleep(_PAUSE_SECONDS)

    def _look(self) -> None:
        try:
            self._look_after(_AT_ONCE)
        except (OSError, MemoryError) as error:
            log.error("cannot poll connections, retrying: %s", cause(error))

    def _look_after(self, most: int) -> int:
        """Handle one batch of up to `most` ready sockets; returns their number. Raises OSError, MemoryError."""
        ready = self._epoll.poll(0, most)
        if not ready:
            return 0
        self._scheduler.asked()
        self.now = began = time.monotonic()
        batch: Batch = {}
        high_priority: list[int] = []
        low_priority: list[int] = []
        for number, _ in ready:
            found = self._polled.get(number)
            (low_priority if found is not None and found[0].low_priority else high_priority).append(number)
        if high_priority:
            self._run_batch(high_priority, batch)
        if low_priority:
            self._run_batch(low_priority, batch)
        for call in self.on_batch_end:
            call(began)
        return len(ready)

    def _run_batch(self, numbers: list[int], batch: Batch) -> None:
        all_steps: list[Steps] = []
        for number in numbers:
            found = self._polled.get(number)
            if found is None:
                self._unregister(number)
            elif (steps := found[0].ready(batch)) is not None:
                all_steps.append(steps)
        if all_steps:
            _run_steps(all_steps)

    async def _end_pauses(self) -> None:
        while True:
            await self._pause_begins.wait()
            self._pause_begins = trio.Event()
            paused, self._paused = self._paused, []
            # The pause grows with their number, to bound the work for a great many.
            await trio.sleep(PART_SECONDS + len(paused) * _EACH_PART_SECONDS)
            for number in paused:
                found = self._polled.get(number)
                if found is not None and found[1] == 0:
                    with contextlib.suppress(OSError):
                        self.set(number, found[0])

    def _unregister(self, number: int) -> None:
        # A failure is repaired when the socket is ready again, and close(2) unregisters too (epoll(7)).
        with contextlib.suppress(OSError):
            self._epoll.unregister(number)


def _run_steps(all_steps: list[Steps]) -> None:
    """Run the next step of each until all have ended. Raises the exception of any of them."""
    while all_steps:
        left: list[Steps] = []
        rest = iter(all_steps)
        try:
            for steps in rest:
                if next(steps, _LAST) is None:
                    left.append(steps)
        except BaseException:
            # The others may have received requests for which the socket will not become ready again.
            _run_steps([*rest, *left])
            raise
        all_steps = left
