"""The frame around several parts of a representation: multipart/byteranges (RFC 9110 section 14.6): pure.

Strategy: everything but the parts' own bytes is laid out beforehand, so that Content-Length is known and each part can
go out by sendfile between two short writes. Every delimiter begins with a CRLF, also the first, where RFC 2046 section
5.1.1 permits it: zsync 0.6.2 reads no body without it, and nginx and Apache send it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ktlsd.http.byte_range import ByteRange


class Multipart(Struct, frozen=True):
    """A body: for each part the bytes before it and the part, then `tail`."""

    content_type: str
    """Of the whole response."""
    length: int
    """Bytes of the whole body."""
    parts: tuple[tuple[bytes, ByteRange], ...]
    tail: bytes


def multipart(parts: Sequence[ByteRange], size: int, content_type: str, boundary: str) -> Multipart:
    """Frame `parts` of a representation of `size` bytes and this content type.

    `boundary` has 1 to 70 letters and digits, not to be quoted (RFC 2046 section 5.1.1), and is not in the
    representation: a random one of 128 bits is in none.
    """
    framed: list[tuple[bytes, ByteRange]] = []
    for part in parts:
        before = (
            f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {part.content_range(size)}\r\n\r\n"
        )
        framed.append((before.encode("latin-1"), part))
    tail = f"\r\n--{boundary}--\r\n".encode("ascii")
    length = sum(len(before) + part.count for before, part in framed) + len(tail)
    return Multipart(f"multipart/byteranges; boundary={boundary}", length, tuple(framed), tail)
