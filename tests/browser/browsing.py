"""Chromium for tests: started once for a module, and pages that have to run without a complaint."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.serving import WAIT_SECONDS


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium; without one the test skips, but not in CI."""
    executable = shutil.which("chromium")
    if executable is None:
        assert not os.environ.get("CI"), "Chromium must be there in CI"
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page that must run without an error and without breaking its policy."""
    complaints: list[str] = []

    def heed(message: ConsoleMessage) -> None:
        # What is for information is no complaint, such as that a user was faster than autofocus.
        if message.type != "info":
            complaints.append(message.text)

    with browser.new_context(ignore_https_errors=True, **options) as context:
        page = context.new_page()
        page.on("console", heed)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(url)
        yield page
    assert not complaints, complaints


def wait_until(page: Page, expression: str) -> None:
    """Ask again and again. Playwright's own waiting evaluates text inside the page, which a strict policy forbids."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(20)


def protocols(page: Page) -> set[str]:
    """The protocols of the page and of all that it loaded, as its performance entries name them (RFC 7301's names)."""
    entries = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    return set(page.evaluate(f"{entries}.map(entry => entry.nextHopProtocol)")) - {""}


def follow(page: Page, link: str) -> None:
    """Click a link and wait until its page is loaded: a click by itself returns before that."""
    with page.expect_navigation():
        page.click(link)
