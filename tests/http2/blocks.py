"""Header blocks for tests, as other encoders write them."""

from __future__ import annotations

from collections.abc import Iterable

import hpack

from ktlsd.http.request_fields import Field

GET: tuple[Field, ...] = (
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"example.org"),
    (b":path", b"/file"),
)


def with_fields(*fields: Field) -> tuple[Field, ...]:
    """A request with these fields behind the pseudo-header fields."""
    return (*GET, *fields)


def without(*names: bytes) -> tuple[Field, ...]:
    """A request without these pseudo-header fields."""
    return tuple(field for field in GET if field[0] not in names)


def encoded(fields: Iterable[Field], encoder: hpack.Encoder | None = None, *, huffman: bool = True) -> bytes:
    """A block that the encoder makes, of names as they are."""
    return (encoder or hpack.Encoder()).encode(list(fields), huffman=huffman)


def literals(fields: Iterable[Field]) -> bytes:
    """A block of literals without indexing and without Huffman code, each of less than 127 bytes."""
    return b"".join(b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in fields)
