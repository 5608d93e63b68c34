"""Verification of passwords for all sites of a process: in few threads, with a limit for each client network.

Strategy: a hash costs up to hundreds of milliseconds, so a right password is remembered for a while, under a digest
with a random key. Requests with the same unknown password share one verification. A client network has a token bucket
of wrong passwords; a token is taken before the verification and put back unless the password was wrong. The queue
prefers passwords that were right before, then the networks with the fewest wrong ones. Unknown users cost the time of a
known one.
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
from ktlsd.config.options import LimitOptions
from ktlsd.http.basic_auth import Credentials
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.forwarded import Origin
from ktlsd.http.wrong_passwords import WrongPasswords
from ktlsd.site.verification_queue import VerificationQueue

if TYPE_CHECKING:
    # It is imported only if it is configured.
    from ktlsd.site.password_file import Users

THREADS: Final = 2
"""Verifications at the same time."""
MOST_OF_NETWORK: Final = 4
"""Verifications of one client network that are in progress or wait."""
REMEMBERED_SECONDS: Final = 300.0

_FIRST: Final = -1.0
"""The rank of a password that was right before."""
_BUSY_SECONDS: Final = 5


class Verdict(enum.Enum):
    """The outcome of a verification."""

    RIGHT = enum.auto()
    WRONG = enum.auto()
    TOO_MANY = enum.auto()
    """The client network has sent too many wrong passwords, or too many at a time."""
    BUSY = enum.auto()
    """Too many verifications wait, or this one has waited for too long."""


class _Pending:
    """A verification in progress, or in the queue."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.verdict: Verdict | None = None
        """None if its request was given up."""


class Passwords:
    """The verifications of one process."""

    def __init__(self, limits: LimitOptions, networks: ClientNetworks) -> None:
        self._networks = networks
        self._wrong = WrongPasswords(limits)
        self._key = os.urandom(32)
        # A thread goes on with a verification that was given up.
        self._threads = trio.CapacityLimiter(THREADS)
        self._queue = VerificationQueue(THREADS)
        self._pending: dict[bytes, _Pending] = {}
        self._of_network: dict[int, int] = {}
        """Verifications that are in progress or wait."""

    def knows(self, users: Users, given: Credentials) -> bool:
        """Whether the password is known to be right, without a wait."""
        until = _right_until(users, given, self._digest(users, given))
        return until is not None and time.monotonic() < until

    async def verify(self, users: Users, given: Credentials, origin: Origin) -> tuple[Verdict, int]:
        """Verify a password that came from there; and the seconds after which to try again."""
        needs_task()
        # A caller may give up as soon as this waits: before anything is begun.
        await trio.lowlevel.checkpoint()
        digest = self._digest(users, given)
        while (pending := self._pending.get(digest)) is not None:
            await pending.ended.wait()
            if pending.verdict is not None:
                return _with_pause(pending.verdict)
        network, now = self._networks.of(origin), trio.current_time()
        rank = 0.0
        if network is not None:
            if self._of_network.get(network, 0) >= MOST_OF_NETWORK:
                return Verdict.TOO_MANY, 1
            if wait := self._wrong.wait(network, now):
                return Verdict.TOO_MANY, math.ceil(wait)
            rank = self._wrong.rank(network, now)
            self._wrong.count(network, now)
        if _right_until(users, given, digest) is not None:
            rank = _FIRST
        verdict = await self._verify(users, given, digest, network, rank)
        if network is not None and verdict is not Verdict.WRONG:
            self._wrong.forgive(network)
        if verdict is Verdict.RIGHT:
            users.remembered[given.user] = digest, time.monotonic() + REMEMBERED_SECONDS
        return _with_pause(verdict)

    async def _verify(
        self, users: Users, given: Credentials, digest: bytes, network: int | None, rank: float
    ) -> Verdict:
        from ktlsd.site import password_hashes

        pending = self._pending[digest] = _Pending()
        if network is not None:
            self._of_network[network] = self._of_network.get(network, 0) + 1
        try:
            async with self._queue.turn(rank) as admitted:
                if not admitted:
                    pending.verdict = Verdict.BUSY
                    return pending.verdict
                call = partial(password_hashes.verify, self._stored(users, given.user), given.password)
                right = await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)
                pending.verdict = Verdict.RIGHT if right and given.user in users.hashes else Verdict.WRONG
        except RuntimeError:
            # There is no thread to be had.
            pending.verdict = Verdict.BUSY
        finally:
            if network is not None:
                self._of_network[network] -= 1
                if not self._of_network[network]:
                    del self._of_network[network]
            del self._pending[digest]
            pending.ended.set()
        return pending.verdict

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


def _right_until(users: Users, given: Credentials, digest: bytes) -> float | None:
    """The time until which a password that was right needs no verification; None if it was not the last right one."""
    known, until = users.remembered.get(given.user, (b"", 0.0))
    return until if hmac.compare_digest(known, digest) else None


def _with_pause(verdict: Verdict) -> tuple[Verdict, int]:
    """A verdict of a verification, and the seconds after which to try again."""
    return verdict, _BUSY_SECONDS if verdict is Verdict.BUSY else 0
