"""The checks of access of one site, from its options, in the order in which they are made.

Strategy: one class for each kind of check (ktlsd/http/access.py); those that need no file are pure and live in http/.
"""

from __future__ import annotations

from ktlsd.config.options import SiteOptions
from ktlsd.http.access import Check
from ktlsd.http.network_check import NetworkCheck
from ktlsd.http.protected_paths import GuardedPaths


def checks_of(site: SiteOptions) -> list[Check]:
    """Cheap checks come first: a network that is denied is never asked for a password."""
    return [
        NetworkCheck(GuardedPaths((rule.path,), site.index, site.try_files), rule.allow, rule.deny)
        for rule in site.access
    ]
