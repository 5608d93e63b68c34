"""Configuration: any file and any option is a Settings or one line that names what is wrong, and where.

Strategy: an input is lines `option=value` of the command line, a NUL, and the file. What is accepted is put to use, as
far as that needs no files.
"""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

from ktlsd.commands.check import warnings_of
from ktlsd.config.options import NamedSiteOptions, Settings, SiteOptions, default_site
from ktlsd.config.printable import one_line
from ktlsd.config.refusal import SettingsError
from ktlsd.http.cors import Cors
from ktlsd.http.header_rules import HeaderRules
from ktlsd.http.host_names import Sites
from ktlsd.http.redirects import Redirects
from ktlsd.settings import load
from ktlsd.site.content_types import ContentTypes

_REPEATED: Final = frozenset({"listen", "http_listen", "cert", "key"})
_TEXTS: Final = frozenset(
    [
        "root",
        "acme_challenges",
        "metrics_listen",
        "workers",
        "ktls",
        "access_log",
        "access_log_format",
        "error_log",
        "libssl",
        "log_level",
    ]
)
TOKENS: Final = (
    b"\0",
    b"root='/'\n",
    b"[[site]]\n",
    b"names=['a.b']\n",
    b"[cors]\norigins=['*']\n",
    b"[hsts]\n",
    b"[[redirect]]\nfrom='/a'\nto='/b'\n",
    b"[[header]]\npath='**'\n",
    b"[[cache]]\npath='*'\ncontrol='no-store'\n",
    b"[types]\n'.a'='a/b'\n",
    b"[error_pages]\n404='/x'\n",
    b"'''",
    b'"""',
    b"\\u0000",
    b"=[",
    b"={",
    b"true",
    b"1e9",
    b"1979-05-27",
    *(name.encode() + b"=" for name in sorted(_TEXTS | _REPEATED | set(Settings.__struct_fields__))),
)


def check(data: bytes) -> None:
    before, _, document = data.partition(b"\0")
    path = _scratch() / "ktlsd.toml"
    path.write_bytes(document)
    options = _options(before.decode("utf-8", "replace"))
    try:
        loaded = load(options | {"config": path}, {})
    except SettingsError as error:
        _check_complaint(str(error), path, document)
        return
    _use(loaded.settings)
    for warning in warnings_of(loaded):
        assert warning == one_line(warning)
        place = re.match(r":([0-9]+): warning: .+: .", warning.removeprefix(str(path)))
        assert place is not None, warning
        assert 1 <= int(place[1]) <= document.count(b"\n") + 1


def _options(text: str) -> dict[str, Any]:
    """What argparse would give."""
    options: dict[str, Any] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals and name in _REPEATED:
            options.setdefault(name, []).append(value)
        elif equals and name in _TEXTS:
            options[name] = value
        elif name in ("listing", "dotfiles"):
            options[name] = True
    return options


def _check_complaint(text: str, path: Path, document: bytes) -> None:
    # cli.py puts it on one line; it must not need that.
    assert text == one_line(text)
    assert len(text) < 4000
    if text.startswith(f"{path}:"):
        place = re.match(r":([0-9]+): .", text[len(str(path)) :])
        if place is None:
            assert re.match(
                ": (is not TOML|is not UTF-8 text|cannot be read|root is missing): .", text[len(str(path)) :]
            )
        else:
            assert 1 <= int(place[1]) <= document.count(b"\n") + 1
    else:
        assert re.match("--[a-z-]+: .|--(cert|key) without|there are [0-9]+ of --|no folder to serve", text)


def _use(settings: Settings) -> None:
    default = default_site(settings)
    assert default.root is not None
    named: list[tuple[tuple[str, ...], SiteOptions]] = [(site.names, site) for site in settings.site]
    sites = Sites(default, named)
    names = [name for site in settings.site for name in site.names]
    assert len(set(names)) == len(names)
    for site in (default, *settings.site):
        HeaderRules(site)
        Redirects(site.redirect).find("/a/b", "c=d", exists=False)
        ContentTypes(site.types, site.charset, site.encoded).encoded(b"a.html.gz")
        if site.cors is not None:
            Cors(site.cors).fields("/", "https://example.org")
        assert len(site.cert) == len(site.key)
        if isinstance(site, NamedSiteOptions):
            assert site.root is not None
            for name in site.names:
                assert name == name.lower()
                assert sites.of_name(name.replace("*", "x")) is not default or default is site or name.startswith("*")


@cache
def _scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="ktlsd-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: Final[list[tempfile.TemporaryDirectory[str]]] = []
"""Folders that go when the process ends."""
