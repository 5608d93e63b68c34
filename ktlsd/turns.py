"""Turns of those who send much, so that a small request waits for few of them.

Strategy: in one pass of the event loop all big sends together take about PASS_SECONDS; who comes later stands in line,
and each pass lets the first one in. Between two pieces a sender looks after those who ask (watch.py). What the kernel
is given at once is as much as takes that time, by what it took before, unless nobody asks for anything. Then one that
is the only task goes on without a pass, and waits for its socket and for those who ask by a poll(2) of its own.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import trio

PASS_SECONDS: Final = 0.0005
"""How long big sends may hold up everyone else."""
ALONE_SECONDS: Final = 0.2
"""How long after the last request those who send are alone."""
ALONE_BYTES: Final = 4 << 20
"""Bytes of a file that who sends alone may give the kernel in one pass; a multiple of the TLS record size."""
_ALONE_PASS_SECONDS: Final = 0.1
"""How long who sends alone may go on in one pass, since clocks and signals are heard of in the next."""
_ALONE_WAIT_MS: Final = 10
"""How long who sends alone may wait for a socket in one go."""
_LEAST: Final = 131072
"""Bytes that are always worth a turn."""
_TELLING: Final = 65536
"""Bytes that take longer than the call itself."""


def _look_at_nobody() -> None:
    pass


class Turns:
    """The line of one event loop."""

    def __init__(self) -> None:
        self._line: deque[trio.lowlevel.Task] = deque()
        self._until = 0.0
        """When the time of this pass is over."""
        self._asked = -ALONE_SECONDS
        """When somebody asked for something."""
        self._rate = 0.0
        """Bytes a second that the kernel takes of files."""
        self._given = 0
        """Bytes that it took since this pass began."""
        self._tasks = 0
        """Connections that are tasks of trio's and have something to do; all others are looked after by `_look`."""
        self._look: Callable[[], None] = _look_at_nobody
        self._poll = select.poll()
        """Knows what shows that there is somebody to look after."""

    def asked(self) -> None:
        """Somebody who is not in the line asks for something."""
        self._asked = time.perf_counter()

    def share(self, most: int) -> int:
        """How many bytes of a file the kernel may be given at once, up to `most`."""
        if time.perf_counter() - self._asked > ALONE_SECONDS:
            return most
        return min(max(_LEAST, int(self._rate * PASS_SECONDS)), most)

    def took(self, count: int, seconds: float) -> None:
        """The kernel took that many bytes of a file in that time."""
        self._given += count
        if count >= _TELLING:
            self._rate += (count / seconds - self._rate) / 4

    @contextlib.contextmanager
    def looking(self, look: Callable[[], None], descriptor: int) -> Iterator[None]:
        """For as long as this lasts, `look` is called between two pieces, to look after who asks without waiting.

        `descriptor` is readable where somebody does.
        """
        self._look = look
        self._poll.register(descriptor, select.POLLIN)
        try:
            yield
        finally:
            self._poll.unregister(descriptor)
            if self._look == look:
                self._look = _look_at_nobody

    @contextlib.contextmanager
    def busy(self, tasks: int = 1) -> Iterator[None]:
        """For as long as this lasts, that many more connections that are tasks have something to do."""
        self._tasks += tasks
        try:
            yield
        finally:
            self._tasks -= tasks

    def alone(self) -> bool:
        """Whether who sends by the kernel may give it more without next(), as nobody else has anything to do.

        Who asks meanwhile ends the next wait for the socket, and there is one unless the kernel takes all of this fast.
        """
        now = time.perf_counter()
        return (
            self._tasks == 1
            and self._given < ALONE_BYTES
            and now - self._asked > ALONE_SECONDS
            and now - self._until < _ALONE_PASS_SECONDS
        )

    def writable_alone(self, descriptor: int) -> bool:
        """Whether a socket became writable in a short wait; False without one where others have something to do.

        A pass of the event loop and a wait of trio's touch much code, which the kernel's encryption has driven out of
        the processor's caches.
        """
        if not self.alone():
            return False
        self._poll.register(descriptor, select.POLLOUT)
        ready = self._poll.poll(_ALONE_WAIT_MS)
        self._poll.unregister(descriptor)
        return [number for number, _ in ready] == [descriptor]

    async def next(self) -> None:
        """Return when some more may be sent: at once, or in a later pass. Raises trio.Cancelled."""
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
        self._given = 0

    async def _wait(self) -> None:
        """Stand in line behind others, until the one before leaves it."""
        task = trio.lowlevel.current_task()
        self._line.append(task)

        def give_up(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._line.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def _leave(self) -> None:
        """Leave the head of the line; who is behind runs in the next pass."""
        self._line.popleft()
        if self._line:
            trio.lowlevel.reschedule(self._line[0])


_turns: trio.lowlevel.RunVar[Turns] = trio.lowlevel.RunVar("ktlsd.turns")


def of_this_loop() -> Turns:
    """The one line of the event loop that runs."""
    try:
        return _turns.get()
    except LookupError:
        turns = Turns()
        _turns.set(turns)
        return turns
