"""The priority field: what a reader by characters makes of it, step by step as RFC 9651 section 4.2 has it.

Strategy: that reader keeps members as types and values, so that a parameter of another type is told apart.
"""

from __future__ import annotations

import string
from typing import Final

from ktlsd.http2.priority import Priority, parse_priority

TOKENS: Final = (
    *(b"u=", b"i", b"i=?0", b"i=?1", b", ", b";", b"=", b'"', b"\\", b"(", b")", b"?1", b":YQ==:", b"@17", b"1.5"),
    *(b'%"%c3"', b"*a/b", b"\t", b" ", b"-1"),
)
_LONGEST: Final = 256
_KEY_START: Final = string.ascii_lowercase + "*"
_KEY: Final = _KEY_START + string.digits + "_-."
_TOKEN_START: Final = string.ascii_letters + "*"
_TOKEN: Final = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~:/"
_STRING: Final = {chr(code) for code in range(0x20, 0x7F)} - {'"', "\\"}
_BASE64: Final = string.ascii_letters + string.digits + "+/="


class _Wrong(Exception):
    """No dictionary."""


class _Reader:
    """Characters, and the place among them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def next(self) -> str:
        """The character here; empty at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, wanted: str) -> None:
        if not self.text.startswith(wanted, self.at):
            raise _Wrong
        self.at += len(wanted)

    def skip(self, characters: str) -> None:
        while self.next() and self.next() in characters:
            self.at += 1

    def run(self, first: str, others: str) -> str:
        start = self.at
        if not self.next() or self.next() not in first:
            raise _Wrong
        self.skip(others)
        return self.text[start : self.at]

    def dictionary(self) -> dict[str, object]:
        members: dict[str, object] = {}
        self.skip(" ")
        while self.next():
            key = self.run(_KEY_START, _KEY)
            members.pop(key, None)
            if self.next() == "=":
                self.at += 1
                members[key] = self.inner_list() if self.next() == "(" else self.item()
            else:
                members[key] = True
            self.parameters()
            before = self.at
            self.skip(" \t")
            if not self.next():
                # Only spaces may be at the end.
                if "\t" in self.text[before:]:
                    raise _Wrong
                return members
            self.take(",")
            self.skip(" \t")
            if not self.next():
                raise _Wrong
        return members

    def parameters(self) -> None:
        while self.next() == ";":
            self.at += 1
            self.skip(" ")
            self.run(_KEY_START, _KEY)
            if self.next() == "=":
                self.at += 1
                self.item()

    def inner_list(self) -> object:
        self.take("(")
        while True:
            self.skip(" ")
            if self.next() == ")":
                self.at += 1
                return None
            self.item()
            self.parameters()
            if not self.next() or self.next() not in " )":
                raise _Wrong

    def item(self) -> object:
        first = self.next()
        if first and (first in string.digits or first == "-"):
            return self.number()
        if first == '"':
            return self.string()
        if first == "%":
            self.at += 1
            return self.string()
        if first == ":":
            self.at += 1
            self.skip(_BASE64)
            self.take(":")
            return None
        if first == "?":
            self.at += 1
            return self.bit()
        if first == "@":
            self.at += 1
            if isinstance(self.number(), float):
                raise _Wrong
            return None
        return self.run(_TOKEN_START, _TOKEN), None

    def bit(self) -> bool:
        bit = self.next()
        if bit not in ("0", "1"):
            raise _Wrong
        self.at += 1
        return bit == "1"

    def number(self) -> int | float:
        sign = 1
        if self.next() == "-":
            self.at += 1
            sign = -1
        digits = self.run(string.digits, string.digits)
        if self.next() == ".":
            self.at += 1
            fraction = self.run(string.digits, string.digits)
            if len(digits) > 12 or len(fraction) > 3:
                raise _Wrong
            return float(f"{digits}.{fraction}")
        if len(digits) > 15:
            raise _Wrong
        return sign * int(digits)

    def string(self) -> object:
        self.take('"')
        while self.next() != '"':
            if self.next() == "\\":
                self.at += 1
                if self.next() not in ('"', "\\"):
                    raise _Wrong
            elif self.next() not in _STRING:
                raise _Wrong
            self.at += 1
        self.at += 1
        return None


def check(data: bytes) -> None:
    # What is remembered is not looked at.
    found = parse_priority.__wrapped__(data)
    if len(data) > _LONGEST:
        assert found is None
        return
    try:
        members = _Reader(data.decode("latin-1")).dictionary()
    except _Wrong:
        assert found is None
        return
    urgency, incremental = members.get("u", 3), members.get("i", False)
    if type(urgency) is not int or not 0 <= urgency <= 7:
        urgency = 3
    assert found == Priority(urgency, incremental is True)
