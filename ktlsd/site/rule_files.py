"""The `_headers` and `_redirects` files of static hosts (Netlify, Cloudflare Pages), as rules: pure.

Strategy: line by line; an unsupported line is ignored whole, with a warning that names file and line, so that a site
for such a host is served as far as possible. A path that is protected by an unsupported feature (Basic-Auth, Role=) is
reported, to be refused: ignoring such a line would publish the path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, get_args
from urllib.parse import quote

from ktlsd.config.values import RedirectStatus
from ktlsd.http.fields import Fields
from ktlsd.http.header_rules import HeaderRule, is_field_value, refuse_remove, refuse_set
from ktlsd.http.path_glob import Captures, compile_captures, compile_host_pattern, decoded, placeholders_of
from ktlsd.http.placeholders import PLACEHOLDER, SPLAT, Template, misplaced
from ktlsd.http.redirects import RedirectRule, check

HEADERS_FILE: Final = "_headers"
REDIRECTS_FILE: Final = "_redirects"
LARGEST_FILE: Final = 1_048_576
"""Bytes; the rest is left out."""
LONGEST_LINE: Final = 8192
"""Characters."""
MOST_HEADER_RULES: Final = 1000
MOST_REDIRECTS: Final = 2000
MOST_WARNINGS: Final = 50

PROTECTING: Final = {
    HEADERS_FILE: re.compile(rb"basic[\s_-]*auth", re.IGNORECASE),
    REDIRECTS_FILE: re.compile(rb"\srole=|\s[45][0-9]{2}!", re.IGNORECASE),
}
"""Signs of lines that protect paths, for a search in the unread rest of a file."""

_STATUSES: Final = frozenset(get_args(RedirectStatus))
_URL: Final = re.compile("https?://[^/]*(/.*)?", re.IGNORECASE | re.DOTALL)
_STATUS: Final = re.compile("([0-9]{3})(!?)")
_PARAMETER: Final = re.compile("([^/=:]+)=(.*)", re.DOTALL)
# A word that begins with a number sign begins a comment.
_COMMENT: Final = re.compile(r"\s#.*", re.DOTALL)
# However it is written: such a line has passwords.
_BASIC_AUTH: Final = re.compile(r"!?\s*basic[\s_-]*auth(?:[\s:=]|\Z)", re.IGNORECASE)
# As Netlify has it. A name has no colon, a password no blank.
_PASSWORDS: Final = re.compile(
    r"basic-auth:\s*((?:[^\s:\x00-\x1f\x7f]+:[^\s\x00-\x1f\x7f]+(?:\s+|\Z))+)", re.IGNORECASE
)
MOST_PASSWORD_RULES: Final = 100
"""Paths with Basic-Auth lines: each request of the site is compared with all of them."""
_ROLE: Final = re.compile("role=.*", re.IGNORECASE | re.DOTALL)
_SLASHES: Final = re.compile("/+")
_WORD: Final = re.compile(r"[^!:\s][^:\s]*")
# No delimiter of a field's value: a client must not add members, parameters or quotes to what an operator wrote.
_VALUE_SAFE: Final = "/!$&()*+=:@~"
_REDIRECTION: Final = 3
_FIRST_ERROR: Final = 400
_LONGEST_WARNING: Final = 500


class PasswordRule(NamedTuple):
    """The Basic-Auth lines below a path of `_headers`."""

    path: str
    """As it is written."""
    passwords: Mapping[bytes, bytes]
    """By user name."""


class HeadersFile(NamedTuple):
    """The content of a `_headers` file."""

    rules: tuple[HeaderRule, ...]
    warnings: tuple[str, ...]
    protected: tuple[str, ...]
    """Paths, as they are written, that are to be refused."""
    passwords: tuple[PasswordRule, ...] = ()


class RedirectsFile(NamedTuple):
    """The content of a `_redirects` file."""

    rules: tuple[RedirectRule, ...]
    """All of them can be followed."""
    warnings: tuple[str, ...]
    protected: tuple[str, ...]
    """Paths, as they are written, whose files are to be refused unless a rule redirects."""


class _Line(NamedTuple):
    number: int
    """From 1."""
    text: str
    """Stripped; its beginning where the line is too long."""
    indented: bool
    too_long: bool


def parse_headers(text: str) -> HeadersFile:
    """Read a `_headers` file. A name repeated under a path is one field, its values joined.

    A later rule's field takes the place of an earlier one's, as on Netlify; `! Name` removes it, and `:name` and
    `:splat` in a value stand for what the path matched, as on Cloudflare.
    """
    warnings = _Warnings(HEADERS_FILE)
    blocks: list[_Block] = []
    protected: dict[str, None] = {}
    passwords: dict[str, dict[bytes, bytes]] = {}
    # The path line above, and the block of rules for it, if any.
    path: str | None = None
    block: _Block | None = None
    too_many = False
    for line in _lines(text, warnings):
        if new := _path_of(line, warnings):
            path, block = new.path, None
            if new.followed and len(blocks) < MOST_HEADER_RULES:
                block = _Block(path)
                blocks.append(block)
            elif new.followed and not too_many:
                too_many = True
                warnings.add(line.number, f"more than {MOST_HEADER_RULES} paths: the rest is left out")
        elif _BASIC_AUTH.match(line.text):
            # The line itself, with its password, must not get into a log.
            if path is None:
                warnings.add(line.number, "Basic-Auth protects nothing: no path stands above", urgent=True)
            elif pairs := _passwords(line):
                passwords.setdefault(path, {}).update(pairs)
            else:
                protected[path] = None
                warnings.add(line.number, f"Basic-Auth is not name:password: 403 for {path}", urgent=True)
        elif path is None:
            warnings.add(line.number, f"{line.text}: no path stands above")
        elif block is not None and not line.too_long and (refusal := block.add(line.text)):
            warnings.add(line.number, refusal)
    if len(passwords) > MOST_PASSWORD_RULES:
        protected.update(dict.fromkeys(passwords))
        passwords.clear()
        warnings.add(line.number, f"more than {MOST_PASSWORD_RULES} paths with Basic-Auth: 403 for them", urgent=True)
    kept = tuple(PasswordRule(path, pairs) for path, pairs in passwords.items())
    return HeadersFile(tuple(block.rule() for block in blocks), warnings.texts(), tuple(protected), kept)


def _passwords(line: _Line) -> dict[bytes, bytes]:
    """The names and passwords of a Basic-Auth line; none if the line is anything but that."""
    found = None if line.too_long else _PASSWORDS.fullmatch(line.text)
    if found is None:
        return {}
    pairs = (pair.encode("utf-8", "surrogateescape").partition(b":") for pair in found[1].split())
    return {name: password for name, _, password in pairs}


class _PathLine(NamedTuple):
    path: str
    followed: bool
    """True if the fields below can apply to it."""


def _path_of(line: _Line, warnings: _Warnings) -> _PathLine | None:
    """The path that a line of `_headers` is; None where it is none."""
    text = _COMMENT.sub("", line.text).rstrip()
    if text.startswith("/"):
        path = _SLASHES.sub("/", text)
        if segment := misplaced(path):
            warnings.add(line.number, f"{path}: {segment} is taken as it is written: a placeholder is a whole segment")
        return _PathLine(path, not line.too_long)
    if url := _URL.match(text):
        warnings.add(line.number, f"{text}: fields for a host are not supported, write a path")
        return _PathLine(url[1] or "/", followed=False)
    # No field's name has a slash in it.
    is_path = _WORD.fullmatch(text) is not None and (not line.indented or "/" in text)
    if is_path and not _BASIC_AUTH.match(text):
        # Fields below belong to it, not to the path above.
        warnings.add(line.number, f"{text}: neither a path, which begins with a slash, nor a field with a colon")
        return _PathLine("/" + text, followed=False)
    return None


def parse_redirects(text: str) -> RedirectsFile:
    """Read a `_redirects` file."""
    warnings = _Warnings(REDIRECTS_FILE)
    rules: list[RedirectRule] = []
    protected: dict[str, None] = {}
    too_many = False
    for line in _lines(text, warnings):
        if path := _protected_by(line.text):
            protected[path] = None
            text = f"{line.text}: roles and statuses of errors are not supported: 403 for files of {path}"
            warnings.add(line.number, text, urgent=True)
            continue
        if line.too_long or too_many:
            continue
        if len(rules) == MOST_REDIRECTS:
            too_many = True
            warnings.add(line.number, f"more than {MOST_REDIRECTS} rules: the rest is left out")
            continue
        try:
            rule = _redirect(line.text)
            check(rule)
        except ValueError as error:
            warnings.add(line.number, str(error))
        else:
            rules.append(rule)
            if segment := misplaced(rule.source):
                text = f"{rule.source}: {segment} is taken as it is written: a placeholder is a whole segment"
                warnings.add(line.number, text)
    return RedirectsFile(tuple(rules), warnings.texts(), tuple(protected))


class _Warnings:
    """A bounded number of texts for the operator; urgent ones come first."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._urgent: list[tuple[int, str]] = []
        self._others: list[tuple[int, str]] = []

    def add(self, line: int, text: str, *, urgent: bool = False) -> None:
        lines = self._urgent if urgent else self._others
        if len(lines) <= MOST_WARNINGS:
            # Texts of site owners must not control the operator's terminal.
            lines.append((line, text[:_LONGEST_WARNING].encode("unicode_escape").decode("ascii")))

    def texts(self) -> tuple[str, ...]:
        lines = self._urgent + self._others
        if len(lines) > MOST_WARNINGS:
            lines[MOST_WARNINGS:] = [(lines[MOST_WARNINGS][0], "more is left out, without a warning for each")]
        return tuple(f"{self._file}:{line}: {text}" for line, text in lines)


class _Block:
    """A path of `_headers` and the fields under it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names = placeholders_of(path)
        self._removed: list[str] = []
        self._values: dict[str, tuple[str, list[str]]] = {}

    def add(self, line: str) -> str | None:
        """Add a line, or warn."""
        if line.startswith("!"):
            name = line[1:].strip()
            if refusal := refuse_remove(name):
                return refusal
            self._removed.append(name)
            return None
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            return f"{line}: neither a path nor a field with a colon"
        if refusal := refuse_set(name, value):
            return refusal
        for placeholder in PLACEHOLDER.findall(value):
            if placeholder == SPLAT and SPLAT not in self._names:
                return f"{name}: there is no * in {self._path} for :{SPLAT}"
            # With two stars there are many ways to share a path among them.
            if placeholder in self._names and max(map(self._names.count, (placeholder, SPLAT))) > 1:
                return f"{name}: {self._path} has no single value for :{placeholder}"
        self._values.setdefault(name.lower(), (name, []))[1].append(value)
        return None

    def rule(self) -> HeaderRule:
        fields: list[tuple[str, str]] = []
        for name, values in self._values.values():
            # The one field that cannot be joined (RFC 9110 section 5.3).
            fields += ((name, value) for value in (values if name.lower() == "set-cookie" else [", ".join(values)]))
        given = any(name in self._names for _, value in fields for name in PLACEHOLDER.findall(value))
        fill = _Filled(tuple(fields), self._names, compile_captures(self._path)) if given else None
        return HeaderRule(compile_host_pattern(self._path), tuple(fields), tuple(self._removed), fill)


class _Filled:
    """Fields with placeholders, for a path."""

    def __init__(self, fields: Fields, names: tuple[str, ...], captures: Captures) -> None:
        self._fields = tuple((name, Template(value, names)) for name, value in fields)
        self._captures = captures

    def __call__(self, path: str) -> Fields:
        values = {name: quote(os.fsencode(value), safe=_VALUE_SAFE) for name, value in self._captures(path).items()}
        filled = ((name, template.fill(str, values.__getitem__).strip(" \t")) for name, template in self._fields)
        # A request must not make a head of any length, and an empty value is none.
        return tuple((name, value) for name, value in filled if is_field_value(value) and len(value) <= LONGEST_LINE)


def _lines(text: str, warnings: _Warnings) -> Iterator[_Line]:
    """The lines that are not empty or comments."""
    data = text.encode("utf-8", "surrogatepass")
    too_large = len(data) > LARGEST_FILE
    if too_large:
        # The last line may be cut in two.
        text = data[: data.rfind(b"\n", 0, LARGEST_FILE) + 1].decode("utf-8", "surrogatepass")
    lines = text.removeprefix("\ufeff").split("\n")
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        too_long = len(stripped) > LONGEST_LINE
        if too_long:
            warnings.add(number, f"longer than {LONGEST_LINE} characters")
        yield _Line(number, stripped[:LONGEST_LINE], line[0].isspace(), too_long)
    if too_large:
        warnings.add(len(lines), f"the file is larger than {LARGEST_FILE} bytes: the rest is left out")


def _protected_by(line: str) -> str | None:
    """The path that a line of `_redirects` keeps clients from by what ktlsd does not do; None where there is none.

    `/admin/* 200! Role=admin` hides these files from all other clients, and `/admin/* /sorry 401!` from all clients.
    """
    source, *rest = _COMMENT.sub("", line).split()
    role = any(map(_ROLE.fullmatch, rest))
    words = [word for word in rest if not _ROLE.fullmatch(word)]
    statuses = [(int(status[1]), bool(status[2])) for status in map(_STATUS.fullmatch, words) if status]
    shown_to_some = role and (not words or any(status // 100 != _REDIRECTION for status, _ in statuses))
    refused = any(forced and status >= _FIRST_ERROR and status not in _STATUSES for status, forced in statuses)
    if not shown_to_some and not refused:
        return None
    url = _URL.match(source)
    return (url[1] or "/") if url else "/" + source.lstrip("/")


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
