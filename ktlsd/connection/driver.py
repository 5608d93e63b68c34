"""Inline tasks: connections without a trio task until they need one, for handshakes and cached responses.

Strategy: an inline task is a coroutine that the poller of its socket (poller.py) starts and resumes, as long as it
awaits only the functions of this module; a trio task, with a wait and a cancel scope for each step, would cost as much
as the handshake. become_task() turns it into a trio task; from then on the same functions call trio.
"""

from __future__ import annotations

import heapq
import itertools
import math
import select
import socket
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from typing import Any, Final

import outcome
import trio

from ktlsd.connection.poller import Turn, Watch
from ktlsd.connection.scheduler import of_this_loop
from ktlsd.openssl.results import Wait

_FEW_TERMS: Final = 1024
_PARKED: Final = object()
_TO_TRIO: Final = object()


class _Now(threading.local):
    """The running inline task of this thread's event loop; None while a trio task runs."""

    light: _Light | None = None


_now: Final = _Now()


class Lights:
    """The inline tasks of one process."""

    def __init__(self, watch: Watch, nursery: trio.Nursery) -> None:
        """Inline tasks that need a trio task become tasks of the nursery."""
        self.watch = watch
        self.nursery = nursery
        self._all: dict[_Light, None] = {}
        self._terms: list[tuple[float, int, _Term]] = []
        """A heap of all that may still run, the next deadline first."""
        self._count = itertools.count()
        self._most_terms = _FEW_TERMS
        self._next_look = math.inf
        self._sooner = trio.Event()
        self._ended = trio.Event()

    def __len__(self) -> int:
        return len(self._all)

    def start(self, sock: socket.socket, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start an inline task, which closes its socket at its end."""
        light = _Light(self, sock.fileno(), coroutine)
        self._all[light] = None
        light.go_on(coroutine.send, None)

    async def until_none(self) -> None:
        """Wait until all have ended; cancelling this wait closes the remaining ones."""
        try:
            while self._all:
                self._ended = trio.Event()
                await self._ended.wait()
        finally:
            for light in list(self._all):
                light.close()

    async def watch_terms(self) -> None:
        """Enforce the deadlines, until cancelled."""
        while True:
            now = trio.current_time()
            terms = self._terms
            while terms and (terms[0][0] <= now or terms[0][2].over):
                _, _, term = heapq.heappop(terms)
                if not term.over and term.light in self._all:
                    term.light.go_on(term.light.throw, trio.TooSlowError())
            self._next_look = terms[0][0] if terms else math.inf
            self._sooner = trio.Event()
            with trio.move_on_at(self._next_look):
                await self._sooner.wait()

    def begin_term(self, term: _Term, deadline: float) -> None:
        """Set a deadline at which the inline task fails."""
        terms = self._terms
        if len(terms) >= self._most_terms:
            # Most end long before their deadlines.
            terms[:] = [entry for entry in terms if not entry[2].over]
            heapq.heapify(terms)
            self._most_terms = max(_FEW_TERMS, 2 * len(terms))
        heapq.heappush(terms, (deadline, next(self._count), term))
        if deadline < self._next_look:
            self._next_look = deadline
            self._sooner.set()

    def leave(self, light: _Light) -> None:
        """Remove an inline task that has ended or become a trio task."""
        del self._all[light]
        if not self._all:
            self._ended.set()


class _Light:
    __slots__ = ("_coroutine", "_number", "lights", "send", "throw")
    patient = True  # most of them have their handshake before them

    def __init__(self, lights: Lights, number: int, coroutine: Coroutine[Any, Any, None]) -> None:
        self.lights = lights
        self._number = number
        self._coroutine = coroutine
        self.send, self.throw = coroutine.send, coroutine.throw

    def ready(self, turn: Turn) -> None:
        self.go_on(self.send, None)

    def go_on(self, step: Callable[[Any], object], argument: object) -> None:
        """Run the coroutine to its next await."""
        _now.light = self
        try:
            awaited = step(argument)
        except StopIteration:
            self._end()
        except BaseException:
            self._end()
            raise
        else:
            if awaited is _TO_TRIO:
                lights = self.lights
                lights.watch.remove(self._number)
                lights.leave(self)
                lights.nursery.start_soon(_as_task, self._coroutine)
            elif awaited is not _PARKED:
                self.go_on(self.throw, RuntimeError("an inline task awaited a function of trio before become_task()"))
        finally:
            _now.light = None

    def close(self) -> None:
        try:
            self._coroutine.close()
        finally:
            self._end()

    def _end(self) -> None:
        self.lights.watch.forget(self._number)
        self.lights.leave(self)

    def look_for(self, events: int) -> None:
        """Resume when the socket has any of these events."""
        self.lights.watch.set(self._number, self, events)


class _Term:
    __slots__ = ("_deadline", "light", "over")

    def __init__(self, light: _Light, deadline: float) -> None:
        self.light = light
        self._deadline = deadline
        self.over = False

    def __enter__(self) -> None:
        self.light.lights.begin_term(self, self._deadline)

    def __exit__(self, *_: object) -> None:
        self.over = True


@types.coroutine
def _yield(what: object) -> Generator[object, Any, Any]:
    return (yield what)


@types.coroutine
def _rest(coroutine: Any) -> Generator[Any, Any, None]:
    yield from coroutine


async def _as_task(coroutine: Coroutine[Any, Any, None]) -> None:
    with of_this_loop().busy():
        # A coroutine that has begun cannot be awaited by a statement.
        await _rest(coroutine)


async def become_task() -> None:
    """Turn the inline task into a trio task; afterwards all of trio may be awaited. Not inside within()."""
    if _now.light is not None:
        await _yield(_TO_TRIO)


async def ready(sock: socket.socket, wait: Wait) -> None:
    """Wait for the connection's socket."""
    light = _now.light
    if light is not None:
        light.look_for(select.EPOLLIN if wait is Wait.READABLE else select.EPOLLOUT)
        await _yield(_PARKED)
    elif wait is Wait.READABLE:
        await trio.lowlevel.wait_readable(sock)
    else:
        await trio.lowlevel.wait_writable(sock)


def within(seconds: float, since: float) -> AbstractContextManager[object]:
    """Raise trio.TooSlowError if ready() takes longer; times are of trio's clock."""
    light = _now.light
    return trio.fail_at(since + seconds) if light is None else _Term(light, since + seconds)


class Sleeper:
    """A wait that another task ends."""

    __slots__ = ("_of", "light")

    def __init__(self) -> None:
        self._of = _now.light or trio.lowlevel.current_task()
        self.light = _now.light is not None
        """True for an inline task: its socket stays registered with the poller."""

    async def sleep(self, abort: Callable[[], None]) -> Any:
        """Sleep until wake(); `abort` is called if a trio task is cancelled meanwhile."""
        if self.light:
            return await _yield(_PARKED)

        def stop(_: object) -> trio.lowlevel.Abort:
            abort()
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(stop)

    def wake(self, result: outcome.Value[Any] | outcome.Error) -> None:
        """Make sleep() return or raise `result`. An inline task runs at once."""
        sleeping = self._of
        if not isinstance(sleeping, _Light):
            trio.lowlevel.reschedule(sleeping, result)
        elif isinstance(result, outcome.Value):
            sleeping.go_on(sleeping.send, result.value)
        else:
            sleeping.go_on(sleeping.throw, result.error)
