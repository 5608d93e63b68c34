"""The lines of values in TOML documents."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.config.toml_lines import Path, line_of

DOCUMENT = '''# a comment
plain = 1
text = """
plain = 2
[site]
"""
list = [
  "a",  # "not.a.key" = [

  [1, {x = [
    2,
  ]}], "same line",
]
one-line = ["a", "b"]
inline = {a = 1, b = [
  3]}
dotted.key.x = 1
dotted.key.y = \'\'\'
]\'\'\'

[table]
k = 1
[table.below]
"quoted key" = 1
[[site]]
names = ["a"]
[site.cors]
origins = [
"*"]
[[site.header]]
path = "x"
[[site.header]]
path = "y"
[[site]]

names = [ "b",
 "c" ]
[implied.by.this]
x = 1'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), 1),
        (("plain",), 2),
        (("text",), 3),
        (("list",), 7),
        (("list", 0), 8),
        (("list", 1), 10),
        (("list", 1, 0), 10),
        (("list", 1, 1, "x", 0), 11),
        (("one-line",), 14),
        (("one-line", 1), 14),
        (("inline",), 15),
        (("inline", "b"), 15),
        (("inline", "b", 0), 16),
        (("dotted",), 17),
        (("dotted", "key", "x"), 17),
        (("dotted", "key", "y"), 18),
        (("table",), 21),
        (("table", "k"), 22),
        (("table", "below"), 23),
        (("table", "below", "quoted key"), 24),
        (("site",), 25),
        (("site", 0), 25),
        (("site", 0, "cors"), 27),
        (("site", 0, "cors", "origins", 0), 29),
        (("site", 0, "header", 0, "path"), 31),
        (("site", 0, "header", 1), 32),
        (("site", 0, "header", 1, "path"), 33),
        (("site", 1), 34),
        (("site", 1, "names"), 36),
        (("site", 1, "names", 0), 36),
        (("site", 1, "names", 1), 37),
        (("implied",), 38),
        (("implied", "by", "this", "x"), 39),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_line_of_a_value(path: Path, line: int, newline: str) -> None:
    assert line_of(DOCUMENT.replace("\n", newline), path) == line


@pytest.mark.parametrize(
    "path", [("a",), ("plain", "a"), ("list", 9), ("list", "a"), ("site", 2), ("table", 0), ("text", 0), ("list", -1)]
)
def test_what_is_not_there_has_no_line(path: Path) -> None:
    with pytest.raises(KeyError):
        line_of(DOCUMENT, path)


def test_a_line_separator_within_a_text_begins_no_line() -> None:
    assert line_of('a = "\u2028\u0085"\nb = 1', ("b",)) == 2


# --- documents of which every line is known

Written = list[tuple[str, Path | None]]
"""Lines, each with the path of the value that starts on it."""

names = st.text("ab]['\"#=.{ \u00e9", min_size=1, max_size=4)
scalars = st.one_of(st.integers().map(str), st.booleans().map(json.dumps), names.map(json.dumps))


@st.composite
def values(draw: st.DrawFn, path: Path, depth: int = 0) -> Written:
    """The lines of one value; the first line has its start, and only the path if it has a line of its own."""
    kind = draw(st.sampled_from(["scalar", "text", "array"] if depth < 3 else ["scalar"]))
    if kind == "scalar":
        return [(draw(scalars), path)]
    if kind == "text":
        inner = draw(st.lists(st.sampled_from(["", "x = 1", "[x]", "]", "#", "''", "\\\\"]), max_size=3))
        return [('"""', path), *((line, None) for line in inner), ('"""', None)]
    lines: Written = [("[", path)]
    for number in range(draw(st.integers(0, 3))):
        item = draw(values((*path, number), depth + 1))
        lines += [*item[:-1], (item[-1][0] + ",", item[-1][1])]
        lines += draw(st.sampled_from([[], [("", None)], [('  # ] "', None)]]))
    return [*lines, ("]", None)]


@st.composite
def tables(draw: st.DrawFn, path: Path) -> Written:
    lines: Written = []
    for name in draw(st.lists(names, unique=True, max_size=3)):
        value = draw(values((*path, name)))
        lines += [(f"{json.dumps(name)} = {value[0][0]}", value[0][1]), *value[1:]]
        lines += draw(st.sampled_from([[], [("", None)], [("# = [", None)]]))
    return lines


@st.composite
def documents(draw: st.DrawFn) -> Written:
    lines = draw(tables(()))
    headers = draw(st.lists(st.sampled_from(["one", "two", "many"]), max_size=4))
    for position, header in enumerate(headers):
        # Upper-case, unlike the names above.
        if header == "many":
            number = headers[:position].count("many")
            lines += [("[[MANY]]", ("MANY", number)), *draw(tables(("MANY", number)))]
        else:
            name = f"{header.upper()}{position}"
            lines += [(f"[{name}]", (name,)), *draw(tables((name,)))]
    return lines


@settings(deadline=None, max_examples=50)
@given(documents())
def test_every_value_of_a_document_is_found(written: Written) -> None:
    text = "\n".join(line for line, _ in written)
    tomllib.loads(text)
    expected = {path: number for number, (_, path) in enumerate(written, 1) if path is not None}
    assert {path: line_of(text, path) for path in expected} == expected


@settings(deadline=None, max_examples=50)
@given(documents(), st.integers(1, 3), st.data())
def test_lines_above_move_a_value_down(written: Written, above: int, data: st.DataObject) -> None:
    text = "\n".join(line for line, _ in written)
    moved = "# above\n" * above + text

    def paths(value: Any, path: Path = ()) -> list[Path]:
        below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [path, *(inner for step, item in below for inner in paths(item, (*path, step)))]

    path = data.draw(st.sampled_from(paths(tomllib.loads(text))))
    assert line_of(moved, path) == line_of(text, path) + (above if path else 0)
