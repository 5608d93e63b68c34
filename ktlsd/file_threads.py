"""Threads for calls on files that may take long, or forever: a hung disk, network or FUSE file system.

Strategy: each site has threads of its own, a few, so that a file system that hangs takes no other site's. A call that
takes too long is abandoned: its client gets an answer, and the thread stays occupied until the kernel lets it go. While
all are occupied that way, calls fail at once. Nothing here delays the end of the event loop: a waiting task can be
cancelled, and trio's worker threads are daemons.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final, Generic, TypeVar

import outcome
import trio

from ktlsd.attempt import needs_task

log = logging.getLogger("ktlsd")

T = TypeVar("T")

THREADS: Final = 16
"""Calls of one site that may be in progress at the same time."""
DEFAULT_SECONDS: Final = 20.0
_TELL_SECONDS: Final = 60.0
_MOMENT_SECONDS: Final = 0.1
_LOOKS: Final = 20
"""Number of looks at the clock during a wait: time in which the event loop itself could not run does not count."""


class Stalled(OSError):
    """The file system did not answer in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        self.seconds = seconds


class FileThreads:
    """One site's threads."""

    def __init__(self, place: str, seconds: float = DEFAULT_SECONDS, threads: int = THREADS) -> None:
        """`place` is for the log: the files that the calls are on. `seconds` is the time that one call may take."""
        self.seconds = seconds
        self._place = place
        self._tell_again = 0.0
        self._threads = threads
        self._limiter = trio.CapacityLimiter(threads)
        self._overdue: set[object] = set()
        """Calls that were given up and still occupy their threads."""
        self._to_discard: deque[Callable[[], object]] = deque()
        self._discarding = False
        self._lock = threading.Lock()

    async def run(self, call: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> T:
        """The result of `call` in a thread; a result that comes too late goes to `discard`, in a thread.

        Raises Stalled, and OSError for ENOMEM where the system has no more threads.
        """
        needs_task()
        return await self._run(_Job(self, call, discard))

    def run_soon(self, call: Callable[[], object]) -> bool:
        """Have a thread make a call that nothing waits for, if one is free; whether one was."""
        job = _Job(self, call)
        try:
            self._limiter.acquire_on_behalf_of_nowait(job)
            job.start()
        except (trio.WouldBlock, OSError):
            return False
        job.abandon()
        return True

    async def run_on(self, descriptor: int, call: Callable[[int], T], *, waits: bool = False) -> T:
        """The same of a call on an open file. It gets a descriptor of its own: the file may be closed before it ends.
        Even close(2) is not waited for if the file's file system `waits`.

        Raises as run() does.
        """
        needs_task()
        copy = os.dup(descriptor)

        def close() -> None:
            if waits:
                self.discard(partial(os.close, copy))
            else:
                os.close(copy)

        def call_and_close() -> T:
            try:
                return call(copy)
            finally:
                close()

        job = _Job(self, call_and_close)
        try:
            return await self._run(job)
        finally:
            if not job.started:
                close()

    async def _run(self, job: _Job[T]) -> T:
        # A caller may make steps of the coroutine itself, and give it up as soon as it waits: before anything is begun.
        await trio.lowlevel.checkpoint()
        await self._acquire(job)
        try:
            job.start()
            return await job.result(self.seconds)
        except Stalled:
            self._overdue.add(job)
            self._tell()
            raise
        finally:
            job.abandon()

    async def _acquire(self, job: _Job[T]) -> None:
        """Wait for a thread for as long as not all are overdue. Raises Stalled."""
        while True:
            if len(self._overdue) == self._threads:
                self._tell()
                raise Stalled(self.seconds)
            with trio.move_on_after(self.seconds):
                await self._limiter.acquire_on_behalf_of(job)
                return

    def release(self, job: _Job[T]) -> None:
        """Its thread has ended, or never begun."""
        self._overdue.discard(job)
        self._limiter.release_on_behalf_of(job)

    def _tell(self) -> None:
        if (now := time.monotonic()) >= self._tell_again:
            self._tell_again = now + _TELL_SECONDS
            log.error("%s: the file system did not answer within %g s", self._place, self.seconds)

    def discard(self, call: Callable[[], object]) -> None:
        """Have a thread make a call such as close(2), which FUSE may hold up, and wait for nothing."""
        with self._lock:
            self._to_discard.append(call)
            if self._discarding:
                return
            self._discarding = True
        try:
            trio.lowlevel.start_thread_soon(self._discard_all, lambda _: None)
        except RuntimeError:
            # No thread to be had: the next call tries again.
            self._discarding = False

    def _discard_all(self) -> None:
        while True:
            with self._lock:
                if not self._to_discard:
                    self._discarding = False
                    return
                call = self._to_discard.popleft()
            with contextlib.suppress(OSError):
                call()


class JobLimiter:
    """Lets a few jobs run at a time. A job that waits behind one that stalls fails with it, if its own file may stall:
    one after the other, they would wait for many times as long."""

    def __init__(self, count: int) -> None:
        self._limiter = trio.CapacityLimiter(count)
        self._stalled_at = -math.inf

    @contextlib.asynccontextmanager
    async def one(self, seconds: float, *, waits: bool) -> AsyncIterator[None]:
        """Wait for room, and keep it; `waits` says whether the file system may hold up its callers, and `seconds` the
        time that a call on a file may take. Raises Stalled."""
        needs_task()
        since = trio.current_time()
        async with self._limiter:
            if waits and self._stalled_at > since:
                raise Stalled(seconds)
            try:
                yield
            except Stalled:
                self._stalled_at = trio.current_time()
                raise


def within(seconds: float, call: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> T:
    """The result of `call` in a thread, for callers without an event loop; a result that comes too late goes to
    `discard`. Raises Stalled after that many seconds."""
    lock = threading.Lock()
    results: list[outcome.Outcome[T]] = []
    abandoned = False

    def run() -> None:
        result = outcome.capture(call)
        with lock:
            results.append(result)
            late = abandoned
        if late and isinstance(result, outcome.Value):
            discard(result.value)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    with lock:
        abandoned = True
    if not results:
        raise Stalled(seconds)
    return results[0].unwrap()


class Patience:
    """The time, in seconds, that calls which stall may take together, one after the other."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def within(self, call: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> T:
        """The same as within(), for what is left of the time; a call after that still gets a moment."""
        seconds = max(self._left, _MOMENT_SECONDS)
        try:
            return within(seconds, call, discard)
        except Stalled:
            self._left -= seconds
            raise


class _Job(Generic[T]):
    """One call in a thread, and whether anything still waits for it."""

    def __init__(
        self, threads: FileThreads, call: Callable[[], T], discard: Callable[[T], object] = lambda _: None
    ) -> None:
        self._threads = threads
        self._call = call
        self._discard = discard
        self._ended = trio.Event()
        self._lock = threading.Lock()
        self._outcome: outcome.Outcome[T] | None = None
        self._abandoned = False
        self.started = False
        """Whether a thread makes the call, or has."""

    def start(self) -> None:
        """Have a thread make the call. Raises OSError for ENOMEM where there is none to be had."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            trio.lowlevel.start_thread_soon(self._make, lambda _: None)
        except RuntimeError as error:
            self._threads.release(self)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        self.started = True

    def _make(self) -> None:
        made = outcome.capture(self._call)
        with self._lock:
            late = self._abandoned
            if not late:
                self._outcome = made
        if late and isinstance(made, outcome.Value):
            self._discard(made.value)
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._end)

    def _end(self) -> None:
        self._threads.release(self)
        self._ended.set()

    async def result(self, seconds: float) -> T:
        """The call's result or exception, which then belongs to the caller. Raises Stalled."""
        most = seconds / _LOOKS
        for _ in range(_LOOKS):
            with trio.move_on_after(most):
                await self._ended.wait()
            with self._lock:
                made, self._outcome = self._outcome, None
            if made is not None:
                return made.unwrap()
        raise Stalled(seconds)

    def abandon(self) -> None:
        """Nothing waits any more."""
        with self._lock:
            self._abandoned = True
            made, self._outcome = self._outcome, None
        if isinstance(made, outcome.Value):
            self._threads.discard(partial(self._discard, made.value))
