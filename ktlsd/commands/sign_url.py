"""`ktlsd sign-url`: a link to a path of [[signed]] that ends."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

from ktlsd.commands.command_parser import CommandParser
from ktlsd.config.console import print_output
from ktlsd.config.file_names import fsencode
from ktlsd.config.refusal import Refusal, cause
from ktlsd.http.lifetimes import seconds_of

_PERIOD: Final = re.compile("([0-9]{1,9}[smhdwy])+")
_TIME: Final = re.compile("[0-9]{10,11}")
_IN_URLS: Final = "!#$%&'()*+,-./:;=?@[]_~"
"""Characters that stand in a URL as they are (RFC 3986 section 2)."""
_NO_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})")


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
    from ktlsd.http.request_target import BadTarget, parse_target
    from ktlsd.http.signed_links import Unsigned, read_link, sign
    from ktlsd.site.signing_keys import parse_keys

    try:
        keys = parse_keys(Path(options.keys).read_bytes())
    except (OSError, ValueError) as error:
        raise Refusal(f"{options.keys}: {cause(error).removeprefix(f'{options.keys}: ')}") from error
    url = _url(options.url)
    try:
        target = parse_target(url.path.encode("ascii"))
    except BadTarget as error:
        raise Refusal(f"{options.url}: {error}: give https://HOST/PATH or /PATH") from error
    # As the server reads it.
    path = fsencode(target.path())
    if options.folder and not target.directory:
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
    signed = f"{query}&signature={sign(secret, path, query.encode('ascii'))}"
    try:
        read_link(path, signed.encode("ascii"), keys.get)
    except Unsigned as error:
        raise Refusal(f"{options.url}: {error}: leave parameters of signed links out of its query") from error
    print_output(url._replace(query=signed).geturl())
    return 0


def _url(text: str) -> SplitResult:
    """A URL with a path, in ASCII: what cannot stand in a URL is encoded, an escape is left. Raises Refusal."""
    escaped = quote(_NO_ESCAPE.sub("%25", text).encode("utf-8", "surrogateescape"), safe=_IN_URLS)
    try:
        url, host = urlsplit(escaped), urlsplit(text).netloc
        if not host.isascii():
            url = url._replace(netloc=host.encode("idna").decode("ascii"))
    except ValueError as error:
        raise Refusal(f"{text}: its host is not valid: {error}") from error
    if url.fragment or escaped.endswith("#"):
        raise Refusal(f"{text}: a number sign in a path is written %23")
    if not url.path.startswith("/") or (url.scheme and not url.netloc):
        raise Refusal(f"{text}: not a URL with a path: give https://HOST/PATH or /PATH")
    return url


def _time(text: str) -> int:
    """Seconds since the epoch. Raises Refusal."""
    if _PERIOD.fullmatch(text):
        text = f"{int(time.time()) + seconds_of(text)}"
    if _TIME.fullmatch(text):
        return int(text)
    raise Refusal(f"{text}: not a time: give 30m, 24h, 7d or a Unix time")
