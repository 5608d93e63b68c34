"""Errors as a page for people or as JSON for programs, in place of the line of text that http/decide.py gives: pure.

Strategy: Accept decides, so that a client which does not ask for either keeps the line. The page loads nothing. It is
the same for all requests with one status, but for a request id. A 404 has none: it may be remembered for all names that
are absent, and must not show which of them are there but hidden.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from html import escape
from http import HTTPStatus
from typing import Final

from msgspec.structs import replace

from ktlsd.http.accept import names_a_page, preference, wants_json
from ktlsd.http.decide import Response
from ktlsd.http.fields import Fields, add_vary, without
from ktlsd.site.page_assets import asset, head, policy, source

RequestId = Callable[[], "str | None"]
"""The id of a request in the logs, if it has one."""

_STYLE: Final = asset("theme.css") + asset("error.css")
_PAGE_FIELDS: Final = (
    ("Content-Security-Policy", policy(f"style-src {source(_STYLE)}", "img-src data:")),
    ("Referrer-Policy", "same-origin"),
)
_DESCRIBED: Final = frozenset({"content-type", "content-length"})
_HINTS: Final = {
    HTTPStatus.BAD_REQUEST: "The server does not understand this request.",
    HTTPStatus.UNAUTHORIZED: "This page needs a name and a password.",
    HTTPStatus.FORBIDDEN: "The server does not show this page.",
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.GONE: "What was at this address is gone.",
    HTTPStatus.METHOD_NOT_ALLOWED: "The server only shows pages and files.",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The address is too long.",
    HTTPStatus.MISDIRECTED_REQUEST: "This connection is for another site. Reload the page.",
    HTTPStatus.TOO_MANY_REQUESTS: "There were too many requests. Try again later.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The request has too large header fields. Delete this site's cookies.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The server could not read this page.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The server cannot answer at the moment. Try again later.",
}
_ACCEPT_LINE: Final = re.compile(rb"\r\naccept:[ \t]*([\x20-\x7e]*)", re.IGNORECASE)


_REMEMBERED: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.TOO_MANY_REQUESTS)
"""Without the id of a request, since others may get the same page."""


def for_client(
    response: Response, accept: str | None, request_id: RequestId | None = None, *, is_head: bool = False
) -> Response:
    """A refusal (decide.short) in the form that a client with this Accept field is served best by."""
    if response.status in _REMEMBERED:
        request_id = None
    if wants_json(accept):
        return _with(response, _json(response.status, request_id), "application/json", (), is_head)
    if preference(accept, "application/problem+json") > preference(accept, "text/html"):
        return _with(response, _json(response.status, request_id), "application/problem+json", (), is_head)
    if names_a_page(accept) and preference(accept, "text/html") >= preference(accept, "text/plain"):
        found = None if request_id is None else request_id()
        body = _page(response.status) if found is None else _made_page(response.status, found)
        return _with(response, body, "text/html; charset=utf-8", _PAGE_FIELDS, is_head)
    return replace(response, fields=add_vary(response.fields, "Accept"), body=b"" if is_head else response.body)


def accept_in(head: bytes) -> str | None:
    """The value of Accept in the bytes of a head that cannot be read as one, such as one that is too large."""
    found = _ACCEPT_LINE.search(head)
    return found[1].decode("ascii") if found else None


def _with(response: Response, body: bytes, media_type: str, more: Fields, is_head: bool) -> Response:
    described = (("Content-Type", media_type), ("Content-Length", str(len(body))), *more)
    fields = add_vary((*described, *without(response.fields, _DESCRIBED)), "Accept")
    return replace(response, fields=fields, body=b"" if is_head else body)


def _json(status: HTTPStatus, request_id: RequestId | None) -> bytes:
    """An object with the members of RFC 9457 section 3.1, and the request's id, if any."""
    document: dict[str, str | int] = {"status": status.value, "title": status.phrase}
    found = None if request_id is None else request_id()
    if found is not None:
        document["request_id"] = found
    return json.dumps(document).encode() + b"\n"


@lru_cache(maxsize=len(HTTPStatus))
def _page(status: HTTPStatus) -> bytes:
    return _made_page(status)


def _made_page(status: HTTPStatus, request_id: str = "") -> bytes:
    hint = f"\n<p>{_HINTS[status]}</p>" if status in _HINTS else ""
    of_request = f'\n<p class="id">Request {escape(request_id)}</p>' if request_id else ""
    return f"""{head(f"{status.value} {status.phrase}", _STYLE)}<body><main>
<h1><span>{status.value}</span> {status.phrase}</h1>{hint}
<p><a href="/">Home</a></p>{of_request}
</main></body></html>
""".encode()
