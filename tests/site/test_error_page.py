"""Errors as text, page or JSON, as Accept has it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http import HTTPStatus

import pytest

from ktlsd.http.decide import short
from ktlsd.site.error_page import accept_in, for_client

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "text/plain; charset=utf-8"),
        ("*/*", "text/plain; charset=utf-8"),
        ("image/png", "text/plain; charset=utf-8"),
        ("text/plain, text/html;q=0.5", "text/plain; charset=utf-8"),
        (CHROMIUM, "text/html; charset=utf-8"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/problem+json", "application/problem+json"),
        ("application/problem+json, application/json;q=0.9", "application/json"),
    ],
)
@pytest.mark.parametrize("is_head", [False, True])
def test_the_form(accept: str | None, media_type: str, is_head: bool) -> None:
    extra = (("Allow", "GET"), ("Vary", "Accept-Encoding"))
    response = for_client(short(HTTPStatus.NOT_FOUND, "gone", extra=extra), accept, is_head=is_head)
    fields = dict(response.fields)
    assert len(fields) == len(response.fields)
    assert (fields["Content-Type"], fields["Vary"], fields["Allow"]) == (media_type, "Accept-Encoding, Accept", "GET")
    assert (response.status, response.reason) == (HTTPStatus.NOT_FOUND, "gone")
    assert isinstance(response.body, bytes)
    same = for_client(short(HTTPStatus.NOT_FOUND), accept).body
    assert (int(fields["Content-Length"]), response.body) == (len(bytes(same)), b"" if is_head else same)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [status for status in HTTPStatus if status >= 400])
def test_a_page_and_its_policy(status: HTTPStatus) -> None:
    response = for_client(short(status, "x"), CHROMIUM, lambda: "a<b>")
    assert isinstance(response.body, bytes)
    page = response.body.decode()
    assert f"<title>{status.value} {status.phrase}</title>" in page
    # A 404 is the same for names that are absent and names that are hidden; a 429 is remembered, too.
    assert ('<p class="id">Request a&lt;b&gt;</p>' in page) is (status not in (404, 429))
    # Nothing is loaded from anywhere.
    assert set(re.findall(r'(?:href|src)="([^"]*)"', page)) - {"/"} == set(re.findall(r'href="(data:[^"]*)"', page))
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = dict(response.fields)["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'; img-src data:" in policy
    assert "script" not in policy


def test_a_request_id_only_if_there_is_one() -> None:
    for accept, without_id in ((CHROMIUM, b"Request"), ("application/json", b"request_id")):
        for request_id in (None, lambda: None):
            body = for_client(short(HTTPStatus.FORBIDDEN), accept, request_id).body
            assert isinstance(body, bytes)
            assert without_id not in body
    body = for_client(short(HTTPStatus.FORBIDDEN), "application/json", lambda: 'a"b').body
    assert isinstance(body, bytes)
    assert json.loads(body) == {"status": 403, "title": "Forbidden", "request_id": 'a"b'}


@pytest.mark.parametrize(
    ("head", "accept"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nACCEPT:  text/html \r\nCookie: " + b"x" * 100, "text/html "),
        (b"GET / HTTP/1.1\r\nAccept: a\xff\r\n", "a"),
        (b"GET /accept: HTTP/1.1\r\nX-Accept: a\r\n", None),
        (b"", None),
    ],
)
def test_accept_of_a_head_that_is_none(head: bytes, accept: str | None) -> None:
    assert accept_in(head) == accept
