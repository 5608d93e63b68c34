"""Certificates and keys that systemd makes readable for a service only while it runs (LoadCredential=).

Strategy: before the service runs, its folder below /run/credentials is not there: `ktlsd check` says so in one line for
each file, and checks the rest as if these sites had the self-signed certificate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ktlsd.config.findings import Finding, sites_of
from ktlsd.config.options import Settings, SiteOptions

Options = TypeVar("Options", bound=SiteOptions)

_FOLDER: Final = Path("/run/credentials")


def findings(settings: Settings) -> Iterator[Finding]:
    """A finding for each pair that cannot be checked yet."""
    for place, site in sites_of(settings):
        for number, pair in enumerate(zip(site.cert, site.key, strict=True)):
            unit = next(filter(None, map(_absent_unit, pair)), None)
            if unit is not None:
                what = f"systemd makes this file when {unit} starts (LoadCredential=), so the pair is not checked"
                yield Finding((*place, "cert", number), what, "check again as root while it runs")


def without_absent(settings: Settings) -> Settings:
    """Settings without the certificates of sites with pairs that cannot be checked yet."""
    sites = tuple(_without_absent(site) for site in settings.site)
    return msgspec.structs.replace(_without_absent(settings), site=sites)


def _without_absent(site: Options) -> Options:
    if not any(map(_absent_unit, (*site.cert, *site.key))):
        return site
    return msgspec.structs.replace(site, cert=(), key=())


def _absent_unit(path: Path) -> str | None:
    """The unit whose credential a path is, if the unit does not run."""
    if not path.is_relative_to(_FOLDER) or path.parent == _FOLDER:
        return None
    unit = path.relative_to(_FOLDER).parts[0]
    return None if (_FOLDER / unit).is_dir() else unit
