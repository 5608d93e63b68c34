"""ktlsd within another Python program: `async with serving(settings)`, or a thread of its own for the others.

Strategy: the same service, listeners and event loop as the command's, without what belongs to a whole process: signals,
workers, users, log files, systemd. Making the server blocks for some milliseconds, so a thread does it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from msgspec import Struct

from ktlsd.config.listener_kind import Kind
from ktlsd.config.options import Settings
from ktlsd.config.refusal import Refusal, SettingsError
from ktlsd.connection.listener import Listener
from ktlsd.logs.logs import AccessLogFile
from ktlsd.metrics.metrics import MetricsStore
from ktlsd.openssl.errors import ContextError, LibraryError
from ktlsd.process.configuration import Configuration
from ktlsd.process.listeners import bind_all, bind_metrics, close_all, https_port
from ktlsd.process.new_service import make_service
from ktlsd.process.notify import Notifier
from ktlsd.process.reload import Reloader
from ktlsd.server import Server
from ktlsd.settings import Loaded, from_table
from ktlsd.ssl_ffi import Library
from ktlsd.status.metrics_listener import MetricsListener
from ktlsd.tls import ktls_state
from ktlsd.tls.certificate import localhost_certificate
from ktlsd.tls.ticket_file import TicketFile

_DEFAULTS: Final = {"listen": "127.0.0.1:0"}
_OF_A_PROCESS: Final = {
    "workers": "this is one process",
    "user": "the program chooses its user",
    "group": "the program chooses its group",
    "libssl": "Python has loaded OpenSSL already",
    "log_level": "the program configures the logger ktlsd",
    "error_log": "the program configures the logger ktlsd",
    "error_log_format": "the program configures the logger ktlsd",
    "acme": "only the command ktlsd gets certificates by ACME",
}
"""Keys without effect here, and why."""


class RunningServer(Struct, frozen=True, kw_only=True):
    """A server that accepts connections."""

    url: str
    """The first address: https://ADDRESS:PORT, without a slash at the end."""
    port: int
    """The port of `url`."""
    urls: tuple[str, ...]
    """All addresses, as the command prints them: https://, http:// and unix:PATH."""
    certificate: Path | None
    """The PEM file by which clients verify the certificate that was made for localhost, 127.0.0.1 and ::1; None if the
    settings name another one."""
    metrics_url: str | None
    """The address of `metrics_listen`."""


@contextlib.asynccontextmanager
async def serving(settings: Mapping[str, Any]) -> AsyncIterator[RunningServer]:
    """Serve by the keys of a configuration file (docs/configuration.md) for as long as this is open.

    Without `listen`, this is a free port of 127.0.0.1. At the end, responses in progress have `drain_seconds` to
    finish; after an exception or a cancellation they have none. Raises Refusal.
    """
    failed: BaseException | None = None
    with contextlib.ExitStack() as stack:
        prepared = await trio.to_thread.run_sync(partial(_prepare, stack, settings))
        async with prepared.access_log.opened():
            access_log = prepared.access_log.current()
            server = Server(prepared.configuration.service, access_log, prepared.store.take(0), prepared.metrics)
            reloader = Reloader(server, prepared.configuration, Notifier({}), alone=True)
            async with trio.open_nursery() as nursery:

                async def serve(task_status: trio.TaskStatus[None]) -> None:
                    await server.serve(prepared.listeners, task_status.started)
                    nursery.cancel_scope.cancel()

                await nursery.start(serve)
                nursery.start_soon(reloader.follow_files)
                try:
                    yield prepared.running
                except (trio.Cancelled, GeneratorExit):
                    raise
                except BaseException as error:
                    # Raised outside the nursery, which would wrap it into a group.
                    failed = error
                    nursery.cancel_scope.cancel()
                else:
                    server.drain()
                    seconds = prepared.configuration.service.settings.drain_seconds
                    nursery.cancel_scope.deadline = trio.current_time() + seconds
    if failed is not None:
        raise failed


@contextlib.contextmanager
def serving_in_thread(settings: Mapping[str, Any]) -> Iterator[RunningServer]:
    """The same for programs without trio: the event loop runs in a thread. Raises Refusal."""
    began = threading.Event()
    running: list[tuple[RunningServer, trio.lowlevel.TrioToken, trio.Event]] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        async with serving(settings) as server:
            end = trio.Event()
            running.append((server, trio.lowlevel.current_trio_token(), end))
            began.set()
            await end.wait()

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:
            failed.append(error)
        finally:
            began.set()

    thread = threading.Thread(target=run, name="ktlsd", daemon=True)
    thread.start()
    began.wait()
    try:
        if running:
            yield running[0][0]
    finally:
        if running:
            _, token, end = running[0]
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(end.set)
        thread.join()
    if failed:
        raise failed[0]


class _Prepared(Struct, frozen=True, kw_only=True):
    configuration: Configuration
    listeners: list[Listener]
    access_log: AccessLogFile
    store: MetricsStore
    metrics: MetricsListener | None
    running: RunningServer


def _prepare(stack: contextlib.ExitStack, given: Mapping[str, Any]) -> _Prepared:
    """Everything that a server needs but its event loop; `stack` closes it. Raises Refusal."""
    table: dict[str, Any] = {**_DEFAULTS, **_as_in_a_file(given)}
    for key, reason in _OF_A_PROCESS.items():
        if key in table:
            raise SettingsError(f"{key}: has no effect in a Python program: {reason}; leave it out")
    try:
        loaded = from_table(table)
        made = None
        if not loaded.settings.cert:
            made = localhost_certificate(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ktlsd-"))))
            loaded = from_table({**table, "cert": str(made), "key": str(made)})
        return _open(stack, loaded, made)
    except (LibraryError, ContextError) as error:
        raise Refusal(str(error)) from error


def _open(stack: contextlib.ExitStack, loaded: Loaded, certificate: Path | None) -> _Prepared:
    settings = loaded.settings
    access_log = AccessLogFile(settings)
    stack.callback(access_log.close)
    library = _library()
    build = partial(make_service, library, ktls_state.support(library, settings.ktls), None, None)
    configuration = Configuration(lambda: loaded, loaded, build, _open_tickets)
    stack.callback(configuration.close)
    mode = int(settings.backend_mode, base=8)
    listeners = bind_all(settings.listen, settings.http_listen, settings.backend_listen, mode)
    stack.callback(close_all, listeners)
    port = https_port(listeners)
    configuration.serve_https_on(port)
    store, metrics, metrics_url = MetricsStore(1), None, None
    configuration.count_by(store.sites)
    if settings.metrics_listen is not None:
        sockets = bind_metrics(settings.metrics_listen)
        stack.callback(sockets.close)
        metrics, metrics_url = MetricsListener(sockets, store), sockets.urls()[0]
    running = RunningServer(
        url=next(listener.url() for listener in listeners if listener.kind is Kind.HTTPS),
        port=port,
        urls=tuple(listener.url() for listener in listeners),
        certificate=certificate,
        metrics_url=metrics_url,
    )
    return _Prepared(
        configuration=configuration,
        listeners=listeners,
        access_log=access_log,
        store=store,
        metrics=metrics,
        running=running,
    )


def _open_tickets(settings: Settings) -> TicketFile | None:
    """The session ticket keys, in memory unless a file is named."""
    return TicketFile(settings.ticket_keys) if settings.session_tickets else None


@functools.cache
def _library() -> Library:
    return Library()


def _as_in_a_file(value: Any) -> Any:
    """A value with lists for tuples and texts for paths, as TOML has them."""
    if isinstance(value, Mapping):
        return {name: _as_in_a_file(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_in_a_file(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
