"""The fields of a request by name, with a record of the fields that were read.

Strategy: the code that decides a response reads fields through a Mapping that records their names. Requests with the
same values of these fields, present or not, get the same response; all other fields have no influence.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeVar, overload

T = TypeVar("T")

Field = tuple[bytes, bytes]
"""A name in lower case and a value, as h11 gives them."""


def joined(fields: Iterable[Field]) -> dict[bytes, bytes]:
    """One value for each name, those of a repeated field joined with ", " (RFC 9110 section 5.3)."""
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        values[name] = b"%b, %b" % (values[name], value) if name in values else value
    return values


# A decision depends on few fields: there are not many such sets, and many requests have the same.
@functools.lru_cache(maxsize=1024)
def _sorted(names: frozenset[str]) -> tuple[bytes, ...]:
    return tuple(sorted(name.encode("ascii") for name in names))


def members(value: str) -> list[str]:
    """The members of a comma-separated list without quoted strings, but for empty ones (RFC 9110 section 5.6.1.2)."""
    return [member for text in value.split(",") if (member := text.strip(" \t"))]


class _Encoded(dict[str, bytes]):
    """Names as bytes. The code that decides asks for some twenty."""

    def __missing__(self, name: str) -> bytes:
        encoded = self[name] = name.encode("ascii")
        return encoded


_encoded: Final = _Encoded()


class TrackedFields(Mapping[str, str]):
    """Fields by lower-case name, read as Latin-1."""

    def __init__(self, values: Mapping[bytes, bytes]) -> None:
        self.sent = values
        """As joined() gives them."""
        self._names: set[str] = set()
        self._all = False

    def asked_for(self) -> tuple[bytes, ...] | None:
        """The names read so far, sorted; None if all fields were iterated."""
        return None if self._all else _sorted(frozenset(self._names))

    def __getitem__(self, name: str) -> str:
        self._names.add(name)
        return self.sent[_encoded[name]].decode("latin-1")

    # Mapping has these by way of a KeyError, and most of what is asked for is not there.
    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        self._names.add(name)
        return _encoded[name] in self.sent

    @overload
    def get(self, name: str, /) -> str | None: ...

    @overload
    def get(self, name: str, /, default: str | T) -> str | T: ...

    def get(self, name: str, /, default: str | T | None = None) -> str | T | None:
        self._names.add(name)
        value = self.sent.get(_encoded[name])
        return default if value is None else value.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        self._all = True
        return (name.decode("ascii") for name in self.sent)

    def __len__(self) -> int:
        self._all = True
        return len(self.sent)
