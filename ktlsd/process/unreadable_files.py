"""Files that a start reads as root, and that the user who serves may not read again: their changes have no effect.

Strategy: one finding for all certificates and one for all other files, for the log of a start and for `ktlsd check`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ktlsd.config.findings import Finding, Place, sites_of
from ktlsd.config.options import Settings

Placed = tuple[Place, Path]
"""The place of a key, and a file that it names."""


def findings(settings: Settings, configuration: Path | None = None) -> Iterator[Finding]:
    """The findings for the effective user of this process; `configuration` is the file of the settings."""
    remedy = (
        "let the user's group read copies of them, or restart ktlsd after each renewal"
        " (docs/operations.md, Without systemd)"
    )
    yield from _finding(_certificates(settings), "renewed certificates will not be loaded", remedy)
    files = [*_others(settings), *([] if configuration is None else [((), configuration)])]
    remedy = f"let the group read it (chgrp {os.getegid()}, chmod g+r), or restart ktlsd after each change"
    yield from _finding(files, "changes will not be read, and a reload will be refused", remedy)


def _finding(files: Iterable[Placed], effect: str, remedy: str) -> Iterator[Finding]:
    barred = {path: place for place, path in files if not os.access(path, os.R_OK, effective_ids=True)}
    if barred:
        first, place = next(iter(barred.items()))
        more = f" and {len(barred) - 1} more" if len(barred) > 1 else ""
        account = f"user {os.geteuid()}, group {os.getegid()}"
        yield Finding(place, f"{effect}: {account} may not read {first}{more}", remedy)


def _certificates(settings: Settings) -> Iterator[Placed]:
    for place, site in sites_of(settings):
        for key in ("cert", "key"):
            yield from (((*place, key, number), path) for number, path in enumerate(getattr(site, key)))
        for key in ("client_ca", "client_crl"):
            if (path := getattr(site, key)) is not None:
                yield (*place, key), path


def _others(settings: Settings) -> Iterator[Placed]:
    for place, site in sites_of(settings):
        yield from (((*place, "signed", number, "keys"), rule.keys) for number, rule in enumerate(site.signed))
        yield from (((*place, "auth", number, "users"), rule.users) for number, rule in enumerate(site.auth))
        if site.maintenance is not None and site.maintenance.page is not None:
            yield (*place, "maintenance", "page"), site.maintenance.page
