"""Warnings of `ktlsd check` about certificates: expired, not yet valid, or for other names.

Strategy: OpenSSL reads each certificate and says which names it covers, as it would for a client; check.py has
already refused unreadable ones, as a start would.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from ktlsd.commands.credentials import without_absent
from ktlsd.config.findings import Finding, Place, sites_of
from ktlsd.config.options import NamedSiteOptions, Settings, SiteOptions, by_acme
from ktlsd.openssl.errors import ContextError, LibraryError
from ktlsd.ssl_ffi import Library, Pair
from ktlsd.tls.pairs import out_of_time

_ANY_LABEL: Final = "ktlsd-check"
"""Stands for any name of a wildcard."""


def findings(settings: Settings) -> Iterator[Finding]:
    """The findings of all sites that have certificates; the self-signed one for localhost needs no check."""
    if by_acme(settings):
        from ktlsd.acme.settings import without_certificates

        # `ktlsd doctor` looks at those by ACME.
        settings = without_certificates(settings)
    settings = without_absent(settings)
    sites = [found for found in sites_of(settings) if found[1].cert]
    try:
        library = Library(settings.libssl) if sites else None
    except LibraryError:
        # The start says so.
        return
    if library is None:
        return
    for place, site in sites:
        for number, (certificate, key) in enumerate(zip(site.cert, site.key, strict=True)):
            try:
                pair = Pair(library, str(certificate), str(key))
            except (ContextError, OSError) as error:
                yield Finding((*place, "cert", number), str(error), "mend it")
                continue
            with contextlib.closing(pair):
                yield from _of_pair((*place, "cert", number), pair, site)


def _of_pair(place: Place, pair: Pair, site: SiteOptions) -> Iterator[Finding]:
    if line := out_of_time(pair.begins, pair.ends, time.time()):
        what, _, remedy = line.rpartition(": ")
        yield Finding(place, f"{pair.certificate} {what}", remedy)
    names = site.names if isinstance(site, NamedSiteOptions) else ()
    if uncovered := [name for name in names if not pair.covers(name.replace("*", _ANY_LABEL))]:
        what = f"{pair.certificate} does not cover {', '.join(uncovered)}"
        yield Finding(place, what, "have one made with these names among its subject alternative names")
