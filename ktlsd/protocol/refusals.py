"""The log lines of refused requests, and a response to a client that sent none.

Strategy: a client's bytes reach the log only in escaped form, and not many of them.
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from ktlsd.http.decide import Response
from ktlsd.http.fields import Fields
from ktlsd.http.request_head import RequestHead
from ktlsd.http.signed_links import without_signatures
from ktlsd.protocol import http1_writer as writer

log = logging.getLogger("ktlsd")

_LONGEST_LOGGED: Final = 1024
"""Characters of a client's that are logged at a time."""
# Looked up at import: a module that is imported when the first refusal is logged may find no descriptor left.
_escaped: Final = codecs.getencoder("unicode_escape")


def log_refusal(client: Callable[[], str], head: RequestHead | None, response: Response, ending: str = "") -> None:
    """Log a response that refuses a request, or bytes that are no request; `client` describes their sender."""
    if log.isEnabledFor(logging.INFO):
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
