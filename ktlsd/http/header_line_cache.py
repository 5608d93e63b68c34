"""Lines of heads that h11 has judged one by one: a head made of them needs no second parse.

Strategy: a field line is split at its colon, h11 is asked once whether name and value are a field's, and its answer is
kept. What a line means does not depend on those around it, but for folded lines, which are no fields here. What has to
be there once (Host, the length of a body) is the caller's to see to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import h11

from ktlsd.http.request_fields import Field

MOST_LINES: Final = 1024
LONGEST_LINE: Final = 1024
"""Bytes of a line that is kept."""

_OPTIONAL_WHITESPACE: Final = b" \t"


class HeaderLineCache:
    """One process's memory."""

    def __init__(self) -> None:
        self._fields: dict[bytes, Field] = {}

    def __len__(self) -> int:
        return len(self._fields)

    def read(self, lines: Sequence[bytes]) -> list[Field] | None:
        """The field of each line, which comes without its CRLF; None where one is none, and h11 has to say why."""
        fields = []
        for line in lines:
            field = self._fields.get(line) or self._ask(line)
            if field is None:
                return None
            fields.append(field)
        return fields

    def _ask(self, line: bytes) -> Field | None:
        name, colon, value = line.partition(b":")
        if not colon:
            return None
        try:
            # The event that has nothing but fields, which h11 judges as it does those of a head.
            field: Field = h11.EndOfMessage(headers=[(name, value.strip(_OPTIONAL_WHITESPACE))]).headers[0]
        except h11.LocalProtocolError:
            return None
        if len(line) <= LONGEST_LINE:
            if len(self._fields) >= MOST_LINES:
                self._fields.clear()
            self._fields[line] = field
        return field


def without_query(line: bytes) -> bytes:
    """A request line without the query of its target and the question mark before it."""
    begin, end = line.find(b"?"), line.rfind(b" ")
    return line[:begin] + line[end:] if 0 <= begin < end else line


def takes_query(line: bytes) -> bool:
    """Whether h11 takes a request line with this query, if it does so without_query()."""
    query = line[line.find(b"?") : line.rfind(b" ")]
    try:
        h11.Request(method=b"GET", target=query, http_version=b"1.0", headers=[])
    except h11.LocalProtocolError:
        return False
    return True
