"""Visitors of some paths by their client certificates: 403 without a verified one ([[access]]). Pure.

Strategy: the handshake has verified the certificate by the site's authorities. One for another site says nothing: 421,
so that the client comes back over a connection of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from ktlsd.http.access import Visitor
from ktlsd.http.cache_fields import private
from ktlsd.http.decide import Denied, Response, short
from ktlsd.http.fields import Fields
from ktlsd.http.protected_paths import GuardedPaths


class CertificateCheck:
    """The certificate of one [[access]] of a site."""

    def __init__(self, paths: GuardedPaths, names: Iterable[str] = ()) -> None:
        """One of `names`, if there are any, must be a name of the certificate."""
        self.paths = paths
        self._names = frozenset(names)

    def admits(self, visitor: Visitor) -> bool:
        """Whether the visitor's certificate is verified and has one of the names."""
        return visitor.certificate is not None and (
            not self._names or not self._names.isdisjoint(visitor.certificate_names)
        )

    async def refusal(self, visitor: Visitor) -> Response | None:
        """403 to a visitor without such a certificate, or 421."""
        if self.admits(visitor):
            return None
        head = visitor.method == b"HEAD"
        if visitor.misdirected:
            reason = "a client certificate counts only in a handshake for its own site"
            return short(HTTPStatus.MISDIRECTED_REQUEST, reason, head=head, denied=Denied.CERTIFICATE)
        if visitor.certificate is not None:
            reason = f"the client certificate {visitor.certificate} has none of the names"
        elif visitor.certificate_fault:
            reason = f"the client certificate is not accepted: {visitor.certificate_fault}"
        else:
            reason = "no client certificate"
        return short(HTTPStatus.FORBIDDEN, reason, head=head, denied=Denied.CERTIFICATE)

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        """For the caches of this visitor only."""
        return private(fields)
