"""`ktlsd health`: asks the metrics listener of a running ktlsd, for the health checks of containers.

Strategy: the address is that of the same variables and file that the server has; one request, one line, and the exit
status.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Final

from ktlsd.commands.command_parser import CommandParser
from ktlsd.config.console import print_error, print_output
from ktlsd.config.refusal import Refusal, cause
from ktlsd.config.values import Listen
from ktlsd.settings import load

EXIT_UNHEALTHY: Final = 1
SECONDS: Final = 5.0
"""Time-out of the request."""

_EVERY_ADDRESS: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where to ask a listener on every address, or on every one of loopback."""


def parser() -> argparse.ArgumentParser:
    made = CommandParser(
        prog="ktlsd health",
        description="Ask a running ktlsd whether it can answer. Exit status 0 if it can, 1 if not.",
        allow_abbrev=False,
    )
    made.add_argument("--ready", action="store_true", help="also fail while it drains")
    made.add_argument(
        "--metrics-listen",
        metavar="ADDR:PORT",
        help="its address for metrics (default: that of KTLSD_METRICS_LISTEN, or of the file)",
    )
    made.add_argument("--config", metavar="FILE", help="its configuration file (default: that of KTLSD_CONFIG)")
    return made


def run(arguments: Sequence[str]) -> int:
    """Ask: 0, or 1 without a good answer. Raises Refusal."""
    options = parser().parse_args(arguments)
    # A server whose folder is named on its command line is asked for without one.
    given = {"root": os.curdir, "config": options.config, "metrics_listen": options.metrics_listen}
    listen = load(given).settings.metrics_listen
    if listen is None:
        raise Refusal("no address to ask: name metrics_listen with --metrics-listen, KTLSD_METRICS_LISTEN or --config")
    status, text = ask(listen, "/readyz" if options.ready else "/healthz")
    if status == HTTPStatus.OK:
        print_output(text)
        return 0
    print_error(f"ktlsd health: {text}")
    return EXIT_UNHEALTHY


def ask(listen: Listen, target: str) -> tuple[int, str]:
    """Status and line of the answer; 0 and the cause if there is none."""
    host = _EVERY_ADDRESS.get(listen.host, listen.host)
    connection = HTTPConnection(host, listen.port, timeout=SECONDS)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace").strip()
    except OSError as error:
        return 0, f"{Listen(host, listen.port)}: {cause(error)}"
    except HTTPException as error:
        return 0, f"{Listen(host, listen.port)}: no HTTP: {error!r}"
    finally:
        connection.close()
