"""Whether a path has the names that its folders list: some file systems find a file under other names, too.

Strategy: rules of access, and hidden names, are compared with the path of a request. FAT and NTFS know short names
(`GIT~1` for `.git`) and drop dots at the end; folders without case know other forms of letters (Unicode case folding).
Only names that can be such a form are looked at, and listed only where names may differ; upper and lower case of ASCII
letters is the business of the rules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from ktlsd.site.folder_names import is_bytewise
from ktlsd.system_calls import openat2

_OTHER_FORM: Final = re.compile(rb"~[0-9]|[. ](?:/|\Z)|[\x80-\xff]")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK


def may_differ(path: bytes) -> bool:
    """Whether a relative path has a name that a file system might take for another one."""
    return _OTHER_FORM.search(path) is not None and path != b"."


def surely_listed(root: int, path: bytes) -> bool:
    """Whether all folders of a path below the descriptor `root` know files by their own names only, as far as that is
    known without asking a disk."""
    try:
        return all(_is_bytewise(root, folder) for folder, _ in _doubtful(path))
    except OSError:
        return False


def listed(root: int, path: bytes) -> bool:
    """Whether the folders of a path list its names; waits for the file system. Raises OSError."""
    for folder, name in _doubtful(path):
        descriptor = openat2(root, folder, _FOLDER, cached=False)
        try:
            if not is_bytewise(descriptor) and os.fsdecode(name) not in os.listdir(descriptor):
                return False
        finally:
            os.close(descriptor)
    return True


def _doubtful(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The folder and the name of each that might differ."""
    names = path.split(b"/")
    for number, name in enumerate(names):
        if may_differ(name):
            yield b"/".join(names[:number]) or b".", name


def _is_bytewise(root: int, folder: bytes) -> bool:
    descriptor = openat2(root, folder, _FOLDER, cached=True)
    try:
        return is_bytewise(descriptor)
    finally:
        os.close(descriptor)
