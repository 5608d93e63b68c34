"""The command line: `ktlsd --root DIR ...` serves, `ktlsd doctor` explains.

Strategy: errors are found before anything is served, and reported in one line on stderr with exit status 2.
OpenSSL is opened first of all: hashlib, and the ssl module, which trio imports, would bring the system's libcrypto
along, and the libssl of --libssl would be bound to that. So no module imported before OpenSSL may import them.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ktlsd.commands.command_parser import COMMANDS, CommandParser, described
from ktlsd.config.console import print_error, print_output
from ktlsd.config.printable import one_line
from ktlsd.config.refusal import Refusal
from ktlsd.config.values import LOG_LEVELS
from ktlsd.openssl.errors import ContextError, LibraryError
from ktlsd.process import standard_streams
from ktlsd.ssl_ffi import Library

EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the process's exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        standard_streams.fill()
        match arguments[:1]:
            case ["doctor"]:
                return _doctor(arguments[1:])
            case ["check"]:
                return _check(arguments[1:])
            case ["compress"]:
                return _compress(arguments[1:])
            case ["hash-password"]:
                return _hash_password(arguments[1:])
            case ["sign-url"]:
                return _sign_url(arguments[1:])
            case ["health"]:
                return _health(arguments[1:])
        options = _serve_parser().parse_args(arguments)
        return _version(options.libssl) if options.version else _serve(vars(options))
    except (Refusal, LibraryError, ContextError) as error:
        print_error(f"ktlsd: {one_line(str(error))}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        # Before anything is served; afterwards the server handles SIGINT.
        return EXIT_INTERRUPTED


def _serve_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="ktlsd",
        description="Serve a folder over HTTPS. If kTLS is available, the kernel encrypts from the page cache.",
        epilog=f"commands, each with its own --help:\n{described(COMMANDS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", metavar="DIR", help="the folder to serve")
    add(
        "--listen",
        metavar="ADDR:PORT",
        action="append",
        help="address to serve HTTPS on (default localhost:8443); repeatable",
    )
    add(
        "--http-listen",
        metavar="ADDR:PORT",
        action="append",
        help="address for plain HTTP, which only redirects to HTTPS and answers ACME challenges; repeatable",
    )
    add(
        "--backend-listen",
        metavar="PLACE",
        action="append",
        help="ADDR:PORT or unix:PATH to serve plain HTTP on, for TLS-terminating proxies; repeatable",
    )
    add(
        "--acme",
        metavar="NAMES",
        action="append",
        help="host names, separated by commas, to get a certificate for from an ACME server, and to renew it; serves"
        " on ports 443 and 80 by default; this agrees to the authority's terms of service",
    )
    add("--acme-email", metavar="ADDRESS", help="address for the notices of the authority")
    add(
        "--acme-directory",
        metavar="WORD|URL",
        help="`letsencrypt` (default), `staging` for tries, or the directory of another ACME server",
    )
    add("--acme-challenges", metavar="DIR", help="folder with the answers to ACME challenges on plain HTTP")
    add(
        "--cert",
        metavar="FILE",
        action="append",
        help="PEM certificate chain (default: a new self-signed one for localhost); repeatable with --key, for several"
        " key types",
    )
    add("--key", metavar="FILE", action="append", help="unencrypted PEM key of the certificate")
    add(
        "--config",
        metavar="FILE",
        help="TOML file with these options and more as keys; the command line and KTLSD_... variables win",
    )
    add(
        "--metrics-listen",
        metavar="ADDR:PORT",
        help="address for metrics, health and the status page over plain HTTP; loopback if ADDR is left out",
    )
    add("--workers", metavar="N|auto", help="number of worker processes (default 1); auto: one for each usable core")
    add("--user", metavar="NAME", help="user to switch to after binding and reading keys, if started as root")
    add("--group", metavar="NAME", help="group to switch to (default: the user's primary group)")
    add(
        "--strict",
        action="store_true",
        default=None,
        help="refuse to start unless every certificate can be used (default: leave out sites with unusable ones)",
    )
    add(
        "--ktls",
        metavar="auto|require|off",
        help="use kTLS if available (default), refuse connections without it, or do not use it",
    )
    add("--dotfiles", action="store_true", default=None, help="serve names that begin with a dot")
    add("--listing", action="store_true", default=None, help="list folders that have no index file")
    add(
        "--access-log",
        metavar="FILE",
        help="file to append a line for each request to, `stderr`, or `-` for stdout (default: none)",
    )
    add("--access-log-format", metavar="combined|json", help="Apache's format (default), or JSON")
    add(
        "--error-log",
        metavar="FILE",
        help="file to append all other log lines to, `stderr` (default), or `-` for stdout",
    )
    add("--error-log-format", metavar="text|json", help="one message a line (default), or one JSON object a line")
    add("--libssl", metavar="PATH", help="path of libssl (default: the system's; also KTLSD_LIBSSL)")
    add("--log-level", metavar="LEVEL", help=f"one of {', '.join(LOG_LEVELS)} (default info)")
    add("--open", action="store_true", help="open the site in the browser once it is served")
    add("--qr", action="store_true", help="show the address on the network as a QR code, for phones (extra qr)")
    add("--version", action="store_true", help="show the versions and kTLS support of ktlsd, OpenSSL and the kernel")
    return parser


def _doctor_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="ktlsd doctor",
        description="Diagnose kTLS on this machine. Exit status 0 if sends are offloaded, 1 if not.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--libssl", metavar="PATH", help="path of the libssl to examine (default: the system's; also KTLSD_LIBSSL)"
    )
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="ktlsd check",
        description="Check a configuration file and the folders and certificates it names.",
        allow_abbrev=False,
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--config", metavar="FILE", help="TOML file to check")
    task.add_argument("--schema", action="store_true", help="print the JSON Schema of the file, for editors")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if there are warnings")
    return parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of all commands by name, the serving one under the empty name: for man pages and completion."""
    from ktlsd.commands import compress, hash_password, health, sign_url

    return {
        "": _serve_parser(),
        "doctor": _doctor_parser(),
        "check": _check_parser(),
        "compress": compress.parser(),
        "hash-password": hash_password.parser(),
        "sign-url": sign_url.parser(),
        "health": health.parser(),
    }


def _version(libssl: str | None) -> int:
    from ktlsd.commands.version import version_text

    print_output(version_text(_libssl(libssl)))
    return 0


def _libssl(option: str | None) -> str | None:
    return option or os.environ.get("KTLSD_LIBSSL") or None


def _doctor(arguments: Sequence[str]) -> int:
    options = _doctor_parser().parse_args(arguments)
    from ktlsd.commands import doctor

    return doctor.run(_libssl(options.libssl), as_json=options.json)


def _check(arguments: Sequence[str]) -> int:
    options = _check_parser().parse_args(arguments)
    if options.schema:
        import json

        from ktlsd.config.schema import schema

        print_output(json.dumps(schema(), indent=2))
        return 0
    from ktlsd.commands import check

    return check.run(options.config, strict=options.strict)


def _health(arguments: Sequence[str]) -> int:
    from ktlsd.commands import health

    return health.run(arguments)


def _compress(arguments: Sequence[str]) -> int:
    from ktlsd.commands import compress

    return compress.run(arguments)


def _hash_password(arguments: Sequence[str]) -> int:
    from ktlsd.commands import hash_password

    return hash_password.run(arguments)


def _sign_url(arguments: Sequence[str]) -> int:
    from ktlsd.commands import sign_url

    return sign_url.run(arguments)


def _serve(options: Mapping[str, Any]) -> int:
    # Objects made from here to the first client stay. Collecting garbage among them costs 5 % of the start, and in
    # workers every touched page becomes a copy.
    gc.disable()
    from ktlsd.logs.reload_signals import block_early_signals
    from ktlsd.process.terminal import Terminal
    from ktlsd.settings import load

    block_early_signals()
    terminal = Terminal()
    loaded = load(options)
    library = Library(loaded.settings.libssl)
    from ktlsd.process.address_display import AddressDisplay
    from ktlsd.process.serve import serve

    return serve(lambda: load(options), loaded, library, terminal, AddressDisplay(options["open"], options["qr"]))


if __name__ == "__main__":
    sys.exit(main())
