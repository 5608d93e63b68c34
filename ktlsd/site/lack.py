"""The names that a root lacks at its top: they share one response, which scanners get without a look at a disk.

Strategy: most is known from the names of the root's folder (folder_names.py); a path that a check of access guards is
decided each time.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from ktlsd.config.file_names import fsdecode
from ktlsd.http.access import Access
from ktlsd.http.request_target import top_name
from ktlsd.site.lookup import Root

_SLASHES: Final = re.compile("/+")


class Lack(Struct, frozen=True, eq=False):
    """Those of one root."""

    root: Root
    access: Access | None
    """The checks of its site."""

    def holds(self, target: bytes) -> bool:
        """Whether the root surely lacks what a target names, and no check of access is for the path."""
        name = top_name(target)
        if name is None or not self.root.lacks(name):
            return False
        if self.access is None:
            return True
        # A name with something to decode is no top name; checks know paths without empty names.
        return not self.access.guards(_SLASHES.sub("/", fsdecode(target.partition(b"?")[0])))
