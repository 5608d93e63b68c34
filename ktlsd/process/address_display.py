"""The addresses of a server for people: those on the network, --open for the browser, --qr for a phone.

Strategy: lines on stderr after those of the listeners, which programs read. The kernel names the addresses of all
interfaces (rtnetlink(7)); a program of its own opens the browser, and segno, an extra, makes the code.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from ktlsd import netlink
from ktlsd.config.console import print_error
from ktlsd.config.listener_kind import Kind
from ktlsd.config.refusal import Refusal, install
from ktlsd.config.values import address_text
from ktlsd.connection.listener import Listener

_RTM_GETADDR: Final = 22
_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, interface
_IFA_ADDRESS: Final = 1
_OF_NO_USE: Final = 0x20 | 0x40  # IFA_F_DEPRECATED, IFA_F_TENTATIVE
_MOST: Final = 16
"""Addresses that are named."""


class AddressDisplay(NamedTuple):
    """What the command line asks for."""

    browser: bool = False
    code: bool = False

    def check(self) -> None:
        """Raises Refusal if the code is asked for and cannot be made."""
        if self.code:
            _segno()

    def announce(self, listeners: Iterable[Listener]) -> None:
        """Name the addresses on the network, and show what is asked for."""
        here, elsewhere = _urls(listeners)
        for url in elsewhere:
            print_error(f"on the network: {url}")
        if self.code:
            _show_code(next(iter(elsewhere), None), here)
        if self.browser and here is not None:
            _open(here)


def network_addresses() -> list[str]:
    """The addresses of all interfaces by which other machines reach this one, IPv4 first. Raises OSError."""
    with netlink.connect(netlink.ROUTE) as connection:
        return sorted(_addresses(connection), key=lambda address: ":" in address)


def _addresses(connection: socket.socket) -> Iterator[str]:
    for message in netlink.dump(connection, _RTM_GETADDR, bytes(_ADDRESS.size)):
        family, _, flags, scope, _ = _ADDRESS.unpack_from(message)
        found = dict(netlink.attributes(message[_ADDRESS.size :]))
        # Scope 0 is the universe: no loopback, and no address that needs the name of its interface.
        if scope == 0 and not flags & _OF_NO_USE and _IFA_ADDRESS in found:
            yield socket.inet_ntop(family, found[_IFA_ADDRESS])


def _urls(listeners: Iterable[Listener]) -> tuple[str | None, list[str]]:
    """The URL for a browser of this machine, and those for other machines, where a listener is for all addresses."""
    here, elsewhere = None, []
    for listener in listeners:
        if listener.kind is not Kind.HTTPS or listener.socket.family == socket.AF_UNIX:
            continue
        host, port = listener.socket.getsockname()[:2]
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            with contextlib.suppress(OSError):
                of_family = [text for text in network_addresses() if (":" in text) is (address.version == 6)]
                elsewhere += [_url(text, port) for text in of_family[:_MOST]]
        elif not address.is_loopback and here is None:
            here = _url(host, port)
        here = here or _url("localhost", port)
    return here, elsewhere


def _url(host: str, port: int) -> str:
    return f"https://{address_text(host, port)}/"


def _open(url: str) -> None:
    """Have the user's browser open a URL, without a wait: a shell starts the program and ends."""
    import subprocess

    command = ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-m", "webbrowser", url]
    null = subprocess.DEVNULL
    try:
        subprocess.run(command, stdin=null, stdout=null, stderr=null, check=True)  # noqa: S603  our own words
    except (OSError, subprocess.CalledProcessError):
        print_error(f"--open: no browser can be started: open {url}")


def _show_code(elsewhere: str | None, here: str | None) -> None:
    url = elsewhere or here
    if url is None or (elsewhere is None and url.startswith("https://localhost:")):
        print_error("--qr: no other machine reaches this address: listen on all, such as --listen :8443")
        return
    out = io.StringIO()
    _segno().make(url, micro=False).terminal(out=out, compact=True)
    for line in out.getvalue().splitlines():
        print_error(line)


def _segno() -> Any:
    try:
        import segno
    except ImportError as error:
        raise Refusal(f"--qr needs the package segno, which is missing: {install('segno', 'qr')}") from error
    return segno
