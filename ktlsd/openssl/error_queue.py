"""The entries of OpenSSL's error queue, in words and as exceptions: pure.

Strategy: ssl_ffi.py empties the queue into a list of (packed code, reason), oldest first. The oldest entry is the cause
of the others; the reasons of libssl tell which TLSError it is (err.h, sslerr.h).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Final

from ktlsd.openssl import macros
from ktlsd.openssl.errors import ConnectionLost, PlainHTTP, TLSError

Queue = Sequence[tuple[int, str]]

NO_REASON: Final = "no reason given"
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def in_words(queue: Queue) -> str:
    """All reasons in one line."""
    return "; ".join(reason for _, reason in queue) or NO_REASON


def file_reason(queue: Queue, path: str) -> str:
    """The reason why OpenSSL could not use a file: the first one in the queue, which is the cause of the others.

    Raises OSError where the cause is not the file.
    """
    for code, reason in queue:
        if code & macros.ERR_SYSTEM_FLAG and code & ~macros.ERR_SYSTEM_FLAG in _EXHAUSTED:
            raise OSError(code & ~macros.ERR_SYSTEM_FLAG, reason, path)
    return queue[0][1] if queue else NO_REASON


def connection_error(queue: Queue, verification: Callable[[], str]) -> TLSError:
    """The error that ended a connection; `verification` is the fault of the peer's certificate."""
    reasons = {packed & 0x7FFFFF for packed, _ in queue if packed >> 23 & 0xFF == macros.ERR_LIB_SSL}
    text = in_words(queue)
    if macros.SSL_R_NO_SUITABLE_RECORD_LAYER in reasons:
        # OpenSSL 3.2 and later when it would set TLS_RX anew, which Linux before 6.14 refuses: docs/key-update.md.
        return TLSError(f"the peer updated its keys, which kTLS RX cannot follow ({text})")
    if macros.SSL_R_CERTIFICATE_VERIFY_FAILED in reasons:
        return TLSError(f"{text}: {verification()}")
    if macros.SSL_R_HTTP_REQUEST in reasons:
        return PlainHTTP(text)
    if macros.SSL_R_UNEXPECTED_EOF_WHILE_READING in reasons:
        return ConnectionLost(text)
    return TLSError(text)
