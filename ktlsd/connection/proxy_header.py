"""Taking a PROXY header, and not a byte more, from a fresh connection.

Strategy: look with MSG_PEEK and take only bytes that certainly belong to the header, so that the next reader gets all
that follows. Bytes that were taken no longer make the socket readable, so the kernel waits for the rest.
"""

from __future__ import annotations

import socket

import trio

from ktlsd.connection.proxy_protocol import LONGEST, BadHeader, Header, Incomplete, parse
from ktlsd.openssl.errors import ConnectionLost


async def take_proxy_header(sock: socket.socket) -> Header:
    """The PROXY header that a non-blocking stream socket begins with; the next read gets what follows it.

    Waits for as long as a header goes on: the caller has the time-out. Raises BadHeader, or ConnectionLost when the
    connection ends first.
    """
    received = b""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            seen = sock.recv(LONGEST - len(received), socket.MSG_PEEK)
            if not seen:
                if received:
                    raise BadHeader("a PROXY header that ends too early")
                raise ConnectionLost("the peer closed the connection before its PROXY header")
            found = parse(received + seen)
            size = len(seen) if isinstance(found, Incomplete) else found.length - len(received)
            received += sock.recv(size)
        except BlockingIOError:
            continue
        except OSError as error:
            raise ConnectionLost(error.strerror) from error
        if isinstance(found, Header):
            return found
