"""The state of a certificate by ACME in words: for the log, the status page, `systemctl status` and `ktlsd doctor`."""

from __future__ import annotations

import time
from typing import Final

from ktlsd.acme.plan import DAY, Record

_NEAR_END_SECONDS: Final = 7 * DAY


def state(record: Record, now: float) -> str:
    """One line: the trouble, or how long the certificate is good."""
    if record.failures:
        return trouble(record, now)
    if not record.ends:
        return "not ordered yet; a self-signed one is served"
    return f"valid until {date(record.ends)}, to be renewed {date(record.renew_at)}"


def trouble(record: Record, now: float) -> str:
    """The last failure, its effect, and what comes next."""
    return f"not issued: {record.problem}; {_effect(record, now)}; next try {_next_try(record)}"


def waiting(record: Record, now: float) -> str:
    """The same of a failure before the start, whose pause is not over."""
    lacking = "it is not renewed" if record.ends else "there is none yet"
    at_once = "" if now < record.retry_after else ", or at once on SIGHUP"
    return f"{lacking} ({record.problem}); {_effect(record, now)}; next try {_next_try(record)}{at_once}"


def _effect(record: Record, now: float) -> str:
    if not record.ends:
        return "a self-signed one is served"
    if record.ends <= now:
        return f"the one that is served has expired, {date(record.ends)}"
    soon = ", soon" if record.ends - now < _NEAR_END_SECONDS else ""
    return f"the one that is served ends {date(record.ends)}{soon}"


def _next_try(record: Record) -> str:
    return date(max(record.try_at, record.retry_after))


def date(seconds: float) -> str:
    """A time as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
