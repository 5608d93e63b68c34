"""The folder that a path leads to at the moment.

Strategy: the kernel walks the path again every second, from its name cache if it can. Where a link was swapped, a
folder replaced or a file system mounted, the new folder is opened and takes the old one's place at once; requests in
progress keep the old one. A path that leads nowhere twice in a row has no folder: then no request is answered from it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from ktlsd.file_threads import DEFAULT_SECONDS, FileThreads, Patience, Stalled
from ktlsd.http.decide import Miss
from ktlsd.http.hidden_paths import HiddenPaths
from ktlsd.site.lookup import NO_NAMES, Root
from ktlsd.system_calls import FolderIdentity, folder_at, folder_identity

log = logging.getLogger("ktlsd")

LOOK_SECONDS: Final = 1.0
"""Interval of looks at the path."""
START_SECONDS: Final = 5.0
"""Longest time for the first look."""
# Other errors, such as a lack of descriptors, are not about the folder.
_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)


class FollowedRoot:
    """A path to a folder, and the folder. The creator closes it."""

    def __init__(
        self,
        path: Path,
        *,
        dotfiles: bool = False,
        hidden: frozenset[bytes] = NO_NAMES,
        hide: HiddenPaths | None = None,
        notes_links: bool = False,
        seconds: float = DEFAULT_SECONDS,
        may_be_missing: bool = False,
        patience: Patience | None = None,
    ) -> None:
        """`hidden` has paths below the folder that are not served, `hide` patterns for such; with `notes_links`, what
        is opened may be `direct`; `seconds` is the time that one call on a file may take. A folder that
        `may_be_missing`, or whose file system does not answer within START_SECONDS, or within the `patience` for
        several of them, may come later.

        Raises OSError if there is no such folder that can be served.
        """
        # Relative to the folder that the process was started in, even if a link there is swapped.
        self.path = absolute(path)
        self._open_root = partial(
            Root, dotfiles=dotfiles, hidden=hidden, hide=hide, notes_links=notes_links, seconds=seconds
        )
        self._threads = FileThreads(str(self.path), seconds, 1)
        self._looking = self._closed = False
        self._failures = 0
        self.fault: OSError | None = None
        """The first error of the path, for the caller to report."""
        self.on_change: Callable[[], object] = bool
        """Called when another folder has taken the place of the former."""
        try:
            self.root = (patience or Patience(START_SECONDS)).within(self._open, Root.close)
        except Stalled:
            log.error("%s: the file system does not answer: requests get 503 until it does", self.path)
            self.root = self._open_root(None, why=Miss.STALLED)
        except OSError as error:
            if not may_be_missing or error.errno != errno.ENOENT:
                raise
            self.fault = error
            self.root = self._open_root(None, why=Miss.NO_ROOT)

    @property
    def missing(self) -> bool:
        """True if the path leads nowhere."""
        return self.root.why is Miss.NO_ROOT

    def close(self) -> None:
        self._closed = True
        self.root.close()

    def _open(self) -> Root:
        return self._open_root(os.fspath(self.path))

    def is_the_same(self) -> bool:
        """True if the kernel finds at once that the path leads to the same folder as at the last look."""
        try:
            descriptor = folder_at(os.fsencode(self.path))
            try:
                same = folder_identity(descriptor) == self.root.identity
            finally:
                os.close(descriptor)
        except OSError:
            return False
        if same:
            self._failures = 0
        return same

    async def look(self, *, tell: bool = True) -> None:
        """Follow the path again, in a thread, and use the folder it leads to; with `tell`, log a change.

        Does nothing while another look is in progress.
        """
        if self._looking:
            return
        self._looking = True
        try:
            found = await self._threads.run(partial(self._open_if_other, self.root.identity), _close_root)
        except Stalled:
            # Each request finds that out.
            return
        except OSError as error:
            self._failures += 1
            if error.errno in _NOT_THERE and self._failures > 1 and not self.missing:
                if tell:
                    log.error("%s: %s: requests get 503 until it exists again", self.path, error.strerror)
                self._take(self._open_root(None, why=Miss.NO_ROOT))
            return
        finally:
            self._looking = False
        self._failures = 0
        if found is not None:
            if tell:
                log.info("%s: now leads to another folder, which is served", self.path)
            self._take(found)

    def _open_if_other(self, known: FolderIdentity | None) -> Root | None:
        """The folder that the path leads to, unless it is known. Raises OSError."""
        root = self._open()
        if root.identity != known:
            return root
        root.close()
        return None

    def _take(self, root: Root) -> None:
        former, self.root = self.root, root
        former.close()
        if self._closed:
            root.close()
        self.on_change()


def absolute(path: Path) -> Path:
    """The path from the top on. Raises OSError for a relative one if the working folder is gone."""
    return path if path.is_absolute() else Path(os.getcwd(), path)


def _close_root(root: Root | None) -> None:
    if root is not None:
        root.close()
