"""Requests for pages, by what browsers and programs send."""

from __future__ import annotations

import pytest

from ktlsd.http.navigation import is_navigation

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("destination", "accept", "name", "expected"),
    [
        ("document", CHROMIUM, b"route", True),
        ("document", CHROMIUM, b"john.doe", True),
        ("iframe", CHROMIUM, b"", True),
        ("style", "text/css,*/*;q=0.1", b"missing.css", False),
        ("script", "*/*", b"route", False),
        ("image", "image/avif,*/*;q=0.8", b"missing", False),
        # <object> and <embed> navigate too, and show no route.
        ("object", CHROMIUM, b"drawing", False),
        # A script; and a service worker that passes a navigation on.
        ("empty", "*/*", b"route", False),
        ("empty", "application/json", b"route", False),
        ("empty", CHROMIUM, b"route", True),
        # Browsers without Fetch Metadata.
        (None, CHROMIUM, b"route", True),
        (None, CHROMIUM, b"missing.css", True),
        (None, "text/css,*/*;q=0.1", b"missing.css", False),
        (None, "image/webp,*/*", b"route", False),
        (None, "application/json, text/plain, */*", b"route", False),
        # Programs.
        (None, None, b"route", True),
        (None, "*/*", b"", True),
        (None, "*/*", b"about.html", True),
        (None, "*/*", b".well-known", True),
        (None, "*/*", b"missing.css", False),
        (None, None, b"app.js", False),
        (None, None, b"v1.2", False),
    ],
)
def test_requests(destination: str | None, accept: str | None, name: bytes, expected: bool) -> None:
    fields = {"sec-fetch-dest": destination, "accept": accept}
    assert is_navigation({key: value for key, value in fields.items() if value is not None}, name) is expected
