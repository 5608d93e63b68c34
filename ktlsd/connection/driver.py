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

from ktlsd.connection.poller import Batch, Poller
from ktlsd.connection.scheduler import current_scheduler
from ktlsd.openssl.results import Wait

_FEW_TIME_LIMITS: Final = 1024
_PARKED: Final = object()
_TO_TRIO: Final = object()
_READABLE: Final = select.EPOLLIN
_WRITABLE: Final = select.EPOLLOUT


class _Current(threading.local):
    """The running inline task of this thread's event loop; None while a trio task runs."""

    inline_task: _InlineTask | None = None


_current: Final = _Current()


class InlineTasks:
    """The inline tasks of one process."""

    def __init__(self, poller: Poller, nursery: trio.Nursery) -> None:
        """Inline tasks that need a trio task become tasks of the nursery."""
        self.poller = poller
        self.nursery = nursery
        self._all: dict[_InlineTask, None] = {}
        self._time_limits: list[tuple[float, int]] = []
        """A heap of the deadlines that may still matter, the next one first, each with the number of its time limit."""
        self.limited: dict[int, _InlineTask] = {}
        """The inline tasks of the running time limits, by number. Most end long before their deadlines: the heap must
        not keep what they used."""
        self._count = itertools.count()
        self._most_time_limits = _FEW_TIME_LIMITS
        self.clock = trio.lowlevel.current_clock().current_time
        self._next_look = math.inf
        self._sooner = trio.Event()
        self._ended = trio.Event()

    def __len__(self) -> int:
        return len(self._all)

    def start(self, sock: socket.socket, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start an inline task, which closes its socket at its end."""
        inline_task = _InlineTask(self, sock.fileno(), coroutine)
        self._all[inline_task] = None
        inline_task.resume(coroutine.send, None)

    async def wait_until_all_end(self) -> None:
        """Wait until all have ended."""
        while self._all:
            self._ended = trio.Event()
            await self._ended.wait()

    def close(self) -> None:
        """Close the remaining ones."""
        for inline_task in list(self._all):
            inline_task.close()

    async def enforce_time_limits(self) -> None:
        """Enforce the deadlines, until cancelled."""
        while True:
            now = trio.current_time()
            time_limits, limited = self._time_limits, self.limited
            while time_limits and (time_limits[0][0] <= now or time_limits[0][1] not in limited):
                _, number = heapq.heappop(time_limits)
                inline_task = limited.get(number)
                if inline_task is not None and inline_task in self._all:
                    inline_task.resume(inline_task.throw, trio.TooSlowError())
            self._next_look = time_limits[0][0] if time_limits else math.inf
            self._sooner = trio.Event()
            with trio.move_on_at(self._next_look):
                await self._sooner.wait()

    def begin_time_limit(self, inline_task: _InlineTask, deadline: float) -> int:
        """Set a deadline at which the inline task fails; its number, which `limited` has as long as it counts."""
        time_limits = self._time_limits
        if len(time_limits) >= self._most_time_limits:
            time_limits[:] = [entry for entry in time_limits if entry[1] in self.limited]
            heapq.heapify(time_limits)
            self._most_time_limits = max(_FEW_TIME_LIMITS, 2 * len(time_limits))
        number = next(self._count)
        self.limited[number] = inline_task
        heapq.heappush(time_limits, (deadline, number))
        if deadline < self._next_look:
            self._next_look = deadline
            self._sooner.set()
        return number

    def leave(self, inline_task: _InlineTask) -> None:
        """Remove an inline task that has ended or become a trio task."""
        del self._all[inline_task]
        if not self._all:
            self._ended.set()


class _InlineTask:
    __slots__ = ("_coroutine", "inline_tasks", "number", "send", "throw")
    low_priority = True  # most of them have their handshake before them

    def __init__(self, inline_tasks: InlineTasks, number: int, coroutine: Coroutine[Any, Any, None]) -> None:
        self.inline_tasks = inline_tasks
        self.number = number
        """The socket's descriptor."""
        self._coroutine = coroutine
        self.send, self.throw = coroutine.send, coroutine.throw

    def ready(self, batch: Batch) -> None:
        self.resume(self.send, None)

    def resume(self, step: Callable[[Any], object], argument: object) -> None:
        """Run the coroutine to its next await."""
        _current.inline_task = self
        try:
            awaited = step(argument)
        except StopIteration:
            self._end()
        except BaseException:
            self._end()
            raise
        else:
            if awaited is _TO_TRIO:
                inline_tasks = self.inline_tasks
                inline_tasks.poller.remove(self.number)
                inline_tasks.leave(self)
                inline_tasks.nursery.start_soon(_as_task, self._coroutine)
            elif awaited is not _PARKED:
                self.resume(self.throw, RuntimeError("an inline task awaited a function of trio before become_task()"))
        finally:
            _current.inline_task = None

    def close(self) -> None:
        try:
            self._coroutine.close()
        finally:
            self._end()

    def _end(self) -> None:
        self.inline_tasks.poller.forget(self.number)
        self.inline_tasks.leave(self)


class _TimeLimit:
    __slots__ = ("_limited", "_number")

    def __init__(self, inline_task: _InlineTask, deadline: float) -> None:
        """It begins here: the caller enters it at once."""
        self._limited = inline_task.inline_tasks.limited
        self._number = inline_task.inline_tasks.begin_time_limit(inline_task, deadline)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        del self._limited[self._number]


@types.coroutine
def _yield(what: object) -> Generator[object, Any, Any]:
    return (yield what)


@types.coroutine
def _rest(coroutine: Any) -> Generator[Any, Any, None]:
    yield from coroutine


async def _as_task(coroutine: Coroutine[Any, Any, None]) -> None:
    with current_scheduler().busy():
        # A coroutine that has begun cannot be awaited by a statement.
        await _rest(coroutine)


async def become_task() -> None:
    """Turn the inline task into a trio task; afterwards all of trio may be awaited. Not inside within()."""
    if _current.inline_task is not None:
        await _yield(_TO_TRIO)


@types.coroutine
def ready(sock: socket.socket, wait: Wait) -> Generator[Any, Any, None]:
    """Wait for the connection's socket."""
    # A generator, since a coroutine that awaits one would be one object and one call more for each wait.
    inline_task = _current.inline_task
    if inline_task is not None:
        events = _READABLE if wait is Wait.READABLE else _WRITABLE
        inline_task.inline_tasks.poller.set(inline_task.number, inline_task, events)
        yield _PARKED
    elif wait is Wait.READABLE:
        yield from trio.lowlevel.wait_readable(sock)  # noqa: ASYNC105
    else:
        yield from trio.lowlevel.wait_writable(sock)  # noqa: ASYNC105


def current_time() -> float:
    """trio.current_time(), in fewer calls."""
    inline_task = _current.inline_task
    return trio.current_time() if inline_task is None else inline_task.inline_tasks.clock()


def within(seconds: float, since: float) -> AbstractContextManager[object]:
    """Raise trio.TooSlowError if ready() takes longer; times are of trio's clock."""
    inline_task = _current.inline_task
    return trio.fail_at(since + seconds) if inline_task is None else _TimeLimit(inline_task, since + seconds)


class Sleeper:
    """A wait that another task ends."""

    __slots__ = ("_of", "inline_task")

    def __init__(self) -> None:
        self._of = _current.inline_task or trio.lowlevel.current_task()
        self.inline_task = _current.inline_task is not None
        """True for an inline task: its socket stays registered with the poller."""

    @types.coroutine
    def sleep(self, abort: Callable[[], None]) -> Generator[Any, Any, Any]:
        """Sleep until wake(); `abort` is called if a trio task is cancelled meanwhile."""
        if self.inline_task:
            return (yield _PARKED)

        def stop(_: object) -> trio.lowlevel.Abort:
            abort()
            return trio.lowlevel.Abort.SUCCEEDED

        return (yield from trio.lowlevel.wait_task_rescheduled(stop))  # noqa: ASYNC105

    def wake(self, result: outcome.Value[Any] | outcome.Error) -> None:
        """Make sleep() return or raise `result`. An inline task runs at once."""
        sleeping = self._of
        if not isinstance(sleeping, _InlineTask):
            trio.lowlevel.reschedule(sleeping, result)
        elif isinstance(result, outcome.Value):
            sleeping.resume(sleeping.send, result.value)
        else:
            sleeping.resume(sleeping.throw, result.error)
