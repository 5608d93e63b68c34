"""ClientHellos: the server name is the one that OpenSSL finds, and the answer comes with the byte that decides it.

Strategy: the same bytes go into an SSL object of Python's, whose callback tells the name and refuses the handshake.
Nothing is waited for where OpenSSL has an alert already.
"""

from __future__ import annotations

import ssl
from functools import cache
from typing import Final

from fuzz.cuts import cuts
from ktlsd.tls.client_hello import LONGEST_HELLO, Asked, HelloReader, Incomplete, asked, host_name

TOKENS: Final = (
    b"\x16\x03\x01",
    b"\x16\x03\x03",
    b"\x01\x00",
    b"\x03\x03",
    b"\x00\x00",
    b"\x00\x29",
    b"\x00\x23",
    b"\x00\x2b\x00\x03\x02\x03\x04",
    b"\x00\x0blocalhost",
    b"example.org",
)

_REFUSED: Final = ssl.AlertDescription.ALERT_DESCRIPTION_HANDSHAKE_FAILURE


class _Seen:
    """What OpenSSL made of some bytes."""

    called = False
    """Whether its callback was given a name, or none, and refused it."""
    name: str | None = None
    ended = False
    """Whether it waits for no more."""


def check(data: bytes) -> None:
    found = asked(data)
    assert not isinstance(found, Incomplete) or len(data) < found.needed <= LONGEST_HELLO
    if isinstance(found, Asked):
        assert found.server_name is None or host_name(found.server_name) == found.server_name
        assert found.ticket_key_name is None or 0 < len(found.ticket_key_name) <= 16
    looking = HelloReader(acme=True).read(data)
    if isinstance(looking, Asked) and looking.acme:
        assert isinstance(found, Asked)
        assert looking.server_name == found.server_name
    else:
        assert looking == found
    _check_prefixes(data, found)
    seen = _openssl_sees(data)
    if seen.ended and not _has_an_empty_record(data):
        assert isinstance(found, Asked)
    if seen.called and len(data) <= LONGEST_HELLO and not _has_an_empty_record(data):
        assert isinstance(found, Asked)
        # A name that is none is no reason for OpenSSL to refuse.
        assert found.server_name == (None if seen.name is None else host_name(seen.name))


def _check_prefixes(data: bytes, found: Asked | Incomplete) -> None:
    """Nothing is told too early, and what is told stays."""
    told = False
    needed = 0
    reader = HelloReader()
    for end in cuts(len(data), len(data)):
        now = reader.read(data[:end])
        assert now == asked(data[:end])
        if isinstance(now, Incomplete):
            assert not told
            assert now.needed >= needed
            needed = now.needed
        else:
            # Less than what was said to be needed can only show that it is no ClientHello.
            assert end >= needed or now == Asked()
            assert now == found
            told = True


def _has_an_empty_record(data: bytes) -> bool:
    """RFC 8446 section 5.1 forbids it for a handshake: OpenSSL 3.0 goes on, ktlsd takes it for no ClientHello."""
    position = 0
    while position + 5 <= len(data):
        length = int.from_bytes(data[position + 3 : position + 5])
        if not length:
            return True
        position += 5 + length
    return False


def _openssl_sees(data: bytes) -> _Seen:
    seen = _Seen()
    context = _context()

    def tell(_: ssl.SSLSocket | ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        seen.called, seen.name = True, name
        return _REFUSED

    context.sni_callback = tell
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    connection = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        pass
    except ssl.SSLError:
        seen.ended = True
    return seen


@cache
def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
