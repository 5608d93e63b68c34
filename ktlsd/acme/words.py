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
    if not record.ends:
        effect = "a self-signed one is served"
    elif record.ends <= now:
        effect = f"the one that is served has expired, {date(record.ends)}"
    else:
        soon = ", soon" if record.ends - now < _NEAR_END_SECONDS else ""
        effect = f"the one that is served ends {date(record.ends)}{soon}"
    again = date(max(record.try_at, record.retry_after))
    return f"not issued: {record.problem}; {effect}; next try {again}"


def date(seconds: float) -> str:
    """A time as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
