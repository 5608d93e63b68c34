"""The reason why a command or a start is refused, as one line for the operator."""

from __future__ import annotations

import errno
import os


class Refusal(Exception):
    """The text is one line for the operator: fault, place and remedy."""


def cause(error: Exception) -> str:
    """The text of an error, of an OSError without Python's number and quotes: "FILE: the reason"."""
    if not isinstance(error, OSError) or not error.strerror:
        # Python's MemoryError says nothing.
        return str(error) or os.strerror(errno.ENOMEM)
    if error.filename is None:
        return error.strerror
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{name}: {error.strerror}"


class SettingsError(Refusal):
    """A setting that cannot be used; the text is one line for the operator."""


class PlacedError(SettingsError):
    """The same, with the place of the key, for a caller that knows where it is written (Loaded.placed)."""

    def __init__(self, place: tuple[str | int, ...], key: str, complaint: str) -> None:
        """`place` is that of the table which has the key: () for the top level or the site."""
        super().__init__(complaint)
        self.place = place
        self.key = key

    def within(self, place: tuple[str | int, ...]) -> PlacedError:
        """The same error in a table at this place."""
        return PlacedError((*place, *self.place), self.key, str(self))


def install(packages: str, extra: str) -> str:
    """The remedy for missing packages of an extra."""
    return f"pip install {packages}, or pip install '.[{extra}]' in a checkout of ktlsd"
