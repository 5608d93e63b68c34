"""Several processes on the same listening sockets: fork, watch, end together.

Strategy: the parent binds sockets and makes the SSL_CTX before it forks, so that workers share both, the ticket keys
included; then it only waits. A worker that ends by itself is replaced after a pause; SIGTERM and SIGINT are passed on.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

log = logging.getLogger("ktlsd")

_PAUSE_SECONDS: Final = 1.0
_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})


def supervise(
    count: int,
    listeners: Sequence[socket.socket],
    work: Callable[[Callable[[], None]], None],
    ready: Callable[[], None],
) -> None:
    """Run `work` in `count` processes until SIGTERM or SIGINT; `ready` is called once they run.

    `work` is given what to call when it serves. Clients that come before wait in the sockets' queues.
    The parent's own copies of the listeners are closed then, so that new clients are refused while workers finish.
    """
    # Blocked and waited for, not handled: no signal can fall between a check and a wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    workers = {_fork(work, before) for _ in range(count)}
    ready()
    ending = False
    while workers:
        received = signal.sigwait(_SIGNALS)
        if received != signal.SIGCHLD:
            ending = True
            for listener in listeners:
                listener.close()
            for worker in workers:
                os.kill(worker, received)
            continue
        for worker in sorted(workers):
            ended, status = os.waitpid(worker, os.WNOHANG)
            if not ended:
                continue
            workers.remove(worker)
            if not ending:
                log.error("worker %d ended (%s), another takes its place", worker, _how(status))
                time.sleep(_PAUSE_SECONDS)
                workers.add(_fork(work, before))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork(work: Callable[[Callable[[], None]], None], mask: set[int | signal.Signals]) -> int:
    worker = os.fork()
    if worker:
        return worker
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        work(lambda: None)
        status = 0
    except BaseException:
        log.exception("worker %d failed", os.getpid())
    finally:
        os._exit(status)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {-code}"
