"""Access to paths of a site: the checks that a request must pass before a file is looked up, and again for the file.

Strategy: each check has its paths and its own idea of a visitor (an address, a password, a signature). All checks of a
path must be passed. A remembered response names the checks that its first request passed; a later request passes them
without a wait, or takes the way of a new decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from msgspec import Struct, field

from ktlsd.config.limits import Limit
from ktlsd.http.decide import Response
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import Origin
from ktlsd.http.protected_paths import GuardedPaths, ProtectedPaths


class Visitor(Struct, eq=False):
    """A request as the checks see it."""

    method: bytes
    target: bytes
    """As it was sent."""
    fields: Mapping[bytes, bytes]
    """As request_fields.joined() gives them. Reads of these leave no trace in cache keys: the checks are made again for
    each use of a remembered response."""
    origin: Origin
    """The client's address and scheme, by what trusted proxies report."""
    certificate: str | None = None
    """The subject of the client's certificate, verified by the site's requirements."""
    certificate_names: frozenset[str] = frozenset()
    """The names of paths' rules that the certificate has."""
    certificate_fault: str = ""
    """Why the client's certificate is not accepted, if it sent one."""
    misdirected: bool = False
    """Whether the handshake was for another site, whose requirements on certificates are others."""
    user: bytes | None = None
    """The name that came with a password, right or wrong."""
    ends: int | None = None
    """When the signed link in the query ends, in seconds since the epoch; None without one."""
    passed: list[Check] = field(default_factory=list)
    """The checks that the request has passed."""
    excess: Excess | None = None
    """The limit of a rate that the client is at, if that is why the request is refused."""
    paths: list[str] = field(default_factory=list)
    """The paths whose checks it has passed."""


class Check(Protocol):
    """One rule about visitors of some paths. Its identity counts: a check is passed once in a request."""

    @property
    def paths(self) -> GuardedPaths | ProtectedPaths:
        """The paths that it guards."""

    def admits(self, visitor: Visitor) -> bool:
        """Whether a visitor passes, as far as that can be told without a wait; False in doubt."""

    async def refusal(self, visitor: Visitor) -> Response | None:
        """The response to a visitor that does not pass, else None. It may wait (attempt.needs_task())."""

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        """The fields of a response to a visitor that has passed, with what caches must know."""


class Limiting(Protocol):
    """A check that limits its visitors."""

    def excess(self, origin: Origin) -> Excess | None:
        """The limit that forbids one more request from there."""


class Excess(NamedTuple):
    """A limit that a client is at. Equal ones have equal refusals."""

    check: Limiting
    limit: Limit
    seconds: int
    """Until a request may be allowed again."""

    def is_that_of(self, origin: Origin) -> bool:
        """Whether it is the same for a request from there."""
        return self.check.excess(origin) == self


class Access:
    """The checks of one site."""

    def __init__(self, checks: Sequence[Check], changing: Callable[[], Sequence[Check]] = tuple) -> None:
        """They are made in this order; `changing` gives more, which come and go: always the same sequence until they
        do."""
        self._fixed = tuple(checks)
        self._changing = changing
        self._changed: Sequence[Check] | None = None
        self._all: tuple[Check, ...] = ()
        self._literals: tuple[str, ...] | None = None
        """GuardedPaths.literals of all checks; None if one has none."""

    def _checks(self) -> tuple[Check, ...]:
        changed = self._changing()
        if changed is not self._changed:
            self._changed, self._all = changed, (*self._fixed, *changed)
            literals = [check.paths.literals for check in self._all]
            self._literals = tuple(chain.from_iterable(filter(None, literals))) if None not in literals else None
        return self._all

    @property
    def empty(self) -> bool:
        """Whether there is no check at the moment."""
        return not self._checks()

    def may_guard(self, path: str) -> bool:
        """Whether a check may be for a decoded path, or for another one that a file system may take for the same. Most
        paths of a site get a quick no."""
        if not self._checks():
            return False
        if self._literals is None or not path.isascii():
            return True
        lowered = path.lower()
        return any(map(lowered.__contains__, self._literals))

    def guards(self, path: str) -> bool:
        """Whether any check is for a decoded path."""
        return self.may_guard(path) and any(check.paths.cover(path) for check in self._checks())

    def _left(self, visitor: Visitor, path: str) -> Iterator[Check]:
        """The checks of a decoded path that a visitor has not passed."""
        return (check for check in self._checks() if check not in visitor.passed and check.paths.cover(path))

    async def refusal(self, visitor: Visitor, paths: Iterable[str]) -> Response | None:
        """The response to a visitor that may not see one of these decoded paths; else None, and the checks are passed.

        `paths` are a request's, or those of an open file below the root: its name, and the place where links led to.
        """
        for path in paths:
            if path in visitor.paths or not self.may_guard(path):
                continue
            for check in self._left(visitor, path):
                refused = await check.refusal(visitor)
                if refused is not None:
                    return refused
                visitor.passed.append(check)
            visitor.paths.append(path)
        return None

    def hides(self, visitor: Visitor, paths: Iterable[str]) -> bool:
        """Whether a visitor has not passed all checks of one of these paths."""
        return any(True for path in paths for _ in self._left(visitor, path))
