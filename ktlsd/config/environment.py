"""Options from environment variables: KTLSD_WORKERS for `workers`, KTLSD_LIMITS_IDLE_SECONDS for `idle_seconds` of
[limits].

Strategy: the names follow from the types of options.py. A value is tried as a text, a number and a truth value until it
fits; lists are separated by commas. Variables that no option has are refused with the nearest name.
"""

from __future__ import annotations

import contextlib
import re
import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Struct

from ktlsd.config import errors
from ktlsd.config.errors import Read, Steps
from ktlsd.config.options import Settings
from ktlsd.config.printable import printable
from ktlsd.config.refusal import SettingsError

PREFIX: Final = "KTLSD_"
CONFIG: Final = "KTLSD_CONFIG"
"""The variable that names the file."""

_NOT_OURS: Final = re.compile(
    # Kubernetes and Docker set these for a service that is called ktlsd.
    r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
    # A process that takes over from another one (process/upgrade.py).
    r"|INHERITED"
    # The project's tests and their machines.
    r"|(TEST|VM)(_\w+)?|EVERY_MACHINE"
)
_BOOLEANS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class _Option(NamedTuple):
    steps: Steps
    """Its key, below its table's."""
    kind: Any
    """Its type."""


@cache
def _options() -> dict[str, _Option]:
    """By name of the variable."""
    top = [key for key in msgspec.structs.fields(Settings) if not _is_table(key.type)]
    found = {_name(key.encode_name): _Option((key.encode_name,), key.type) for key in top}
    for name, table in _tables().items():
        for key in msgspec.structs.fields(table):
            joined = f"{name}_{key.encode_name}"
            # acme_challenges is a key of the top level, `challenges` one of [acme].
            variable = _name(f"{name}__{key.encode_name}" if _name(joined) in found else joined)
            if not _is_table(key.type):
                found[variable] = _Option((name, key.encode_name), key.type)
    return found


@cache
def _tables() -> dict[str, type[Struct]]:
    """The tables with keys of their own, by name."""
    found = ((key.encode_name, _table(key.type)) for key in msgspec.structs.fields(Settings))
    return {name: table for name, table in found if table is not None}


def names() -> list[str]:
    """All variables that have an option."""
    return sorted([CONFIG, *_options()])


def name_of(steps: Steps) -> str:
    """The variable of an option."""
    return next(name for name, option in _options().items() if option.steps == steps)


def read_environment(environment: Mapping[str, str], read: Read) -> dict[Steps, Any]:
    """The values of the options that are given, by key; an empty variable gives none. Raises SettingsError."""
    found: dict[Steps, Any] = {}
    for name in sorted(environment):
        text = environment[name]
        if not name.startswith(PREFIX) or name == CONFIG or _NOT_OURS.fullmatch(name.removeprefix(PREFIX)):
            continue
        option = _options().get(name)
        if option is None:
            raise SettingsError(f"{printable(name)}: {_hint(name)}")
        if text:
            found[option.steps] = _read(name, text, option, read)
    return found


def with_environment(settings: Settings, given: Mapping[Steps, Any]) -> Settings:
    """Settings with these values, of which those of tables change only these keys. Raises SettingsError."""
    tables: dict[str, dict[str, Any]] = {}
    changed: dict[str, Any] = {}
    for steps, value in given.items():
        if len(steps) == 1:
            changed[str(steps[0])] = value
        else:
            tables.setdefault(str(steps[0]), {})[str(steps[1])] = value
    for name, values in tables.items():
        known = getattr(settings, name)
        if known is None:
            kind = _tables()[name]
            for key in msgspec.structs.fields(kind):
                if key.required and key.name not in values:
                    first, needed = name_of((name, next(iter(values)))), name_of((name, key.name))
                    raise SettingsError(f"{first}: [{name}] needs {key.name}, too: set {needed}")
            known = kind(**values)
        changed[name] = msgspec.structs.replace(known, **values)
    return msgspec.structs.replace(settings, **changed)


def _read(name: str, text: str, option: _Option, read: Read) -> Any:
    kind, _ = errors.kind_and_words(option.kind)
    candidates: Iterator[Any]
    if get_origin(kind) is tuple:
        candidates = iter((_parts(text),))
    elif get_origin(kind) is dict:
        candidates = iter((_pairs(name, text),))
    else:
        candidates = _scalars(text)
    for candidate in candidates:
        with contextlib.suppress(msgspec.ValidationError):
            return errors.convert(candidate, option.kind, read)
        last = candidate
    problem = errors.option_error(last, option.kind, read, option.steps)
    raise SettingsError(f"{name}: {reprlib.repr(problem.subject)}{problem.complaint}")


def _scalars(text: str) -> Iterator[Any]:
    if text.lower() in _BOOLEANS:
        yield _BOOLEANS[text.lower()]
    if _NUMBER.fullmatch(text):
        yield float(text) if "." in text else int(text)
    yield text


def _parts(text: str) -> list[str]:
    """The parts of a list: lines if there are several, so that a part may have a comma."""
    parts = (part.strip() for part in text.split("\n" if "\n" in text else ","))
    return [part for part in parts if part]


def _pairs(name: str, text: str) -> dict[str, str]:
    """The parts of a table: KEY=VALUE each."""
    found: dict[str, str] = {}
    for part in _parts(text):
        key, equals, value = part.partition("=")
        if not equals:
            raise SettingsError(f"{name}: {part!r} is not KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def _hint(name: str) -> str:
    key = name.removeprefix(PREFIX).lower()
    for field in msgspec.structs.fields(Settings):
        table = field.encode_name
        if _is_list_of_tables(field.type) and (key == table or key.startswith(f"{table}_")):
            return f"[[{table}]] can only be given in a file: name one by {CONFIG}"
        if key == table:
            first = next(name for name, option in _options().items() if option.steps[:-1] == (table,))
            return f"[{table}] is a table: give its keys, such as {first}"
    import difflib

    # What all have in common must not make them similar.
    if near := difflib.get_close_matches(key.upper(), [known.removeprefix(PREFIX) for known in names()], 1):
        return f"no such option; did you mean {PREFIX}{near[0]}?"
    return f"no such option: a variable is {PREFIX} and a key of the configuration file in capitals"


def _name(key: str) -> str:
    return PREFIX + key.upper()


def _table(kind: Any) -> type[Struct] | None:
    """The type of a table with keys of its own."""
    inner, _ = errors.kind_and_words(kind)
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None


def _is_table(kind: Any) -> bool:
    """Whether it is a table with keys of its own, or a list of such."""
    return _table(kind) is not None or _is_list_of_tables(kind)


def _is_list_of_tables(kind: Any) -> bool:
    inner, _ = errors.kind_and_words(kind)
    return get_origin(inner) is tuple and _table(get_args(inner)[0]) is not None
