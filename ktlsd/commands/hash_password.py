"""`ktlsd hash-password`: a line for a file of users.

Strategy: on a terminal the password is asked for twice and not shown; else it is the first line of stdin, for scripts.
It is never an argument, which other users of the machine could see.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from ktlsd.commands.command_parser import CommandParser
from ktlsd.config.console import print_output
from ktlsd.config.refusal import Refusal

ALGORITHMS: Final = ("bcrypt", "argon2id", "sha512")


def parser() -> argparse.ArgumentParser:
    """The parser of this command's options."""
    parser = CommandParser(
        prog="ktlsd hash-password",
        description="Print a line for the file of users that [[auth]] names. The password is asked for on a terminal,"
        " or is the first line of standard input.",
        allow_abbrev=False,
    )
    parser.add_argument("user", metavar="NAME", nargs="?", help="name of the user (default: print only the hash)")
    parser.add_argument(
        "--algorithm",
        metavar="NAME",
        choices=ALGORITHMS,
        default=ALGORITHMS[0],
        help="`bcrypt` (default, which nginx, Apache and Caddy know too), `argon2id` or `sha512`",
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run the command; the exit status. Raises Refusal."""
    options = parser().parse_args(arguments)
    from ktlsd.site import password_hashes

    if options.user is not None and (":" in options.user or not options.user.isprintable() or not options.user):
        raise Refusal("a name has no colon and no control characters")
    if options.user is not None and (options.user.startswith("#") or options.user != options.user.strip()):
        raise Refusal("a name begins with no # and has no blanks at its ends")
    try:
        made = password_hashes.make(_password(), options.algorithm)
    except ValueError as error:
        raise Refusal(str(error)) from error
    print_output(made if options.user is None else f"{options.user}:{made}")
    return 0


def _password() -> bytes:
    """Raises Refusal."""
    if sys.stdin.isatty():
        import getpass

        password = os.fsencode(getpass.getpass("Password: "))
        if password != os.fsencode(getpass.getpass("The same again: ")):
            raise Refusal("the two passwords differ")
    else:
        password = sys.stdin.buffer.readline().rstrip(b"\r\n")
    if not password:
        raise Refusal("the password is empty")
    if any(byte < ord(" ") or byte == 127 for byte in password):
        raise Refusal("a password has no control characters: no browser could send it")
    return password
