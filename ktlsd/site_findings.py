"""What `ktlsd check` warns of in a site's keys: files that answer for others, rules, HSTS.

Strategy: each function looks at one key of one site and yields what a request would make of it; files are looked for as
a request would find them, by their path below the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ktlsd.findings import Finding, Place, sites_of
from ktlsd.options import HstsOptions, Settings

PRELOAD_SECONDS: Final = 31536000
"""The least max-age, in seconds, that browsers' preload list takes (hstspreload.org, since 2017)."""


def findings(settings: Settings) -> Iterator[Finding]:
    """The findings of all sites."""
    for place, site in sites_of(settings):
        if site.hsts is not None:
            yield from _hsts((*place, "hsts"), site.hsts)


def _hsts(place: Place, hsts: HstsOptions) -> Iterator[Finding]:
    if not hsts.preload:
        return
    if hsts.max_age < PRELOAD_SECONDS:
        what = f"preload with max_age = {hsts.max_age}: browsers' preload list takes {PRELOAD_SECONDS} seconds or more"
        yield Finding((*place, "max_age"), what, f"set max_age = {PRELOAD_SECONDS}, or leave preload out")
    if not hsts.include_subdomains:
        what = "preload without include_subdomains: browsers' preload list takes no such site"
        yield Finding((*place, "preload"), what, "set include_subdomains = true, or leave preload out")
