"""Unpacking the content codings that HTTP has, and comparing with what was packed.

Strategy: input goes in in small pieces, so that even a hostile stream makes the output of one piece no larger than
memory allows. Streams that browsers do not read (a second gzip member, zstd windows beyond 8 MiB) are errors.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import brotli
import zstandard

from ktlsd.config.values import Coding

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
# RFC 9659 section 3: a content coding needs no larger window, and browsers take no larger one.
_ZSTD_WINDOW: Final = 8_388_608
_BLOCK: Final = 65536


class DecodeError(ValueError):
    """The bytes are no whole stream of their coding."""


class _Decoder(NamedTuple):
    feed: Callable[[bytes], bytes]
    finished: Callable[[], bool]
    """True if the stream has ended."""
    rest: Callable[[], bytes]
    """Input behind its end."""
    piece: int
    """Bytes of input at a time. At most 100 MB or so of output come from them."""


def unpack(coding: Coding, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The content of one stream that comes in chunks. Its work releases the GIL again and again.

    Raises DecodeError if there is more or less than one whole stream, which may be after all of its content.
    """
    decoder = _DECODERS[coding]()
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), decoder.piece):
                if decoder.finished():
                    raise DecodeError("bytes behind the end of the stream")
                if content := decoder.feed(chunk[start : start + decoder.piece]):
                    yield content
    except (zlib.error, brotli.error, zstandard.ZstdError) as error:
        raise DecodeError(str(error)) from error
    if not decoder.finished() or decoder.rest():
        raise DecodeError("not one whole stream")


def is_packed(original: int, sibling: int, coding: Coding) -> bool:
    """True if the open file `sibling` is one whole stream of exactly the content of `original`. Raises OSError."""
    offset = 0
    try:
        for content in unpack(coding, _blocks(sibling)):
            if not _has(original, offset, content):
                return False
            offset += len(content)
    except DecodeError:
        return False
    return not os.pread(original, 1, offset)


def _has(descriptor: int, offset: int, content: bytes) -> bool:
    """True if a file has these bytes at this offset."""
    for start in range(0, len(content), _BLOCK):
        block = content[start : start + _BLOCK]
        if os.pread(descriptor, len(block), offset + start) != block:
            return False
    return True


def _blocks(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        yield block
        offset += len(block)


def _gzip() -> _Decoder:
    stream = zlib.decompressobj(_GZIP_WINDOW)
    return _Decoder(stream.decompress, lambda: stream.eof, lambda: stream.unused_data, 65_536)


def _zstd() -> _Decoder:
    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    return _Decoder(stream.decompress, lambda: stream.eof, lambda: stream.unused_data, 1024)


def _brotli() -> _Decoder:
    # Bytes behind the end are an error of its own.
    stream = brotli.Decompressor()
    return _Decoder(stream.process, stream.is_finished, bytes, 64)


_DECODERS: Final[dict[Coding, Callable[[], _Decoder]]] = {"gzip": _gzip, "zstd": _zstd, "br": _brotli}
