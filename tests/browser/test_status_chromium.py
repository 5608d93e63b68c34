"""People's browser shows the status page: figures that move, plots, both colour schemes, a phone, accessibility, and
all of it as the strict policy allows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.browsing import chromium, opened, wait_until
from tests.browser.test_listing_chromium import PHONE
from tests.serving import Running, connect, exchange, get, serving
from tests.wire.test_metrics_wire import ON_LOOPBACK, metrics_port

DRAWN = "document.querySelector('.plot path')?.getAttribute('d')?.includes('L')"
OTHER = "a-long-name-of-a-customer.of-a-department.example.test"
"""The second site."""
TITLES = ["Open connections", "Requests per second", "Throughput", "Open TLS connections with kTLS"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("status")
    (base / "root").mkdir()
    (base / "root/a.txt").write_text("a" * 1_000_000)
    config = base / "ktlsd.toml"
    config.write_text(f'root = "root"\n[[site]]\nnames = ["{OTHER}"]\nroot = "root"\n')
    options = ("--config", str(config), *ON_LOOPBACK, "--workers", "2")
    with serving(None, *options, state=base / "state") as server:
        get(server.port, "/a.txt", host=OTHER)
        exchange(server.port, b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        yield server


@pytest.fixture(scope="module")
def site(running: Running) -> str:
    return f"http://localhost:{metrics_port(running)}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def figure(page: Page, name: str) -> int:
    return int(page.inner_text(f"#{name}").replace(",", ""))


def test_everything_is_there_without_script(browser: Browser, running: Running, site: str) -> None:
    with opened(browser, site, java_script_enabled=False) as page:
        before = figure(page, "requests")
        get(running.port, "/a.txt")
        page.reload()
        assert figure(page, "requests") == before + 1
        assert page.inner_text("#state") == "Ready"
        assert page.locator("#plots, #pause").locator("visible=true").count() == 0
        assert "the kernel has no tls ULP" in page.inner_text("#fallbacks") or "TX" not in page.inner_text("#fallbacks")
        assert page.get_by_role("row").filter(has=page.get_by_role("cell", name="404", exact=True)).count() == 1
        assert page.get_by_role("table", name="Workers").get_by_role("row").count() == 3
        assert page.inner_text("#uptime").startswith("00:0")
        assert page.inner_text("#expires").endswith(" days")
        assert rows(page, "latency")[0][0] == "HTTP/1.1"
        assert rows(page, "latency")[0][2].endswith("ms")
        assert sorted(row[0] for row in rows(page, "sites")) == [
            OTHER,
            "default",
        ]
        assert "none" not in page.inner_text("#paths")
        assert page.inner_text("#certificates").split("\t")[:2] == ["default", str(running.certificate)]


def test_figures_and_plots_move(browser: Browser, running: Running, site: str) -> None:
    with opened(browser, site) as page:
        assert page.locator("#plots h3").all_inner_texts() == TITLES
        wait_until(page, DRAWN)
        assert page.locator(".note:visible").all_inner_texts() == ["No open TLS connections"]
        before = figure(page, "requests")
        with connect(running.port), connect(running.port):
            for _ in range(3):
                get(running.port, "/a.txt")
            wait_until(page, f"document.getElementById('requests').textContent === '{before + 3:,}'")
            wait_until(page, "document.getElementById('connections').textContent === '2'")
            plots = page.get_by_role("img")
            wait_until(page, "document.querySelector('.plot').getAttribute('aria-label').includes(': all 2,')")
            # Only once it had two samples is there a rate.
            wait_until(page, "/ [1-9].*iB/.test(document.querySelectorAll('.plot')[2].parentElement.innerHTML)")
            assert plots.count() == len(TITLES)
            drawn = "[...document.querySelectorAll('.plot path')].filter(one => one.getAttribute('d').includes('L'))"
            wait_until(page, f"{drawn}.length === 7")
        wait_until(page, "document.getElementById('connections').textContent === '0'")
        total = sum(int(cells[4].replace(",", "")) for cells in rows(page, "workers"))
        assert total == figure(page, "requests")


def rows(page: Page, name: str) -> list[list[str]]:
    cells = "all => all.map(row => Array.from(row.cells, cell => cell.textContent))"
    found: list[list[str]] = page.eval_on_selector_all(f"#{name} tr", cells)
    return found


def test_pausing_stops_all_that_moves(browser: Browser, running: Running, site: str) -> None:
    with opened(browser, site) as page:
        wait_until(page, DRAWN)
        page.click("#pause")
        assert page.get_by_role("button", pressed=True).inner_text() == "Pause"
        # What was asked before may still come.
        page.wait_for_timeout(1500)
        before, drawn = figure(page, "requests"), page.get_attribute(".plot path", "d")
        get(running.port, "/a.txt")
        page.wait_for_timeout(1500)
        assert (figure(page, "requests"), page.get_attribute(".plot path", "d")) == (before, drawn)
        page.click("#pause")
        wait_until(page, f"document.getElementById('requests').textContent === '{before + 1:,}'")


def test_a_worker_that_is_replaced_is_seen(browser: Browser, running: Running, site: str) -> None:
    with opened(browser, site) as page:
        before = rows(page, "workers")
        os.kill(int(before[0][1]), signal.SIGKILL)
        wait_until(page, "document.getElementById('restarts').textContent === '1'")
        after = rows(page, "workers")
        assert (after[0][1] != before[0][1], after[1][1]) == (True, before[1][1])


@pytest.mark.parametrize("width", [375, 320])
def test_nothing_sticks_out_on_a_phone(browser: Browser, site: str, width: int) -> None:
    with opened(browser, site, **PHONE | {"viewport": {"width": width, "height": 600}}) as page:
        wait_until(page, DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        wide = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth).length"
        assert page.eval_on_selector_all("header *, dl *, figure, figcaption *, section, h2, .wide", wide) == 0
        assert page.locator("#pause").bounding_box()["height"] >= 44  # type: ignore[index]
        # Each cell is a line with its column's name.
        cells = "all => all.map(cell => getComputedStyle(cell, '::before').content)"
        assert page.eval_on_selector_all("#workers tr:first-child td", cells)[0] == '"Worker"'
        sizes = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
        assert page.eval_on_selector_all(".wide", sizes) == 0


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, PHONE | {"color_scheme": "dark"}])
def test_accessibility(browser: Browser, site: str, options: dict[str, Any]) -> None:
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    with opened(browser, site, **options) as page:
        wait_until(page, DRAWN)
        page.evaluate(axe)
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        result = page.evaluate("rules => axe.run({runOnly: rules})", rules)
        assert [(broken["id"], broken["nodes"][0]["html"]) for broken in result["violations"]] == []
        assert len(result["passes"]) > 10


def test_the_end_is_told(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    # Chromium itself complains about the answers that do not come.
    with (
        serving(tmp_path / "root", *ON_LOOPBACK, state=tmp_path / "state") as server,
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.goto(f"http://localhost:{metrics_port(server)}/")
        wait_until(page, DRAWN)
        assert server.stop() == 0
        wait_until(page, "document.getElementById('state').textContent === 'ktlsd does not answer'")
