"""Opening files below a folder, in a thread: with the retries that the kernel asks for, and through absolute links that
stay inside.

Strategy: openat2(RESOLVE_BENEATH) is the only way in. It refuses every absolute link, so the path of one is resolved
here, and if it stays below the folder, the kernel walks what that gives, under the same rule.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Final

from ktlsd.system_calls import openat2

# EAGAIN: a rename elsewhere might have moved the walk outside (openat2(2)), or a lease is being broken (fcntl(2)).
_TRIES: Final = 16
_RETRY_SECONDS: Final = 0.01


def open_beneath(folder: int, path: bytes, flags: int, *, links: bool = True) -> int:
    """A new descriptor of the file that `path` leads to below the descriptor `folder`.

    Waits for the disk. Raises OSError: EXDEV for a link that leads outside, EAGAIN for a lease that is not given up;
    without `links`, ELOOP for any link.
    """
    try:
        return _open(folder, path, flags, links=links)
    except OSError as error:
        if not links or error.errno != errno.EXDEV or (resolved := _resolved(folder, path)) is None:
            raise
    return _open(folder, resolved, flags)


def _open(folder: int, path: bytes, flags: int, *, links: bool = True) -> int:
    for _ in range(_TRIES):
        try:
            return openat2(folder, path, flags, cached=False, links=links)
        except BlockingIOError:
            time.sleep(_RETRY_SECONDS)
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def paths_below(folder: int, path: bytes, opened: int) -> tuple[bytes, ...]:
    """The paths below a folder of what was opened there by `path` ("." for the folder itself): that name, and the place
    where links led to, if that is below the folder (proc_pid_fd(5)). Raises OSError."""
    below = _real_path(folder).rstrip(b"/") + b"/"
    real = _real_path(opened)
    if real + b"/" == below:
        return (path, b".")
    return (path, real.removeprefix(below)) if real.startswith(below) else (path,)


def _real_path(descriptor: int) -> bytes:
    """The path of a file, links resolved; one removed meanwhile has " (deleted)" at its end."""
    return os.readlink(b"/proc/self/fd/%d" % descriptor).removesuffix(b" (deleted)")


def _resolved(folder: int, path: bytes) -> bytes | None:
    """The path without links, relative to the folder; None where it leads outside."""
    with contextlib.suppress(OSError):
        # The current path of the folder, independent of the path used to open it.
        top = os.readlink(b"/proc/self/fd/%d" % folder)
        real = os.path.realpath(os.path.join(top, path))
        if os.path.commonpath((top, real)) == top:
            return os.path.relpath(real, top)
    return None
