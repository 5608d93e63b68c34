"""The documents say what is there: tests that exist, every key of the configuration, links that lead somewhere."""

from __future__ import annotations

import ast
import itertools
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import msgspec
import pytest

from ktlsd.cli import parsers
from ktlsd.config import options
from ktlsd.config.options import Settings
from ktlsd.http.decide import Miss
from ktlsd.settings import combine
from ktlsd.tls.ktls import Reason

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *(REPOSITORY / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "bench/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
)
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
FEATURES = REPOSITORY / "docs" / "features.md"
CONFIGURATION = REPOSITORY / "docs" / "configuration.md"
ACCESS = REPOSITORY / "docs/access.md"

NO_TEST = "none: ktlsd does not have it"

_TEST = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+))?")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_EXAMPLE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

Table = tuple[list[str], list[list[str]]]


@cache
def prose(document: Path) -> str:
    """A document without its examples."""
    return _EXAMPLE.sub("", document.read_text(encoding="utf-8"))


def examples(document: Path, language: str) -> list[str]:
    return [text for name, text in _EXAMPLE.findall(document.read_text(encoding="utf-8")) if name == language]


@cache
def functions_of(module: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions)


@cache
def anchors(document: Path) -> frozenset[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def tables(document: Path) -> list[Table]:
    """The head and the rows of each table."""
    blocks = itertools.groupby(prose(document).splitlines(), lambda line: line.startswith("|"))
    lines = [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in block] for is_table, block in blocks if is_table
    ]
    return [(head, rows) for head, _, *rows in lines]


KEYS = [
    (kind.__name__, key)
    for kind in vars(options).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
    for key in kind.__struct_encode_fields__
]
DESCRIBED = {
    key: default
    for head, rows in tables(CONFIGURATION)
    if head[:2] == ["key", "default"]
    for cell, default, _ in rows
    for key in re.findall(r"`(\w+)`", cell)
}
# The keys of these are told in a sentence.
IN_PROSE = {
    "AccessOptions": ACCESS,
    "RateOptions": ACCESS,
    "MaintenanceOptions": ACCESS,
    "AuthOptions": ACCESS,
    "SignedOptions": ACCESS,
    "HeaderOptions": CONFIGURATION,
    "CacheOptions": CONFIGURATION,
    "ErrorPageOptions": CONFIGURATION,
    "NamedSiteOptions": CONFIGURATION,
}
"""Tables whose keys are described in the prose of a document."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_are_named_exist(document: Path) -> None:
    for module, function in _TEST.findall(document.read_text(encoding="utf-8")):
        assert (REPOSITORY / module).is_file(), module
        assert not function or function in functions_of(module), f"{module}::{function}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.findall(prose(document)):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not path.startswith(("http:", "https:")):
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_feature_has_an_answer_of_each_server_and_a_test() -> None:
    columns = ["feature", "ktlsd", "nginx", "Caddy", "lighttpd", "static-web-server", "test"]
    features = [row for head, rows in tables(FEATURES) if head == columns for row in rows]
    assert len(features) > 50
    for row in features:
        assert len(row) == len(columns), row
        assert all(row), row
        named = _TEST.findall(row[-1])
        assert bool(named) != (row[-1] == NO_TEST), row
        assert all(function for _, function in named), row


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_key_is_described(table: str, key: str) -> None:
    assert key in DESCRIBED or (table in IN_PROSE and f"`{key}`" in prose(IN_PROSE[table]))


def test_no_key_is_described_that_there_is_not() -> None:
    assert DESCRIBED.keys() <= {key for _, key in KEYS}


@pytest.mark.parametrize(
    "key", ["listen", "workers", "index", "precompressed", "etag", "charset", "nosniff", "listing"]
)
def test_defaults_are_those_of_the_options(key: str, tmp_path: Path) -> None:
    path = tmp_path / "ktlsd.toml"
    path.write_text(f"root = '.'\n{key} = {DESCRIBED[key].strip('`')}\n", encoding="utf-8")
    assert getattr(combine({"config": path}, {}), key) == getattr(Settings(), key)


@pytest.mark.parametrize("example", [text for document in DOCUMENTS for text in examples(document, "toml")])
def test_examples_are_valid(example: str, tmp_path: Path) -> None:
    path = tmp_path / "ktlsd.toml"
    path.write_text(example, encoding="utf-8")
    settings = combine({"config": path, "root": str(tmp_path)}, {})
    assert bool(tomllib.loads(example)) == (settings != combine({"root": str(tmp_path)}, {}))


def test_json_examples_are_json() -> None:
    texts = examples(CONFIGURATION, "json")
    assert texts
    assert all(json.loads(text) for text in texts)


def test_every_document_is_in_the_index() -> None:
    index = (REPOSITORY / "docs/README.md").read_text(encoding="utf-8")
    linked = {(REPOSITORY / "docs" / link.partition("#")[0]).resolve() for link in _LINK.findall(index)}
    assert set(DOCUMENTS) - linked == {REPOSITORY / "README.md", REPOSITORY / "docs/README.md"}


def test_every_option_is_in_the_document_of_the_command_line() -> None:
    described = {
        option
        for head, rows in tables(REPOSITORY / "docs/command-line.md")
        if head[0] == "option"
        for row in rows
        for option in re.findall(r"`(--[\w-]+)`", row[0])
    }
    known = {option for action in parsers()[""]._actions for option in action.option_strings}
    assert described == known - {"-h", "--help"}


def test_troubleshooting_has_a_remedy_for_every_reason() -> None:
    rows = [row for _, rows in tables(REPOSITORY / "docs/troubleshooting.md") for row in rows]
    remedies = {row[0] for row in rows if row[1]}
    assert {reason.value for reason in Reason} <= remedies
    assert {miss.reason for miss in Miss if miss.status == 403} <= remedies


def test_the_floors_are_those_that_import_linter_holds() -> None:
    _, drawn = _EXAMPLE.findall(ARCHITECTURE.read_text(encoding="utf-8"))[0]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (floors,) = [one for one in project["tool"]["importlinter"]["contracts"] if one["id"] == "floors"]
    assert [re.split(r" {3,}", line)[0].rstrip() for line in drawn.splitlines()] == floors["layers"]


def test_the_modules_of_the_architecture_exist_and_every_wing_is_there() -> None:
    named = set(re.findall(r"`?\b((?:\w+/)?\w+\.py)\b", ARCHITECTURE.read_text(encoding="utf-8")))
    ours = {name for name in named if not name.startswith(("tests/", "vm/", "__init__"))}
    assert {name for name in ours if not (REPOSITORY / "ktlsd" / name).is_file()} == set()
    wings = {path.parent.name for path in (REPOSITORY / "ktlsd").glob("*/__init__.py")}
    assert wings <= {name.partition("/")[0] for name in ours}
