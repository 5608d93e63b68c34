"""Visitors of some paths by name and password: 401 for any other ([[auth]], Basic-Auth in `_headers`).

Strategy: a password that is known to be right passes without a wait (passwords.py). Over plain HTTP none is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from ktlsd.config.limits import Limit
from ktlsd.http.access import Visitor
from ktlsd.http.basic_auth import challenge, credentials, is_preflight
from ktlsd.http.cache_fields import private
from ktlsd.http.decide import Denied, Response, short
from ktlsd.http.fields import Fields, add_vary
from ktlsd.http.protected_paths import GuardedPaths, ProtectedPaths
from ktlsd.site import password_hashes
from ktlsd.site.password_file import Users
from ktlsd.site.passwords import Passwords, Verdict
from ktlsd.site.watched_file import WatchedFile

_FIELD: Final = b"authorization"


class FixedUsers:
    """The users of a Basic-Auth line of `_headers`, whose file is read by rules.py."""

    due: Final = False

    def __init__(self, passwords: Mapping[bytes, bytes]) -> None:
        """`passwords` by name, as they stand in the file."""
        self.value = Users({name: password_hashes.quick(password) for name, password in passwords.items()})

    async def refresh(self) -> None:
        """They are as they are."""


class PasswordCheck:
    """One [[auth]] of a site, or the Basic-Auth lines of one path of `_headers`."""

    def __init__(
        self,
        paths: GuardedPaths | ProtectedPaths,
        file: WatchedFile[Users] | FixedUsers,
        realm: str,
        passwords: Passwords,
    ) -> None:
        self.paths = paths
        self._file = file
        self._challenge = challenge(realm)
        self._passwords = passwords

    def admits(self, visitor: Visitor) -> bool:
        """Whether the visitor's password is known to be right."""
        if is_preflight(visitor.method, visitor.fields):
            return True
        if not visitor.origin.https or self._file.due:
            return False
        given = credentials(visitor.fields.get(_FIELD))
        if given is None:
            return False
        visitor.user = given.user
        return self._passwords.knows(self._file.value, given)

    async def refusal(self, visitor: Visitor) -> Response | None:
        """401 to a visitor without a right password."""
        if is_preflight(visitor.method, visitor.fields):
            return None
        head = visitor.method == b"HEAD"
        if not visitor.origin.https:
            reason = "a password is not asked for over plain HTTP"
            return short(HTTPStatus.FORBIDDEN, reason, head=head, denied=Denied.PLAIN_HTTP)
        await self._file.refresh()
        given = credentials(visitor.fields.get(_FIELD))
        if given is None:
            return self._ask("no password", Denied.NO_PASSWORD, head=head)
        visitor.user = given.user
        users = self._file.value
        if self._passwords.knows(users, given):
            return None
        shown = given.user.decode("utf-8", "replace")
        if not users.hashes:
            return self._ask(f"wrong password or unknown user: {shown}", Denied.WRONG_PASSWORD, head=head)
        verdict, seconds = await self._passwords.verify(users, given, visitor.origin)
        retry = (("Retry-After", str(seconds)),)
        match verdict:
            case Verdict.RIGHT:
                return None
            case Verdict.WRONG:
                return self._ask(f"wrong password or unknown user: {shown}", Denied.WRONG_PASSWORD, head=head)
            case Verdict.TOO_MANY:
                reason, denied = "too many passwords of the client's network", Denied.TOO_MANY_PASSWORDS
                status, limit = HTTPStatus.TOO_MANY_REQUESTS, Limit.CLIENT_PASSWORDS
                return short(status, reason, head=head, extra=retry, denied=denied, limit=limit)
            case Verdict.BUSY:
                reason = "too many passwords to verify"
                return short(HTTPStatus.SERVICE_UNAVAILABLE, reason, head=head, extra=retry, denied=Denied.BUSY)

    def _ask(self, reason: str, denied: Denied, *, head: bool) -> Response:
        return short(HTTPStatus.UNAUTHORIZED, reason, head=head, extra=(self._challenge,), denied=denied)

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        """For the caches of this visitor only."""
        return add_vary(private(fields), "Authorization")
