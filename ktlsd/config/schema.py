"""The JSON Schema of the configuration file, for editors: from the types of options.py. `ktlsd check --schema`.

Strategy: msgspec's schema, put in the words of draft-07, which editors of TOML know; each key's description is the
docstring below its attribute, read from the source of options.py.
"""

from __future__ import annotations

import ast
import inspect
from collections import ChainMap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from ktlsd.config import options
from ktlsd.config.options import ONE_OR_MORE, NamedSiteOptions, Settings
from ktlsd.config.values import BackendListen, Listen, LogPlace, Network

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_TEXTS: Final[dict[type, dict[str, Any]]] = {
    Path: {"type": "string", "minLength": 1},
    LogPlace: {"type": "string", "minLength": 1},
    Listen: {"type": "string", "pattern": r"^([^:]*|\[.*\]):[0-9]{1,9}$", "description": "ADDR:PORT"},
    BackendListen: {
        "type": "string",
        "pattern": r"^(unix:.+|([^:]*|\[.*\]):[0-9]{1,9})$",
        "description": "ADDR:PORT or unix:PATH",
    },
    Network: {"type": "string", "description": 'a network such as "10.0.0.0/8", an address, or "unix"'},
}


def schema() -> dict[str, Any]:
    """The schema of a whole file."""
    _, tables = msgspec.json.schema_components(
        (Settings,), schema_hook=lambda kind: dict(_TEXTS[kind]), ref_template="#/definitions/{name}"
    )
    docstrings = {node.name: _docstrings(node) for node in _classes()}
    for title in tables.keys() & docstrings.keys():
        table = tables[title]
        if "properties" not in table:
            continue
        described = ChainMap(*(docstrings.get(kind.__name__, {}) for kind in getattr(options, title).__mro__))
        table["description"] = described[""]
        table["properties"] = {
            name: _key(name, key) | {"description": described[name]} for name, key in table["properties"].items()
        }
    # A missing key of a site is taken from the top level, which need not have the default.
    for key in tables[NamedSiteOptions.__name__]["properties"].values():
        key.pop("default", None)
    top = tables.pop(Settings.__name__)
    # msgspec takes the default for the tuple that it is.
    top["properties"]["listen"]["default"] = [str(place) for place in Settings().listen]
    return {"$schema": DRAFT, **top, "title": "ktlsd configuration", "definitions": tables}


def _key(name: str, key: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null; draft-07 heeds nothing beside a $ref; some lists may be a single text."""
    if {"type": "null"} in key.get("anyOf", ()):
        (kind,) = (choice for choice in key.pop("anyOf") if choice != {"type": "null"})
        key.update({"allOf": [kind]} if "$ref" in kind else kind)
        del key["default"]
    if "$ref" in key:
        key["allOf"] = [{"$ref": key.pop("$ref")}]
    if name in ONE_OR_MORE:
        several = {word: key.pop(word) for word in ("type", "items", "minItems") if word in key}
        key["anyOf"] = [several["items"], several]
    return key


def _classes() -> Iterator[ast.ClassDef]:
    return (node for node in ast.parse(inspect.getsource(options)).body if isinstance(node, ast.ClassDef))


def _docstrings(node: ast.ClassDef) -> dict[str, str]:
    """By key, and that of the class itself by the empty name."""
    found = {"": " ".join((ast.get_docstring(node) or "").split())}
    for attribute, below in pairwise(node.body):
        match attribute, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                # `from` is no name in Python.
                found[name.removesuffix("_")] = " ".join(text.split())
    return found
