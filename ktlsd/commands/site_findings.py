"""Warnings of `ktlsd check` about a site's keys: missing files, rules that never apply, private files in the root.

Strategy: each function looks at one key of one site and yields its findings; files are looked up as for a request,
by their path below the root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ktlsd.config.findings import Finding, Place, sites_of
from ktlsd.config.options import HstsOptions, Settings, SiteOptions
from ktlsd.config.refusal import cause
from ktlsd.http.hidden_paths import HiddenPaths
from ktlsd.http.request_target import target_of_path
from ktlsd.site.rule_files import (
    HEADERS_FILE,
    LARGEST_FILE,
    REDIRECTS_FILE,
    HeadersFile,
    RedirectsFile,
    parse_headers,
    parse_redirects,
)

PRELOAD_SECONDS: Final = 31536000
"""The least max-age, in seconds, that browsers' preload list takes (hstspreload.org, since 2017)."""

_PATH: Final = "{path}"
# Of nginx's try_files ($uri, @name), and of Caddy's ({http.request.uri.path}).
_FOREIGN: Final = re.compile(r"\$\w*|\{(?!path\})[^}]*\}")
_EVERYTHING: Final = frozenset({"*", "**", "/**"})
"""Patterns that match every path."""


def findings(settings: Settings) -> Iterator[Finding]:
    """The findings of all sites."""
    for place, site in sites_of(settings):
        if site.hsts is not None:
            yield from _hsts((*place, "hsts"), site.hsts)
        yield from _index((*place, "index"), site.index)
        yield from _try_files((*place, "try_files"), site)
        yield from _answering(place, site)
        yield from _caches((*place, "cache"), site)
        yield from _host_files(place, site)
        yield from _listing(place, site)
    yield from _exposed(settings)


def absence(site: SiteOptions, path: str) -> str:
    """The reason why a path (decoded, below the root) gives no file; empty if it gives one."""
    target = target_of_path(path)
    if target is None:
        return "the path climbs above the root"
    if site.root is None:
        return "there is no root"
    if target.hidden() and not site.dotfiles:
        return "a name that begins with a dot is not served"
    if site.hide and HiddenPaths(site.hide).cover(target.file_path(), folder=target.directory):
        return "a pattern of hide matches it"
    root = os.path.realpath(os.fsencode(site.root))
    named = os.path.join(root, *target.names)
    if site.clean_urls and target.names and not target.directory and os.path.isfile(named + b".html"):
        return ""
    file = os.path.realpath(named)
    if not _is_in(file, root):
        return f"a link leads out of {site.root}"
    if os.path.isdir(file):
        names = (os.path.join(file, os.fsencode(name)) for name in site.index)
        return "" if any(map(os.path.isfile, names)) else f"a folder in {site.root} without an index file"
    return "" if os.path.isfile(file) and not target.directory else f"no such file in {site.root}"


def _is_in(path: bytes, folder: bytes) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _hsts(place: Place, hsts: HstsOptions) -> Iterator[Finding]:
    if not hsts.preload:
        return
    if hsts.max_age < PRELOAD_SECONDS:
        what = f"preload with max_age = {hsts.max_age}: browsers' preload list takes {PRELOAD_SECONDS} seconds or more"
        yield Finding((*place, "max_age"), what, f"set max_age = {PRELOAD_SECONDS}, or leave preload out")
    if not hsts.include_subdomains:
        what = "preload without include_subdomains: browsers' preload list takes no such site"
        yield Finding((*place, "preload"), what, "set include_subdomains = true, or leave preload out")


def _index(place: Place, names: Sequence[str]) -> Iterator[Finding]:
    for number, name in enumerate(names):
        if "/" in name:
            what = f"{name} has a slash, but an index file is a name in the folder that was asked for"
            last = name.rstrip("/").rpartition("/")[2]
            yield Finding((*place, number), what, f"write {last}" if last else "write a name such as index.html")


def _try_files(place: Place, site: SiteOptions) -> Iterator[Finding]:
    for number, path in enumerate(site.try_files):
        here = (*place, number)
        if path.startswith("="):
            continue
        if path.startswith("@"):
            what = f"{path} is a file's name here, not a location as in nginx"
            yield Finding(here, what, "leave it out: the answer is 404 if no entry is found")
        elif foreign := _FOREIGN.search(path):
            what = f"{foreign[0]} stands for itself here"
            yield Finding(here, what, f"write {_PATH} for the path that was asked for")
        elif _PATH not in path and (reason := absence(site, path)):
            yield Finding(here, f"{path}: {reason}", "create the file, or name another")


def _answering(place: Place, site: SiteOptions) -> Iterator[Finding]:
    """The files that answer for what is not found, and for errors."""
    named: list[tuple[Place, str]] = [((*place, "error_pages", name), path) for name, path in site.error_pages.items()]
    named += (((*place, "error_page", number), rule.file) for number, rule in enumerate(site.error_page))
    if site.fallback is not None:
        named.append(((*place, "fallback"), site.fallback))
    for here, path in named:
        if reason := absence(site, path):
            yield Finding(here, f"{path}: {reason}", "create the file, or name another")


def _caches(place: Place, site: SiteOptions) -> Iterator[Finding]:
    for number, rule in enumerate(site.cache):
        before = [
            (other.path, other.regex) == (rule.path, rule.regex) or other.path in _EVERYTHING
            for other in site.cache[:number]
        ]
        first = next((index for index, same in enumerate(before) if same), None)
        if first is not None:
            what = f"never counts: cache[{first}] matches the same paths, and the first rule that matches counts"
            yield Finding((*place, number), what, "put this rule before it")


def _host_files(place: Place, site: SiteOptions) -> Iterator[Finding]:
    """Lines of `_headers` and `_redirects` that are ignored: unsupported ones; in a file that is not used, those that
    protect paths."""
    for key, name in (("headers_file", HEADERS_FILE), ("redirects_file", REDIRECTS_FILE)):
        if site.root is None:
            continue
        used = getattr(site, key)
        try:
            parsed = _parsed(site.root, name)
        except FileNotFoundError:
            # A deployment may bring it later.
            continue
        except OSError as error:
            if used:
                yield Finding((*place, key), f"cannot be read: {cause(error)}", "make it a file that ktlsd may read")
            continue
        if used:
            for warning in parsed.warnings:
                yield Finding((*place, key), f"{site.root}/{warning}", "mend this line, which is left out")
        elif parsed.protected or (isinstance(parsed, HeadersFile) and parsed.passwords):
            what = f"{site.root}/{name} is not used: its lines that protect paths have no effect"
            if name == HEADERS_FILE and not absence(site, f"/{name}"):
                what += ", and every client can fetch it with its passwords"
            yield Finding((*place, key), what, f"set {key} = true, or remove the file")


def _listing(place: Place, site: SiteOptions) -> Iterator[Finding]:
    """Options of listings without a listing."""
    for key in ("readme", "thumbnails", "zip_bytes", "tar_bytes"):
        if getattr(site, key) and not site.listing:
            yield Finding((*place, key), "has no effect: folders are not listed", "set listing = true, or remove it")


def _parsed(root: Path, name: str) -> HeadersFile | RedirectsFile:
    """`_headers` or `_redirects` in a root. Raises OSError."""
    # A FIFO must not hold up the check.
    with open(os.open(root / name, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
        text = (opened.read(LARGEST_FILE + 1) or b"").decode("utf-8", "replace")
    return parse_headers(text) if name == HEADERS_FILE else parse_redirects(text)


def _exposed(settings: Settings) -> Iterator[Finding]:
    """Files with secrets, and logs, that every client could fetch."""
    private: list[tuple[Place, Path | None]] = [(("ticket_keys",), settings.ticket_keys)]
    for key in ("error_log", "access_log"):
        log = getattr(settings, key)
        private.append(((key,), None if log is None else log.path))
    for place, site in sites_of(settings):
        private += (((*place, "key", number), path) for number, path in enumerate(site.key))
    for place, path in private:
        if path is not None and (root := _serves(settings, path)):
            yield Finding(place, f"{path} is below the root {root}: everybody can fetch it", "move it elsewhere")


def _serves(settings: Settings, path: Path) -> Path | None:
    """The root below which a file is served."""
    file = os.path.realpath(os.fsencode(path))
    for _, site in sites_of(settings):
        root = os.path.realpath(os.fsencode(site.root or ""))
        if _is_in(file, root) and (site.dotfiles or not _hidden(os.path.relpath(file, root).split(b"/"))):
            return site.root
    return None


def _hidden(names: Iterable[bytes]) -> bool:
    return any(name.startswith(b".") for name in names)
