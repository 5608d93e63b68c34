"""Heads of HTTP/1.1 requests that are nothing but their head, without h11: bytes in, RequestHead out; pure.

Strategy: regular expressions with h11's grammar, as tests hold, read the request line and each field line. The results
are kept: clients send most lines again and again, and all lines between those that differ, such as Cookie. Everything
else is h11's to judge: a body, a malformed or folded line, a missing Host, a version that is not 1.0 or 1.1.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from ktlsd.http.request_fields import Field, joined
from ktlsd.http.request_head import HeadFields, RequestHead, make_head
from ktlsd.http.uri_host import host_of

MOST_HEADS: Final = 1024
"""Heads that are kept: those that came again."""
LONGEST_HEAD: Final = 4096
"""Bytes of one that is kept."""
MOST_SEEN: Final = 8192
"""Heads of which it is known that they came once."""
MOST_SECTIONS: Final = 1024
"""Field sections, or parts of them between lines that differ, that are kept: those whose lines had all come before."""
LONGEST_SECTION: Final = 2048
"""Bytes of one that is kept."""
MOST_LINES: Final = 2048
"""Field lines that are kept."""
LONGEST_LINE: Final = 1024
"""Bytes of one that is kept."""
MOST_HOSTS: Final = 1024
"""Values of Host that are kept."""
LONGEST_HOST: Final = 256
"""Bytes of one that is kept: a host name has 253 at most (RFC 1035 section 2.3.4)."""

_TOKEN: Final = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]++"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([!-~]++) HTTP/(1\.[01])\r\n")
_FIELD_LINE: Final = re.compile(rb"(" + _TOKEN + rb"):([^\x00\n\v\f\r]*+)")
# Fields that often differ from one request to the next, as browsers and as proxies write them.
_NAMES: Final = (
    *(b"Cookie", b"Referer", b"If-None-Match", b"If-Modified-Since", b"Range", b"Authorization"),
    *(b"Traceparent", b"X-[-0-9A-Za-z]+"),
)
_DIFFERS: Final = re.compile(
    rb"\r\n(" + b"|".join([*_NAMES, *map(bytes.lower, _NAMES)]) + rb"):([^\x00\n\v\f\r]*+)(?=\r\n|\Z)"
)
# With any of these a request is more than its head, or asks for more than its response.
_MORE_THAN_A_HEAD: Final = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
_CLOSES: Final = {b"keep-alive": False, b"close": True}


class HeadScanner:
    """One process's, with the heads, field sections and lines that it knows."""

    def __init__(self) -> None:
        self._heads: dict[bytes, RequestHead] = {}
        self._seen: set[int] = set()
        """Hashes of heads."""
        self._sections: dict[bytes, HeadFields] = {}
        self._lines: dict[bytes, Field] = {}
        self._read_anew = 0
        """Lines that were not known."""

    def scan(self, head: bytes) -> RequestHead | None:
        """The request of a whole head, with the blank line at its end; None if h11 has to judge it."""
        again = self._heads.get(head)
        if again is not None:
            return again
        line = _REQUEST_LINE.match(head)
        if line is None:
            return None
        # With the line end before each field.
        fields = self._read(head[line.end() - 2 : -4])
        if fields is None:
            return None
        method, target, version = line.groups()
        if version != b"1.0" and b"host" not in fields.values:
            return None
        made = make_head(method, target, version, fields)
        if len(head) <= LONGEST_HEAD:
            self._keep(head, made)
        return made

    def _keep(self, head: bytes, made: RequestHead) -> None:
        number = hash(head)
        if number in self._seen:
            if len(self._heads) >= MOST_HEADS:
                self._heads.clear()
            self._heads[head] = made
        else:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(number)

    def _read(self, section: bytes) -> HeadFields | None:
        """The fields of a section; None if h11 has to judge them."""
        first, *others = _DIFFERS.split(section)
        read = self._sections.get(first) or self._read_lines(first)
        if read is None or not others:
            return read
        fields, values, closes = [*read.fields], {**read.values}, read.closes
        pieces = iter(others)
        for written, padded, following in zip(pieces, pieces, pieces, strict=True):
            name, value = written.lower(), padded.strip(b" \t")
            fields.append((name, value))
            values[name] = value
            if following:
                read = self._sections.get(following) or self._read_lines(following)
                if read is None:
                    return None
                fields += read.fields
                values.update(read.values)
                closes = closes or read.closes
        return HeadFields(fields, values, alone=True, closes=closes) if len(values) == len(fields) else _judged(fields)

    def _read_lines(self, section: bytes) -> HeadFields | None:
        """The same, line by line."""
        lines, known = section.split(b"\r\n")[1:], self._lines
        before = self._read_anew
        try:
            read = _judged([known.get(line) or self._read_line(line) for line in lines])
        except ValueError:
            return None
        # Lines that came before may all come again, but a new one is often as new in the next request.
        if read is not None and self._read_anew == before and len(section) <= LONGEST_SECTION:
            if len(self._sections) >= MOST_SECTIONS:
                self._sections.clear()
            self._sections[section] = read
        return read

    def _read_line(self, line: bytes) -> Field:
        """Raises ValueError for a line that is no field."""
        found = _FIELD_LINE.fullmatch(line)
        if found is None:
            raise ValueError(line)
        self._read_anew += 1
        field = found[1].lower(), found[2].strip(b" \t")
        if len(line) <= LONGEST_LINE:
            if len(self._lines) >= MOST_LINES:
                self._lines.clear()
            self._lines[line] = field
        return field


def _judged(fields: list[Field]) -> HeadFields | None:
    """Fields of a request that is nothing but its head; None if h11 has to judge them."""
    values = dict(fields)
    if len(values) != len(fields):
        if sum(name == b"host" for name, _ in fields) > 1:
            return None
        values = joined(fields)
    # It may be empty (RFC 9112 section 3.2).
    if not _is_host(values.get(b"host", b"")) or not _MORE_THAN_A_HEAD.isdisjoint(values):
        return None
    closes = _CLOSES.get(values.get(b"connection", b"keep-alive").lower())
    return None if closes is None else HeadFields(fields, values, alone=True, closes=closes)


def _is_host(text: bytes) -> bool:
    return _is_short_host(text) if len(text) <= LONGEST_HOST else host_of(text.decode("latin-1")) is not None


@lru_cache(maxsize=MOST_HOSTS)
def _is_short_host(text: bytes) -> bool:
    return host_of(text.decode("latin-1")) is not None
