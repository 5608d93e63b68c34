"""The checks of access of one site, from its options, in the order in which they are made.

Strategy: one class for each kind of check (ktlsd/http/access.py); those that need no file are pure and live in http/.
"""

from __future__ import annotations

import time

from ktlsd.config.options import SiteOptions
from ktlsd.http.access import Check
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.network_check import NetworkCheck
from ktlsd.http.protected_paths import GuardedPaths
from ktlsd.http.rate_check import RateCheck


def checks_of(site: SiteOptions, networks: ClientNetworks) -> list[Check]:
    """Cheap checks come first: a network that is denied is never asked for a password."""

    def guarded(path: str) -> GuardedPaths:
        return GuardedPaths((path,), site.index, site.try_files)

    return [
        *(NetworkCheck(guarded(rule.path), rule.allow, rule.deny) for rule in site.access),
        *(RateCheck(guarded(rule.path), rule, networks, time.monotonic) for rule in site.rate),
    ]
