"""The log lines of refused requests, and a response to a client that sent none.

Strategy: a client's bytes reach the log only in escaped form, and not many of them.
"""

from __future__ import annotations

import codecs
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from ktlsd.config.limits import LogThrottle, more
from ktlsd.http.decide import Denied, Response
from ktlsd.http.fields import Fields
from ktlsd.http.request_head import RequestHead
from ktlsd.http.signed_links import without_signatures
from ktlsd.protocol import http1_writer as writer

log = logging.getLogger("ktlsd")

_LONGEST_LOGGED: Final = 1024
"""Characters of a client's that are logged at a time."""
_THROTTLED: Final = frozenset({Denied.WRONG_PASSWORD, Denied.BUSY, Denied.MAINTENANCE})
"""Refusals that could fill the log."""
# Looked up at import: a module that is imported when the first refusal is logged may find no descriptor left.
_escaped: Final = codecs.getencoder("unicode_escape")


def log_refusal(throttle: LogThrottle, client: Callable[[], str], head: RequestHead | None, response: Response) -> None:
    """Log a response if it refuses a request, or bytes that are no request, unless the log has had a line about the
    same limit, or about another reason that could fill it, recently; `client` describes the sender."""
    if not response.reason:
        return
    ending: str | None = ""
    if response.limit is not None:
        ending = throttle.ending(response.limit, None, time.monotonic())
    elif response.denied in _THROTTLED:
        suppressed = throttle.due(response.denied, time.monotonic())
        ending = None if suppressed is None else more(suppressed)
    if ending is not None and log.isEnabledFor(logging.INFO):
        what = _line_of(head) if head else "a request"
        reason = response.reason[:_LONGEST_LOGGED]
        _log_escaped(f"{client()} {response.status.value} {what[:_LONGEST_LOGGED]}: {reason}{ending}")


def log_closed(client: str, head: RequestHead, problem: str) -> None:
    """Log that a connection ends because of the body of an answered request."""
    line = _line_of(head)[:_LONGEST_LOGGED]
    _log_escaped(f"{client} closed after the answer to {line}: its body: {problem[:_LONGEST_LOGGED]}")


def _line_of(head: RequestHead) -> str:
    return f"{head.method.decode()} {without_signatures(head.target).decode('ascii', 'replace')}"


def _log_escaped(text: str) -> None:
    # Nothing that ends a line or moves a terminal gets through.
    log.info("%s", _escaped(text)[0].decode("ascii"))


def last_words(status: HTTPStatus, reason: str, *fields: tuple[str, str], date: bytes, server_field: Fields) -> bytes:
    """A whole response of HTTP/1.1 to a client of which no request was read; `date` is the value of Date."""
    text = f"{status.value} {status.phrase}: {reason}\n".encode()
    of_text = (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text))))
    return writer.beginning(status, (*server_field, *of_text, *fields)) + writer.end(date, closes=True) + text
