"""OpenSSL's errors as exceptions: of the library, of a context, of a connection.

Strategy: one class for each case that a caller tells apart. error_queue.py and pem_files.py make them from what OpenSSL
says.
"""

from __future__ import annotations

import errno
from typing import Final

PEER_IS_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""Errors of send(2) and sendfile(2) if the connection failed, not the file."""


class LibraryError(Exception):
    """No usable OpenSSL; the text is one line for the operator."""


class ContextError(Exception):
    """OpenSSL refused a certificate, key or cipher list; the text is one line for the operator."""


class RevokedError(ContextError):
    """A file with revocation lists that cannot be used; the text is one line for the operator."""


class PairError(ContextError):
    """A certificate or its key that cannot be used; the text is one line for the operator."""

    def __init__(self, text: str, *, of_key: bool = False) -> None:
        """`of_key` if the key is at fault, not the certificate."""
        super().__init__(text)
        self.of_key = of_key


class TLSError(Exception):
    """The connection cannot go on; the text is OpenSSL's reason."""


class ConnectionLost(TLSError):
    """The peer went away without close_notify (RFC 8446 section 6.1): a reset, or the end of the TCP stream."""


class PlainHTTP(TLSError):
    """The peer began with an HTTP request instead of a ClientHello."""
