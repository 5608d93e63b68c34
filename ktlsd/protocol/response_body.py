"""The body of a response in pieces, and a file's part on its way to a transport.

Strategy: every body becomes a sequence of bytes from memory and parts of the open file, which each protocol frames in
its own way. A file whose file system may hold up its callers is read in a thread (OpenFile.waits); any other is the
transport's to send, by the kernel if it can.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from ktlsd.connection.transport import FileShrank, PacedTransport
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.byte_rate import Pace
from ktlsd.http.multipart import Multipart
from ktlsd.protocol.pacing import send_file, send_text
from ktlsd.site.lookup import FilePart, OpenFile

Body = ByteRange | Multipart | Iterator[bytes] | AsyncGenerator[Any] | bytes
"""As Response.body."""


async def all_pieces(body: Body) -> AsyncGenerator[bytes | ByteRange | FilePart]:
    """A body in the order in which it is sent, also if it is of several files."""
    if isinstance(body, AsyncGenerator):
        async with contextlib.aclosing(body):
            async for made in body:
                yield made
    else:
        for piece in pieces(body):
            yield piece


def pieces(body: Body) -> Iterator[bytes | ByteRange]:
    """A body in the order in which it is sent.

    Pieces that are made while they are sent (is_made_while_sent) take milliseconds each: other connections get their
    turn after each, also after an empty one.
    """
    if isinstance(body, ByteRange):
        if body.count:
            yield body
    elif isinstance(body, Multipart):
        for before, part in body.parts:
            yield before
            yield part
        yield body.tail
    elif isinstance(body, Iterator):
        yield from body
    elif not isinstance(body, bytes):
        raise TypeError("a body of several files")
    elif body:
        yield body


def is_made_while_sent(body: Body) -> bool:
    """Whether the length of a body is not known before, and its pieces go out one by one."""
    return not isinstance(body, bytes | ByteRange | Multipart)


async def send_part(
    transport: PacedTransport, data: bytes, file: OpenFile, part: ByteRange, pace: Pace | None = None
) -> None:
    """Send bytes from memory, and then a part of the file, at a pace if there is one. Raises as
    PacedTransport.send_file() does."""
    if not file.waits:
        await send_file(transport, pace, data, file.descriptor, part.offset, part.count)
        return
    # The kernel must not read it for a sendfile: it might wait for the file system on the event loop.
    offset, end = part.offset, part.offset + part.count
    while offset < end:
        piece = await file.read_piece(offset, end - offset)
        if not piece:
            raise FileShrank
        await send_text(transport, pace, data + piece)
        data = b""
        offset += len(piece)
