"""The server name and other facts from a ClientHello, before anything of the TLS connection is consumed.

Strategy: look at the ClientHello with MSG_PEEK, so that OpenSSL still gets all of it, and let the kernel wait for the
bytes that are missing (SO_RCVLOWAT): a socket with unread bytes is readable all the time otherwise.
"""

from __future__ import annotations

import socket
from collections.abc import Collection

from ktlsd.connection import driver
from ktlsd.openssl.results import Wait
from ktlsd.tls.client_hello import LONGEST_HELLO, NOTHING, Asked, HelloReader, Incomplete, allows_tls_1_2

_NO_BOUND = 1
_FIRST_LOOK = 16384
"""Bytes; a longer ClientHello is peeked at again."""


async def peek_client_hello(sock: socket.socket, *, acme: bool = False) -> Asked:
    """The facts of the ClientHello on this fresh, non-blocking TCP socket, from HelloReader(acme).read().

    NOTHING also when the client ends the connection first. Waits for as long as OpenSSL would wait for more of a
    ClientHello: the caller has the time-out. Nothing is consumed. Does not raise OSError: an error shows in the
    handshake.
    """
    needed = _NO_BOUND
    reader = HelloReader(acme=acme)
    try:
        while True:
            await driver.ready(sock, Wait.READABLE)
            data = sock.recv(_FIRST_LOOK if needed < _FIRST_LOOK else needed, socket.MSG_PEEK)
            found = reader.read(data)
            if not isinstance(found, Incomplete):
                return found
            if len(data) < needed:
                # Readable with less than was asked for: this is all that will come, or fit (tcp(7), socket(7)).
                return NOTHING
            needed = found.needed
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
    except OSError:
        return NOTHING
    finally:
        if needed != _NO_BOUND:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _NO_BOUND)


def peek_allows_tls_1_2(sock: socket.socket, suites: Collection[int]) -> bool:
    """allows_tls_1_2() of a ClientHello that peek_client_hello() has seen."""
    try:
        return allows_tls_1_2(sock.recv(LONGEST_HELLO, socket.MSG_PEEK), suites)
    except OSError:
        return False
