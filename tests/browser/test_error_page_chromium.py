"""People's browser shows the built-in error page: both colour schemes, a phone, accessibility, nothing loaded."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser.browsing import chromium
from tests.browser.test_listing_chromium import PHONE
from tests.serving import serving


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("errors")
    (base / "root").mkdir()
    with serving(base / "root", "--access-log", str(base / "access.log"), state=base / "state") as server:
        yield server.url()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE])
def test_an_error_page(browser: Browser, site: str, options: dict[str, Any], scheme: Any) -> None:
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    with browser.new_context(ignore_https_errors=True, color_scheme=scheme, **options) as context:
        page = context.new_page()
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        answer = page.goto(site)
        assert answer is not None
        assert answer.status == 403
        assert page.title() == "403 Forbidden"
        assert page.inner_text("h1") == "403\nForbidden"
        assert page.inner_text(".id").startswith("Request ")
        assert page.get_attribute("a:has-text('Home')", "href") == "/"
        width = page.evaluate("innerWidth")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(18, 22, 28)")
        page.evaluate(axe)
        result = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice']})")
        assert [(broken["id"], broken["nodes"][0]["html"]) for broken in result["violations"]] == []
        assert [url for url in requested if not url.startswith("data:")] == [site]
