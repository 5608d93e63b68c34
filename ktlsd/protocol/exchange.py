"""One request that no remembered response answers, from its head to the decision.

Strategy: limits on the head, then the target, then the site that the request names (RFC 9110 section 7.4); the site
decides (site.py). The protocol sends the response, and may have it remembered.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from ktlsd.config.limits import Limit
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Request, Response, options, refuse_method, short
from ktlsd.http.fields import Fields
from ktlsd.http.request_fields import TrackedFields
from ktlsd.http.request_head import RequestHead
from ktlsd.http.request_target import BadTarget, parse_target
from ktlsd.http.uri_host import host_of
from ktlsd.metrics.metrics import LIMITED
from ktlsd.metrics.site_names import NO_SITE
from ktlsd.protocol.responder import Responder
from ktlsd.service import Service
from ktlsd.site.error_page import for_client
from ktlsd.site.response_cache import CacheEntry, CacheKey
from ktlsd.site.site import Answer

if TYPE_CHECKING:
    # It is imported only if there is an access log.
    from ktlsd.logs.exchange_log import RequestLog

_REPEATABLE_STATUSES: Final = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_MODIFIED)


class Exchange:
    """A request and the decision about it.

    Nothing may be awaited before decide(): the configuration can be read again meanwhile.
    """

    def __init__(self, responder: Responder, head: RequestHead, log: RequestLog | None) -> None:
        self._responder = responder
        self.head = head
        self._log = log
        self._began_ns = time.time_ns()
        self._service: Service = responder.shared.service
        self.site = NO_SITE
        """The number of the site that answers it."""
        fields = TrackedFields(head.of_fields.values)
        self.request = Request(head.method.decode("ascii"), fields)
        self.origin = responder.client.origin_of(fields.sent, self._service.forwarded)
        """The origin of the request."""
        if log is not None and responder.client.trusted is not None:
            log.came_from(self.origin)

    async def decide(self) -> Answer:
        """The response, and the open file of its body for the caller to close."""
        responder, service, request = self._responder, self._service, self.request
        client, limits, row, target = responder.client, responder.limits, responder.shared.row, self.head.target
        if (refused := refuse_method(request.method)) is not None:
            return self.refused(refused)
        if (count := len(self.head.headers)) > limits.header_fields:
            row[LIMITED[Limit.HEADER_FIELDS]] += 1
            reason = f"{count} header fields, more than header_fields = {limits.header_fields}"
            return self.refused(short(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason))
        if len(target) > limits.target_bytes:
            row[LIMITED[Limit.TARGET_BYTES]] += 1
            reason = f"a target of {len(target)} bytes, more than target_bytes = {limits.target_bytes}"
            return self.refused(short(HTTPStatus.REQUEST_URI_TOO_LONG, reason))
        if request.method == "OPTIONS" and target == b"*":
            return Answer(options())
        try:
            parsed = parse_target(target)
        except BadTarget as error:
            return self.refused(short(HTTPStatus.BAD_REQUEST, str(error)))
        host = parsed.host or host_of(request.fields.get("host", "")) or None
        if client.redirected:
            with service.in_use():
                answer = await service.https_redirect.answer(request, parsed, host)
            return self.refused(answer.response) if answer.response.reason else answer
        hosted = service.hosted(host, client)
        if isinstance(hosted, str):
            return self.refused(short(HTTPStatus.MISDIRECTED_REQUEST, hosted))
        site, origin, visitor = hosted.site, self.origin, None
        self.site = site.number
        if site.access is not None:
            visitor = client.visitor(self.head, origin)
            if hosted.context.clients != client.clients:
                visitor.certificate, visitor.certificate_fault, visitor.misdirected = None, "", client.secure
        with service.in_use():
            answer = await site.answer(
                request, parsed, secure=origin.https, request_id=self._request_id, visitor=visitor
            )
        if self._log is not None and visitor is not None:
            self._log.came_as(visitor.user)
        return answer

    def refused(self, response: Response) -> Answer:
        """A refusal that is no site's, in the form that the client asks for."""
        accept, is_head = self.request.fields.get("accept"), self.request.method == "HEAD"
        return Answer(for_client(response, accept, self._request_id, is_head=is_head))

    def _request_id(self) -> str | None:
        """The request's id in the access log, or that of a trusted proxy."""
        return self.origin.request_id if self._log is None else self._log.request_id()

    def described(self) -> str:
        """The client for the log."""
        return self._responder.client.described(self.origin)

    def remember(self, answer: Answer, head: bytes) -> CacheEntry | None:
        """Keep the decided response for requests that agree in everything that decided, if that is safe. The protocol
        has seen that the request is nothing but its head.

        `head` is the response's in HTTP/1.1, but for Date and what the request decides. Returns what is kept.
        """
        response, opened, excess, checks = answer.response, answer.opened, answer.excess, answer.checks
        names = cast(TrackedFields, self.request.fields).asked_for()
        if names is None or response.close or self._responder.client.redirected:
            return None
        service, entry = self._service, None
        partition = self._responder.partitions[self.origin.https]
        key = CacheKey.of(partition, self.head, names, any_query=answer.any_query)
        if excess is not None:
            if service.refusals is not None:
                entry = service.refusals.remember_text(
                    key, response, head, self._began_ns, checks=checks, excess=excess
                )
        elif opened is not None:
            is_part = isinstance(response.body, ByteRange) or response.body == b""
            if answer.lack is not None or (is_part and response.status in _REPEATABLE_STATUSES):
                entry = service.response_cache.remember(
                    key, response, head, opened, rules=answer.rules, asked_ns=self._began_ns, checks=checks
                )
        elif answer.lack is not None and b"host" in names:
            # Otherwise the target itself named the site (RFC 9112 section 3.2.2), and the entry is for other targets.
            entry = service.response_cache.remember_text(key, response, head, self._began_ns, lack=answer.lack)
        if entry is not None:
            entry.site = self.site
        return entry


def fields_of(response: Response, server_field: Fields) -> Fields:
    """All fields of a response but Date and those of its connection; `server_field` is for one that no site made."""
    return response.fields if response.signed else server_field + response.fields
