"""Content codings of what has no precompressed sibling: of pages while they are made, and of small files once.

Strategy: each library at a level that costs a millisecond or so for a piece, with a small window, so that a response
under way needs little memory. A packed file is kept in memory under a descriptor (memfd_create(2)), so that it is sent
and cut into ranges like any file; its entity tag is made from its bytes.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from msgspec import Struct

from ktlsd.attempt import needs_task
from ktlsd.config.values import Coding
from ktlsd.file_identity import FileIdentity, identify
from ktlsd.file_threads import JobLimiter
from ktlsd.http.fields import Fields, add_vary
from ktlsd.http.validators import content_tag
from ktlsd.site.content_hash import hash_of
from ktlsd.site.lookup import OpenFile

CODINGS: Final[tuple[Coding, ...]] = ("zstd", "br", "gzip")
"""In order of preference."""
SMALLEST: Final = 1024
LARGEST: Final = 1_048_576
"""Bytes of a file that is packed."""
MOST_BYTES: Final = 33_554_432
"""Bytes of all packed files of a site."""
MOST_FILES: Final = 256
"""Packed files of a site, each with a descriptor."""
SETTLED_NS: Final = 2_000_000_000
"""Least age of a file's last change: its times change with a later one."""
_MOST_SHARE: Final = 0.9
"""Of its size, for a packed file to be of use."""
_ZSTD_LEVEL, _ZSTD_WINDOW_BITS = 3, 17
_BROTLI_QUALITY, _BROTLI_WINDOW_BITS = 4, 17
_GZIP_LEVEL, _GZIP_FORMAT = 6, 16 + zlib.MAX_WBITS


class _Encoder(NamedTuple):
    feed: Callable[[bytes], bytes]
    finish: Callable[[], bytes]


def prepare() -> None:
    """Import the libraries, which takes some milliseconds: only for sites that need them, and before a request does."""
    import brotli  # noqa: F401
    import zstandard  # noqa: F401


def _zstd() -> _Encoder:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(_ZSTD_LEVEL, window_log=_ZSTD_WINDOW_BITS)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return _Encoder(stream.compress, stream.flush)


def _brotli() -> _Encoder:
    import brotli

    stream = brotli.Compressor(quality=_BROTLI_QUALITY, lgwin=_BROTLI_WINDOW_BITS)
    return _Encoder(stream.process, stream.finish)


def _gzip() -> _Encoder:
    stream = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
    return _Encoder(stream.compress, stream.flush)


_ENCODERS: Final[dict[Coding, Callable[[], _Encoder]]] = {"zstd": _zstd, "br": _brotli, "gzip": _gzip}


# --- pages ------------------------------------------------------------------------------------------------------------


def packed_fields(fields: Fields, coding: Coding | None) -> Fields:
    """The fields of a response that is made in this coding, or as it is."""
    more = () if coding is None else (("Content-Encoding", coding),)
    return add_vary((*fields, *more), "Accept-Encoding")


def packed(pieces: Iterator[bytes], coding: Coding | None) -> Iterator[bytes]:
    """The pieces of a page in this coding, or as they are; one for each, which may be empty."""
    if coding is None:
        yield from pieces
        return
    encoder = _ENCODERS[coding]()
    for piece in pieces:
        yield encoder.feed(piece) if piece else b""
    yield encoder.finish()


# --- files ------------------------------------------------------------------------------------------------------------

_TEXTS: Final = frozenset(
    "application/" + name
    for name in (
        *("javascript", "json", "manifest+json", "rtf", "sql", "toml", "vnd.ms-fontobject", "wasm", "x-httpd-php"),
        *("x-javascript", "x-sh", "xml", "yaml"),
    )
)


def is_text(content_type: str) -> bool:
    """Whether content of this type is text, or as compressible."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind.endswith(("+xml", "+json")) or kind in _TEXTS


class Packed(Struct, frozen=True):
    """A file in a content coding."""

    file: OpenFile
    """In memory; the holder closes it."""
    tag: str


class _Kept(Struct, frozen=True, eq=False):
    descriptor: int
    """-1 if packing is of no use."""
    size: int
    tag: str


_Key = tuple[FileIdentity, Coding]


class PackedFiles:
    """One site's."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._bytes = 0
        self._limiter = JobLimiter(2)

    def may_have(self, opened: OpenFile, content_type: str) -> bool:
        """Whether an open file of this type can be packed."""
        return SMALLEST <= opened.size <= LARGEST and not opened.waits and is_text(content_type)

    async def packed(self, opened: OpenFile, coding: Coding) -> Packed | None:
        """An open file in a coding; None if that is of no use, or not possible for the moment: such a file does not
        reopen, so that its response is not remembered."""
        key = opened.identity, coding
        kept = self._kept.get(key)
        if kept is None:
            if opened.ctime_ns > time.time_ns() - SETTLED_NS:
                opened.reopens = False
                return None
            needs_task()
            async with self._limiter.one(opened.root.threads.seconds, waits=False):
                kept = self._kept.get(key) or await self._pack(key, opened)
            if kept is None:
                opened.reopens = False
                return None
        self._kept.move_to_end(key)
        if kept.descriptor < 0:
            return None
        descriptor = os.dup(kept.descriptor)
        file = OpenFile(descriptor, opened.root, opened.path, identify(descriptor), original=opened)
        return Packed(file, kept.tag)

    async def _pack(self, key: _Key, opened: OpenFile) -> _Kept | None:
        try:
            data = await opened.run(partial(_pack, key))
            if data is None:
                return None
            kept = _Kept(-1, 0, "") if len(data) > _MOST_SHARE * opened.size else _keep(data)
        except OSError:
            return None
        self._kept[key] = kept
        self._bytes += kept.size
        while self._bytes > MOST_BYTES or len(self._kept) > MOST_FILES:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size
            _close(oldest)
        return kept

    def close(self) -> None:
        for kept in self._kept.values():
            _close(kept)
        self._kept.clear()
        self._bytes = 0


def _pack(key: _Key, descriptor: int) -> bytes | None:
    """The bytes of an open file in a coding; None if it is another version. Raises OSError."""
    identity, coding = key
    encoder, size = _ENCODERS[coding](), identity[2]
    made, offset = [], 0
    while offset < size:
        data = os.pread(descriptor, min(262_144, size - offset), offset)
        if not data:
            return None
        made.append(encoder.feed(data))
        offset += len(data)
    made.append(encoder.finish())
    return b"".join(made) if identify(descriptor) == identity else None


def _keep(data: bytes) -> _Kept:
    descriptor = os.memfd_create("ktlsd-packed", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return _Kept(descriptor, len(data), content_tag(hash_of(data)))


def _close(kept: _Kept) -> None:
    if kept.descriptor >= 0:
        with contextlib.suppress(OSError):
            os.close(kept.descriptor)
