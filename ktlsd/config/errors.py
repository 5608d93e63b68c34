"""The place where a document does not fit the types of options.py, and the accepted values, in plain words: pure.

Strategy: msgspec's own message names neither the entry of a table nor what is allowed, so the first part that msgspec
refuses is searched for, from the whole inwards; the description in a type's Meta says what fits.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

import msgspec

from ktlsd.config.options import ONE_OR_MORE, AcmeOptions, LimitOptions, Settings
from ktlsd.config.values import BackendListen, Listen, LogPlace, Network

Read = Callable[[type, Any], Any]
"""Makes a value of a type that msgspec does not know; raises ValueError that says what the value is not."""
Steps = tuple[str | int, ...]

WORDS: Final[Mapping[Any, str]] = {
    Path: "a path",
    LogPlace: '"stderr", "-" (stdout) or a path',
    Listen: "ADDR:PORT",
    BackendListen: "ADDR:PORT or unix:PATH",
    Network: 'a network such as "10.0.0.0/8"',
}
"""Accepted texts, by the type that a Read makes of them."""
_TOP_LEVEL: Final = frozenset(Settings.__struct_encode_fields__)
_LIMITS: Final = frozenset(LimitOptions.__struct_encode_fields__)
_ACME: Final = {f"acme_{key}": key for key in AcmeOptions.__struct_encode_fields__}
"""Keys of [acme], by names like those of options of the command line."""


class OptionError(NamedTuple):
    """`complaint` follows on `subject`: "is not true or false" on a value, ": no such key" on a key."""

    place: Steps
    """Of what is complained about, or of the table whose key is."""
    subject: Any
    complaint: str
    of_key: bool = False


def convert(value: Any, kind: Any, read: Read) -> Any:
    """`value` as `kind`. Raises msgspec.ValidationError; option_error() then says why."""
    try:
        return msgspec.convert(value, kind, dec_hook=read)
    except UnicodeEncodeError as error:
        # Bytes of an argument or a variable that are no UTF-8.
        raise msgspec.ValidationError(str(error)) from error


def option_error(value: Any, kind: Any, read: Read, place: Steps = ()) -> OptionError:
    """The first thing in `value` for which convert() refuses it."""
    kind, words = kind_and_words(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _in_table(value, kind, read, place)
    if get_origin(kind) is dict and isinstance(value, Mapping):
        of_keys, of_values = get_args(kind)
        for name, inner in value.items():
            if not _fits(name, of_keys, read):
                return OptionError(place, name, f" is not {_words(of_keys)}", of_key=True)
            if not _fits(inner, of_values, read):
                return option_error(inner, of_values, read, (*place, name))
    if get_origin(kind) is tuple:
        of_items = get_args(kind)[0]
        if not isinstance(value, list):
            tables = isinstance(of_items, type) and issubclass(of_items, msgspec.Struct)
            return OptionError(place, value, f" is not a list{f' of tables: write [[{place[-1]}]]' if tables else ''}")
        for number, inner in enumerate(value):
            if not _fits(inner, of_items, read):
                return option_error(inner, of_items, read, (*place, number))
    if kind in WORDS:
        try:
            read(kind, value)
        except ValueError as error:
            return OptionError(place, value, f" is {error}")
    return OptionError(place, value, f" is not {words}")


def _in_table(value: Any, kind: type[msgspec.Struct], read: Read, place: Steps) -> OptionError:
    if not isinstance(value, Mapping):
        hint = (
            ': write [acme] with names = ["example.org"]; acme = true is for a [[site]]' if place == ("acme",) else ""
        )
        return OptionError(place, value, f" is not a table{hint}")
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, inner in value.items():
        if name not in fields:
            return OptionError(place, name, f": no such key{_hint(str(name), list(fields), place)}", of_key=True)
        if not _fits(inner, fields[name].type, read):
            found = option_error(inner, fields[name].type, read, (*place, name))
            if name in ONE_OR_MORE and not isinstance(inner, list):
                item = _words(get_args(kind_and_words(fields[name].type)[0])[0])
                return found._replace(complaint=f" is not {item} or a list of such")
            return found
    missing = next(name for name, field in fields.items() if field.required and name not in value)
    return OptionError(place, missing, " is missing")


def _hint(name: str, allowed: list[str], place: Steps) -> str:
    import difflib

    if place and name in _TOP_LEVEL:
        return " here; it belongs to the top level, above the first [table]"
    if name in _LIMITS:
        return " here; it belongs to [limits]"
    if name in _ACME:
        return f"; it is {_ACME[name]} in [acme]"
    if near := difflib.get_close_matches(name, allowed, 1):
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(allowed)}"


def _fits(value: Any, kind: Any, read: Read) -> bool:
    try:
        convert(value, kind, read)
    except msgspec.ValidationError:
        return False
    return True


def kind_and_words(kind: Any) -> tuple[Any, str]:
    """A type without its annotation and without None, and the values it accepts."""
    described = None
    while get_origin(kind) in (Annotated, Union, UnionType):
        if get_origin(kind) is Annotated:
            kind, meta = get_args(kind)
            described = meta.description or described
        else:
            kind = next(choice for choice in get_args(kind) if choice is not NoneType)
    if described:
        return kind, described
    if get_origin(kind) is Literal:
        return kind, f"one of {', '.join(map(str, get_args(kind)))}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind, f"one of {', '.join(str(member.value) for member in kind)}"
    words = {bool: "true or false", tuple: "a list of at least one", dict: "a table", **WORDS}
    return kind, words.get(get_origin(kind) or kind, "a text")


def _words(kind: Any) -> str:
    return kind_and_words(kind)[1]
