"""When a certificate is ordered, renewed or tried again: pure, with the clock and the dice given.

Strategy: a Record is all that outlives the process about one certificate; each function is given a Record and the time,
and gives back the next one. Times are seconds since the epoch, as in the file that a person may read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

MINUTE: Final = 60.0
DAY: Final = 86400.0
ARI_SECONDS: Final = 6 * 3600.0
"""Interval of asking for renewal information if the authority names none (RFC 9773 section 4.3.2)."""
_RENEWED_AFTER: Final = 2 / 3
_JITTER: Final = 1 / 30
"""Of a certificate's lifetime, by which a renewal is put off by chance: three days of ninety."""
_LEAST_USE: Final = 3600.0
"""Seconds between two renewals, at least, or a hundredth of the lifetime if that is less."""
_BACK_OFF_JITTER: Final = 0.25
_LEAST_CAP: Final = 3600.0
_LONGEST_PROBLEM: Final = 1000

Dice = Callable[[], float]
"""Gives numbers from 0 up to 1 by chance: random.random."""


class Terms(Struct, frozen=True):
    """The terms that a certificate was ordered on: another value is a reason for a new order."""

    names: tuple[str, ...] = ()
    directory: str = ""
    key_type: str = ""
    profile: str = ""
    chain: str = ""


class Record(Struct, frozen=True):
    """The state of one certificate."""

    terms: Terms = Terms()
    begins: float = 0.0
    issued_at: float = 0.0
    """When this process had it; a certificate begins up to an hour before it is made."""
    ends: float = 0.0
    """0 if there is no certificate of an authority yet."""
    renew_at: float = 0.0
    """When to renew; by chance within the authority's window, or after two thirds of the lifetime."""
    by_ari: bool = False
    """True if the authority suggested `renew_at` (RFC 9773)."""
    ask_at: float | None = None
    """When to ask for renewal information next; None if the authority has none."""
    failures: int = 0
    """Failed tries since the last success."""
    try_at: float = 0.0
    """No try before this."""
    retry_after: float = 0.0
    """The authority wants no try before this (Retry-After)."""
    problem: str = ""
    """Text of the last failure, the authority's own where there is one."""
    tried: str = ""
    """The directory of the last try: its pauses and `order` are no other authority's. "" if unknown."""
    order: str = ""
    """URL of an order that a try left behind; its key lies beside the certificate."""
    dns: tuple[tuple[str, str], ...] = ()
    """Records that dns_hook has added and not removed."""


def reason(record: Record, terms: Terms, now: float) -> str:
    """The reason to order a certificate at this time, regardless of failures; "" if there is none."""
    if not record.ends:
        return "there is no certificate yet"
    if set(record.terms.names) != set(terms.names):
        return "the names have changed"
    # A certificate that another client made is kept for its time.
    if record.terms.directory:
        for key in ("directory", "key_type", "profile", "chain"):
            if getattr(record.terms, key) != getattr(terms, key):
                return f"{key} has changed"
    if now >= record.ends:
        return "the certificate has expired"
    if now >= _renewal(record):
        return "the authority suggests to renew it" if record.by_ari else "it is time to renew it"
    return ""


def may_try(record: Record, directory: str, now: float, *, forced: bool = False) -> bool:
    """Whether the pause after a failure is over; `forced` ends it, but not the authority's own.

    Another directory may be tried at once.
    """
    if is_of_another(record, directory):
        return True
    return now >= record.retry_after and (forced or now >= record.try_at)


def is_of_another(record: Record, directory: str) -> bool:
    """Whether the last try was at another authority, such as staging."""
    return record.tried not in ("", directory)


def next_step(record: Record, terms: Terms, now: float) -> float:
    """When there is something to do next: an order, or a question for renewal information."""
    if reason(record, terms, now):
        return now if is_of_another(record, terms.directory) else max(record.try_at, record.retry_after)
    return _renewal(record) if record.ask_at is None else min(_renewal(record), record.ask_at)


def _renewal(record: Record) -> float:
    """When to renew: never right after an order, whatever an authority suggests."""
    return max(record.renew_at, record.issued_at + min(_LEAST_USE, (record.ends - record.begins) / 100))


def issued(terms: Terms, begins: float, ends: float, now: float, dice: Dice) -> Record:
    """The record of a new certificate; renewal information is asked for at the next look."""
    life = ends - begins
    renew_at = begins + life * (_RENEWED_AFTER + _JITTER * dice())
    return Record(terms, begins, now, ends, renew_at, ask_at=begins)


def suggested(record: Record, renew_at: float | None, ask_at: float | None) -> Record:
    """After an answer about renewal: the authority's time, or None if it named none; and when to ask again."""
    if renew_at is None:
        return msgspec.structs.replace(record, ask_at=ask_at)
    return msgspec.structs.replace(record, renew_at=renew_at, by_ari=True, ask_at=ask_at)


def failed(record: Record, directory: str, problem: str, now: float, dice: Dice, retry_after: float = 0.0) -> Record:
    """After a failed try: a pause from a minute to a day, but not a large part of a certificate's remaining time.

    `retry_after` is the time that the authority named, 0 if none.
    """
    failures = 0 if is_of_another(record, directory) else record.failures
    pause = min(MINUTE * 2.0 ** min(failures, 20), _longest_pause(record, now))
    pause *= 1 + _BACK_OFF_JITTER * dice()
    return msgspec.structs.replace(
        record,
        failures=failures + 1,
        try_at=now + min(pause, DAY),
        retry_after=max(retry_after, 0.0),
        problem=problem[:_LONGEST_PROBLEM],
        tried=directory,
    )


def _longest_pause(record: Record, now: float) -> float:
    if record.ends <= now:
        return DAY
    return min(DAY, max(_LEAST_CAP, (record.ends - now) / 4))
