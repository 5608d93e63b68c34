"""The warnings of `ktlsd check`: settings that a start accepts, but that do not do what they seem to. Pure.

Strategy: a check is a function from Settings to Findings; check.py has the list of all checks, looks up the line of
each finding's key, and prints it. A check looks at each site; a finding that several sites inherit is printed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ktlsd.config.options import Settings, SiteOptions

Place = tuple[str | int, ...]
"""A key by its path: ("user",), ("site", 1, "cert", 0)."""


class Finding(NamedTuple):
    """One warning: `what` is wrong at the key, and the `remedy`, each a phrase without a full stop."""

    place: Place
    """The key: that of a site ("site", 1, "fallback") stands for the top level's where the site inherits it."""
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


Check = Callable[[Settings], Iterable[Finding]]
"""Checks the settings, and the files they name. Raises nothing: an unreadable file is a finding."""


def sites_of(settings: Settings) -> Iterator[tuple[Place, SiteOptions]]:
    """Each site that is served, and the place of its keys: () for the top level, ("site", 1) for a [[site]]."""
    if settings.root is not None:
        yield (), settings
    for number, site in enumerate(settings.site):
        yield ("site", number), site
