"""Threads for calls on files that may take long, or for ever: a hung disk, network or FUSE file system.

Strategy: each site has threads of its own, a few, so that a file system that hangs takes no other site's. A call that
takes too long is abandoned: its client gets an answer, and the thread stays occupied until the kernel lets it go. While
all are occupied that way, calls fail at once. Nothing here delays the end of the process: a waiting task can be
cancelled, and trio's worker threads are daemons.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Generic, TypeVar, cast

import outcome
import trio

log = logging.getLogger("ktlsd")

T = TypeVar("T")

THREADS: Final = 16
"""Calls of one site that may be in progress at the same time."""
DEFAULT_SECONDS: Final = 20.0
_TELL_SECONDS: Final = 60.0


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
        self._limiter = trio.CapacityLimiter(threads)
        self._last_start = 0.0
        self._to_discard: deque[Callable[[], object]] = deque()
        self._discarding = False
        self._lock = threading.Lock()

    @property
    def stalled(self) -> bool:
        """Whether all threads have been occupied by calls that take too long."""
        return self._limiter.available_tokens == 0 and trio.current_time() - self._last_start > self.seconds

    async def run(self, call: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> T:
        """What `call` returns in a thread; a result that comes too late goes to `discard`, in a thread.

        Raises Stalled, and OSError for ENOMEM where the system has no more threads.
        """
        return await self._run(_Job(self, call, discard))

    async def run_on(self, descriptor: int, call: Callable[[int], T], *, waits: bool = False) -> T:
        """The same of a call on an open file. It gets a descriptor of its own: the file may be closed before it ends.
        Even close(2) is not waited for if the file's file system `waits`.

        Raises as run() does.
        """
        copy = os.dup(descriptor)

        def call_and_close() -> T:
            try:
                return call(copy)
            finally:
                if waits:
                    self.discard(partial(os.close, copy))
                else:
                    os.close(copy)

        job = _Job(self, call_and_close)
        try:
            return await self._run(job)
        finally:
            if not job.runs:
                self.discard(partial(os.close, copy))

    async def _run(self, job: _Job[T]) -> T:
        await self._acquire(job)
        try:
            with trio.move_on_after(self.seconds):
                # The limiter may be any object with these two methods (trio.to_thread.run_sync).
                await trio.to_thread.run_sync(job, abandon_on_cancel=True, limiter=cast(trio.CapacityLimiter, job))
                return job.take()
            raise self._stalled()
        except RuntimeError as error:
            if job.begun:
                raise
            # "can't start new thread"
            job.runs = False
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        finally:
            if not job.handed_over:
                self.release(job)
            job.abandon()

    def _stalled(self) -> Stalled:
        if (now := time.monotonic()) >= self._tell_again:
            self._tell_again = now + _TELL_SECONDS
            log.error("%s: its file system does not answer within %g s", self._place, self.seconds)
        return Stalled(self.seconds)

    async def _acquire(self, job: _Job[T]) -> None:
        """Wait for a thread for as long as others of these get theirs. Raises Stalled."""
        while True:
            if self.stalled:
                raise self._stalled()
            with trio.move_on_after(self.seconds):
                await self._limiter.acquire_on_behalf_of(job)
                self._last_start = trio.current_time()
                return

    def release(self, job: _Job[T]) -> None:
        """Its thread has ended, or never begun."""
        self._limiter.release_on_behalf_of(job)

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


def within(seconds: float, call: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> T:
    """What `call` returns in a thread, for callers without an event loop; a result that comes too late goes to
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


class _Job(Generic[T]):
    """One call, and whether somebody still waits for it. It acts as the limiter of its own thread: trio says when the
    thread has begun and ended."""

    def __init__(
        self, threads: FileThreads, call: Callable[[], T], discard: Callable[[T], object] = lambda _: None
    ) -> None:
        self._threads = threads
        self._call = call
        self._discard = discard
        self._lock = threading.Lock()
        self._results: list[T] = []
        self._abandoned = False
        self.handed_over = False
        """Whether trio releases it."""
        self.runs = False
        """Whether a thread makes the call, or has."""
        self.begun = False
        """Whether it has begun."""

    def __call__(self) -> None:
        self.begun = True
        result = self._call()
        with self._lock:
            if not self._abandoned:
                self._results.append(result)
                return
        self._discard(result)

    def take(self) -> T:
        """The result, which now belongs to the caller."""
        return self._results.pop()

    def abandon(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._abandoned = True
        for result in self._results:
            self._threads.discard(partial(self._discard, result))

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        self.handed_over = self.runs = True

    def release_on_behalf_of(self, borrower: object) -> None:
        self._threads.release(self)
