"""Files of users and their password hashes, as Apache's htpasswd and `ktlsd hash-password` write them.

Strategy: a line that cannot be used refuses the file, so that no user is listed there without a way to log in. No
message has a hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ktlsd.site import password_hashes

_LONGEST_NAME: Final = 255


class Users(Struct, frozen=True):
    """The users of one version of a file."""

    hashes: Mapping[bytes, str]
    """By name."""
    remembered: dict[bytes, tuple[bytes, float]] = {}
    """Users whose password was right, by name: a keyed digest, and the time until which it holds."""


def parse_users(data: bytes) -> Users:
    """Read a file of users. Raises ValueError with the number of the line."""
    hashes: dict[bytes, str] = {}
    for number, line in enumerate(data.splitlines(), 1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        name, colon, rest = text.partition(b":")
        # Apache ignores what follows another colon.
        stored = rest.partition(b":")[0].decode("ascii", "replace")
        try:
            if not colon or not name or len(name) > _LONGEST_NAME:
                raise ValueError("not a line NAME:HASH")
            if name in hashes:
                raise ValueError("the user is in a line above already")
            password_hashes.check(stored)
        except ValueError as error:
            remedy = "`ktlsd hash-password NAME` makes a line"
            raise ValueError(f"line {number}: {error}: {remedy}") from None
        hashes[name] = stored
    return Users(hashes)
