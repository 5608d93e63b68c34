"""`ktlsd sign-url`: a link to a path of [[signed]] that ends."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

from ktlsd.commands.command_parser import CommandParser
from ktlsd.config.console import print_output
from ktlsd.config.refusal import Refusal, cause

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PERIOD: Final = re.compile("([0-9]{1,9})([smhdw])")
_TIME: Final = re.compile("[0-9]{10,11}")


def parser() -> argparse.ArgumentParser:
    """The parser of this command's options."""
    parser = CommandParser(
        prog="ktlsd sign-url",
        description="Print a link to a path that [[signed]] guards.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="the URL, or its path; a folder's, with its slash, with --folder")
    add("--keys", metavar="FILE", required=True, help="the file that [[signed]] names; its first key signs")
    add("--expires", metavar="TIME", required=True, help="end of the link: in `30m`, `24h` or `7d`, or a Unix time")
    add("--starts", metavar="TIME", help="beginning of the link, in the same form")
    add("--client", metavar="NETWORK", help="address or network whose clients may use the link (default: all)")
    add("--folder", action="store_true", help="sign for all paths below the folder")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run the command; the exit status. Raises Refusal."""
    options = parser().parse_args(arguments)
    from ktlsd.config.networks import parse_network
    from ktlsd.http.signed_links import sign
    from ktlsd.site.signing_keys import parse_keys

    try:
        keys = parse_keys(Path(options.keys).read_bytes())
    except (OSError, ValueError) as error:
        raise Refusal(f"{options.keys}: {cause(error).removeprefix(f'{options.keys}: ')}") from error
    url = urlsplit(options.url)
    path = unquote_to_bytes(url.path)
    if not path.startswith(b"/") or url.fragment:
        raise Refusal(f"{options.url}: not a URL with a path: give https://HOST/PATH or /PATH")
    if options.folder and not path.endswith(b"/"):
        raise Refusal(f"{options.url}: the path of a folder ends in a slash")
    name, secret = next(iter(keys.items()))
    # Signed links have none in their query (signed_links.py).
    own = url.query.replace("?", "%3F")
    parts = [*([own] if own else []), f"expires={_time(options.expires)}"]
    if options.starts is not None:
        parts.append(f"starts={_time(options.starts)}")
    if options.client is not None:
        try:
            parts.append(f"client={parse_network(options.client)}")
        except ValueError as error:
            raise Refusal(f"--client: {error}") from error
    if options.folder:
        parts.append(f"prefix={quote(path)}")
    parts.append(f"key={name.decode('ascii')}")
    query = "&".join(parts)
    signature = sign(secret, path, query.encode("utf-8"))
    print_output(url._replace(query=f"{query}&signature={signature}").geturl())
    return 0


def _time(text: str) -> int:
    """Seconds since the epoch. Raises Refusal."""
    if found := _PERIOD.fullmatch(text):
        return int(time.time()) + int(found[1]) * _UNITS[found[2]]
    if _TIME.fullmatch(text):
        return int(text)
    raise Refusal(f"{text}: not a time: give 30m, 24h, 7d or a Unix time")
