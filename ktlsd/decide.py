"""Deciding a response: (request, what was found, site options) -> status, header fields, body. Pure, no sockets, no
files.

Strategy: what the look-up found picks a row (a file goes through preconditions and range; everything else has a status
of its own), and a Response says what to send without knowing how: a short text or a ByteRange of the file.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from ktlsd.byte_range import ByteRange, Unsatisfiable, parse_range
from ktlsd.validators import Verdict, entity_tag, http_date, range_applies, verdict

# uri-host [":" port] of RFC 9110 section 7.2, where the host may be empty (RFC 9112 section 3.2).
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-fv:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
SERVED_METHODS: Final = ("GET", "HEAD")
_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})


class Miss(enum.Enum):
    """Why the look-up found no file to send: the status, and the reason that the log gives."""

    ABSENT = (HTTPStatus.NOT_FOUND, "no such file")
    HIDDEN = (HTTPStatus.NOT_FOUND, "a name that begins with a dot")
    OUTSIDE = (HTTPStatus.NOT_FOUND, "a link out of the root")
    FORBIDDEN = (HTTPStatus.FORBIDDEN, "not readable by the server")
    SPECIAL = (HTTPStatus.FORBIDDEN, "not a regular file")
    NO_INDEX = (HTTPStatus.FORBIDDEN, "a folder without an index file")
    BUSY = (HTTPStatus.SERVICE_UNAVAILABLE, "held by a lease or renamed again and again")
    EXHAUSTED = (HTTPStatus.SERVICE_UNAVAILABLE, "no file descriptors or memory left")
    FAILED = (HTTPStatus.INTERNAL_SERVER_ERROR, "the file system failed")

    @property
    def status(self) -> HTTPStatus:
        return self.value[0]

    @property
    def reason(self) -> str:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What deciding needs to know of an open file."""

    size: int
    mtime_ns: int
    inode: int
    content_type: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The target names a folder without its trailing slash; `location` is the folder's own."""

    location: str


@dataclass(frozen=True, slots=True)
class Request:
    """A request as deciding sees it; `fields` has lower-case names, repeated fields joined with ", "."""

    method: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """What to send: `body` is a part of the file or a short text; `reason` is for the log of what is refused."""

    status: HTTPStatus
    fields: tuple[tuple[str, str], ...]
    body: ByteRange | bytes = b""
    reason: str = ""
    close: bool = False
    """Whether the connection must not be used again."""


def refuse_head(version: bytes, request: Request) -> Response | None:
    """The answer to a head that h11 accepts and HTTP/1.1 does not; None where there is nothing against it."""
    head = request.method == "HEAD"
    if not version.startswith(b"1."):
        reason = f"HTTP/{version.decode('ascii')}"
        return short(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, reason, head=head, close=True)
    if not _HOST.fullmatch(request.fields.get("host", "")):
        return short(HTTPStatus.BAD_REQUEST, "a Host that names no host", head=head, close=True)
    return None


def refuse_method(method: str) -> Response | None:
    """The answer to a method that no file is looked up for; None for GET and HEAD."""
    if method in SERVED_METHODS:
        return None
    if method in _KNOWN_METHODS:
        allow = ("Allow", ", ".join(SERVED_METHODS))
        return short(HTTPStatus.METHOD_NOT_ALLOWED, f"the method {method}", extra=(allow,))
    return short(HTTPStatus.NOT_IMPLEMENTED, f"the unknown method {method}")


def decide(request: Request, found: FileFacts | Moved | Miss, now: float) -> Response:
    """The response to a GET or HEAD; `now` is in seconds since the epoch."""
    if isinstance(found, Miss):
        return short(found.status, found.reason, head=request.method == "HEAD")
    if isinstance(found, Moved):
        location = ("Location", found.location)
        return short(HTTPStatus.MOVED_PERMANENTLY, head=request.method == "HEAD", extra=(location,))
    return _decide_file(request, found, now)


def short(
    status: HTTPStatus,
    reason: str = "",
    *,
    head: bool = False,
    extra: tuple[tuple[str, str], ...] = (),
    close: bool = False,
) -> Response:
    """A response whose body is one line of text that says the status; for HEAD the header fields of the same."""
    text = f"{status.value} {status.phrase}\n".encode("ascii")
    fields = (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text))), *extra)
    return Response(status, fields, b"" if head else text, reason, close)


def _decide_file(request: Request, facts: FileFacts, now: float) -> Response:
    tag = entity_tag(facts.mtime_ns, facts.size, facts.inode)
    # A Last-Modified later than Date is forbidden (RFC 9110 section 8.8.2.1): clocks and files can disagree.
    last_modified = http_date(min(facts.mtime_ns // 1_000_000_000, now))
    validators = (("ETag", tag), ("Last-Modified", last_modified))
    head = request.method == "HEAD"
    outcome = verdict(request.fields, tag, facts.mtime_ns)
    if outcome is Verdict.PRECONDITION_FAILED:
        return short(HTTPStatus.PRECONDITION_FAILED, "a precondition failed", head=head, extra=validators)
    if outcome is Verdict.NOT_MODIFIED:
        return Response(HTTPStatus.NOT_MODIFIED, validators)

    whole = ByteRange(0, facts.size)
    part = None
    asked = request.fields.get("range")
    # Range has a meaning for GET alone (RFC 9110 section 14.2).
    if asked is not None and not head and range_applies(request.fields.get("if-range"), tag, last_modified):
        try:
            part = parse_range(asked, facts.size)
        except Unsatisfiable:
            extra = (("Content-Range", f"bytes */{facts.size}"), ("Accept-Ranges", "bytes"), *validators)
            return short(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the range {asked} of {facts.size} bytes", extra=extra
            )
    body = part or whole
    fields = (
        ("Content-Type", facts.content_type),
        ("Content-Length", str(body.count)),
        ("Accept-Ranges", "bytes"),
        *validators,
    )
    if part is not None:
        content_range = ("Content-Range", part.content_range(facts.size))
        return Response(HTTPStatus.PARTIAL_CONTENT, (*fields, content_range), part)
    return Response(HTTPStatus.OK, fields, b"" if head else whole)
