"""From the bytes of a request-target to the names of a file below the root: pure, no file system.

Strategy: cut the query off, percent-decode once, refuse what could mean two things (NUL, an encoded slash, a bad
escape), then drop empty segments, as nginx's merge_slashes does, and resolve "." and ".." by RFC 3986 section 5.2.4,
but refuse what would climb above the root.
"""

from __future__ import annotations

import re
import string
from typing import Final
from urllib.parse import quote

from msgspec import Struct

from ktlsd.config.file_names import fsdecode, fsencode
from ktlsd.http.uri_host import host_of

# A host is required, as a Host field would name it, and user information is an error (RFC 9110 sections 4.2.1, 4.2.4).
_ABSOLUTE_FORM: Final = re.compile(rb"https?://([^/?]*)", re.IGNORECASE)
_SAFE: Final = "!$&'()*+,;=:@~"
_ESCAPE: Final = re.compile(rb"%(..)?", re.DOTALL)
# Anything to decode, to resolve, or to refuse.
_NOT_PLAIN: Final = re.compile(rb"[%\0]|//|/\.")
# A path with nothing to decode or to resolve, and no name that begins with a dot; and a query.
_PLAIN_BELOW: Final = re.compile(rb"/([^./%?#\0][^/%?#\0]*+)(?:/(?!\.)[^/%?#\0]*+)*+(?:\?[^#]*+)?")
# Of one or more names, none of which is empty or begins with a dot, or is one that a file system might take for another
# (exact_names.py); and a query.
_PLAIN_NAME: Final = rb"[^./%?#~ \0\x80-\xff][^/%?#~ \0\x80-\xff]*+(?<!\.)"
_PLAIN_FILE: Final = re.compile(rb"/(%b(?:/%b)*+)(?:\?[^#]*+)?" % (_PLAIN_NAME, _PLAIN_NAME))
_HEX_PAIR: Final = re.compile(rb"[0-9A-Fa-f]{2}")


class BadTarget(Exception):
    """The target names nothing that could be served; the text is the reason for the log."""


class Target(Struct, frozen=True):
    """A request-target as names below the root."""

    names: tuple[bytes, ...]
    directory: bool
    """Whether it asks for a directory: it ends in a slash, or in a "." or ".." segment."""
    query: bytes = b""
    """With its question mark, as it came."""
    host: str | None = None
    """The host of an absolute-form target, which stands before the Host field (RFC 9112 section 3.2.2)."""

    def hidden(self) -> bool:
        """Whether a name begins with a dot. The well-known folder of RFC 8615 at the top is not hidden."""
        names = self.names[1:] if self.names[:1] == (b".well-known",) else self.names
        return b"/." in b"/" + b"/".join(names)

    def file_path(self) -> bytes:
        """The path below the root, for openat2(2)."""
        return b"/".join(self.names) or b"."

    def path(self) -> str:
        """The decoded path, for rules to match: one slash before each name, and one at the end of a directory's."""
        text = "/" + fsdecode(b"/".join(self.names))
        return text + "/" if self.directory and self.names else text

    def directory_location(self) -> str:
        """This target as a directory: an absolute-path reference for Location, always beginning with one slash."""
        path = "/" + "".join(quote(name, safe=_SAFE) + "/" for name in self.names)
        return path + quote(self.query, safe=string.punctuation)

    def location(self) -> str:
        """This target without what has no effect in it, such as empty segments: an absolute-path reference."""
        location = self.directory_location()
        if self.directory or not self.names:
            return location
        path, slash, query = location.partition("/?") if self.query else (location[:-1], "", "")
        return path + slash[1:] + query


def parse_target(target: bytes) -> Target:
    """Read an origin-form or absolute-form request-target (RFC 9112 section 3.2). Raises BadTarget."""
    if b"#" in target:
        raise BadTarget("a fragment in the target")
    authority = None if target.startswith(b"/") else _ABSOLUTE_FORM.match(target)
    host = host_of(authority[1].decode("latin-1")) if authority else None
    if authority and not host:
        raise BadTarget("an http URL that names no host")
    path, question_mark, query = target[authority.end() if authority else 0 :].partition(b"?")
    if authority and not path:
        path = b"/"
    if not path.startswith(b"/"):
        raise BadTarget("the target is neither a path nor an http URL")
    if not _NOT_PLAIN.search(path):
        # Nothing to decode or to resolve.
        directory = path.endswith(b"/")
        plain = path[1:-1] if directory else path[1:]
        return Target(tuple(plain.split(b"/")) if plain else (), directory, question_mark + query, host)
    names: list[bytes] = []
    segments = path[1:].split(b"/")
    for segment in segments:
        name = _decode(segment)
        if name == b"..":
            if not names:
                raise BadTarget("the path climbs above the root")
            names.pop()
        elif name not in (b"", b"."):
            names.append(name)
    return Target(tuple(names), _decode(segments[-1]) in (b"", b".", b".."), question_mark + query, host)


def top_name(target: bytes) -> bytes | None:
    """The first name of a request-target, if a look suffices to tell it and that no name is hidden()."""
    found = _PLAIN_BELOW.fullmatch(target)
    return found[1] if found is not None else None


def plain_path(target: bytes) -> bytes | None:
    """The path below the root of a request-target that names a file, if a look suffices to tell it, and that no name is
    hidden(), or one that a file system might take for another."""
    found = _PLAIN_FILE.fullmatch(target)
    return found[1] if found is not None else None


def target_of_path(path: str) -> Target | None:
    """The target of a decoded path, such as a rule gives; None when it climbs above the root."""
    names: list[bytes] = []
    segments = fsencode(path).split(b"/")
    for name in segments:
        if name == b"..":
            if not names:
                return None
            names.pop()
        elif name not in (b"", b"."):
            names.append(name)
    return Target(tuple(names), segments[-1] in (b"", b".", b".."))


def _decode(segment: bytes) -> bytes:
    def octet(escape: re.Match[bytes]) -> bytes:
        digits = escape[1]
        if digits is None or not _HEX_PAIR.fullmatch(digits):
            raise BadTarget("a percent sign without two hexadecimal digits")
        return bytes.fromhex(digits.decode())

    name = _ESCAPE.sub(octet, segment)
    if b"/" in name:
        raise BadTarget("an encoded slash")
    if b"\0" in name:
        raise BadTarget("an encoded NUL")
    return name
