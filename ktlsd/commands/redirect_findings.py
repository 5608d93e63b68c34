"""Warnings of `ktlsd check` about redirects: loops, and rules that never apply.

Strategy: a path that each rule is for is followed from redirect to redirect, also to other sites of the same
configuration and by the slash that a folder gets, as a browser would; a place that comes again is a loop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ktlsd.commands.site_findings import absence
from ktlsd.config.findings import Finding, Place, sites_of
from ktlsd.config.options import NamedSiteOptions, Settings, SiteOptions
from ktlsd.http.host_names import Sites
from ktlsd.http.path_glob import decoded
from ktlsd.http.redirects import Redirected, Redirects
from ktlsd.http.request_target import target_of_path

MOST_REDIRECTS: Final = 20
"""So many redirects in a row browsers follow (Fetch standard, section 4.5)."""

_PLACEHOLDER: Final = re.compile(r"(?<=/):[A-Za-z][A-Za-z0-9_]*(?=/|\Z)|\*\Z")
_USUAL_PORTS: Final = frozenset({None, 80, 443})


class _Routed(NamedTuple):
    place: Place
    site: SiteOptions
    redirects: Redirects


class _At(NamedTuple):
    """The place of a browser: a site, and a path."""

    routed: _Routed
    path: str

    def key(self) -> tuple[Place, str]:
        return self.routed.place, self.path


def findings(settings: Settings) -> Iterator[Finding]:
    """The findings of all sites."""
    all_sites = [_Routed(place, site, Redirects(site.redirect)) for place, site in sites_of(settings)]
    named = [(routed.site.names, routed) for routed in all_sites if isinstance(routed.site, NamedSiteOptions)]
    by_name: Sites[_Routed | None] = Sites(None, named)
    told: set[frozenset[tuple[Place, str]]] = set()
    for routed in all_sites:
        for number, rule in enumerate(routed.site.redirect):
            here = (*routed.place, "redirect", number)
            before = [
                (other.from_, other.regex) == (rule.from_, rule.regex) or other.from_ == "/*"
                for other in routed.site.redirect[:number]
            ]
            first = next((index for index, same in enumerate(before) if same), None)
            if first is not None:
                what = f"never counts: redirect[{first}] is for the same paths, and the first rule that matches counts"
                yield Finding(here, what, "leave it out, or put it before that one")
                continue
            if rule.from_ is None:
                # There is no telling a path that an expression is for.
                continue
            loop = _loop(_At(routed, _PLACEHOLDER.sub("x", decoded(rule.from_))), by_name)
            if loop and frozenset(at.key() for at in loop) not in told:
                told.add(frozenset(at.key() for at in loop))
                way = " to ".join(_shown(at) for at in loop[:4]) + (" to ..." if len(loop) > 4 else "")
                yield Finding(here, f"a redirect loop: {way}", "have one of them lead elsewhere")


def _loop(start: _At, by_name: Sites[_Routed | None]) -> list[_At]:
    """The places of a loop, the first once more at the end; empty if the way ends, or leads into another rule's."""
    way = [start]
    while (following := _next(way[-1], by_name)) is not None:
        way.append(following)
        if following.key() == start.key() or len(way) > MOST_REDIRECTS:
            return way
        if any(following.key() == at.key() for at in way[:-1]):
            return []
    return []


def _next(at: _At, by_name: Sites[_Routed | None]) -> _At | None:
    """The place to which a browser is redirected; None if it gets a file or an error, or leaves these sites."""
    found = at.routed.redirects.find(at.path, "", exists=True)
    if found is None:
        site = at.routed.site
        if not at.path.endswith("/") and _is_folder(site, at.path):
            return _At(at.routed, f"{at.path}/")
        if not absence(site, at.path):
            return None
        found = at.routed.redirects.find(at.path, "", exists=False)
    if not isinstance(found, Redirected):
        return None
    try:
        url = urlsplit(found.location)
        path = decoded(url.path) or "/"
        if not url.netloc:
            return _At(at.routed, path)
        routed = by_name.of_name(url.hostname) if url.port in _USUAL_PORTS else None
    except ValueError:
        # An address or a port that no browser takes.
        return None
    return None if routed is None else _At(routed, path)


def _is_folder(site: SiteOptions, path: str) -> bool:
    """Whether a path without a slash at its end is answered by a redirect to the path with one."""
    target = target_of_path(path)
    if target is None or site.root is None or site.try_files:
        return False
    if site.clean_urls and not absence(site, f"{path}.html"):
        return False
    return os.path.isdir(os.path.join(os.fsencode(site.root), *target.names))


def _shown(at: _At) -> str:
    site = at.routed.site
    return f"{site.names[0]}{at.path}" if isinstance(site, NamedSiteOptions) else at.path
