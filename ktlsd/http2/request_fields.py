"""From the fields of a header block to a valid request head (RFC 9113 sections 8.1.1, 8.2 and 8.3): pure.

Strategy: each field is judged by itself, and valid ones are remembered; then the fields are taken in order, which
finds what is double, missing or out of place. All but the path is shared by requests
for other paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from ktlsd.http.request_fields import Field, joined
from ktlsd.http.request_head import HeadFields, RequestHead
from ktlsd.http.uri_host import host_of
from ktlsd.http2.priority import NO_SIGNAL, Priority, parse_priority

HTTP_VERSION: Final = b"2.0"

_PSEUDO_FIELDS: Final = frozenset((b":method", b":scheme", b":authority", b":path"))
_CONNECTION_FIELDS: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_MEANINGFUL: Final = frozenset((b"host", b"cookie", b"priority", b"content-length"))
"""Names of fields that mean something here."""
_MORE_THAN_A_HEAD: Final = frozenset((b"content-length", b"expect"))
"""With any of these a request is more than its head, or asks for more than its response."""
# Of h11's patterns, so that both protocols accept the same: RFC 9110 sections 5.1, 5.5 and 9.1, RFC 9112 section 3.2.
_NAME: Final = re.compile(rb"[a-z0-9!#$%&'*+\-.^_`|~]+")
_WRONG_IN_VALUE: Final = re.compile(rb"[\0\n\v\f\r]|\A[ \t]|[ \t]\Z")
_METHOD: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*")
_PATH: Final = re.compile(rb"/[\x21-\x7e]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,20}")

_MOST_CHECKED: Final = 2048
_LONGEST_CHECKED: Final = 512
"""Bytes of a field that is kept."""


class Malformed(Exception):
    """No valid request; the text is the reason for the log."""


class SharedHead(Struct, frozen=True):
    """The parts that are the same in requests that differ in their path only."""

    method: bytes
    scheme: bytes | None
    """None for CONNECT."""
    of_fields: HeadFields
    """"host" with the value of :authority first, then all fields in their order, but cookies as one field."""
    content_length: int | None
    """Bytes; None if the request does not tell."""
    priority: Priority
    list_bytes: int
    """Size of the header list of the first request with this head, as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    refused: str | None = None
    """The reason why the request must not be processed: it is malformed or too large."""
    too_large: bool = False
    """Whether the header list is beyond the limit; then fields are missing here."""
    plain: bool = False
    """Whether the request is valid, and can be one without a body."""

    def head(self, target: bytes) -> RequestHead:
        """The head of a request with this target: the value of :path, or of :authority for CONNECT."""
        return RequestHead(self.method, target, HTTP_VERSION, self.of_fields, self.method + b" " + target, False)


_NO_FIELDS: Final = HeadFields((), {})
NO_REQUEST: Final = SharedHead(b"", None, _NO_FIELDS, None, NO_SIGNAL, 0).head(b"")
"""In the place of a request that is refused."""


def oversized_head(fields: Sequence[Field], list_bytes: int) -> SharedHead:
    """The head of a request that is beyond the limit: its method and Accept, if they are among the fields that were
    kept."""
    method = next((value for name, value in fields if name == b":method" and _METHOD.fullmatch(value)), b"")
    reason = f"a header list of {list_bytes} bytes"
    kept = [(name, value) for name, value in fields if name == b"accept" and not _WRONG_IN_VALUE.search(value)]
    return SharedHead(method, None, HeadFields(kept, joined(kept)), None, NO_SIGNAL, list_bytes, reason, too_large=True)


def is_path(value: bytes) -> bool:
    """Whether this is a :path with an absolute path."""
    return _PATH.fullmatch(value) is not None


class FieldChecks:
    """Fields that were judged, those of one process."""

    def __init__(self) -> None:
        self.valid: set[Field] = set()
        """Fields that a request can have."""

    def wrong(self, field: Field) -> str | None:
        """The reason why no request can have this field; None if it is valid."""
        if field in self.valid:
            return None
        reason = _judged(field)
        if reason is None and len(field[0]) + len(field[1]) <= _LONGEST_CHECKED:
            if len(self.valid) >= _MOST_CHECKED:
                self.valid.clear()
            self.valid.add(field)
        return reason


def _judged(field: Field) -> str | None:
    name, value = field
    if name[:1] == b":":
        if name not in _PSEUDO_FIELDS:
            return "an unknown pseudo-header field"
    elif not _NAME.fullmatch(name):
        return "a field name with a character that is not allowed"
    elif name in _CONNECTION_FIELDS or (name == b"te" and value.lower() != b"trailers"):
        return f"the connection-specific field {name.decode('ascii')}"
    elif name == b"content-length" and not _LENGTH.fullmatch(value):
        return "a content-length that is no number"
    if _WRONG_IN_VALUE.search(value):
        return "a field value with a character that is not allowed"
    return None


def request_head(fields: Sequence[Field], list_bytes: int, checks: FieldChecks) -> tuple[SharedHead, RequestHead]:
    """The head of a request. A malformed one has nothing but the reason, and NO_REQUEST."""
    try:
        shared, target = _request_head(fields, list_bytes, checks)
    except Malformed as error:
        return SharedHead(b"", None, _NO_FIELDS, None, NO_SIGNAL, list_bytes, str(error)), NO_REQUEST
    return shared, shared.head(target)


def _request_head(fields: Sequence[Field], list_bytes: int, checks: FieldChecks) -> tuple[SharedHead, bytes]:
    pseudo: dict[bytes, bytes] = {}
    regular: list[Field] = []
    # The few fields that mean something here, by name; a repeated one is judged below.
    length: int | None = None
    host: bytes | None = None
    priorities: list[bytes] = []
    cookies = 0
    valid = checks.valid
    for field in fields:
        if field not in valid:
            reason = checks.wrong(field)
            if reason is not None:
                raise Malformed(reason)
        name, value = field
        if name[0] == 0x3A:
            if regular or host is not None:
                raise Malformed("a pseudo-header field after another field")
            if name in pseudo:
                raise Malformed(f"{name.decode('ascii')} twice")
            pseudo[name] = value
            continue
        if name not in _MEANINGFUL:
            regular.append(field)
            continue
        if name == b"host":
            if host is not None:
                raise Malformed("Host twice")
            host = value
            continue
        if name == b"cookie":
            cookies += 1
        elif name == b"priority":
            priorities.append(value)
        elif name == b"content-length":
            if length is not None:
                raise Malformed("Content-Length twice")
            length = int(value)
        regular.append(field)
    method, scheme, target, authority = _checked_pseudo(pseudo)
    host = _host(authority, host)
    headers = _with_one_cookie(regular) if cookies > 1 else regular
    if host is not None:
        headers = [(b"host", host), *headers]
    priority = (parse_priority(b", ".join(priorities)) if priorities else None) or NO_SIGNAL
    values = dict(headers)
    if len(values) != len(headers):
        values = joined(headers)
    of_fields = HeadFields(tuple(headers), values, alone=_MORE_THAN_A_HEAD.isdisjoint(values))
    return SharedHead(method, scheme, of_fields, length, priority, list_bytes, plain=not length), target


def _checked_pseudo(pseudo: dict[bytes, bytes]) -> tuple[bytes, bytes | None, bytes, bytes | None]:
    """Method, scheme, target and authority of a request (section 8.3.1). Raises Malformed."""
    method, scheme = pseudo.get(b":method"), pseudo.get(b":scheme")
    path, authority = pseudo.get(b":path"), pseudo.get(b":authority")
    if method is None or not _METHOD.fullmatch(method):
        raise Malformed("no valid :method")
    # No user information (section 8.3.1), and no port without a host.
    if authority is not None and not host_of(authority.decode("latin-1")):
        raise Malformed("no valid :authority")
    if method == b"CONNECT":
        # Section 8.5.
        if scheme is not None or path is not None or authority is None:
            raise Malformed("CONNECT with :scheme or :path, or without :authority")
        return method, None, authority, authority
    if scheme is None or not _SCHEME.fullmatch(scheme):
        raise Malformed("no valid :scheme")
    if path is None or not (_PATH.fullmatch(path) or (path == b"*" and method == b"OPTIONS")):
        raise Malformed("no valid :path")
    return method, scheme, path, authority


def _host(authority: bytes | None, host: bytes | None) -> bytes | None:
    """The one host of a request that may name it twice. Raises Malformed."""
    if authority is None:
        if host is not None and not host_of(host.decode("latin-1")):
            raise Malformed("no valid Host")
        return host
    if host is not None and host.lower() != authority.lower():
        raise Malformed("Host differs from :authority")
    return authority


def _with_one_cookie(fields: Iterable[Field]) -> list[Field]:
    """Cookie fields joined at the place of the first (section 8.2.3)."""
    crumbs = [value for name, value in fields if name == b"cookie"]
    joined: list[Field] = []
    for field in fields:
        if field[0] != b"cookie":
            joined.append(field)
        elif crumbs:
            joined.append((b"cookie", b"; ".join(crumbs)))
            crumbs = []
    return joined


def wrong_trailers(fields: Iterable[Field], checks: FieldChecks) -> str | None:
    """The reason why these are no trailer fields; None if they are."""
    for field in fields:
        reason = checks.wrong(field)
        if reason is not None:
            return reason
        if field[0][:1] == b":":
            return "a pseudo-header field in a trailer section"
    return None
