"""Verification of passwords for all sites of a process: in few threads, with a limit for each client network.

Strategy: a hash costs up to hundreds of milliseconds, so a right password is remembered for a while, under a digest
with a random key. Requests with the same unknown password share one verification. A client network has a token bucket
of wrong passwords; a token is taken before the verification and put back if the password was right. The length of the
queue bounds all networks together. Unknown users cost the time of a known one.
"""

from __future__ import annotations

import enum
import hmac
import math
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from ktlsd.attempt import needs_task
from ktlsd.config.limits import TokenBuckets
from ktlsd.config.options import LimitOptions
from ktlsd.http.basic_auth import Credentials
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.forwarded import Origin

if TYPE_CHECKING:
    # It is imported only if it is configured.
    from ktlsd.site.password_file import Users

THREADS: Final = 2
"""Verifications at the same time."""
MOST_QUEUED: Final = 64
"""Verifications that are in progress or wait for a thread."""
MOST_QUEUED_OF_NETWORK: Final = 4
REMEMBERED_SECONDS: Final = 300.0

_MINUTE: Final = 60.0


class Verdict(enum.Enum):
    """The outcome of a verification."""

    RIGHT = enum.auto()
    WRONG = enum.auto()
    TOO_MANY = enum.auto()
    """The client network has sent too many wrong passwords, or too many at a time."""
    BUSY = enum.auto()
    """Too many verifications wait."""


class _Pending:
    """A verification in progress."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.right: bool | None = None
        """None if it was given up."""


class Passwords:
    """The verifications of one process."""

    def __init__(self, limits: LimitOptions, networks: ClientNetworks) -> None:
        self._networks = networks
        most = limits.client_wrong_passwords_per_minute
        self._buckets = TokenBuckets(most / _MINUTE, most) if most else None
        self._key = os.urandom(32)
        self._threads = trio.CapacityLimiter(THREADS)
        self._pending: dict[bytes, _Pending] = {}
        self._of_network: dict[int, int] = {}
        """Verifications that are in progress or wait."""

    def knows(self, users: Users, given: Credentials) -> bool:
        """Whether the password is known to be right, without a wait."""
        known, until = users.remembered.get(given.user, (b"", 0.0))
        return hmac.compare_digest(known, self._digest(users, given)) and time.monotonic() < until

    async def verify(self, users: Users, given: Credentials, origin: Origin) -> tuple[Verdict, int]:
        """Verify a password that came from there; and the seconds after which to try again."""
        needs_task()
        # A caller may give up as soon as this waits: before anything is begun.
        await trio.lowlevel.checkpoint()
        digest = self._digest(users, given)
        while (pending := self._pending.get(digest)) is not None:
            await pending.ended.wait()
            if pending.right is not None:
                return (Verdict.RIGHT if pending.right else Verdict.WRONG), 0
        network = self._networks.of(origin)
        buckets = None if network is None else self._buckets
        if len(self._pending) >= MOST_QUEUED:
            return Verdict.BUSY, 1
        if network is not None:
            if self._of_network.get(network, 0) >= MOST_QUEUED_OF_NETWORK:
                return Verdict.TOO_MANY, 1
            if buckets is not None:
                if wait := buckets.wait(network, trio.current_time()):
                    return Verdict.TOO_MANY, math.ceil(wait)
                buckets.take(network, trio.current_time())
        right = await self._verify(users, given, digest, network)
        if right is None:
            return Verdict.BUSY, 1
        if right:
            users.remembered[given.user] = digest, time.monotonic() + REMEMBERED_SECONDS
            if network is not None and buckets is not None:
                buckets.put_back(network)
        return (Verdict.RIGHT if right else Verdict.WRONG), 0

    async def _verify(self, users: Users, given: Credentials, digest: bytes, network: int | None) -> bool | None:
        """None if there is no thread to be had."""
        from ktlsd.site import password_hashes

        pending = self._pending[digest] = _Pending()
        if network is not None:
            self._of_network[network] = self._of_network.get(network, 0) + 1
        try:
            call = partial(password_hashes.verify, self._stored(users, given.user), given.password)
            right = await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)
            pending.right = right and given.user in users.hashes
        except RuntimeError:
            pending.right = None
        finally:
            if network is not None:
                self._of_network[network] -= 1
                if not self._of_network[network]:
                    del self._of_network[network]
            del self._pending[digest]
            pending.ended.set()
        return pending.right

    def _stored(self, users: Users, user: bytes) -> str:
        """The hash of a user; for an unknown one that of another, always the same, so that both take as long."""
        stored = users.hashes.get(user)
        if stored is None:
            others = list(users.hashes.values())
            stored = others[int.from_bytes(hmac.digest(self._key, user, "sha256")) % len(others)]
        return stored

    def _digest(self, users: Users, given: Credentials) -> bytes:
        """A digest of the credentials and the hash that they are for."""
        stored = users.hashes.get(given.user, "").encode("ascii")
        return hmac.digest(self._key, b"%d:%b%b:%b" % (len(given.user), given.user, stored, given.password), "sha256")
