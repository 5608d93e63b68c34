"""Files with the keys of signed links: a line ID:SECRET for each.

Strategy: links are signed with the first key. To rotate, a new one is written above; the old one goes when its last
link has ended. The secret is the text as it stands, so that any program can sign with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ktlsd.site.line_file import parse_lines

LEAST_SECRET: Final = 32
"""Characters."""

_REMEDY: Final = "a line is ID:SECRET, with a secret of `openssl rand -hex 32`"
_LINE: Final = re.compile(rb"([A-Za-z0-9._-]{1,64}):([!-~]+)")


def parse_keys(data: bytes) -> Mapping[bytes, bytes]:
    """The secrets by their ids, in the order of the file. Raises ValueError with the number of a line."""
    keys = parse_lines(data, _key, _REMEDY)
    if not keys:
        raise ValueError(f"no keys: {_REMEDY}")
    return keys


def _key(line: bytes) -> tuple[bytes, bytes]:
    """Raises ValueError."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError("not a line ID:SECRET of printable ASCII")
    name, secret = found.groups()
    if len(secret) < LEAST_SECRET:
        raise ValueError(f"a secret has {LEAST_SECRET} characters at least")
    return name, secret
