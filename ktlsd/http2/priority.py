"""Extensible priorities: the `priority` field and PRIORITY_UPDATE (RFC 9218): pure.

Strategy: a regular expression has the grammar of a structured field's dictionary (RFC 9651 section 3.2), so that a
value that is none counts for nothing, and members are then picked out of one that is.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from msgspec import Struct

MOST_URGENT: Final = 0
LEAST_URGENT: Final = 7
_LONGEST: Final = 256
"""Bytes of a value that is looked at."""


class Priority(Struct, frozen=True, gc=False):
    """The order among the responses of one connection."""

    urgency: int = 3
    """0 is sent first, 7 last."""
    incremental: bool = False
    """Whether a part of the response is of use, so that it takes turns with others of its urgency."""


DEFAULT: Final = Priority()
"""Of a value without parameters (RFC 9218 section 4)."""
NO_SIGNAL: Final = Priority(incremental=True)
"""Of a request without any. Most clients that send none, such as curl, run independent transfers: they take turns."""

_KEY: Final = r"[a-z*][a-z0-9_\-.*]*+"
_ITEM: Final = r"""(?:
      -?[0-9]{1,12}\.[0-9]{1,3} | -?[0-9]{1,15}      # decimal, integer
    | @-?[0-9]{1,15}                                 # date
    | %?"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+" # string, display string
    | [A-Za-z*][!\#$%&'*+\-.^_`|~0-9A-Za-z:/]*+      # token
    | :[A-Za-z0-9+/=]*+:                             # byte sequence
    | \?[01]                                         # boolean
)"""
_PARAMETERS: Final = rf"(?:;\x20*+{_KEY}(?:={_ITEM})?)*+"
_INNER_LIST: Final = rf"\(\x20*+(?:{_ITEM}{_PARAMETERS}(?:\x20++{_ITEM}{_PARAMETERS}|\x20++(?=\)))*+)?\)"
_MEMBER_VALUE: Final = rf"(?:={_ITEM}|={_INNER_LIST})?{_PARAMETERS}"
_MEMBER: Final = re.compile(rf"({_KEY})({_MEMBER_VALUE})", re.VERBOSE)
_DICTIONARY: Final = re.compile(
    rf"\x20*+(?:{_KEY}{_MEMBER_VALUE}(?:[ \t]*+,[ \t]*+{_KEY}{_MEMBER_VALUE})*+)?\x20*+", re.VERBOSE
)
_SEPARATOR: Final = re.compile(r"[ \t]*,[ \t]*")
# Also "-0", which is an integer.
_URGENCY: Final = re.compile(r"=(?:-0*(?=0)|0*)([0-7])(?:;.*)?", re.DOTALL)
_YES: Final = re.compile(r"(?:=\?1)?(?:;.*)?", re.DOTALL)


@functools.lru_cache(maxsize=256)
def parse_priority(value: bytes) -> Priority | None:
    """The priority that a field's value stands for; None if it is no dictionary.

    Parameters that are unknown, out of range or of another type count as absent (RFC 9218 section 4).
    """
    text = value.decode("latin-1")
    if len(text) > _LONGEST or not _DICTIONARY.fullmatch(text):
        return None
    urgency, incremental = DEFAULT.urgency, DEFAULT.incremental
    position = len(text) - len(text.lstrip(" "))
    while member := _MEMBER.match(text, position):
        # The last of equal keys counts (RFC 9651 section 4.2.2).
        key, rest = member.groups()
        if key == "u":
            number = _URGENCY.fullmatch(rest)
            urgency = int(number[1]) if number else DEFAULT.urgency
        elif key == "i":
            incremental = bool(_YES.fullmatch(rest))
        separator = _SEPARATOR.match(text, member.end())
        if separator is None:
            break
        position = separator.end()
    return Priority(urgency, incremental)
