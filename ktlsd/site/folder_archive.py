"""A folder as a zip or tar archive, made while it is sent.

Strategy: threads walk the folder as a listing shows it, and note the version of each file. Then every offset and the
length are known (http/archive_layout.py), so ranges work. A file's bytes are sent as any file's; its checksum for zip
is made from the same piece after that, from the page cache. A file that is another version by then ends the response.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import trio
from msgspec import Struct

from ktlsd.file_identity import FileIdentity, identify, identity_of
from ktlsd.http.archive_layout import Layout
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.tar_layout import TarLayout
from ktlsd.http.zip_layout import ZipLayout
from ktlsd.site.beneath import open_beneath, paths_below
from ktlsd.site.folder import Entry
from ktlsd.site.lookup import FilePart, OpenFile, Root

MOST_MEMBERS: Final = 10_000
PIECE: Final = 4_194_304
"""Bytes of a file between two looks at its checksum."""
_GATHERED: Final = 16_384
"""Bytes of headers that are sent at a time."""
_SMALL: Final = 65_536
"""Bytes of a file that is read at once, and sent with headers."""
_MEMBERS_AT_A_TIME: Final = 128
_REMEMBERED: Final = 65_536
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

Read = Callable[[int, bytes, int], list[Entry]]
"""The entries of an open folder as they are listed: (root, path, folder)."""
Withheld = Callable[[Iterable[bytes]], bool]
"""Whether a file must not be sent that has these paths below the root."""


class Format(NamedTuple):
    """A format of archives."""

    name: str
    """Its suffix, and the query that asks for it; the option with the limit is `NAME_bytes`."""
    media_type: str
    layout: Callable[[list[tuple[bytes, int, int]]], Layout]
    """Made of names, sizes and times in nanoseconds."""
    backslashes: bool
    """Whether names may have backslashes, which extractors on Windows take for separators."""

    @property
    def query(self) -> bytes:
        return b"?" + self.name.encode()


ZIP: Final = Format("zip", "application/zip", ZipLayout, backslashes=False)
TAR: Final = Format("tar", "application/x-tar", TarLayout, backslashes=True)


class TooLarge(Exception):
    """The folder has more than may be in an archive; the text says what."""


class _Found(Struct, frozen=True, gc=False):
    """A file or folder on the way."""

    name: bytes
    paths: tuple[bytes, ...]
    """Below the root: its own, and the place where links led to."""
    identity: FileIdentity
    directory: bool


class Archive:
    """What one archive has, for all who download it at the same time."""

    def __init__(self, form: Format, prefix: bytes, files: list[tuple[bytes, bytes, FileIdentity]]) -> None:
        """`files` are names in the archive with their paths below the root and their versions; a folder's name ends
        in a slash, and its version has no size."""
        self.files = files
        self.layout = form.layout([(prefix + name, version[2], version[3]) for name, _, version in files])
        self.tag = f'"{hashlib.sha256(repr((form.name, prefix, files)).encode()).hexdigest()[:32]}"'


class FolderArchives:
    """One site's archives in one format."""

    def __init__(self, form: Format, most_bytes: int) -> None:
        """`most_bytes` is the limit of all files in an archive."""
        self.form: Final = form
        self._most_bytes = most_bytes
        self._checksums: OrderedDict[FileIdentity, int] = OrderedDict()
        self._archives: WeakValueDictionary[str, Archive] = WeakValueDictionary()

    # --- what is in it ------------------------------------------------------------------------------------------------

    async def archive(
        self, root: Root, path: bytes, name: bytes, index: Iterable[bytes], read: Read, withheld: Withheld
    ) -> Archive:
        """An archive of the folder at `path`, whose members are below a folder `name`.

        A folder below with an index file is not listed, so only that file is in the archive. Raises TooLarge, OSError.
        """
        files: list[tuple[bytes, bytes, FileIdentity]] = []
        left, size = [(path, b"")], 0
        while left:
            folder, inner = left.pop()
            with root as descriptor:
                found = await root.threads.run(partial(_look, descriptor, folder, read))
            if inner:
                named = {one.name: one for one in found if not one.directory}
                first = next((named[name] for name in index if name in named), None)
                found = found if first is None else [first]
            found = [one for one in found if not withheld(one.paths)]
            names = [one.name for one in found]
            shown = dict(zip(names, names if self.form.backslashes else without_backslashes(names), strict=True))
            for one in sorted(found, key=lambda one: one.name):
                name_in_it = inner + shown[one.name] + b"/" * one.directory
                if one.directory:
                    left.append((one.paths[0], name_in_it))
                files.append((name_in_it, one.paths[0], one.identity))
                size += one.identity[2]
            if len(files) > MOST_MEMBERS:
                raise TooLarge(f"more than {MOST_MEMBERS:,} files and folders")
            if size > self._most_bytes:
                raise TooLarge(f"more than {self.form.name}_bytes = {self._most_bytes}")
        made = await root.threads.run(partial(Archive, self.form, self._prefix(name), files))
        return self._archives.setdefault(made.tag, made)

    def _prefix(self, name: bytes) -> bytes:
        return (name if self.form.backslashes else name.replace(b"\\", b"_")) + b"/"

    # --- its bytes ----------------------------------------------------------------------------------------------------

    async def pieces(
        self, root: Root, archive: Archive, part: ByteRange, withheld: Withheld
    ) -> AsyncGenerator[bytes | FilePart]:
        """A part of an archive. Raises OSError if a file is not the one that was found, or cannot be read."""
        layout = archive.layout
        gathered = b""
        for number, ((_, path, identity), member) in enumerate(zip(archive.files, layout.members, strict=True)):
            offset, end = layout.offsets[number : number + 2]
            if offset >= part.end:
                break
            if end <= part.offset:
                continue
            header = member.header()
            gathered += _cut(header, offset, part)
            begin = offset + len(header)
            if not member.size:
                continue
            if begin < part.end:
                opened = await _opened(root, path, identity, withheld)
                try:
                    if member.size <= _SMALL:
                        data, checksum = await opened.run(partial(_read, member.size, checks=layout.has_checksums))
                        await _check(opened, path)
                        if layout.has_checksums:
                            self._remember(identity, checksum)
                        gathered += _cut(data + member.trailer(checksum), begin, part)
                        if len(gathered) >= _GATHERED:
                            yield gathered
                            gathered = b""
                        continue
                    if gathered:
                        yield gathered
                        gathered = b""
                    async with aclosing(self._file(opened, begin, part, checks=layout.has_checksums)) as parts:
                        async for piece in parts:
                            yield piece
                    trailer = b""
                    if part.end > begin + member.size:
                        trailer = member.trailer(await self._checksum(opened) if layout.has_checksums else 0)
                    await _check(opened, path)
                finally:
                    opened.close()
                gathered += _cut(trailer, begin + member.size, part)
            if len(gathered) >= _GATHERED:
                yield gathered
                gathered = b""
        async with aclosing(self._directory(root, archive, part, withheld)) as entries:
            async for data in entries:
                gathered += data
                if len(gathered) >= _GATHERED:
                    yield gathered
                    gathered = b""
        if gathered:
            yield gathered

    async def _file(self, opened: OpenFile, begin: int, part: ByteRange, *, checks: bool) -> AsyncGenerator[FilePart]:
        """The part of a file whose first byte is at `begin` in the archive; if it `checks`, its checksum is known after
        all of it."""
        first, end = max(part.offset - begin, 0), min(part.end - begin, opened.size)
        checksum, counts = 0, checks and first == 0 and opened.identity not in self._checksums
        for offset in range(first, end, PIECE):
            count = min(PIECE, end - offset)
            yield FilePart(opened, ByteRange(offset, count))
            if counts:
                checksum = await opened.run(partial(_add, checksum, offset, count))
        if counts and end == opened.size:
            self._remember(opened.identity, checksum)

    async def _checksum(self, opened: OpenFile) -> int:
        """The CRC-32 of a whole file."""
        identity = opened.identity
        if identity not in self._checksums:
            checksum = 0
            for offset in range(0, opened.size, PIECE):
                checksum = await opened.run(partial(_add, checksum, offset, min(PIECE, opened.size - offset)))
            self._remember(identity, checksum)
        self._checksums.move_to_end(identity)
        return self._checksums[identity]

    def _remember(self, identity: FileIdentity, checksum: int) -> None:
        self._checksums[identity] = checksum
        if len(self._checksums) > _REMEMBERED:
            self._checksums.popitem(last=False)

    async def _directory(
        self, root: Root, archive: Archive, part: ByteRange, withheld: Withheld
    ) -> AsyncGenerator[bytes]:
        layout = archive.layout
        position = layout.offsets[-1]
        members = enumerate(zip(archive.files, layout.members, strict=True)) if layout.has_checksums else ()
        for number, ((_, path, identity), member) in members:
            if position >= part.end:
                return
            if not number % _MEMBERS_AT_A_TIME:
                # Other connections get their turn.
                await trio.lowlevel.checkpoint()
            size = len(layout.entry(number, 0))
            if position + size > part.offset:
                checksum = 0
                if member.size:
                    checksum = await self._known_checksum(root, path, identity, withheld)
                yield _cut(layout.entry(number, checksum), position, part)
            position += size
        yield _cut(layout.ending(), position, part)

    async def _known_checksum(self, root: Root, path: bytes, identity: FileIdentity, withheld: Withheld) -> int:
        known = self._checksums.get(identity)
        if known is None:
            opened = await _opened(root, path, identity, withheld)
            try:
                known = await self._checksum(opened)
                await _check(opened, path)
            finally:
                opened.close()
        return known


def _look(root: int, path: bytes, read: Read) -> list[_Found]:
    """The files and folders in a folder, but for links to folders, which may lead in circles, and what cannot be read;
    blocks. Raises OSError."""
    folder = open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        place = paths_below(root, path, folder)[-1]
        found: list[_Found] = []
        for entry in read(root, path, folder):
            if len(found) > MOST_MEMBERS:
                # Too many, as the caller will find.
                break
            inner = _joined(path, entry.name)
            try:
                descriptor = open_beneath(root, inner, _FLAGS)
            except OSError:
                continue
            try:
                status, paths = os.fstat(descriptor), paths_below(root, inner, descriptor)
            finally:
                os.close(descriptor)
            directory = stat.S_ISDIR(status.st_mode)
            if stat.S_ISREG(status.st_mode) or (directory and paths[-1] == _joined(place, entry.name)):
                device, inode, size, mtime_ns, ctime_ns = identity_of(status)
                version = device, inode, 0 if directory else size, mtime_ns, ctime_ns
                found.append(_Found(entry.name, paths, version, directory))
        return found
    finally:
        os.close(folder)


def without_backslashes(names: Sequence[bytes]) -> list[bytes]:
    """The names in a folder with underscores for backslashes, each still different from the others."""
    taken, found = set(names), []
    for name in names:
        plain = name.replace(b"\\", b"_")
        while plain != name and plain in taken:
            plain += b"_"
        taken.add(plain)
        found.append(plain)
    return found


def _joined(folder: bytes, name: bytes) -> bytes:
    return name if folder == b"." else folder + b"/" + name


async def _opened(root: Root, path: bytes, identity: FileIdentity, withheld: Withheld) -> OpenFile:
    opened = await root.open_file(path)
    if not isinstance(opened, OpenFile):
        raise _changed(path)
    try:
        with root as descriptor:
            paths = paths_below(descriptor, path, opened.descriptor)
        if opened.identity != identity or withheld(paths):
            raise _changed(path)
    except BaseException:
        opened.close()
        raise
    return opened


async def _check(opened: OpenFile, path: bytes) -> None:
    """Raises OSError if the file is not the version any more that was opened."""
    now = await opened.run(identify) if opened.waits else identify(opened.descriptor)
    if now != opened.identity:
        raise _changed(path)


def _changed(path: bytes) -> OSError:
    return OSError(errno.ESTALE, "changed while its folder was sent as an archive", path)


def _add(checksum: int, offset: int, count: int, descriptor: int) -> int:
    """The checksum with this part of a file. Raises OSError."""
    for piece in _blocks(descriptor, offset, count):
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _read(size: int, descriptor: int, *, checks: bool) -> tuple[bytes, int]:
    """The content of a small file, and its checksum if that is wanted. Raises OSError."""
    data = b"".join(_blocks(descriptor, 0, size))
    return data, zlib.crc32(data) if checks else 0


def _blocks(descriptor: int, offset: int, count: int) -> Iterator[bytes]:
    end = offset + count
    while offset < end:
        piece = os.pread(descriptor, min(262_144, end - offset), offset)
        if not piece:
            raise OSError(errno.ESTALE, "shrank while its folder was sent as an archive")
        yield piece
        offset += len(piece)


def _cut(data: bytes, position: int, part: ByteRange) -> bytes:
    """The bytes that a part has of data at this position."""
    return data[max(part.offset - position, 0) : max(part.end - position, 0)]
