"""The `_headers` and `_redirects` files of static hosts (Netlify, Cloudflare Pages), as rules: pure.

Strategy: line by line; what cannot be followed is left out with a warning that names file and line, so that a site
that was made for such a host is served as far as possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, get_args

from ktlsd.fields import Fields
from ktlsd.header_rules import HeaderRule, refuse_remove, refuse_set
from ktlsd.options import RedirectStatus
from ktlsd.path_glob import compile_host_pattern, decoded
from ktlsd.redirects import RedirectRule, check

HEADERS_FILE: Final = "_headers"
REDIRECTS_FILE: Final = "_redirects"
LARGEST_FILE: Final = 1_048_576
"""Bytes; what comes after is left out."""
LONGEST_LINE: Final = 8192
"""Characters."""
MOST_HEADER_RULES: Final = 1000
MOST_REDIRECTS: Final = 2000
MOST_WARNINGS: Final = 50

_STATUSES: Final = frozenset(get_args(RedirectStatus))
_URL: Final = re.compile("https?://", re.IGNORECASE)
_STATUS: Final = re.compile("([0-9]{3})(!?)")
_PARAMETER: Final = re.compile("([^/=:]+)=(.*)", re.DOTALL)
# A word that begins with a number sign begins a comment.
_COMMENT: Final = re.compile(r"\s#.*", re.DOTALL)
_LONGEST_WARNING: Final = 500


def parse_headers(text: str) -> tuple[tuple[HeaderRule, ...], tuple[str, ...]]:
    """The rules of a `_headers` file, and warnings. A name repeated under a path is one field, its values joined.

    A later rule's field takes the place of an earlier one's, as on Netlify; `! Name` removes it, as on Cloudflare.
    """
    warnings = _Warnings(HEADERS_FILE)
    blocks: list[_Block] = []
    block: _Block | None = None
    ignoring = False
    for number, line in _lines(text, warnings):
        if line.startswith("/"):
            if len(blocks) == MOST_HEADER_RULES:
                warnings.add(number, f"more than {MOST_HEADER_RULES} paths: the rest is left out")
                break
            block = _Block(line)
            blocks.append(block)
        elif _URL.match(line):
            warnings.add(number, f"{line}: fields for a host are not supported, write a path")
            block, ignoring = None, True
        elif block is not None:
            if refusal := block.add(line):
                warnings.add(number, refusal)
        elif not ignoring:
            warnings.add(number, f"{line}: no path stands above")
    rules = (HeaderRule(compile_host_pattern(block.path), block.fields(), tuple(block.removed)) for block in blocks)
    return tuple(rules), tuple(warnings.texts)


def parse_redirects(text: str) -> tuple[tuple[RedirectRule, ...], tuple[str, ...]]:
    """The rules of a `_redirects` file, all of which Redirects can follow, and warnings."""
    warnings = _Warnings(REDIRECTS_FILE)
    rules: list[RedirectRule] = []
    for number, line in _lines(text, warnings):
        if len(rules) == MOST_REDIRECTS:
            warnings.add(number, f"more than {MOST_REDIRECTS} rules: the rest is left out")
            break
        try:
            rule = _redirect(line)
            check(rule)
        except ValueError as error:
            warnings.add(number, str(error))
        else:
            rules.append(rule)
    return tuple(rules), tuple(warnings.texts)


class _Warnings:
    """Texts for the operator, but not without end."""

    def __init__(self, file: str) -> None:
        self.texts: list[str] = []
        self._file = file

    def add(self, line: int, text: str) -> None:
        if len(self.texts) == MOST_WARNINGS:
            text = "more is left out, without a warning for each"
        if len(self.texts) <= MOST_WARNINGS:
            # What site owners write must not move the operator's terminal.
            shown = text[:_LONGEST_WARNING].encode("unicode_escape").decode("ascii")
            self.texts.append(f"{self._file}:{line}: {shown}")


class _Block:
    """A path of `_headers` and the fields under it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.removed: list[str] = []
        self._values: dict[str, tuple[str, list[str]]] = {}

    def add(self, line: str) -> str | None:
        """Take a line over, or say why not."""
        if line.startswith("!"):
            name = line[1:].strip()
            if refusal := refuse_remove(name):
                return refusal
            self.removed.append(name)
            return None
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            return f"{line}: neither a path nor a field with a colon"
        if refusal := refuse_set(name, value):
            return refusal
        self._values.setdefault(name.lower(), (name, []))[1].append(value)
        return None

    def fields(self) -> Fields:
        fields: list[tuple[str, str]] = []
        for name, values in self._values.values():
            # The one field that cannot be joined (RFC 9110 section 5.3).
            fields += ((name, value) for value in (values if name.lower() == "set-cookie" else [", ".join(values)]))
        return tuple(fields)


def _lines(text: str, warnings: _Warnings) -> Iterator[tuple[int, str]]:
    """The lines that say something, stripped, with their numbers from 1."""
    data = text.encode("utf-8", "surrogatepass")
    too_large = len(data) > LARGEST_FILE
    if too_large:
        # The last line may be cut in two.
        text = data[: data.rfind(b"\n", 0, LARGEST_FILE) + 1].decode("utf-8", "surrogatepass")
    lines = text.removeprefix("\ufeff").split("\n")
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if len(stripped) > LONGEST_LINE:
            warnings.add(number, f"longer than {LONGEST_LINE} characters")
        elif stripped and not stripped.startswith("#"):
            yield number, stripped
    if too_large:
        warnings.add(len(lines), f"the file is larger than {LARGEST_FILE} bytes: the rest is left out")


def _redirect(line: str) -> RedirectRule:
    """Read "from [parameter=value]... to [status[!]]". Raises ValueError."""
    words = _COMMENT.sub("", line).split()
    source, rest = words[0], words[1:]
    if _URL.match(source):
        raise ValueError(f"{source}: rules for a host are not supported, write a path")
    if not source.startswith("/") or "?" in source or "#" in source:
        raise ValueError(f"{source}: not a path")
    parameters: list[tuple[str, str]] = []
    while rest and (parameter := _PARAMETER.fullmatch(rest[0])):
        parameters.append((parameter[1], parameter[2]))
        rest = rest[1:]
    if not rest:
        raise ValueError(f"{source}: leads nowhere")
    target, *rest = rest
    status, force = 301, False
    if rest and (digits := _STATUS.fullmatch(rest[0])):
        status, force = int(digits[1]), bool(digits[2])
        rest = rest[1:]
    if rest:
        raise ValueError(f"{source}: {' '.join(rest)}: conditions are not supported")
    if status not in _STATUSES:
        raise ValueError(f"{source}: the status {status} is not supported")
    if status == 200 and _URL.match(target):
        raise ValueError(f"{target}: ktlsd is no proxy")
    return RedirectRule(decoded(source), target, status, force, tuple(parameters))
