"""The man pages ktlsd(1) and ktlsd.toml(5), in man(7): pure.

Strategy: what was written by hand stands in *.in beside this module; a line `@NAME@` there is replaced by what is made
from the parsers of the command line, or from the schema of the configuration file, whose words are the docstrings of
ktlsd/config/options.py.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).resolve().parent
_LINE: Final = re.compile(r"^@(\w*)@$", re.MULTILINE)
_CODE: Final = re.compile(r"`([^`]+)`")
_CHARACTERS: Final = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
)
_TABLE: Final = "object"


def command_page(parsers: Mapping[str, argparse.ArgumentParser], version: str) -> str:
    """ktlsd.1, from the parsers of all commands by their names; that of the empty name is `serve` in the template."""
    parts = {
        (name or "serve").upper().replace("-", "_"): "\n".join(_options(parser)) for name, parser in parsers.items()
    }
    return _filled("ktlsd.1.in", parts | {"TITLE": _title("ktlsd", 1, version)})


def configuration_page(schema: Mapping[str, Any], version: str) -> str:
    """ktlsd.toml.5, from the JSON Schema of a whole file."""
    tables = {name: table for name, table in schema["definitions"].items() if table.get("type") == _TABLE}
    named = tables.pop("NamedSiteOptions")
    top, site = schema["properties"], named["properties"]
    # `acme` is a table at the top level, and a switch in a site.
    inherited = {name for name in top.keys() & site.keys() if _kind(top[name], schema) == _kind(site[name], schema)}
    groups = {
        "SERVER": {name: key for name, key in top.items() if name not in inherited},
        "SITE": {name: key for name, key in top.items() if name in inherited},
        "NAMED": {name: key for name, key in site.items() if name not in inherited},
    }
    parts = {name: "\n".join(_keys(keys, schema, named["required"])) for name, keys in groups.items()}
    parts["TABLES"] = "\n".join(line for table in tables.values() for line in _section(table, schema))
    return _filled("ktlsd.toml.5.in", parts | {"TITLE": _title("ktlsd.toml", 5, version)})


def _filled(template: str, parts: Mapping[str, str]) -> str:
    text = (_HERE / template).read_text(encoding="utf-8")
    used = set(_LINE.findall(text))
    if used != parts.keys():
        raise ValueError(f"{template} lacks, or has in vain: {', '.join(sorted(used ^ parts.keys()))}")
    return _LINE.sub(lambda found: parts[found[1]], text)


def _title(name: str, section: int, version: str) -> str:
    return f'.TH {name.upper()} {section} "" "ktlsd {version}"'


def _escaped(text: str) -> str:
    escaped = text.translate(_CHARACTERS)
    # A control line is none behind a character of no width.
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


def _prose(text: str) -> str:
    """Text whose `code` is bold."""
    parts = _CODE.split(text)
    return "".join(_escaped(part) if number % 2 == 0 else _bold(part) for number, part in enumerate(parts))


def _bold(text: str) -> str:
    return rf"\fB{_escaped(text)}\fR"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        names = ", ".join(map(_bold, action.option_strings))
        value = "" if action.nargs == 0 else rf"\fI{_escaped(str(action.metavar or action.dest))}\fR"
        yield ".TP"
        yield f"{names} {value}".strip()
        yield _prose(_sentence(action.help or ""))


def _section(table: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    label = re.search(r"\[+[\w.]+\]+", table["description"])
    yield f".SS Table {_escaped(label[0] if label else table['title'])}"
    yield _prose(table["description"])
    yield from _keys(table["properties"], schema, table.get("required", ()))


def _keys(keys: Mapping[str, Any], schema: Mapping[str, Any], required: Collection[str]) -> Iterator[str]:
    for name, key in keys.items():
        notes = [_kind(key, schema)]
        if name in required:
            notes.append("required")
        if key.get("default") not in (None, [], (), {}):
            notes.append(f"default {json.dumps(key['default'], ensure_ascii=False)}")
        yield ".TP"
        yield f"{_bold(name)} ({_escaped('; '.join(notes))})"
        yield _prose(_sentence(key["description"]))


def _kind(key: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What values a key takes, in a word or two."""
    key = _resolved(key, schema)
    if "anyOf" in key:
        return " or ".join(_kind(choice, schema) for choice in key["anyOf"])
    if "enum" in key:
        return ", ".join(map(json.dumps, sorted(key["enum"], key=str)))
    if key.get("type") == "array":
        items = _kind(key["items"], schema)
        return "tables" if items == "table" else f"list of: {items}"
    if "minimum" in key and "maximum" in key:
        return f"{key['minimum']} to {key['maximum']}"
    words = {"boolean": "true or false", "integer": "whole number", "number": "number", _TABLE: "table"}
    return words.get(key.get("type", ""), "text")


def _resolved(key: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for place in (key, *key.get("allOf", ())):
        if "$ref" in place:
            target: Mapping[str, Any] = schema["definitions"][place["$ref"].rpartition("/")[2]]
            return target
    return key
