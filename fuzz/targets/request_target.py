"""Request targets: what comes out stays below the root, and the location of it leads to the same file.

Strategy: the segments are decoded and walked once more, one byte and one step at a time.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Final
from urllib.parse import unquote_to_bytes

from ktlsd.http.request_target import BadTarget, Target, parse_target, target_of_path

TOKENS: Final = (
    b"/",
    b"//",
    b"..",
    b"%2e",
    b"%2F",
    b"%00",
    b"%",
    b"?",
    b"#",
    b"http://",
    b"https://",
    b"[::1]",
    b"[v1.a]",
    b"1:2:3",
    b":80",
)

_ROOT: Final = b"/srv/www"
_REFERENCE: Final = re.compile(r"/(?![/\\])[!-~]*|/")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


def check(data: bytes) -> None:
    try:
        target: Target | None = parse_target(data)
    except BadTarget:
        target = None
    expected = _expected(data)
    assert (target and (target.names, target.directory)) == expected
    if target is None:
        return
    for name in target.names:
        assert name not in (b"", b".", b"..")
        assert b"/" not in name
        assert b"\0" not in name
    path = os.path.normpath(_ROOT + b"/" + target.file_path())
    assert path == _ROOT or path.startswith(_ROOT + b"/")
    assert target.host is None or re.fullmatch(r"[!-~]+", target.host)
    for location, directory in ((target.location(), target.directory), (target.directory_location(), True)):
        assert _REFERENCE.fullmatch(location)
        again = parse_target(location.encode("ascii"))
        assert again.names == target.names
        assert again.directory == directory or not target.names
        assert unquote_to_bytes(again.query) == unquote_to_bytes(target.query)
    by_path = target_of_path(target.path())
    assert by_path is not None
    assert by_path.names == target.names


def _expected(data: bytes) -> tuple[tuple[bytes, ...], bool] | None:
    """The names and whether they are a directory's; None for what names nothing."""
    if b"#" in data:
        return None
    path = data.split(b"?", 1)[0]
    if not data.startswith(b"/"):
        scheme, separator, rest = data.partition(b"://")
        if scheme.lower() not in (b"http", b"https") or not separator:
            return None
        authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
        if not _is_authority(authority.lower()):
            return None
        path = rest[len(authority) :].split(b"?", 1)[0] or b"/"
    names: list[bytes] = []
    segment = b""
    for raw in path[1:].split(b"/"):
        decoded = _decoded(raw)
        if decoded is None:
            return None
        segment = decoded
        if segment == b"..":
            if not names:
                return None
            del names[-1]
        elif segment not in (b".", b""):
            names.append(segment)
    return tuple(names), segment in (b"", b".", b"..")


def _is_authority(text: bytes) -> bool:
    named = b"0123456789abcdefghijklmnopqrstuvwxyz._~!$&'()*+,;=-"
    if text.startswith(b"["):
        host, bracket, port = text[1:].partition(b"]")
        if not bracket or port[:1] not in (b"", b":"):
            return False
        port = port[1:]
        if host.startswith(b"v"):
            version, _, rest = host[1:].partition(b".")
            valid = (
                bool(version) and _HEX.issuperset(version) and bool(rest) and all(byte in named + b":" for byte in rest)
            )
        else:
            valid = _is_ipv6(host)
    else:
        host, _, port = text.partition(b":")
        first, *escaped = host.split(b"%")
        escapes = all(len(part) >= 2 and _HEX.issuperset(part[:2]) for part in escaped)
        valid = bool(host) and escapes and all(byte in named for byte in first + b"".join(escaped))
    return valid and all(48 <= byte <= 57 for byte in port)


def _is_ipv6(text: bytes) -> bool:
    """By inet_pton(3)."""
    try:
        socket.inet_pton(socket.AF_INET6, text.decode("ascii"))
    except (OSError, ValueError):
        return False
    return True


def _decoded(raw: bytes) -> bytes | None:
    decoded = bytearray()
    position = 0
    while position < len(raw):
        byte = raw[position]
        position += 1
        if byte == ord("%"):
            digits = raw[position : position + 2]
            if len(digits) < 2 or not _HEX.issuperset(digits):
                return None
            byte = int(digits, 16)
            position += 2
            if byte in b"/\0":
                return None
        elif byte == 0:
            return None
        decoded.append(byte)
    return bytes(decoded)
