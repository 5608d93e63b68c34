"""`_headers` files and the rules of a site: what they add can end no line and change nothing that is the server's own.

Strategy: an input is a path, a line `STATUS [secure] [options...]` and the file. What may be in the response is said by
a plain reading of the file, rule by rule.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

from fuzz.targets.path_glob import matches_host_pattern
from ktlsd.config.options import CacheOptions, HeaderOptions, HstsOptions, SiteOptions
from ktlsd.http.fields import Fields
from ktlsd.http.header_rules import RESERVED, HeaderRules, Origin, forbids_caching
from ktlsd.http.protected_paths import ProtectedPaths
from ktlsd.site.rule_files import LONGEST_LINE, MOST_WARNINGS, parse_headers

TOKENS: Final = (
    b"\n/",
    b"\n/*\n",
    b"\n  X-A: b",
    b"\n  ! X-A",
    b"\n  Vary: ",
    b"\n  Set-Cookie: a=b",
    b"Content-Length: 1",
    b"Cache-Control: no-store",
    b"Strict-Transport-Security: max-age=1",
    b"Content-Type: a/b",
    b"https://",
    b"#",
    b"/:name",
    b"/* # c",
    b"\n  X-B: :splat",
    b"\n  X-B: a :name ",
    b"\n Basic-Auth: a:b",
    b"\nword",
    b"fallback",
    b"rewrite",
    b"secure",
    b"rules",
    b"404",
    b"304",
)

_GIVEN: Final[Fields] = (
    ("Server", "ktlsd"),
    ("Content-Type", "text/html"),
    ("Content-Length", "5"),
    ("Content-Encoding", "br"),
    ("Vary", "Accept-Encoding"),
    ("Accept-Ranges", "bytes"),
    ("ETag", '"a"'),
    ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ("Content-Range", "bytes 0-4/9"),
)
_DEFAULT: Final = {"X-Own": "2", "Server": "other", "content-type": "a/b", "X-Default": "1", "Expires": "0"}
_RULES: Final = SiteOptions(
    header=(
        HeaderOptions(path="/a/**", set={"X-Own": "1", "vary": "Origin"}, remove=("Server", "X-A"), default=_DEFAULT),
    ),
    cache=(CacheOptions(path="*.html", control="no-cache"),),
    downloads=("*.zip",),
    hashed_names=True,
    hsts=HstsOptions(preload=True),
)
_PLAIN: Final = SiteOptions(nosniff=False)
_STATUSES: Final = (200, 206, 304, 301, 404, 412, 503)
_WARNING: Final = re.compile(r"_headers:[1-9][0-9]*: [ -~]+")
_VALUE: Final = re.compile(r"[!-~](?:[\t -~]*[!-~])?")
_OF_FILES: Final = (200, 206, 304)
_OF_CACHES: Final = (
    "cache-control",
    "expires",
    "cdn-cache-control",
    "cloudflare-cdn-cache-control",
    "netlify-cdn-cache-control",
    "vercel-cdn-cache-control",
    "surrogate-control",
    "x-accel-expires",
)
_ERROR: Final = 400
_PLACEHOLDER: Final = r":[A-Za-z][A-Za-z0-9_]*"
_ORIGINS: Final = {"rewrite": Origin.REWRITE, "fallback": Origin.FALLBACK}


def check(data: bytes) -> None:
    path, _, rest = data.partition(b"\n")
    words, _, text = rest.partition(b"\n")
    rules, warnings, protected, passwords = parse_headers(text.decode("utf-8", "replace"))
    assert len(warnings) <= MOST_WARNINGS + 1
    assert all(_WARNING.fullmatch(warning) for warning in warnings)
    options = words.decode("latin-1").split(" ")
    status = int(options[0]) if options[0] in map(str, _STATUSES) else 200
    secure = "secure" in options
    site = _RULES if "rules" in options else _PLAIN
    decoded = "/" + os.fsdecode(path).lstrip("/")
    headers = HeaderRules(site, rules)
    fields = headers.apply(decoded, status, _GIVEN, secure)
    assert headers.apply(decoded, status, _GIVEN, secure) == fields
    _check_elsewhere(headers, decoded, status, {Origin.REWRITE, Origin.FALLBACK} & {_ORIGINS.get(o) for o in options})
    names = [name.lower() for name, _ in fields]
    for name, value in fields:
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        assert _VALUE.fullmatch(value)
    assert all(names.count(name) == 1 for name in names if name != "set-cookie")
    # What is the server's own is as it was, and Vary has lost nothing.
    assert [field for field in fields if field[0].lower() in RESERVED] == [
        field for field in _GIVEN if field[0].lower() in RESERVED
    ]
    members = re.split(r"\s*,\s*", dict(zip(names, (value for _, value in fields), strict=True))["vary"].lower())
    assert "accept-encoding" in members or members == ["*"]
    if not secure:
        assert "strict-transport-security" not in names
    if status >= _ERROR:
        assert "cache-control" not in names
    blocks = list(_blocks(text.decode("utf-8", "replace")))
    # A path is protected by a refusal or by passwords.
    paths = ProtectedPaths((*protected, *(rule.path for rule in passwords)))
    assert all(name and password for rule in passwords for name, password in rule.passwords.items())
    if any(block.protected and matches_host_pattern(block.path, decoded) for block in blocks):
        assert paths.cover(decoded)
    assert bool(paths) is any(block.protected for block in blocks)
    if site is _PLAIN:
        _check_values(blocks, decoded, status, fields)


def _check_elsewhere(headers: HeaderRules, path: str, status: int, origins: set[Origin]) -> None:
    """A file that is not the path's own is not kept by caches because of rules for the path."""
    for origin in origins:
        at_file = dict(headers.apply("/other", status, (), True))
        for name, value in headers.apply(path, status, (), True, "/other", origin):
            if name.lower() == "cache-control":
                assert value == at_file.get("Cache-Control", at_file.get(name)) or forbids_caching(name, value)


class _Block:
    """A path of the file, and what is said below it."""

    def __init__(self, path: str, *, followed: bool) -> None:
        self.path = path
        self.followed = followed
        self.protected = False
        self.values: dict[str, list[str]] = {}


def _blocks(text: str) -> Iterator[_Block]:
    block: _Block | None = None
    for whole in text.removeprefix("\ufeff").split("\n"):
        line = whole.strip()
        if not line or line.startswith("#"):
            continue
        path = re.sub(r"\s#.*", "", line, flags=re.DOTALL).rstrip()
        new = None
        if path.startswith("/"):
            new = _Block(re.sub("/+", "/", path), followed=True)
        elif host := re.match("https?://[^/]*", path, re.IGNORECASE):
            new = _Block(path[host.end() :] or "/", followed=False)
        elif (whole[0] == line[0] or "/" in path) and ":" not in path and path[0] != "!" and len(path.split()) == 1:
            new = None if re.fullmatch(r"basic[_-]*auth=?", path, re.IGNORECASE) else _Block("/" + path, followed=False)
        if new is not None:
            if block is not None:
                yield block
            block = new
        elif block is not None and re.match(r"!?\s*basic[\s_-]*auth([\s:=]|$)", line, re.IGNORECASE):
            block.protected = True
        elif block is not None and not line.startswith("!"):
            name, _, value = (part.strip() for part in line.partition(":"))
            # Any other value is left out with a warning.
            if _VALUE.fullmatch(value) and _can_be_filled(block.path, value):
                block.values.setdefault(name.lower(), []).append(value)
    if block is not None:
        yield block


def _can_be_filled(path: str, value: str) -> bool:
    stars = len(re.findall(r"\*+", path))
    names = [part[1:] for part in path.split("/")[1:] if re.fullmatch(_PLACEHOLDER, part)] + ["splat"] * stars
    wanted = re.findall(_PLACEHOLDER, value)
    if ":splat" in wanted and "splat" not in names:
        return False
    return all(names.count(name[1:]) < 2 and names.count("splat") < 2 for name in wanted if name[1:] in names)


def _readings(tokens: list[str], text: str) -> Iterator[dict[str, str]]:
    """All ways to give the placeholders of a path's tokens values, so that they make the text."""
    if not tokens:
        if not text:
            yield {}
        return
    token, *rest = tokens
    if token[0] == "=":
        if text.startswith(token[1:]):
            yield from _readings(rest, text[len(token) - 1 :])
        return
    longest = len(text) if token == "*" else len(text.partition("/")[0])
    for length in range(0 if token == "*" else 1, longest + 1):
        name = "splat" if token == "*" else token[1:]
        yield from ({**reading, name: text[:length]} for reading in _readings(rest, text[length:]))


def _tokens(path: str) -> list[str]:
    """Literal texts with "=" before them, "*" and ":name"."""
    pieces = re.split(rf"(\*+|(?<=/){_PLACEHOLDER}(?=/|\Z))", path)
    literals = (os.fsdecode(unquote_to_bytes(piece.encode("utf-8", "surrogatepass"))) for piece in pieces[::2])
    tokens = ["=" + next(literals)]
    for wildcard, literal in zip(pieces[1::2], literals, strict=True):
        tokens += ("*" if wildcard[0] == "*" else wildcard, "=" + literal)
    return tokens


def _filled(block: _Block, path: str, value: str) -> str:
    """A value with its placeholders filled in; empty where nothing can be sent."""
    names = [token[1:] if token[0] == ":" else "splat" for token in _tokens(block.path) if token[0] != "="]
    if not any(name[1:] in names for name in re.findall(_PLACEHOLDER, value)):
        return value
    readings = list(_readings(_tokens(block.path), path))
    assert len(readings) == 1

    def given(placeholder: re.Match[str]) -> str:
        text = readings[0].get(placeholder[0][1:])
        return placeholder[0] if text is None else "".join(map(_octet, os.fsencode(text)))

    filled = re.sub(_PLACEHOLDER, given, value).strip(" \t")
    return filled if len(filled) <= LONGEST_LINE else ""


def _octet(octet: int) -> str:
    character = chr(octet)
    return character if re.fullmatch(r"[A-Za-z0-9._~/!$&()*+=:@-]", character) else f"%{octet:02X}"


def _check_values(blocks: list[_Block], path: str, status: int, fields: Fields) -> None:
    """Every field that the server did not give is the last word of the file's rules for this path on its name."""
    said: dict[str, list[str]] = {}
    for block in blocks:
        if not block.followed or not matches_host_pattern(block.path, path):
            continue
        for name, values in block.values.items():
            joined = values if name == "set-cookie" else [", ".join(values)]
            filled = [text for text in (_filled(block, path, value) for value in joined) if text]
            if status not in _OF_FILES and name in _OF_CACHES:
                filled = [text for text in filled if forbids_caching(name, text)]
            if filled:
                said[name] = filled
    given = {name.lower(): value for name, value in _GIVEN}
    cookies = [value for name, value in fields if name.lower() == "set-cookie"]
    for name, value in fields:
        lowered = name.lower()
        if lowered == "vary" or given.get(lowered) == value:
            continue
        assert lowered in said
        if lowered == "set-cookie":
            assert set(cookies) <= set(said[lowered])
        else:
            assert [value] == said[lowered]
