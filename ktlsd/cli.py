"""The command line: `ktlsd --root DIR ...` serves, `ktlsd doctor` explains.

Strategy: whatever is wrong is found before anything is served, and said in one line on stderr with exit status 2.
OpenSSL is opened first of all, since Python's own ssl module, which trio imports, would bring the system's along
(--libssl).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ktlsd import __version__, ktls_probe
from ktlsd.cores import usable_cores
from ktlsd.ktls import Direction, Mode, Support, explain
from ktlsd.listeners import ListenError, bind_all, bind_metrics
from ktlsd.printable import one_line
from ktlsd.reload_signals import RELOAD_SIGNALS, block_reload_signals
from ktlsd.settings import LOG_LEVELS, Settings, SettingsError, combine
from ktlsd.ssl_ffi import TLS_1_2, TLS_1_3, Context, ContextError, Library, LibraryError, TLSError
from ktlsd.state import state_folder
from ktlsd.terminal import Terminal

if TYPE_CHECKING:
    from ktlsd.service import Service
    from ktlsd.ticket_file import TicketFile

log = logging.getLogger("ktlsd")

EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


class _Refusal(Exception):
    """What is wrong, in one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refusal(f"{message} (ktlsd --help shows the usage)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the process's exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["doctor"]:
            return _doctor(arguments[1:])
        if arguments[:1] == ["check"]:
            return _check(arguments[1:])
        if arguments[:1] == ["compress"]:
            return _compress(arguments[1:])
        options = _serve_parser().parse_args(arguments)
        return _version(options.libssl) if options.version else _serve(vars(options))
    except (_Refusal, SettingsError, LibraryError, ContextError, ListenError) as error:
        print(f"ktlsd: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        # Before anything is served; afterwards SIGINT is heeded by the server.
        return EXIT_INTERRUPTED


def _serve_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ktlsd",
        description="Serve a folder over HTTPS, encrypted by the kernel straight from the page cache where it can be.",
        epilog="`ktlsd doctor [--json]` explains what kTLS does here; `ktlsd check --config FILE` checks a file.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", metavar="DIR", help="the folder to serve")
    add("--listen", metavar="ADDR:PORT", action="append", help="where to listen (default localhost:8443); repeatable")
    add(
        "--http-listen",
        metavar="ADDR:PORT",
        action="append",
        help="where to answer plain HTTP, with redirects to HTTPS and ACME challenges alone; repeatable",
    )
    add("--acme-challenges", metavar="DIR", help="the folder of what answers ACME challenges on plain HTTP")
    add(
        "--cert",
        metavar="FILE",
        action="append",
        help="PEM certificate chain (default: a self-signed one for localhost is made); repeatable with --key, for"
        " several types of key",
    )
    add("--key", metavar="FILE", action="append", help="its PEM key, unencrypted")
    add("--config", metavar="FILE", help="a TOML file with these options, and more, as keys; the command line wins")
    add(
        "--metrics-listen",
        metavar="ADDR:PORT",
        help="where to answer with metrics, health and a status page over plain HTTP; loopback where ADDR is left out",
    )
    add("--workers", metavar="N|auto", help="processes to serve with (default 1); auto: as many as usable cores")
    add(
        "--ktls", metavar="auto|require|off", help="use kTLS where it can be had (default), only with it, or not at all"
    )
    add("--dotfiles", action="store_true", default=None, help="serve names that begin with a dot too")
    add("--listing", action="store_true", default=None, help="list folders that have no index file")
    add("--access-log", metavar="FILE", help="where to append a line for each request, or `stderr` (default: nowhere)")
    add("--access-log-format", metavar="combined|json", help="Apache's format (default), or JSON")
    add("--error-log", metavar="FILE", help="where to append everything else, or `stderr` (default)")
    add("--libssl", metavar="PATH", help="the libssl to use (default: the system's; also KTLSD_LIBSSL)")
    add(
        "--log-level",
        metavar="LEVEL",
        help=f"one of {', '.join(LOG_LEVELS)} (default info: a line for each connection)",
    )
    add("--version", action="store_true", help="show the versions of ktlsd, OpenSSL and the kernel, and their kTLS")
    return parser


def _doctor_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ktlsd doctor",
        description="Explain kTLS on this machine. Exit status 0 when sends are offloaded, 1 when not.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--libssl", metavar="PATH", help="the libssl to examine (default: the system's; also KTLSD_LIBSSL)"
    )
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ktlsd check",
        description="Check a configuration file, and the folders and certificates that it names.",
        allow_abbrev=False,
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--config", metavar="FILE", help="the TOML file to check")
    task.add_argument("--schema", action="store_true", help="print the JSON Schema of such files, for editors")
    return parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of all commands by their names, the one that serves by the empty name: for what is made from them."""
    from ktlsd import compress

    return {"": _serve_parser(), "doctor": _doctor_parser(), "check": _check_parser(), "compress": compress.parser()}


def _version(libssl: str | None) -> int:
    from ktlsd.version import version_text

    print(version_text(_libssl(libssl)))
    return 0


def _libssl(option: str | None) -> str | None:
    return option or os.environ.get("KTLSD_LIBSSL") or None


def _doctor(arguments: Sequence[str]) -> int:
    options = _doctor_parser().parse_args(arguments)
    from ktlsd import doctor

    return doctor.run(_libssl(options.libssl), as_json=options.json)


def _check(arguments: Sequence[str]) -> int:
    options = _check_parser().parse_args(arguments)
    if options.schema:
        import json

        from ktlsd.options_schema import schema

        print(json.dumps(schema(), indent=2))
        return 0
    settings = combine({"config": options.config})
    from ktlsd.service import Service

    library = Library(settings.libssl)
    service = Service(library, settings, _support(library, settings.ktls))
    count = len(service.all)
    service.close()
    print(f"{options.config}: ok, {count} site{'' if count == 1 else 's'}")
    return 0


def _compress(arguments: Sequence[str]) -> int:
    from ktlsd import compress

    try:
        return compress.run(arguments)
    except compress.CompressError as error:
        raise _Refusal(str(error)) from error


def _serve(options: Mapping[str, Any]) -> int:
    block_reload_signals()
    terminal = Terminal()
    settings = combine(options)
    library = Library(settings.libssl)
    from ktlsd.logs import REOPEN_SIGNAL, Logs

    logs = Logs(settings)
    logs.begin()
    support = _support(library, settings.ktls)

    from ktlsd.configuration import Configuration
    from ktlsd.service import Service

    state = ""

    def build(settings: Settings) -> Service:
        nonlocal state
        service = Service(library, settings, support)
        try:
            state = _ktls_state(library, service.sites.default.context, support)
        except BaseException:
            service.close()
            raise
        return service

    configuration = Configuration(lambda: combine(options), settings, build, _tickets)
    service = configuration.service

    import trio

    from ktlsd.metrics import Board
    from ktlsd.reload import Upkeep
    from ktlsd.server import END_SIGNALS, Server

    listeners = bind_all(settings.listen, settings.http_listen)
    workers = usable_cores() if settings.workers == "auto" else settings.workers
    board = Board(workers)
    metrics = None
    if settings.metrics_listen is not None:
        from ktlsd.metrics_listener import MetricsListener

        metrics = MetricsListener(settings.metrics_listen, bind_metrics(settings.metrics_listen), board)
    bound = next(sock.getsockname()[1] for sock, secure in listeners if secure)
    service.https_redirect.port = settings.https_port or bound
    if service.notice:
        print(service.notice, file=sys.stderr)
    roots = ", ".join(str(hosted.site.path) for hosted in service.all)
    places = ", ".join(listener.url() for listener in listeners)
    print(f"ktlsd {__version__} serves {roots} on {places}; {state}", file=sys.stderr)

    def work(number: int, ready: Callable[[], None], *, alone: bool) -> None:
        async def serve() -> None:
            async with logs.access_log() as access_log:
                server = Server(configuration.service, access_log, board.take(number), metrics)
                async with trio.open_nursery() as nursery:
                    await nursery.start(Upkeep(server, configuration, terminal, alone=alone).run)
                    await server.run(listeners, ready)
                    nursery.cancel_scope.cancel()

        trio.run(serve)
        # The interpreter's own end would give them back their default action, and the exit status would be theirs.
        for late in (*END_SIGNALS, REOPEN_SIGNAL, *RELOAD_SIGNALS):
            signal.signal(late, signal.SIG_IGN)

    def announce() -> None:
        for url in metrics.urls() if metrics is not None else ():
            print(f"metrics on {url}", file=sys.stderr, flush=True)
        for listener in listeners:
            print(f"listening on {listener.url()}", file=sys.stderr, flush=True)

    if workers == 1:
        work(0, announce, alone=True)
    else:
        from ktlsd.workers import Job, supervise

        job = Job(library.end_with_parent, lambda number: work(number, lambda: None, alone=False))
        supervise(workers, listeners, job, configuration, terminal, announce, logs.reopen)
    configuration.close()
    logs.close()
    return 0


def _tickets(settings: Settings) -> TicketFile | None:
    """Where the session ticket keys are; in memory, where the state folder is no place for them."""
    from ktlsd.ticket_file import FILE, TicketFile, TicketFileError

    if not settings.session_tickets:
        return None
    if settings.ticket_keys is not None:
        try:
            return TicketFile(settings.ticket_keys)
        except TicketFileError as error:
            raise _Refusal(str(error)) from error
    try:
        folder = state_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return TicketFile(folder / FILE)
    except (TicketFileError, OSError, RuntimeError) as error:
        log.info("sessions will not be resumed after a restart: %s", error)
        return TicketFile(None)


def _support(library: Library, mode: Mode) -> Support:
    try:
        return ktls_probe.support(library, mode)
    except OSError as error:
        raise _Refusal(f"cannot try kTLS on loopback ({error}): bring the interface lo up") from error


def _ktls_state(library: Library, context: Context, support: Support) -> str:
    """The kTLS state in a few words, by a handshake of each protocol on loopback; refuses where `require` has none."""
    states, engaged = [], False
    protocols = (("TLS 1.3", TLS_1_3), ("TLS 1.2", TLS_1_2))
    for name, version in (protocol for protocol in protocols if protocol[1] >= context.oldest):
        client = Context(library, server=False, ktls=False, oldest=version, newest=version)
        try:
            handshake = ktls_probe.loopback_handshake(context, client)
        except (TLSError, OSError) as error:
            raise _Refusal(f"no {name} handshake with this certificate on loopback: {error}") from error
        finally:
            client.close()
        engaged |= handshake.ktls_tx
        tx, rx = (explain(support, handshake, direction) for direction in Direction)
        states.append(f"{name} tx={tx} rx={rx}")
    if support.mode is Mode.REQUIRE and not engaged:
        raise _Refusal(f"--ktls require, but sends cannot be offloaded here: {tx}: `ktlsd doctor` tells what to do")
    hint = "" if engaged or support.mode is Mode.OFF else "; `ktlsd doctor` tells what to do"
    return f"{library.version_text} ({library.path}); kTLS: {', '.join(states)}{hint}"


if __name__ == "__main__":
    sys.exit(main())
