"""Which host name a client asks for, before anything of its TLS connection is consumed.

Strategy: look at the ClientHello with MSG_PEEK, so that OpenSSL still gets all of it, and let the kernel wait for the
bytes that are missing (SO_RCVLOWAT): a socket with unread bytes is readable all the time otherwise.
"""

from __future__ import annotations

import socket

import trio

from ktlsd.client_hello import LONGEST_HELLO, Incomplete, server_name

_NO_BOUND = 1


async def peek_server_name(sock: socket.socket) -> str | None:
    """The host name in the ClientHello on this fresh, non-blocking TCP socket, as client_hello.server_name() gives it.

    None also when the client ends the connection first. Waits for as long as the client sends no whole ClientHello: the
    caller has the time-out. Nothing is consumed. Does not raise OSError: what is wrong shows in the handshake.
    """
    needed = _NO_BOUND
    try:
        while True:
            await trio.lowlevel.wait_readable(sock)
            data = sock.recv(LONGEST_HELLO, socket.MSG_PEEK)
            found = server_name(data)
            if not isinstance(found, Incomplete):
                return found
            if len(data) < needed:
                # Readable with less than was asked for: this is all that will come, or fit (tcp(7), socket(7)).
                return None
            needed = found.needed
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
    except OSError:
        return None
    finally:
        if needed != _NO_BOUND:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _NO_BOUND)
