"""Several processes on the same listening sockets: fork, watch, end together.

Strategy: the parent binds sockets and makes the SSL_CTX before it forks, so that workers share both, the ticket keys
included; then it only waits. A worker that ends by itself is replaced after a pause; SIGTERM and SIGINT are passed on.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ktlsd.listeners import Listener
from ktlsd.pulse import Pulse

log = logging.getLogger("ktlsd")

_PAUSE_SECONDS: Final = 1.0
_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker does: `prepare` right after the fork (it is given the parent's number), then `work`."""

    prepare: Callable[[int], None]
    work: Callable[[], None]


def supervise(count: int, listeners: Sequence[Listener], job: Job, ready: Callable[[], None], pulse: Pulse) -> None:
    """Run `job` in `count` processes until SIGTERM or SIGINT; `ready` is called once they are forked.

    Clients that come before a worker serves wait in the sockets' queues. The parent's own copies of the listeners are
    closed at the end, so that new clients are refused while workers finish. The signals stay blocked afterwards: the
    process is about to exit.
    """
    # Blocked and waited for, not handled: no signal can fall between a check and a wait.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    workers = {_fork(job, mask) for _ in range(count)}
    ready()
    replace_at: float | None = None
    ending = False
    while workers or not ending:
        told = signal.sigtimedwait(_SIGNALS, pulse.seconds if replace_at is None else _left(replace_at))
        received = signal.Signals(told.si_signo) if told else signal.SIGCHLD
        pulse.check(workers)
        if received != signal.SIGCHLD:
            pulse.notifier.stopping()
            ending, replace_at = True, None
            for listener in listeners:
                listener.socket.close()
            for worker in workers:
                os.kill(worker, received)
        for worker in sorted(workers):
            ended, status = os.waitpid(worker, os.WNOHANG)
            if ended:
                workers.remove(worker)
                if not ending:
                    log.error("worker %d ended (%s), another takes its place", worker, _how(status))
                    replace_at = replace_at or time.monotonic() + _PAUSE_SECONDS
        if replace_at is not None and time.monotonic() >= replace_at:
            workers |= {_fork(job, mask) for _ in range(count - len(workers))}
            replace_at = None


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _fork(job: Job, mask: set[int | signal.Signals]) -> int:
    parent = os.getpid()
    worker = os.fork()
    if worker:
        return worker
    status = 1
    try:
        # A group of its own: a terminal's Ctrl-C reaches the parent alone, which passes it on once.
        os.setpgid(0, 0)
        job.prepare(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        job.work()
        status = 0
    except BaseException:
        log.exception("worker %d failed", os.getpid())
    finally:
        os._exit(status)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {-code}"
