"""Visitors of some paths by their networks: 403 for those that are denied, or not among those that are allowed. Pure.

Strategy: the address is the client's, by what trusted proxies report (forwarded.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from ktlsd.config.networks import Networks
from ktlsd.http.access import Visitor
from ktlsd.http.decide import Denied, Response, short
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import address_of_origin
from ktlsd.http.protected_paths import GuardedPaths

_REASON: Final = "the client's network has no access"


class NetworkCheck:
    """One [[access]] of a site."""

    def __init__(self, paths: GuardedPaths, allow: Iterable[str], deny: Iterable[str]) -> None:
        """Without `allow` all networks are allowed that are not denied. Raises ValueError."""
        self.paths = paths
        self._allow = Networks(allow)
        self._deny = Networks(deny)

    def admits(self, visitor: Visitor) -> bool:
        """Whether the visitor's network is allowed."""
        address = address_of_origin(visitor.origin)
        return (not self._allow or self._allow.holds(address)) and not self._deny.holds(address)

    async def refusal(self, visitor: Visitor) -> Response | None:
        """403 for any other."""
        if self.admits(visitor):
            return None
        return short(HTTPStatus.FORBIDDEN, _REASON, head=visitor.method == b"HEAD", denied=Denied.NETWORK)

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        """A network says nothing to caches."""
        return fields
