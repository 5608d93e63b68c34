"""The static table of HPACK, and dynamic tables that never change (RFC 7541 sections 2.3 and 4): pure.

Strategy: a header block makes a new table of the old one. So a table can be shared by connections, and what a block
means is a function of table and block: each table carries what blocks with it as their start were found to mean
(head_cache.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktlsd.http.request_fields import Field

if TYPE_CHECKING:
    from ktlsd.http2.head_cache import Decoded
    from ktlsd.http2.request_fields import SharedHead

DEFAULT_CAPACITY: Final = 4096
"""Bytes: SETTINGS_HEADER_TABLE_SIZE of a peer that announces none."""
ENTRY_OVERHEAD: Final = 32
"""Bytes that an entry counts for beside its name and value."""

# Names and values of RFC 7541 appendix A; index 1 is the first.
_STATIC: Final = """\
:authority
:method: GET
:method: POST
:path: /
:path: /index.html
:scheme: http
:scheme: https
:status: 200
:status: 204
:status: 206
:status: 304
:status: 400
:status: 404
:status: 500
accept-charset
accept-encoding: gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate
"""


def _fields(lines: str) -> tuple[Field, ...]:
    # A pseudo-header field's name begins with a colon.
    split = ((line[0] + name, value) for line in lines.splitlines() for name, _, value in [line[1:].partition(": ")])
    return tuple((name.encode("ascii"), value.encode("ascii")) for name, value in split)


STATIC: Final = _fields(_STATIC)
FIRST_DYNAMIC: Final = len(STATIC) + 1
"""The index of the newest entry of a dynamic table."""


class HeaderTable:
    """A dynamic table at one moment."""

    __slots__ = ("capacity", "entries", "known", "known_rests", "known_weight", "size")

    def __init__(self, entries: tuple[Field, ...] = (), size: int = 0, capacity: int = DEFAULT_CAPACITY) -> None:
        self.entries = entries
        """The newest first."""
        self.size = size
        """Bytes of all entries, each with its overhead."""
        self.capacity = capacity
        """Bytes that `size` can grow to, as the encoder chose."""
        self.known: dict[bytes, Decoded] = {}
        """HeadCache's: the meaning of blocks."""
        self.known_rests: dict[bytes, tuple[SharedHead, HeaderTable, int]] = {}
        """HeadCache's: the meaning of blocks but for their :path, and the bytes of their lists without its value."""
        self.known_weight = 0
        """HeadCache's: bytes that these take."""


def evicted(entries: tuple[Field, ...], size: int, capacity: int) -> tuple[tuple[Field, ...], int]:
    """The newest entries that fit in `capacity` bytes, and their size (RFC 7541 section 4.4)."""
    count = len(entries)
    while size > capacity:
        count -= 1
        name, value = entries[count]
        size -= len(name) + len(value) + ENTRY_OVERHEAD
    return entries[:count], size
