"""The facts of a ClientHello that count here, from its bytes: pure, no sockets.

Strategy: join the handshake message out of its records, then walk its fields to the extensions that count here. Bytes
are waited for only while OpenSSL would wait for them too. Other bytes, or a broken ClientHello, have no name; OpenSSL
gets the same bytes at once and reports the error.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from typing import Final

from msgspec import Struct

from ktlsd.openssl.algorithms import TLS_1_2

LONGEST_HELLO: Final = 147456
"""Bytes that are read, with the headers of records: room for the longest ClientHello that OpenSSL takes, in
records of 41 bytes or more. A longer one counts as one without a name."""

_LONGEST_BODY: Final = 131396  # CLIENT_HELLO_MAX_LENGTH in OpenSSL 3.0 to 3.5
_RECORD_HEADER: Final = 5
_LONGEST_RECORD: Final = 16384
_HANDSHAKE_HEADER: Final = 4
_RECORD_START: Final = b"\x16\x03"  # handshake, the major version of every TLS
_HANDSHAKE_RECORD: Final = b"\x16"
_CLIENT_HELLO: Final = 1
_VERSION_AND_RANDOM: Final = 2 + 32
_SERVER_NAME: Final = 0
_SESSION_TICKET: Final = 35
_PRE_SHARED_KEY: Final = 41
_PROTOCOLS: Final = 16
_SUPPORTED_GROUPS: Final = 10
_SUPPORTED_VERSIONS: Final = 43
_OF_TLS_1_2: Final = frozenset({_SUPPORTED_GROUPS, _SUPPORTED_VERSIONS})
_TLS_1_2: Final = TLS_1_2.to_bytes(2)
_ONLY_TLS_1_2: Final = b"\x02" + _TLS_1_2
_CURVES: Final = frozenset({0x17, 0x18})
"""P-256 and P-384: in TLS 1.2 a client names the curves of certificates among its groups (RFC 8422 section 5.1)."""
_COUNTING: Final = frozenset({_SERVER_NAME, _SESSION_TICKET, _PRE_SHARED_KEY})
_COUNTING_WITH_ACME: Final = _COUNTING | {_PROTOCOLS}
_ACME_ONLY: Final = b"\x00\x0b\x0aacme-tls/1"
"""The only list of protocols in a challenge (RFC 8737 section 3)."""
_EXTENSION_HEADER: Final = struct.Struct(">HH")
# Record type and major version; length; handshake type; length (RFC 8446 section 4 and 5.1).
_ONE_RECORD: Final = struct.Struct(">HxHBBH")
_MAJOR: Final = int.from_bytes(_RECORD_START)
_HOST_NAME_TYPE: Final = 0

_METHODS: Final = (
    *("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"),
    *("PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH"),
)
# OpenSSL reads a record's header before it can tell TLS from anything else, and knows the first four of these only.
_REQUESTS: Final = tuple(f"{method} ".encode()[:_RECORD_HEADER] for method in _METHODS)

_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
# The underscore is in no host name of RFC 1123, but browsers connect to such names and wildcards cover them.
_HOST_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_NAME: Final = 253
_KEY_NAME: Final = 16


class Incomplete(Struct, frozen=True):
    """The ClientHello goes on: `needed` is how many bytes from its first one there must be at least to go on."""

    needed: int


class Asked(Struct, frozen=True):
    """The facts of a ClientHello."""

    server_name: str | None = None
    """In lower case and without a trailing dot (RFC 6066 section 3)."""
    ticket_key_name: bytes | None = None
    """The first 16 bytes of the ticket for a session to resume: the name of the key that it was made with (RFC 5077
    section 4, which OpenSSL follows in TLS 1.3 too)."""
    plain_http: bool = False
    """True if this is no TLS, but begins like an HTTP request."""
    acme: bool = False
    """True if an ACME server asks for a challenge's certificate, of a reader that looks for such."""


NOTHING: Final = Asked()


class _Malformed(Exception):
    """A field ends before its length."""


def _vector(data: bytes, position: int, width: int) -> bytes:
    """A variable-length field of a TLS structure (RFC 8446 section 3.4): its length, in so many bytes, and that many.

    Raises _Malformed.
    """
    start = position + width
    # Beyond the end there is nothing to slice, and the length of a field that is cut short is 0 or as good as any.
    end = start + int.from_bytes(data[position:start])
    if end > len(data):
        raise _Malformed
    return data[start:end]


class HelloReader:
    """Reads a ClientHello while it arrives. Whole records are read once."""

    __slots__ = ("_acme", "_message", "_record")

    def __init__(self, *, acme: bool = False) -> None:
        """`acme` is whether to look for challenges of ACME servers (RFC 8737)."""
        self._acme = acme
        self._message = bytearray()
        self._record = 0
        """The place of the first record that is not in the message."""

    def read(self, data: bytes) -> Asked | Incomplete:
        """The facts of the ClientHello at the beginning of `data`, all bytes so far (RFC 8446 section 4.1.2, RFC 5246
        section 7.4.1.2). `data` must begin with what the last call was given.

        NOTHING for what is no TLS, and for a malformed or too long ClientHello. Never raises.
        """
        if not data.startswith(_HANDSHAKE_RECORD):
            return _without_tls(data)
        # Nearly every ClientHello is one record, all of it there at the first look.
        message: bytes | Incomplete | None = None if self._record else _body_of_one_record(data)
        if message is None:
            message = self._client_hello(data[:LONGEST_HELLO])
        if isinstance(message, Incomplete):
            return message if message.needed <= LONGEST_HELLO else NOTHING
        try:
            return NOTHING if message is None else _asked(message, acme=self._acme)
        except _Malformed:
            return NOTHING

    def _client_hello(self, data: bytes) -> bytes | Incomplete | None:
        """The body of a ClientHello out of its records (RFC 8446 section 5.1); None when it cannot be one."""
        message = self._message
        while True:
            start = self._record + _RECORD_HEADER
            header = data[self._record : start]
            if not header.startswith(_RECORD_START[: len(header)]):
                return None
            if len(header) < _RECORD_HEADER:
                return Incomplete(start)
            length = int.from_bytes(header[3:])
            if not 0 < length <= _LONGEST_RECORD:
                return None
            end = start + length
            here = data[start:end]
            begin = message[:_HANDSHAKE_HEADER] + here[: max(0, _HANDSHAKE_HEADER - len(message))]
            if begin and begin[0] != _CLIENT_HELLO:
                return None
            wanted = _HANDSHAKE_HEADER
            known = len(begin) == _HANDSHAKE_HEADER
            if known:
                wanted += int.from_bytes(begin[1:])
                if wanted > _HANDSHAKE_HEADER + _LONGEST_BODY:
                    return None
            missing = wanted - len(message)
            if len(here) < length:
                # OpenSSL reads records whole. If the message goes on after this one, the next record's header is waited
                # for, and no more: a record of another type, which is an error, may have no more.
                return Incomplete(end if missing <= length else end + _RECORD_HEADER)
            if known and missing <= length:
                return bytes(message + here)[_HANDSHAKE_HEADER:wanted]
            message += here
            self._record = end


def asked(data: bytes) -> Asked | Incomplete:
    """The result of HelloReader.read() for `data`."""
    return HelloReader().read(data)


def allows_tls_1_2(data: bytes, suites: Collection[int]) -> bool:
    """Whether a handshake of TLS 1.2 with one of these suites, and a key on P-256 or P-384 or RSA, suits a client.

    `data` are all bytes of its ClientHello.
    """
    hello = _body_of_one_record(data) or HelloReader()._client_hello(data)
    if not isinstance(hello, bytes):
        return False
    try:
        position = _VERSION_AND_RANDOM + 1 + hello[_VERSION_AND_RANDOM]
        offered = _vector(hello, position, 2)
        position += 2 + len(offered)
        found = _extensions(_vector(hello, position + 1 + hello[position], 2), _OF_TLS_1_2)
        versions = _vector(found.get(_SUPPORTED_VERSIONS, _ONLY_TLS_1_2), 0, 1)
        groups = _vector(found.get(_SUPPORTED_GROUPS, b""), 0, 2)
    except (_Malformed, IndexError):
        return False
    return (
        hello.startswith(_TLS_1_2)
        and TLS_1_2 in _numbers(versions)
        and _numbers(groups) >= _CURVES
        and not _numbers(offered).isdisjoint(suites)
    )


def _numbers(data: bytes) -> set[int]:
    return {int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)}


def host_name(text: str) -> str | None:
    """A host name (RFC 1123 section 2.1) as names are compared: in lower case, without a trailing dot.

    None for what is no host name; one that is has letters, digits, hyphens, underscores and dots only.
    """
    name = text.removesuffix(".")
    return name.lower() if len(name) <= _LONGEST_NAME and _HOST_NAME.fullmatch(name) else None


def _without_tls(data: bytes) -> Asked | Incomplete:
    """The facts of bytes that begin no record of a handshake."""
    if len(data) >= _RECORD_HEADER:
        return Asked(plain_http=True) if data.startswith(_REQUESTS) else NOTHING
    maybe = any(start.startswith(data) or data.startswith(start) for start in _REQUESTS)
    return Incomplete(_RECORD_HEADER) if maybe else NOTHING


def _body_of_one_record(data: bytes) -> bytes | None:
    """The body of a ClientHello that is all of one record, and nothing else; None for anything else."""
    if len(data) < _ONE_RECORD.size:
        return None
    major, length, kind, high, low = _ONE_RECORD.unpack_from(data)
    whole = kind == _CLIENT_HELLO and high == 0 and low + _HANDSHAKE_HEADER == length <= _LONGEST_RECORD
    return data[_ONE_RECORD.size :] if whole and major == _MAJOR and len(data) == length + _RECORD_HEADER else None


def _asked(hello: bytes, *, acme: bool) -> Asked:
    position = _VERSION_AND_RANDOM
    for width in (1, 2, 1):  # legacy_session_id, cipher_suites, legacy_compression_methods
        position += width + int.from_bytes(hello[position : position + width])
    if position == len(hello):
        return NOTHING
    found = _extensions(_vector(hello, position, 2), _COUNTING_WITH_ACME if acme else _COUNTING)
    name = None
    if (body := found.get(_SERVER_NAME)) is not None:
        names = _vector(body, 0, 2)
        # One name at most of each type, and no other type was ever defined.
        if int.from_bytes(names[:1]) == _HOST_NAME_TYPE:
            name = host_name(_vector(names, 1, 2).decode("latin-1"))
    ticket = found.get(_SESSION_TICKET)
    if (body := found.get(_PRE_SHARED_KEY)) is not None:
        try:
            # The first of its identities, before the binders.
            ticket = _vector(_vector(body, 0, 2), 0, 2)
        except _Malformed:
            # TLS 1.2 ignores it, and the name still counts.
            ticket = None
    if acme and found.get(_PROTOCOLS) == _ACME_ONLY:
        return Asked(name, acme=True)
    return Asked(name, ticket[:_KEY_NAME] if ticket else None)


def _extensions(data: bytes, counting: frozenset[int]) -> dict[int, bytes]:
    """The bodies of the extensions that count here. Every new connection waits for this, so it makes few objects."""
    found = {}
    position, end, header = 0, len(data), _EXTENSION_HEADER.unpack_from
    try:
        while position < end:
            kind, length = header(data, position)
            position += 4 + length
            if kind in counting:
                found[kind] = data[position - length : position]
    except struct.error:
        raise _Malformed from None
    if position > end:
        raise _Malformed
    return found
