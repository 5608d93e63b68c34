"""Several processes on the same listening sockets: fork, watch, reload, end together.

Strategy: the parent binds sockets and makes the service before it forks, so that workers share both; then it only waits
for signals. A worker that crashes, or cannot be started, is replaced after a growing pause. A new
configuration is tried by the parent, and then read by each worker; it may have another number of workers. SIGTERM,
SIGINT and SIGUSR1 are passed on.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct, field

from ktlsd.config.refusal import Refusal, cause
from ktlsd.connection.listener import Listener, MetricsSockets
from ktlsd.logs.error_log import NOTICE
from ktlsd.logs.reload_signals import RELOAD, RELOAD_CERTIFICATES, RELOAD_SIGNALS, REOPEN_SIGNAL, UPGRADE
from ktlsd.process.backoff import Backoff
from ktlsd.process.configuration import REPEAT_SECONDS, WATCH_SECONDS, WHAT, Configuration
from ktlsd.process.cores import worker_count
from ktlsd.process.file_probe import SECONDS, FileProbe
from ktlsd.process.handed_sockets import hand_over, hand_over_metrics, make_pair, tell_end, tell_leave
from ktlsd.process.opened import Opened
from ktlsd.process.terminal import Terminal
from ktlsd.process.upgrade import LOOK_SECONDS, Successor, Upgrades
from ktlsd.process.watchdog import Watchdog
from ktlsd.server import END_SIGNALS

log = logging.getLogger("ktlsd")

_SIGNALS: Final = frozenset({*END_SIGNALS, signal.SIGCHLD, REOPEN_SIGNAL, *RELOAD_SIGNALS, UPGRADE})
_HELD_SECONDS: Final = 0.5
"""Longest time for the kernel to end the threads of a worker that has ended."""
_PATIENCE_SECONDS: Final = 5.0
"""Time beyond a worker's own bound for draining after which the parent kills it."""


class Job(Struct, frozen=True):
    """The work of a worker: `prepare` right after the fork (it is given the parent's number), then `work`.

    `work` is given which worker it is, from 0 on, and the parent's end of changes of listeners (handed_sockets.py); one
    that takes the place of another gets that one's number.
    """

    prepare: Callable[[int], None]
    work: Callable[[int, socket.socket], None]


class _Place(Struct):
    """The place of one worker, running or to be started."""

    number: int
    """Which worker it is; the row of its counters."""
    backoff: Backoff = field(default_factory=Backoff)
    worker: int | None = None
    channel: socket.socket | None = None
    """The way to the worker, for changes of listeners."""
    since: float = 0.0
    """When the worker was started; without one, when it is to be."""
    ended: float = math.inf
    """When it was seen first that the worker had ended while the kernel still held a thread of it."""
    kill_at: float = math.inf
    """When the worker is killed, if it is one too many and ends."""


def supervise(
    count: int,
    opened: Opened,
    job: Job,
    configuration: Configuration,
    terminal: Terminal,
    watchdog: Watchdog,
    upgrades: Upgrades,
    ready: Callable[[], None],
    reopen_logs: Callable[[], None],
) -> None:
    """Run `job` in `count` processes until SIGTERM or SIGINT; `ready` is called once they are forked.

    SIGUSR1 calls `reopen_logs` here, and is passed on to workers.

    Clients that come before a worker serves wait in the sockets' queues. The parent's own copies of the listeners are
    closed at the end, so that new clients are refused while workers finish. The signals stay blocked afterwards: the
    process is about to exit. Raises Refusal where not all workers can be started at first.
    """
    # Blocked and waited for, not handled: no signal can fall between a check and a wait.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _Parent(count, job, opened, configuration, terminal, watchdog, upgrades, mask, reopen_logs).run(ready)


class _Parent:
    def __init__(
        self,
        count: int,
        job: Job,
        opened: Opened,
        configuration: Configuration,
        terminal: Terminal,
        watchdog: Watchdog,
        upgrades: Upgrades,
        mask: set[int | signal.Signals],
        reopen_logs: Callable[[], None],
    ) -> None:
        self._places = [_Place(number) for number in range(count)]
        self._surplus: list[_Place] = []
        """Workers that end, and that none is to replace."""
        self._job = job
        self._opened = opened
        self._configuration = configuration
        self._terminal = terminal
        self._watchdog = watchdog
        self._upgrades = upgrades
        self._successor: Successor | None = None
        """The process that is to take the place of this one, while it starts."""
        self._mask = mask
        self._reopen_logs = reopen_logs
        self._probe = FileProbe()
        self._tell_again = -math.inf
        """When a look that is not possible may be logged again."""

    def run(self, ready: Callable[[], None]) -> None:
        self._opened.on_change = self._hand_over
        self._opened.on_metrics = self._hand_over_metrics
        self._probe.watch(self._configuration.files())
        self._start_all()
        ready()
        order_at = time.monotonic()
        look_at = order_at + WATCH_SECONDS
        beat_at = time.monotonic()
        while True:
            due = min(
                *(look_at, order_at, beat_at, *(place.since for place in self._places if place.worker is None)),
                *(min(place.kill_at, time.monotonic() + _HELD_SECONDS) for place in self._surplus),
            )
            if self._successor is not None:
                due = min(due, time.monotonic() + LOOK_SECONDS)
            # Signals come in the order of their numbers: without a wait for only these, repeated reload signals would
            # delay the shutdown.
            told = signal.sigtimedwait(END_SIGNALS, 0) or signal.sigtimedwait(
                _SIGNALS, max(0.0, due - time.monotonic())
            )
            number = told.si_signo if told else None
            if number == RELOAD and self._terminal.hung_up():
                number = signal.SIGTERM
            if number in END_SIGNALS:
                break
            self._reap()
            self._kill_late_ones()
            self._start_those_due()
            if number in RELOAD_SIGNALS:
                self._reload(signal.Signals(number))
            if number == REOPEN_SIGNAL:
                self._reopen()
            if number == UPGRADE and self._successor is None:
                self._successor = self._upgrades.begin()
            if self._is_succeeded():
                number = signal.SIGTERM
                break
            if time.monotonic() >= order_at:
                if self._configuration.order():
                    self._reload(RELOAD_CERTIFICATES)
                order_at = time.monotonic() + self._configuration.order_seconds()
            if time.monotonic() >= look_at:
                if self._files_answer(RELOAD_CERTIFICATES) and self._configuration.certificates_changed():
                    self._reload(RELOAD_CERTIFICATES)
                look_at = time.monotonic() + WATCH_SECONDS
            if time.monotonic() >= beat_at:
                beat_at = self._beat()
        for listener in self._opened.listeners:
            listener.socket.close()
        self._end(signal.Signals(number))

    def _is_succeeded(self) -> bool:
        """Whether another process has taken the place of this one; then the workers leave it what only one may do."""
        took_over = None if self._successor is None else self._successor.took_over()
        if took_over is not None:
            self._successor = None
        if not took_over:
            return False
        self._upgrades.leave()
        for place in self._places:
            if place.worker is not None and place.channel is not None:
                with contextlib.suppress(OSError):
                    tell_leave(place.channel)
        return True

    def _beat(self) -> float:
        """Kill stuck workers, and notify systemd of the others; the time of the next call."""
        for place in (*self._places, *self._surplus):
            if place.worker is None:
                continue
            silence = self._watchdog.silence(place.number, place.since)
            if silence is not None:
                log.error("worker %d is stuck and will be replaced: no heartbeat for %.0f s", place.worker, silence)
                os.kill(place.worker, signal.SIGKILL)
        self._watchdog.tell()
        return time.monotonic() + self._watchdog.seconds

    def _end(self, number: signal.Signals) -> None:
        """Pass the signal on, and each that follows, and wait for the workers."""
        self._watchdog.notifier.stopping()
        seconds = self._configuration.service.settings.drain_seconds
        log.log(NOTICE, "shutting down on %s: %d workers, %d s to finish", number.name, len(self._workers()), seconds)
        patience = seconds + _PATIENCE_SECONDS
        kill_at = time.monotonic() + patience
        # For a surplus worker it would be the second one, which ends it at once.
        self._tell(number, self._places)
        beat_at = time.monotonic()
        while self._workers():
            # There is no signal for a worker that has ended but for a thread.
            until = min(kill_at, beat_at, time.monotonic() + _HELD_SECONDS)
            told = signal.sigtimedwait(_SIGNALS, max(0.0, until - time.monotonic()))
            if time.monotonic() >= beat_at:
                beat_at = self._beat()
            if time.monotonic() >= kill_at:
                log.error("workers %s killed: still running %g s after the signal", self._workers(), patience)
                self._tell(signal.SIGKILL)
                kill_at = time.monotonic() + patience
            elif told is not None and told.si_signo in END_SIGNALS:
                log.log(
                    NOTICE, "second %s: exiting immediately, connections cut off", signal.Signals(told.si_signo).name
                )
                self._tell(signal.Signals(told.si_signo))
            elif told is not None and told.si_signo == REOPEN_SIGNAL:
                self._reopen()
            self._reap(ending=True)

    def _workers(self) -> list[int]:
        return _running((*self._places, *self._surplus))

    def _tell(self, number: signal.Signals, places: Sequence[_Place] | None = None) -> None:
        """Send a signal to all workers, or to those of some places."""
        for worker in self._workers() if places is None else _running(places):
            os.kill(worker, number)

    def _hand_over(self, added: Sequence[Listener], removed: Sequence[Listener]) -> None:
        """Have all workers listen on the changed addresses."""
        self._tell_each(lambda channel: hand_over(channel, added, removed))
        for listener in removed:
            listener.socket.close()

    def _hand_over_metrics(self, metrics: MetricsSockets | None, former: MetricsSockets | None) -> None:
        """Have all workers answer with metrics there."""
        self._tell_each(lambda channel: hand_over_metrics(channel, metrics))
        if former is not None:
            former.close()

    def _tell_each(self, tell: Callable[[socket.socket], None]) -> None:
        """Tell each worker something. One that takes nothing is killed: its successor knows."""
        for place in self._places:
            if place.worker is None or place.channel is None:
                continue
            try:
                tell(place.channel)
            except OSError as error:
                log.error("worker %d is stuck and will be replaced: %s", place.worker, cause(error))
                os.kill(place.worker, signal.SIGKILL)

    def _change_number(self, count: int) -> None:
        """Have this many workers: start more, or have the last ones finish their requests and end."""
        former = len(self._places)
        if count == former:
            return
        log.log(NOTICE, "%d worker%s instead of %d", count, "" if count == 1 else "s", former)
        kill_at = time.monotonic() + self._configuration.service.settings.drain_seconds + _PATIENCE_SECONDS
        self._places, surplus = self._places[:count], self._places[count:]
        for place in surplus:
            if place.worker is None:
                self._watchdog.store.leave(place.number)
                continue
            place.kill_at = kill_at
            self._surplus.append(place)
            try:
                if place.channel is not None:
                    tell_end(place.channel)
            except OSError as error:
                log.error("worker %d is stuck and killed: %s", place.worker, cause(error))
                os.kill(place.worker, signal.SIGKILL)
        used = {place.number for place in (*self._places, *self._surplus)}
        free = (number for number in range(self._watchdog.store.most_workers) if number not in used)
        now = time.monotonic()
        self._places += [_Place(number, since=now) for number in itertools.islice(free, max(0, count - former))]
        self._watchdog.store.set_workers(count, 1 + max(place.number for place in self._places))

    def _kill_late_ones(self) -> None:
        """Kill surplus workers that are beyond their time."""
        for place in self._surplus:
            if place.worker is not None and time.monotonic() >= place.kill_at:
                log.error("worker %d killed: still running after the time for draining", place.worker)
                os.kill(place.worker, signal.SIGKILL)
                place.kill_at = math.inf

    def _reopen(self) -> None:
        self._reopen_logs()
        self._tell(REOPEN_SIGNAL)

    def _reload(self, number: signal.Signals) -> None:
        anew = number == RELOAD
        if anew:
            self._watchdog.notifier.reloading()
        service = self._configuration.load(anew=anew) if self._files_answer(number) else None
        if service is not None:
            self._configuration.service.close()
            self._configuration.take(service)
            self._probe.watch(self._configuration.files())
            self._tell(number, self._places)
            if anew:
                self._change_number(worker_count(service.settings.workers))
            log.log(NOTICE if service.renewed else logging.DEBUG, "%s reloaded", WHAT[anew])
        if anew:
            self._watchdog.notifier.ready()

    def _files_answer(self, number: signal.Signals) -> bool:
        """Whether the files of a reload can be read now; a line in the log if not."""
        if self._probe.answers():
            return True
        anew, now = number == RELOAD, time.monotonic()
        if signal.sigpending().isdisjoint(END_SIGNALS) and (anew or now >= self._tell_again):
            self._tell_again = now + REPEAT_SECONDS
            log.error(
                "%s not reloaded, the old one stays in force: the file system of %s does not answer within %g s",
                *(WHAT[anew], self._probe.paths[0], SECONDS),
            )
        return False

    def _reap(self, *, ending: bool = False) -> None:
        for place in (*self._places, *self._surplus):
            if place.worker is None:
                continue
            worker, now = place.worker, time.monotonic()
            ended, status = os.waitpid(worker, os.WNOHANG)
            if not ended and not _is_zombie(worker):
                continue
            if not ended:
                place.ended = min(place.ended, now)
                if now - place.ended < _HELD_SECONDS:
                    continue
                log.warning(
                    "worker %d has ended, but one of its threads hangs in a file system that does not answer", worker
                )
            if place.channel is not None:
                place.channel.close()
            lived = now - place.since
            place.worker, place.since, place.ended = None, now + place.backoff.pause(lived), math.inf
            if place in self._surplus:
                self._surplus.remove(place)
                self._watchdog.store.leave(place.number)
                continue
            if not ending:
                how = _how(status) if ended else "held by a file system"
                log.error(
                    "worker %d ended (%s) after %.1f s, another takes its place in %g s",
                    *(worker, how, lived, place.since - now),
                )

    def _start_all(self) -> None:
        try:
            for place in self._places:
                self._start(place)
        except OSError as error:
            started = self._workers()
            self._tell(signal.SIGKILL)
            for worker in started:
                os.waitpid(worker, 0)
            reason = f"only {len(started)} of {len(self._places)} workers can be started ({error.strerror})"
            raise Refusal(f"{reason}: have fewer, or allow this user more processes or memory") from error

    def _start_those_due(self) -> None:
        for place in self._places:
            if place.worker is None and place.since <= time.monotonic():
                try:
                    self._start(place)
                except OSError as error:
                    pause = place.backoff.pause(0.0)
                    place.since = time.monotonic() + pause
                    log.error("a worker cannot be started (%s), next try in %g s", error.strerror, pause)

    def _start(self, place: _Place) -> None:
        """Raises OSError where there can be no more processes."""
        ours, theirs = make_pair()
        try:
            place.worker, place.since = self._fork(place.number, ours, theirs), time.monotonic()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        place.channel = ours

    def _fork(self, number: int, ours: socket.socket, theirs: socket.socket) -> int:
        """The process that does the job as worker `number`."""
        parent = os.getpid()
        worker = os.fork()
        if worker:
            return worker
        status = 1
        try:
            # A group of its own: a terminal's Ctrl-C reaches only the parent, which passes it on once.
            os.setpgid(0, 0)
            self._job.prepare(parent)
            for channel in (ours, *(place.channel for place in (*self._places, *self._surplus))):
                if channel is not None:
                    channel.close()
            self._opened.take_listeners_from_parent()
            # The signals that end it stay blocked until the server has handlers: their default action is no orderly
            # end.
            signal.pthread_sigmask(signal.SIG_SETMASK, {*self._mask, *END_SIGNALS})
            self._job.work(number, theirs)
            status = 0
        except BaseException:
            log.exception("worker %d failed", os.getpid())
        finally:
            os._exit(status)


def _running(places: Sequence[_Place]) -> list[int]:
    return [place.worker for place in places if place.worker is not None]


def _is_zombie(process: int) -> bool:
    """Whether a process has ended but for a thread that the kernel still holds: then waitpid(2) says that it runs."""
    try:
        with open(f"/proc/{process}/stat", "rb") as status:
            return status.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {-code}"
