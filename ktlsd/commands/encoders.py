"""Compressing in the content codings that HTTP has: a stream at a time, no files.

Strategy: each library at the level where more effort hardly pays; windows that every client can hold, so that memory
is bounded on both sides; nothing in the output but what the input determines.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

import brotli
import zstandard

from ktlsd.config.values import Coding

# The highest with a window of at most 8 MiB, which clients need not exceed (RFC 9659).
_ZSTD_LEVEL: Final = 19
_BROTLI_QUALITY: Final = 11
# 4 MiB (RFC 7932 section 9.1): 16 MiB would take four times the memory, here and in each client.
_BROTLI_WINDOW: Final = 22
_GZIP_LEVEL: Final = 9
# zlib's way to ask for a gzip header: without name, of time 0.
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class Encoder(NamedTuple):
    """One stream: `feed` gives what is ready of the output, `finish` the rest."""

    feed: Callable[[bytes], bytes]
    finish: Callable[[], bytes]


def encoder(coding: Coding, size: int) -> Encoder:
    """An encoder for exactly `size` bytes. Its calls release the GIL."""
    return _ENCODERS[coding](size)


def _zstd(size: int) -> Encoder:
    parameters = zstandard.ZstdCompressionParameters.from_level(_ZSTD_LEVEL, source_size=size)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
    return Encoder(stream.compress, stream.flush)


def _brotli(size: int) -> Encoder:
    stream = brotli.Compressor(quality=_BROTLI_QUALITY, lgwin=_BROTLI_WINDOW)
    return Encoder(stream.process, stream.finish)


def _gzip(size: int) -> Encoder:
    stream = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    return Encoder(stream.compress, stream.flush)


_ENCODERS: Final[dict[Coding, Callable[[int], Encoder]]] = {"zstd": _zstd, "br": _brotli, "gzip": _gzip}
