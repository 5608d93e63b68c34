"""`_headers` files and the rules of a site: what they add can end no line and change nothing that is the server's own.

Strategy: an input is a path, a line `STATUS [secure] [options...]` and the file. What may be in the response is said by
a plain reading of the file, rule by rule.
"""

from __future__ import annotations

import os
import re
from typing import Final

from fuzz.targets.path_glob import matches_host_pattern
from ktlsd.fields import Fields
from ktlsd.header_rules import RESERVED, HeaderRules
from ktlsd.options import CacheOptions, HeaderOptions, HstsOptions, SiteOptions
from ktlsd.site_files import MOST_WARNINGS, parse_headers

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
_RULES: Final = SiteOptions(
    header=(HeaderOptions(path="/a/**", set={"X-Own": "1", "vary": "Origin"}, remove=("Server", "X-A")),),
    cache=(CacheOptions(path="*.html", control="no-cache"),),
    downloads=("*.zip",),
    hashed_names=True,
    hsts=HstsOptions(preload=True),
)
_PLAIN: Final = SiteOptions(nosniff=False)
_STATUSES: Final = (200, 206, 304, 301, 404, 412, 503)
_WARNING: Final = re.compile(r"_headers:[1-9][0-9]*: [ -~]+")
_VALUE: Final = re.compile(r"[!-~](?:[\t -~]*[!-~])?")
_ERROR: Final = 400


def check(data: bytes) -> None:
    path, _, rest = data.partition(b"\n")
    words, _, text = rest.partition(b"\n")
    rules, warnings, _ = parse_headers(text.decode("utf-8", "replace"))
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
    if site is _PLAIN:
        _check_values(text.decode("utf-8", "replace"), decoded, status, fields)


def _check_values(text: str, path: str, status: int, fields: Fields) -> None:
    """Every field that the server did not give is the last word of the file's rules for this path on its name."""
    said: dict[str, list[str]] = {}
    applies, fresh = False, set[str]()
    for line in (line.strip() for line in text.removeprefix("\ufeff").split("\n")):
        if not line or line.startswith("#"):
            continue
        if line.startswith("/"):
            applies, fresh = matches_host_pattern(line, path), set()
        elif re.match("https?://", line, re.IGNORECASE):
            applies = False
        elif applies and not line.startswith("!"):
            name, _, value = (part.strip() for part in line.partition(":"))
            name = name.lower()
            if not _VALUE.fullmatch(value):
                # Such a line is left out with a warning.
                continue
            if name not in fresh:
                fresh.add(name)
                said[name] = []
            said[name].append(value)
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
            assert value == ", ".join(said[lowered])
