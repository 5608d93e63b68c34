"""The command line: `ktlsd --root DIR ...` serves, `ktlsd doctor` explains.

Strategy: whatever is wrong is found before anything is served, and said in one line on stderr with exit status 2.
OpenSSL is opened first of all, since Python's own ssl module, which trio imports, would bring the system's along
(--libssl).
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ktlsd import __version__, ktls_probe
from ktlsd.ktls import Direction, Mode, Support, explain
from ktlsd.listeners import ListenError, bind_all, url
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
        epilog="`ktlsd doctor [--json]` explains what kTLS does on this machine.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", metavar="DIR", help="the folder to serve")
    add("--listen", metavar="ADDR:PORT", action="append", help="where to listen (default localhost:8443); repeatable")
    add("--cert", metavar="FILE", help="PEM certificate chain (default: a self-signed one for localhost is made)")
    add("--key", metavar="FILE", help="its PEM key, unencrypted")
    add("--config", metavar="FILE", help="a TOML file with these options as keys; the command line wins")
    add("--workers", metavar="N", help="processes to serve with (default 1)")
    add(
        "--ktls", metavar="auto|require|off", help="use kTLS where it can be had (default), only with it, or not at all"
    )
    add("--dotfiles", action="store_true", default=None, help="serve names that begin with a dot too")
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


def _serve(settings: Settings) -> int:
    library = Library(settings.libssl)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", stream=sys.stderr)
    support = _support(library, settings.ktls)
    context = Context(library, ktls=settings.ktls is not Mode.OFF)
    notice = _use_certificate(context, settings)
    state = _ktls_state(library, context, support)

    import trio

    from ktlsd.lookup import Root
    from ktlsd.server import END_SIGNALS, Server, Site

    try:
        root = Root(library, os.fspath(settings.root), dotfiles=settings.dotfiles)
    except OSError as error:
        raise _Refusal(f"--root {settings.root}: cannot be served: {_root_advice(error)}") from error
    listeners = bind_all(settings.listen)
    if notice:
        print(notice, file=sys.stderr)
    places = ", ".join(map(url, listeners))
    print(f"ktlsd {__version__} serves {settings.root.resolve()} on {places}; {state}", file=sys.stderr)

    site = Site(library, context, support, root)

    def work(ready: Callable[[], None]) -> None:
        async def serve() -> None:
            await Server(site).run(listeners, ready)

        trio.run(serve)
        # The interpreter's own end would give them back their default action, and the exit status would be theirs.
        for number in END_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def announce() -> None:
        for listener in listeners:
            print(f"listening on {url(listener)}", file=sys.stderr, flush=True)

    if settings.workers == 1:
        work(announce)
    else:
        from ktlsd.workers import Job, supervise

        job = Job(library.end_with_parent, lambda: work(lambda: None))
        supervise(settings.workers, listeners, job, announce)
    root.close()
    context.close()
    return 0


def _support(library: Library, mode: Mode) -> Support:
    try:
        return ktls_probe.support(library, mode)
    except OSError as error:
        raise _Refusal(f"cannot try kTLS on loopback ({error}): bring the interface lo up") from error


def _use_certificate(context: Context, settings: Settings) -> str:
    """Load the certificate; what to tell the operator about one that was made."""
    if settings.cert is not None and settings.key is not None:
        context.use_certificate(os.fspath(settings.cert), os.fspath(settings.key))
        return ""
    from ktlsd.certificate import fingerprint, localhost_certificate, state_folder

    folder = state_folder()
    try:
        path = localhost_certificate(folder)
    except OSError as error:
        reason = f"{folder}: cannot keep a self-signed certificate there ({error})"
        raise _Refusal(f"{reason}: give --cert and --key, or set XDG_STATE_HOME") from error
    context.use_certificate(os.fspath(path), os.fspath(path))
    return (
        f"no --cert: using the self-signed certificate for localhost in {path}, SHA-256 fingerprint {fingerprint(path)}"
    )


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


def _root_advice(error: OSError) -> str:
    if isinstance(error, (NotADirectoryError, FileNotFoundError)):
        return "there is no such folder"
    if error.errno in (errno.ENOSYS, errno.EPERM):
        return "this kernel has no openat2 (it came with Linux 5.6), or a sandbox forbids it"
    return error.strerror or str(error)


if __name__ == "__main__":
    sys.exit(main())
