"""Deciding a response: (request, file or miss) -> status, header fields, body. Pure, no sockets, no files.

Strategy: what the look-up found picks a row (a representation goes through preconditions and ranges; everything else
has a status of its own), and a Response says what to send without knowing how: a short text, parts of the file, or
pieces that are made while they are sent.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from msgspec import Struct, field

from ktlsd.config.limits import Limit
from ktlsd.config.values import Coding
from ktlsd.http.byte_range import ByteRange, Unsatisfiable, parse_range
from ktlsd.http.fields import Fields
from ktlsd.http.multipart import Multipart, multipart
from ktlsd.http.request_fields import members
from ktlsd.http.uri_host import host_of
from ktlsd.http.validators import Verdict, last_modified, range_applies, verdict

ALLOW: Final = ("Allow", "GET, HEAD, OPTIONS")
_VARY: Final = (("Vary", "Accept-Encoding"),)
_ALLOWED_METHODS: Final = frozenset(ALLOW[1].split(", "))
_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})


class Miss(enum.Enum):
    """Reasons why the look-up found no file to send: the status, and the text in the log."""

    ABSENT = (HTTPStatus.NOT_FOUND, "no such file")
    DANGLING = (HTTPStatus.NOT_FOUND, "a link that leads nowhere")
    HIDDEN = (HTTPStatus.NOT_FOUND, "a name that begins with a dot")
    CONCEALED = (HTTPStatus.NOT_FOUND, "hidden by a pattern of hide")
    OUTSIDE = (HTTPStatus.NOT_FOUND, "a link out of the root")
    FORBIDDEN = (HTTPStatus.FORBIDDEN, "not readable by the server")
    SPECIAL = (HTTPStatus.FORBIDDEN, "not a regular file")
    NO_INDEX = (HTTPStatus.FORBIDDEN, "a folder without an index file")
    PROTECTED = (
        HTTPStatus.FORBIDDEN,
        "protected by a bad Basic-Auth line in _headers, or a role or status in _redirects",
    )
    BUSY = (HTTPStatus.SERVICE_UNAVAILABLE, "held by a lease or renamed again and again")
    EXHAUSTED = (HTTPStatus.SERVICE_UNAVAILABLE, "no file descriptors or memory left")
    STALLED = (HTTPStatus.SERVICE_UNAVAILABLE, "the file system does not answer")
    NO_ROOT = (HTTPStatus.SERVICE_UNAVAILABLE, "the root folder is missing")
    FAILED = (HTTPStatus.INTERNAL_SERVER_ERROR, "the file system failed")

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        self.status = status
        self.reason = reason


class Refused(Struct, frozen=True):
    """A rule of the operator answers with an error instead of a file."""

    status: HTTPStatus
    reason: str
    """For the log."""


class Denied(enum.Enum):
    """Reasons why a check of access refuses a request; the value is a metric's label."""

    NETWORK = "network"
    PLAIN_HTTP = "plain_http"
    NO_PASSWORD = "no_password"  # noqa: S105  no secret
    WRONG_PASSWORD = "wrong_password"  # noqa: S105  no secret
    TOO_MANY_PASSWORDS = "too_many_passwords"
    BUSY = "busy"
    SIGNATURE = "signature"
    EXPIRED = "expired"
    MAINTENANCE = "maintenance"
    CERTIFICATE = "certificate"


class Representation(Struct, frozen=True, gc=False):
    """The metadata of the representation in an open file."""

    size: int
    mtime_ns: int
    content_type: str
    tag: str
    coding: Coding | None = None
    varies: bool = False
    """Whether another Accept-Encoding would have got another representation."""


class Moved(Struct, frozen=True):
    """The resource is elsewhere."""

    location: str
    status: HTTPStatus = HTTPStatus.MOVED_PERMANENTLY
    paths: tuple[str, ...] = ()
    """Paths below the root of a folder that stands in the place of the requested path, and shows that it is there."""


class Request(Struct, frozen=True):
    """A request as deciding sees it; `fields` has lower-case names, repeated fields joined with ", "."""

    method: str
    fields: Mapping[str, str] = field(default_factory=dict)


class Response(Struct, frozen=True, gc=False):
    """A response; `reason` is for the log of a refused request."""

    status: HTTPStatus
    fields: Fields
    body: ByteRange | Multipart | Iterator[bytes] | AsyncGenerator[Any] | bytes = b""
    """Parts of the open file, or text; pieces of text go out in chunks, without a length known before. Parts of several
    files, and text between them, come one by one (lookup.FilePart)."""
    reason: str = ""
    close: bool = False
    """Whether the connection must not be used again."""
    denied: Denied | None = None
    """Why a check of access refused the request, if one did."""
    signed: bool = False
    """True if `fields` have passed a site's rules, which also decide on Server."""
    limit: Limit | None = None
    """The limit that the client is at, if that is the reason."""
    has_page: bool = False
    """Whether a refusal's body is a page that no error page replaces."""


def refuse_head(version: bytes, request: Request) -> Response | None:
    """The answer to a head that h11 accepts and HTTP/1.1 does not; None where there is nothing against it."""
    head = request.method == "HEAD"
    fields = request.fields
    if not version.startswith(b"1."):
        # The preface of HTTP/2 (RFC 9113 section 3.4).
        preface = request.method == "PRI" and version == b"2.0"
        reason = "HTTP/2 on a connection that speaks HTTP/1.1 only" if preface else f"HTTP/{version.decode('ascii')}"
        return short(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, reason, head=head, close=True)
    # h11 requires it only in HTTP/1.1, but later minor versions need it too (RFC 9110 section 6.2).
    if version != b"1.0" and "host" not in fields:
        return short(HTTPStatus.BAD_REQUEST, "no Host", head=head, close=True)
    # It may be empty (RFC 9112 section 3.2).
    if host_of(fields.get("host", "")) is None:
        return short(HTTPStatus.BAD_REQUEST, "a Host that names no host", head=head, close=True)
    # Such a body may be an attempt at request smuggling (RFC 9112 sections 6.1 and 11.2).
    if "transfer-encoding" in fields and ("content-length" in fields or version == b"1.0"):
        both = "Transfer-Encoding with Content-Length or in HTTP/1.0"
        return short(HTTPStatus.BAD_REQUEST, both, head=head, close=True)
    if any(member.lower() != "100-continue" for member in members(fields.get("expect", ""))):
        return short(HTTPStatus.EXPECTATION_FAILED, f"the expectation {fields['expect']}", head=head, close=True)
    return None


def refuse_method(method: str) -> Response | None:
    """The answer to a method that no file is looked up for; None for those of Allow."""
    if method in _ALLOWED_METHODS:
        return None
    if method in _KNOWN_METHODS:
        return short(HTTPStatus.METHOD_NOT_ALLOWED, f"the method {method}", extra=(ALLOW,))
    return short(HTTPStatus.NOT_IMPLEMENTED, f"the unknown method {method}")


def decide(request: Request, found: Representation | Moved | Miss | Refused, now: float, boundary: str) -> Response:
    """The response to a GET or HEAD; `now` is in seconds since the epoch, `boundary` for multipart/byteranges."""
    if isinstance(found, (Miss, Refused)):
        return short(found.status, found.reason, head=request.method == "HEAD")
    if isinstance(found, Moved):
        return short(found.status, head=request.method == "HEAD", extra=(("Location", found.location),))
    return _decide_representation(request, found, now, boundary)


def options() -> Response:
    """The response to OPTIONS (RFC 9110 section 9.3.7)."""
    return Response(HTTPStatus.NO_CONTENT, (ALLOW,))


def whole(request: Request, found: Representation, status: HTTPStatus, now: float) -> Response:
    """A file under a status of its own, such as an error page: without preconditions and ranges."""
    fields = (*_of_content(found.content_type, found.size, found), *_modified(found, now))
    return Response(status, fields, b"" if request.method == "HEAD" else ByteRange(0, found.size))


def fields_of_whole(found: Representation, now: float) -> Fields:
    """The fields of a response with all of a representation, to a request without conditions and ranges."""
    more = (("Accept-Ranges", "bytes"), ("ETag", found.tag), *_modified(found, now))
    return _of_content(found.content_type, found.size, found) + more


def short(
    status: HTTPStatus,
    reason: str = "",
    *,
    head: bool = False,
    extra: Fields = (),
    close: bool = False,
    limit: Limit | None = None,
    denied: Denied | None = None,
) -> Response:
    """A response whose body is one line of text that says the status; for HEAD the header fields of the same."""
    text = f"{status.value} {status.phrase}\n".encode("ascii")
    fields = (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text))), *extra)
    return Response(status, fields, b"" if head else text, reason, close, denied, limit=limit)


def _decide_representation(request: Request, found: Representation, now: float, boundary: str) -> Response:
    validators = (("ETag", found.tag), *_modified(found, now))
    vary = _VARY if found.varies else ()
    head = request.method == "HEAD"
    outcome = verdict(request.fields, found.tag, found.mtime_ns)
    if outcome is Verdict.PRECONDITION_FAILED:
        return short(HTTPStatus.PRECONDITION_FAILED, "a precondition failed", head=head, extra=(*validators, *vary))
    if outcome is Verdict.NOT_MODIFIED:
        return Response(HTTPStatus.NOT_MODIFIED, (*validators, *vary))

    parts: tuple[ByteRange, ...] = ()
    asked = request.fields.get("range")
    # Range has a meaning only for GET (RFC 9110 section 14.2).
    if asked is not None and not head and range_applies(request.fields.get("if-range"), found.tag, found.mtime_ns, now):
        try:
            parts = parse_range(asked, found.size)
        except Unsatisfiable:
            extra = (("Content-Range", f"bytes */{found.size}"), ("Accept-Ranges", "bytes"), *validators, *vary)
            return short(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the range {asked} of {found.size} bytes", extra=extra
            )
    if not parts:
        return Response(HTTPStatus.OK, fields_of_whole(found, now), b"" if head else ByteRange(0, found.size))
    more = (("Accept-Ranges", "bytes"), *validators)
    if len(parts) == 1:
        content_range = ("Content-Range", parts[0].content_range(found.size))
        fields = (*_of_content(found.content_type, parts[0].count, found), *more, content_range)
        return Response(HTTPStatus.PARTIAL_CONTENT, fields, parts[0])
    body = multipart(parts, found.size, found.content_type, boundary)
    return Response(HTTPStatus.PARTIAL_CONTENT, (*_of_content(body.content_type, body.length, found), *more), body)


def _modified(found: Representation, now: float) -> Fields:
    date = last_modified(found.mtime_ns, now)
    return () if date is None else (("Last-Modified", date),)


def _of_content(content_type: str, length: int, found: Representation) -> Fields:
    coding = (("Content-Encoding", found.coding),) if found.coding else ()
    vary = _VARY if found.varies else ()
    return (("Content-Type", content_type), ("Content-Length", str(length)), *coding, *vary)
