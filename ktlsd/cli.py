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
from collections.abc import Callable, Sequence
from typing import NoReturn

from ktlsd import __version__, ktls_probe
from ktlsd.ktls import Direction, Mode, Support, explain
from ktlsd.listeners import Kind, ListenError, bind_all, close_all
from ktlsd.settings import LOG_LEVELS, Settings, SettingsError, combine
from ktlsd.ssl_ffi import TLS_1_2, TLS_1_3, Context, ContextError, Library, LibraryError, TLSError

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
        return _serve(combine(vars(_serve_parser().parse_args(arguments))))
    except (_Refusal, SettingsError, LibraryError, ContextError, ListenError) as error:
        print(f"ktlsd: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        # Before anything is served; afterwards SIGINT is heeded by the server.
        return EXIT_INTERRUPTED


def _one_line(text: str) -> str:
    """`text` on one line, with nothing in it that moves a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.split()))


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
    add(
        "--backend-listen",
        metavar="PLACE",
        action="append",
        help="ADDR:PORT or unix:PATH, where to serve over plain HTTP for proxies that end TLS; repeatable",
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
    add("--workers", metavar="N", help="processes to serve with (default 1)")
    add(
        "--ktls", metavar="auto|require|off", help="use kTLS where it can be had (default), only with it, or not at all"
    )
    add("--dotfiles", action="store_true", default=None, help="serve names that begin with a dot too")
    add("--listing", action="store_true", default=None, help="list folders that have no index file")
    add("--libssl", metavar="PATH", help="the libssl to use (default: the system's; also KTLSD_LIBSSL)")
    add(
        "--log-level",
        metavar="LEVEL",
        help=f"one of {', '.join(LOG_LEVELS)} (default info: a line for each connection)",
    )
    add("--version", action="version", version=f"ktlsd {__version__}")
    return parser


def _doctor(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="ktlsd doctor",
        description="Explain kTLS on this machine. Exit status 0 when sends are offloaded, 1 when not.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--libssl", metavar="PATH", help="the libssl to examine (default: the system's; also KTLSD_LIBSSL)"
    )
    options = parser.parse_args(arguments)
    from ktlsd import doctor

    return doctor.run(options.libssl or os.environ.get("KTLSD_LIBSSL") or None, as_json=options.json)


def _check(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="ktlsd check",
        description="Check a configuration file, and the folders and certificates that it names.",
        allow_abbrev=False,
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--config", metavar="FILE", help="the TOML file to check")
    task.add_argument("--schema", action="store_true", help="print the JSON Schema of such files, for editors")
    options = parser.parse_args(arguments)
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


def _serve(settings: Settings) -> int:
    library = Library(settings.libssl)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", stream=sys.stderr)
    support = _support(library, settings.ktls)

    from ktlsd.service import Service

    service = Service(library, settings, support)
    state = _ktls_state(library, service.sites.default.context, support)

    import trio

    from ktlsd.server import END_SIGNALS, Server

    listeners = bind_all(
        settings.listen, settings.http_listen, settings.backend_listen, int(settings.backend_mode, base=8)
    )
    https = (listener for listener in listeners if listener.kind is Kind.HTTPS)
    service.https_redirect.port = next(listener.socket.getsockname()[1] for listener in https)
    if service.notice:
        print(service.notice, file=sys.stderr)
    roots = ", ".join(str(hosted.site.path) for hosted in service.all)
    places = ", ".join(listener.url() for listener in listeners)
    print(f"ktlsd {__version__} serves {roots} on {places}; {state}", file=sys.stderr)

    def work(ready: Callable[[], None]) -> None:
        async def serve() -> None:
            await Server(service).run(listeners, ready)

        trio.run(serve)
        # The interpreter's own end would give them back their default action, and the exit status would be theirs.
        for number in END_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def announce() -> None:
        for listener in listeners:
            print(listener.announcement(), file=sys.stderr, flush=True)

    try:
        if settings.workers == 1:
            work(announce)
        else:
            from ktlsd.workers import Job, supervise

            job = Job(library.end_with_parent, lambda: work(lambda: None))
            supervise(settings.workers, listeners, job, announce)
    finally:
        close_all(listeners)
    service.close()
    return 0


def _support(library: Library, mode: Mode) -> Support:
    try:
        return ktls_probe.support(library, mode)
    except OSError as error:
        raise _Refusal(f"cannot try kTLS on loopback ({error}): bring the interface lo up") from error


def _ktls_state(library: Library, context: Context, support: Support) -> str:
    """The kTLS state in a few words, by a handshake of each protocol on loopback; refuses where `require` has none."""
    states, engaged = [], False
    for name, version in (("TLS 1.3", TLS_1_3), ("TLS 1.2", TLS_1_2)):
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
