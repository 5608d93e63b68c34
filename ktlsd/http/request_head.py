"""A request head as deciding and logging take it, whichever version of HTTP it came in.

Strategy: every protocol makes the same two objects. Requests with the same fields can share the object of the fields,
so that what is derived from them is derived once. HTTP/2 fills it from pseudo-header fields too (RFC 9113 section
8.3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from ktlsd.http.request_fields import Field, joined


class HeadFields(Struct, eq=False, gc=False):
    """The fields of a request."""

    fields: Sequence[Field]
    """All of them in the order in which they came, under lower-case names; "host" has the value of :authority."""
    values: Mapping[bytes, bytes]
    """As request_fields.joined() gives them."""
    alone: bool = False
    """True if a request with these fields is nothing but its head: it has no body, and requests nothing but its
    response."""
    closes: bool = False
    """Whether they ask for the end of the connection."""


class RequestHead(Struct, eq=False, gc=False):
    """The start of a request, before its body."""

    method: bytes
    target: bytes
    """As it was sent, or the value of :path."""
    http_version: bytes
    """Without "HTTP/"."""
    of_fields: HeadFields
    key: bytes
    """Method and target."""
    closes: bool
    """Whether the request ends its connection (RFC 9112 section 9.3): in HTTP/1.0 each does, as with h11."""

    @property
    def headers(self) -> Sequence[Field]:
        """All fields."""
        return self.of_fields.fields

    @property
    def alone(self) -> bool:
        """Whether the request is nothing but this head."""
        return self.of_fields.alone


def make_head(method: bytes, target: bytes, http_version: bytes, of_fields: HeadFields) -> RequestHead:
    """A head with these fields."""
    closes = of_fields.closes or http_version < b"1.1"
    return RequestHead(method, target, http_version, of_fields, method + b" " + target, closes)


def head_of(method: bytes, target: bytes, http_version: bytes, fields: Sequence[Field]) -> RequestHead:
    """A head from its parts, of a request that may be more than its head."""
    values = joined(fields)
    closes = any(token.strip() == b"close" for token in values.get(b"connection", b"").lower().split(b","))
    return make_head(method, target, http_version, HeadFields(fields, values, closes=closes))
