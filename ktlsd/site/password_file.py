"""Files of users and their password hashes, as Apache's htpasswd and `ktlsd hash-password` write them.

Strategy: a line that cannot be used refuses the file (line_file.py). No message has a hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ktlsd.site import password_hashes
from ktlsd.site.line_file import parse_lines

_LONGEST_NAME: Final = 255


class Users(Struct, frozen=True):
    """The users of one version of a file."""

    hashes: Mapping[bytes, str]
    """By name."""
    remembered: dict[bytes, tuple[bytes, float]] = {}
    """Users whose password was right, by name: a keyed digest, and the time until which it holds."""


def parse_users(data: bytes) -> Users:
    """Read a file of users. Raises ValueError with the number of the line."""
    return Users(parse_lines(data, _user, "`ktlsd hash-password NAME` makes a line"))


def _user(line: bytes) -> tuple[bytes, str]:
    """Raises ValueError."""
    name, colon, rest = line.partition(b":")
    if not colon or not name or len(name) > _LONGEST_NAME:
        raise ValueError("not a line NAME:HASH")
    # Apache ignores what follows another colon.
    stored = rest.partition(b":")[0].decode("ascii", "replace")
    password_hashes.check(stored)
    return name, stored
