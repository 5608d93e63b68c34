"""Turns of those who send much, so that a small request waits for few of them.

Strategy: in one pass of the event loop all big sends together take about PASS_SECONDS; who comes later stands in line,
and each pass lets the first one in. Between two pieces a sender looks after those who ask (poller.py). What the kernel
is given at once is as much as takes that time, by what it took before, unless nobody asks for anything. Then the only
one with something to do may send from a thread, where the kernel itself waits for the client.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import trio

PASS_SECONDS: Final = 0.0005
"""How long big sends may hold up everyone else."""
ALONE_SECONDS: Final = 0.2
"""How long after the last request those who send are alone."""
QUIET_SECONDS: Final = 0.02
"""The same for the only one, which leaves the event loop to others."""
ALONE_BYTES: Final = 4 << 20
"""Bytes of a file that who sends alone may give the kernel at once; a multiple of the TLS record size."""
_MOST_WAITING: Final = 9
"""How many times as long as for the kernel's work a client may be waited for in a thread."""
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
        self._tasks = 0
        """Connections that are tasks of trio's and have something to do; all others are looked after by `_look`."""
        self._look: Callable[[], None] = _look_at_nobody
        self._thread = trio.CapacityLimiter(1)

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
        if count >= _TELLING:
            self._rate += (count / seconds - self._rate) / 4

    def keeps_up(self, count: int, seconds: float) -> bool:
        """Whether who took that many bytes of a file in that time takes not much less than the kernel could give."""
        return (1 + _MOST_WAITING) * count > self._rate * seconds > 0

    @contextlib.contextmanager
    def looking(self, look: Callable[[], None]) -> Iterator[None]:
        """For as long as this lasts, `look` is called between two pieces, to look after who asks without waiting."""
        self._look = look
        try:
            yield
        finally:
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
        """Whether who sends is the only one that has had anything to do for a while. Any thread may ask."""
        return self._tasks == 1 and time.perf_counter() - self._asked > QUIET_SECONDS

    async def in_thread(self, send: Callable[[], bool]) -> bool:
        """What `send` returns in a thread; False without that where the system has no more threads."""
        try:
            return await trio.to_thread.run_sync(send, limiter=self._thread)
        except RuntimeError:
            return False

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


_turns: trio.lowlevel.RunVar[Turns] = trio.lowlevel.RunVar("ktlsd.connection.scheduler")


def of_this_loop() -> Turns:
    """The one line of the event loop that runs."""
    try:
        return _turns.get()
    except LookupError:
        turns = Turns()
        _turns.set(turns)
        return turns
