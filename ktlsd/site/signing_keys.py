"""Files with the keys of signed links: a line ID:SECRET for each.

Strategy: links are signed with the first key. To rotate, a new one is written above; the old one goes when its last
link has ended. The secret is the text as it stands, so that any program can sign with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

LEAST_SECRET: Final = 32
"""Characters."""

_LINE: Final = re.compile(rb"([A-Za-z0-9._-]{1,64}):([!-~]+)")


def parse_keys(data: bytes) -> Mapping[bytes, bytes]:
    """The secrets by their ids, in the order of the file. Raises ValueError with the number of a line."""
    keys: dict[bytes, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise ValueError(f"line {number}: not a line ID:SECRET of printable ASCII")
        name, secret = found.groups()
        if len(secret) < LEAST_SECRET:
            raise ValueError(f"line {number}: a secret has {LEAST_SECRET} characters at least: `openssl rand -hex 32`")
        if name in keys:
            raise ValueError(f"line {number}: the key {name.decode('ascii')} is in a line above already")
        keys[name] = secret
    if not keys:
        raise ValueError("no keys: a line is ID:SECRET")
    return keys
