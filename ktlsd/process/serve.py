"""The life of a serving process, from its settings to its end.

Strategy: everything that can be wrong is tried before a client is accepted, in the order that privileges ask for: keys
are read and sockets bound as the starting user, then root is given up, then the event loops run. Import this only
once libssl is open: trio brings Python's own ssl module along, and that the system's libssl (--libssl).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ktlsd import __version__
from ktlsd.admission import warn_lowered_limit
from ktlsd.config.console import print_error
from ktlsd.config.listener_kind import Kind
from ktlsd.config.refusal import Refusal
from ktlsd.config.values import MOST_WORKERS
from ktlsd.connection import open_files
from ktlsd.connection.listener import Listener, MetricsSockets
from ktlsd.logs.error_log import NOTICE
from ktlsd.logs.logs import Logs
from ktlsd.logs.reload_signals import RELOAD_SIGNALS, REOPEN_SIGNAL, UPGRADE
from ktlsd.metrics.connection_kinds import ConnectionKinds
from ktlsd.metrics.metrics import MetricsStore
from ktlsd.process import activation, privileges, unreadable_files
from ktlsd.process.address_display import AddressDisplay
from ktlsd.process.configuration import Configuration
from ktlsd.process.cores import worker_count
from ktlsd.process.file_probe import may_wait
from ktlsd.process.handed_sockets import follow_parent
from ktlsd.process.listeners import close_all, warn_short_backlog
from ktlsd.process.new_service import make_service, open_tickets
from ktlsd.process.notify import Notifier
from ktlsd.process.opened import Opened
from ktlsd.process.reload import Reloader
from ktlsd.process.terminal import Terminal
from ktlsd.process.upgrade import Inherited, Upgrades
from ktlsd.process.watchdog import Watchdog
from ktlsd.server import END_SIGNALS, Server
from ktlsd.service import Service
from ktlsd.settings import Loaded
from ktlsd.ssl_ffi import Library
from ktlsd.system_calls import end_with_parent
from ktlsd.tls import ktls_state

if TYPE_CHECKING:
    # It brings prometheus_client along, which takes long to import.
    from ktlsd.status.metrics_listener import MetricsListener

log = logging.getLogger("ktlsd")

_YOUNG_OBJECTS: Final = 10_000


_MOUNTS_TOLD: Final = 3
_MOST_ROWS: Final = 2 * MOST_WORKERS
"""Rows of metrics: workers that a reload ends keep theirs until their last response is sent."""


def serve(
    read: Callable[[], Loaded], loaded: Loaded, library: Library, terminal: Terminal, display: AddressDisplay
) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit status. `read` reads the settings again, for a reload.

    Raises Refusal, LibraryError, ContextError.
    """
    settings = loaded.settings
    display.check()
    open_files.allow_most()
    passed, inherited = activation.take(), Inherited()
    with loaded.placed():
        identity = privileges.resolve(settings.user, settings.group)
        with privileges.acting_as(identity):
            logs = Logs(settings)
    logs.begin()
    build = partial(make_service, library, ktls_state.support(library, settings.ktls), identity, inherited.faults)
    configuration = Configuration(read, loaded, build, open_tickets)
    service = configuration.service
    with loaded.placed():
        opened = Opened(settings, logs, passed, identity, inherited.listeners)
    try:
        workers = worker_count(settings.workers)
        # While a file system holds up one of its threads, the kernel lets no process end (request_wait_answer() in
        # fs/fuse/dev.c, Linux 6.18): a parent that makes no such call does not wait for it.
        waits = _tell_waiting(service) or bool(may_wait(configuration.files()))
        alone = configuration.alone = workers == 1 and not waits
        store, kinds = MetricsStore(workers, 0 if alone else _MOST_ROWS), ConnectionKinds()
        configuration.count_by(store.sites)
        with loaded.placed():
            opened.open_metrics(settings.metrics_listen, inherited.metrics)
        if opened.metrics is not None:
            # Before there are workers, which then share what is imported.
            import ktlsd.status.metrics_listener  # noqa: F401

        _drop_privileges(identity, service, loaded)
        if identity is not None:
            configuration.settle()
        logs.follow_rotation()
        configuration.change_with(opened)
        configuration.may_order(http=any(listener.kind is Kind.REDIRECT for listener in opened.listeners))
        _announce_start(service, opened.listeners)
        _tell_of_listing(loaded, service)
        warn_lowered_limit(settings.limits)
        warn_short_backlog()
        watchdog = Watchdog(Notifier(), store, configuration.troubles)
        upgrades = Upgrades(opened, configuration, managed=watchdog.notifier.heard)
        gc.freeze()
        # A request makes some tens of objects, nearly all of which reference counts free: the collector has little to
        # find, and with CPython's 700 it looks many times a second.
        gc.set_threshold(_YOUNG_OBJECTS)
        gc.enable()

        def metrics_listener(sockets: MetricsSockets | None) -> MetricsListener | None:
            if sockets is None:
                return None
            from ktlsd.status.metrics_listener import MetricsListener

            return MetricsListener(sockets, store)

        def work(number: int, ready: Callable[[], None], parent: socket.socket | None = None) -> None:
            """Serve as the only process, or as one that its parent hands listening sockets."""

            async def event_loop() -> None:
                async with logs.access_log.opened(), trio.open_nursery() as nursery:
                    row = store.take(number)
                    metrics = metrics_listener(opened.metrics)
                    server = Server(
                        *(configuration.service, logs.access_log.current(), row, metrics, kinds),
                        alone=alone,
                        tells_of_roots=number == 0,
                    )
                    reloader = Reloader(server, configuration, watchdog.notifier, alone=alone)

                    def on_change(added: Sequence[Listener], removed: Sequence[Listener]) -> None:
                        server.listen_on(added, removed)
                        server.use_access_log(logs.access_log.current())

                    def begin() -> None:
                        opened.on_change = on_change
                        opened.on_metrics = lambda new, former: server.use_metrics(metrics_listener(new))
                        nursery.start_soon(reloader.run, terminal)
                        if parent is not None:
                            nursery.start_soon(follow_parent, parent, opened, configuration, upgrades.leave)
                        else:
                            nursery.start_soon(upgrades.follow_signal)
                        ready()

                    nursery.start_soon(partial(watchdog.beat, row, alone=alone))
                    if alone:
                        nursery.start_soon(watchdog.tell_end, server.draining)
                    await server.run(opened.listeners, begin)
                    nursery.cancel_scope.cancel()

            trio.run(event_loop)
            # The interpreter's own end would give them back their default action, and the exit status would be theirs.
            for late in (*END_SIGNALS, REOPEN_SIGNAL, *RELOAD_SIGNALS, UPGRADE):
                signal.signal(late, signal.SIG_IGN)

        def announce() -> None:
            for url in opened.metrics.urls() if opened.metrics is not None else ():
                print_error(f"metrics on {url}")
            for listener in opened.listeners:
                print_error(listener.announcement())
            display.announce(opened.listeners)
            watchdog.notifier.ready()
            inherited.tell_ready(opened.listeners, settings.metrics_listen)

        if alone:
            work(0, announce)
        else:
            from ktlsd.process.workers import Job, supervise

            job = Job(end_with_parent, lambda number, parent: work(number, lambda: None, parent))
            supervise(workers, opened, job, configuration, terminal, watchdog, upgrades, announce, logs.reopen)
    finally:
        close_all(filter(inherited.owns, opened.listeners))
    log.log(NOTICE, "shut down")
    configuration.close()
    logs.close()
    return 0


def _drop_privileges(identity: privileges.Identity | None, service: Service, loaded: Loaded) -> None:
    """Give up root if requested; refuse if ktlsd could not work without it."""
    if identity is None:
        return
    privileges.drop(identity)
    account = f"user {identity.user}, group {identity.group}"
    # Modules are imported, and files opened, when they are needed first. Python lists the folders that it imports from.
    for what, folder in (("Python", Path(os.__file__).parent), ("ktlsd", Path(__file__).parents[1])):
        if (place := privileges.first_inaccessible(folder, listed=True)) is not None:
            raise Refusal(
                f"{what} {folder}: {account} may not read {place}: change its mode or owner, or have it elsewhere"
            )
    for followed in service.followed:
        folder = followed.path
        what = "acme_challenges" if followed is service.https_redirect.followed else "root"
        # A missing or unresponsive folder may come later.
        if followed.root.identity is not None and (place := privileges.first_inaccessible(folder)) is not None:
            raise Refusal(
                f"{what} {folder}: {account} may not enter {place}: chmod o+x it, or have the folder elsewhere"
            )
    for followed in (hosted.site.followed for hosted in service.all if hosted.site.options.listing):
        if followed.root.identity is not None and privileges.first_inaccessible(followed.path, listed=True) is not None:
            log.warning(
                "root %s: %s has no permission to list it: run chmod o+r, or turn listing off", followed.path, account
            )
    document = loaded.document
    for finding in unreadable_files.findings(loaded.settings, document.path if document.written else None):
        log.warning("%s", finding)


def _tell_waiting(service: Service) -> bool:
    """Log the file systems of the roots that may hold up their callers; True if there are any."""
    waits = False
    for followed in service.followed:
        found = []
        with contextlib.suppress(OSError):
            found = followed.root.waiting_mounts()
        waits = waits or bool(found) or (followed.root.waits and not followed.missing)
        if found:
            more = f" and {len(found) - _MOUNTS_TOLD} more" if len(found) > _MOUNTS_TOLD else ""
            told = ", ".join(map(str, found[:_MOUNTS_TOLD]))
            log.info("%s: files on %s%s are read in threads and sent from memory", followed.path, told, more)
    return waits


def _announce_start(service: Service, listeners: Sequence[Listener]) -> None:
    if service.notice:
        print_error(service.notice)
    roots = ", ".join(str(hosted.site.followed.path) for hosted in service.all)
    places = ", ".join(listener.url() for listener in listeners)
    print_error(f"ktlsd {__version__} serves {roots} on {places}")
    if service.ktls_state:
        print_error(service.ktls_state)
    for state in service.tls_states:
        log.warning(state)
    if os.geteuid() == 0:
        log.warning("running as root; use --user to drop privileges")


def _tell_of_listing(loaded: Loaded, service: Service) -> None:
    """Name the remedy if only a folder was given, and its first page would be 403."""
    site = service.all[0].site
    # A call on a file system that may hang could keep this process from ending.
    if loaded.document.table or "root" not in loaded.given or site.options.listing or site.root.waits:
        return
    path = site.followed.path
    if not any(os.path.lexists(path / name) for name in site.options.index):
        log.warning("%s: no index.html: / gets 403 Forbidden; add --listing to list folders", path)
