"""The servable entries of a folder: regular files and folders, and links to them.

Strategy: scandir on the folder's own descriptor gives names, kinds and status without another walk; only a link is
walked, by openat2(RESOLVE_BENEATH) from the root, because that is how a request for it would be.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from msgspec import Struct

from ktlsd.http.hidden_paths import HiddenPaths
from ktlsd.site.beneath import open_beneath, paths_below


# Without gc=False, a hundred thousand of them make the collector hold everything up for 20 ms and more.
class Entry(Struct, frozen=True, order=True, gc=False):
    """One line of a listing."""

    name: bytes
    directory: bool
    size: int
    """Bytes; for a folder the value depends on its file system."""
    mtime_ns: int


def read_folder(
    root: int,
    path: bytes,
    folder: int,
    *,
    dotfiles: bool,
    hidden: frozenset[bytes] = frozenset(),
    hide: HiddenPaths | None = None,
) -> list[Entry]:
    """The entries of an open folder, in no order; blocks, so it belongs in a thread.

    `root` is the descriptor below which links may lead, `path` the folder's path from there, `folder` a descriptor that
    was opened for reading. Names in `hidden` are left out, as are paths that `hide` covers and what cannot be looked
    at, but a file that the server may not read is listed, as nginx does. Raises OSError where the folder itself cannot
    be read.
    """
    entries = []
    folders = () if hide is None else paths_below(root, path, folder)
    with os.scandir(folder) as scan:
        for found in scan:
            name = os.fsencode(found.name)
            if name in hidden or (name.startswith(b".") and not dotfiles):
                continue
            try:
                if found.is_symlink():
                    status, paths = _look_at_link(root, path + b"/" + name)
                else:
                    paths = ()
                    status = found.stat(follow_symlinks=False)
            except OSError:
                # Gone by now, or a link that leads outside or nowhere.
                continue
            directory = stat.S_ISDIR(status.st_mode)
            if hide is not None:
                paths = (*paths, *(name if above == b"." else above + b"/" + name for above in folders))
                if any(hide.cover(path, folder=directory) for path in paths):
                    continue
            if directory or stat.S_ISREG(status.st_mode):
                entries.append(Entry(name, directory, status.st_size, status.st_mtime_ns))
    return entries


def _look_at_link(root: int, path: bytes) -> tuple[os.stat_result, tuple[bytes, ...]]:
    """The status of what a link leads to, and the paths of that."""
    descriptor = open_beneath(root, path, os.O_PATH)
    try:
        return os.fstat(descriptor), paths_below(root, path, descriptor)
    finally:
        os.close(descriptor)


def without_siblings(entries: list[Entry], suffixes: Sequence[bytes]) -> list[Entry]:
    """The entries but for precompressed siblings: files with one of these suffixes beside a file of the rest of their
    name and of the same mtime, which `ktlsd compress` and gzip(1) give them."""
    if not suffixes:
        return entries
    mtimes = {entry.name: entry.mtime_ns for entry in entries if not entry.directory}
    endings = tuple(suffixes)

    def is_sibling(entry: Entry) -> bool:
        if entry.directory or not entry.name.endswith(endings):
            return False
        return mtimes.get(entry.name[: entry.name.rindex(b".")]) == entry.mtime_ns

    return [entry for entry in entries if not is_sibling(entry)]
