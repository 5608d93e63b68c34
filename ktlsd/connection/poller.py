"""One epoll for the sockets of all connections that wait without trio.

Strategy: trio waits for the epoll itself, and every socket that shows something is looked after at once, many in a row:
for each of them a wait of trio's own would cost more than most of what is done. They go on step by step, together: code
that has just run is fast, and clients that get their answers in a row do not fall asleep between them. Who sends much
looks between two pieces (scheduler.py), which comes sooner than a pass of the event loop.
"""

from __future__ import annotations

import contextlib
import logging
import select
from collections.abc import Iterator
from typing import Any, Final, Protocol

import trio

from ktlsd.config.refusal import cause
from ktlsd.connection.scheduler import of_this_loop

log = logging.getLogger("ktlsd")

PART_SECONDS: Final = 0.02
"""How long the rest of a TLS record is waited for where the socket does not tell that it came."""
_PAUSE_SECONDS: Final = 0.1
_EACH_PART_SECONDS: Final = 0.0005
_AT_ONCE: Final = 32
"""Sockets that are looked at before other tasks get their turn."""
_LAST: Final = object()

Turn = dict[Any, Any]
"""What one answer was made of, for others of the same turn: all of them were asked for before the first one is made."""
Steps = Iterator[None]
"""What is done for one socket, up to where others of the same turn may do as much."""


class Watched(Protocol):
    """Whoever waits for a socket."""

    patient: bool
    """Whether others of the same turn come first, since this one may take long."""

    def ready(self, turn: Turn) -> Steps | None:
        """The socket shows something: what is to be done, or None where that is done. It is watched until remove().

        Steps that are never begun have done nothing, and those that are begun are gone through.
        """


class Watch:
    """One process's watched sockets. Whoever makes one closes it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[Watched, int]] = {}
        """Who waits, and what the epoll looks for."""
        self._paused: list[int] = []
        self._pause_begins = trio.Event()

    def close(self) -> None:
        self._epoll.close()

    def set(self, number: int, watched: Watched, events: int = select.EPOLLIN) -> None:
        """Watch a socket, in the place of whoever did before. Raises OSError."""
        before = self._watched.get(number)
        if before is None:
            self._epoll.register(number, events)
        elif before[1] != events:
            self._epoll.modify(number, events)
        self._watched[number] = watched, events

    def remove(self, number: int) -> None:
        """Watch a socket no longer."""
        self.forget(number)
        self._unregister(number)

    def forget(self, number: int) -> None:
        """A watched socket was closed."""
        self._watched.pop(number, None)

    def pause(self, number: int) -> None:
        """Look away from a socket for a while: it may show a part of a TLS record until the rest is there
        (PacedTransport.wakes_early)."""
        self.set(number, self._watched[number][0], 0)
        self._paused.append(number)
        self._pause_begins.set()

    async def run(self) -> None:
        """Look after the sockets, for ever."""
        with of_this_loop().looking(self._look):
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
                # There was no memory for the wait (epoll_ctl(2)): no reason to accept and answer nobody ever after.
                log.error("connections have to wait: %s", cause(error))
                await trio.sleep(_PAUSE_SECONDS)

    def _look(self) -> None:
        try:
            self._look_after(_AT_ONCE)
        except (OSError, MemoryError) as error:
            log.error("connections have to wait: %s", cause(error))

    def _look_after(self, most: int) -> int:
        """How many sockets showed something, of up to that many. Raises OSError, MemoryError."""
        ready = self._epoll.poll(0, most)
        if not ready:
            return 0
        of_this_loop().asked()
        turn: Turn = {}
        prompt: list[int] = []
        patient: list[int] = []
        for number, _ in ready:
            found = self._watched.get(number)
            (patient if found is not None and found[0].patient else prompt).append(number)
        self._go_through(prompt, turn)
        if patient:
            self._go_through(patient, turn)
        return len(ready)

    def _go_through(self, numbers: list[int], turn: Turn) -> None:
        everyone: list[Steps] = []
        for number in numbers:
            found = self._watched.get(number)
            if found is None:
                self._unregister(number)
            elif (steps := found[0].ready(turn)) is not None:
                everyone.append(steps)
        _go_on(everyone)

    async def _end_pauses(self) -> None:
        while True:
            await self._pause_begins.wait()
            self._pause_begins = trio.Event()
            paused, self._paused = self._paused, []
            # The more there are the longer, so that a great many are not much work.
            await trio.sleep(PART_SECONDS + len(paused) * _EACH_PART_SECONDS)
            for number in paused:
                found = self._watched.get(number)
                if found is not None and found[1] == 0:
                    with contextlib.suppress(OSError):
                        self.set(number, found[0])

    def _unregister(self, number: int) -> None:
        # What fails is tried again when the socket shows something, and close(2) does it too (epoll(7)).
        with contextlib.suppress(OSError):
            self._epoll.unregister(number)


def _go_on(everyone: list[Steps]) -> None:
    """Have each of them take its next step, again and again until none is left. Raises what one of them raises."""
    while everyone:
        left: list[Steps] = []
        rest = iter(everyone)
        try:
            for steps in rest:
                if next(steps, _LAST) is None:
                    left.append(steps)
        except BaseException:
            # The others may have received requests that nothing would show again.
            _go_on([*rest, *left])
            raise
        everyone = left
