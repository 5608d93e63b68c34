"""The results of calls on a connection: a Wait when the socket is not ready, a Handshake when it is done.

Strategy: plain values, which connections without TLS return too, so that callers handle both kinds alike.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

READ_SIZE: Final = 16384
"""Bytes that one call reads at most: the content of a TLS record (RFC 8446 section 5.1)."""


class Wait(enum.Enum):
    """The event that a call which would block needs; the caller waits and makes the same call again.

    Where each instruction counts, ask whether a result is what the call gives: isinstance(result, Wait) goes through
    the metaclass of enums, which takes five times as long.
    """

    READABLE = enum.auto()
    WRITABLE = enum.auto()


class Handshake(NamedTuple):
    """The outcome of a handshake, from OpenSSL."""

    protocol: str
    cipher: str
    resumed: bool
    max_fragment_length: bool
    ktls_tx: bool
    ktls_rx: bool
    server_name: str | None = None
    """The host name that the client asked for, as it wrote it (RFC 6066 section 3); None also in a resumed TLS 1.2
    session, for which OpenSSL does not give it."""
    client: str | None = None
    """The subject of the verified client certificate, as in "/CN=proxy"."""
    alpn: str | None = None
    """The protocol that was chosen by ALPN (RFC 7301), as in "h2"; None without a choice."""
    client_names: frozenset[str] = frozenset()
    """The names of Context.require_client()'s `path_names` that the verified client certificate has."""
    client_fault: str = ""
    """Why the client certificate is not accepted, if certificates are optional and the client sent one."""
