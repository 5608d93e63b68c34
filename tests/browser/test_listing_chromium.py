"""People's browser shows a listing: sorting, searching, pictures, both colour schemes, a phone, accessibility, and all
of it as the strict policy allows."""

from __future__ import annotations

import json
import os
import subprocess
import wave
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.browsing import chromium, follow, opened, protocols, wait_until
from tests.browser.test_chromium import png
from tests.serving import serving

FILES = {
    b"track 10.mp3": 30,
    b"track 9.mp3": 2000,
    b"README.md": 1,
    b"a.png": None,
    b"b.png": None,
    b"quote\"'<img src=x onerror=alert(1)>.txt": 3,
    b"new\nline.txt": 4,
    b"bad\xff.bin": 5,
    "rtl\u202egnp.exe".encode(): 6,
    b"javascript:alert(1)": 7,
    b"long-" * 40 + b".tar.gz": 8,
}
IN_ORDER = [
    "Empty/",
    "sub/",
    "a.png",
    "b.png",
    "bad\ufffd.bin",
    "javascript:alert(1)",
    "long-" * 40 + ".tar.gz",
    "new\u240aline.txt",
    "quote\"'<img src=x onerror=alert(1)>.txt",
    "README.md",
    "rtl[U+202E]gnp.exe",
    "track 9.mp3",
    "track 10.mp3",
]
MANY = 5000
PHONE = {"viewport": {"width": 375, "height": 700}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("listing")
    folder = base / "root/a folder"
    for place in (folder / "sub", folder / "Empty", base / "root/many"):
        place.mkdir(parents=True)
    for name, size in FILES.items():
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.write_bytes(png(64, name[0]) if size is None else b"x" * size)
        os.utime(path, (1_700_000_000 + (size or 0),) * 2)
    for number in range(MANY):
        (base / f"root/many/file {number}.txt").touch()
    config = base / "ktlsd.toml"
    config.write_text('root = "root"\nlisting = true\nzip_bytes = 1_000_000\ntar_bytes = 1_000_000\n')
    with serving(None, "--config", str(config), state=base / "state") as server:
        yield server.url()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def names(page: Page) -> list[str]:
    shown: list[str] = page.eval_on_selector_all("tbody:not(#up) bdi", "all => all.map(one => one.textContent)")
    return shown


def sort_by(page: Page, title: str) -> tuple[list[str], str | None]:
    follow(page, f"th a:has-text('{title}')")
    return names(page), page.get_attribute(f"th:has-text('{title}')", "aria-sort")


@pytest.mark.parametrize("script", [True, False])
def test_sorting_with_and_without_script(browser: Browser, site: str, script: bool) -> None:
    with opened(browser, site + "a%20folder/", java_script_enabled=script) as page:
        assert names(page) == IN_ORDER
        assert sort_by(page, "Name") == (["sub/", "Empty/", *reversed(IN_ORDER[2:])], "descending")
        by_size, way = sort_by(page, "Size")
        assert (by_size[:2], way) == (["Empty/", "sub/"], "descending")
        small = [name for name in by_size if not name.endswith((".png", "/"))]
        assert small == ["track 9.mp3", "track 10.mp3", *(IN_ORDER[place] for place in (6, 5, 10, 4, 7, 8, 9))]
        assert sort_by(page, "Size") == (["Empty/", "sub/", *reversed(by_size[2:])], "ascending")
        assert page.url.endswith("?sort=size&order=asc")
        by_date, way = sort_by(page, "Modified")
        assert (by_date[2:4], way) == (["track 9.mp3", "track 10.mp3"], "descending")


def test_every_name_leads_to_its_file(browser: Browser, site: str) -> None:
    with opened(browser, site + "a%20folder/") as page:
        links = page.eval_on_selector_all("tbody:not(#up) a", "all => all.map(one => one.href)")
        assert set(links[2:]) >= {f"{site}a%20folder/{quote(name, safe='$!()*,:=@+;')}" for name in FILES}
        for link in links:
            assert page.request.get(link).status == 200
        follow(page, "text=sub/")
        assert page.url == site + "a%20folder/sub/"
        assert page.inner_text("main").split("\n")[-1] == "This folder is empty."
        assert page.get_by_role("link", name="Parent folder").count() == 1
        follow(page, "nav a:has-text('a folder')")
        follow(page, "text=Parent folder")
        assert page.url == site
        assert names(page) == ["a folder/", "many/"]


def test_search_as_you_type(browser: Browser, site: str) -> None:
    with opened(browser, site + "a%20folder/") as page:
        page.keyboard.press("/")
        page.keyboard.type("TRACK 1")
        assert names(page) == ["track 10.mp3"]
        assert page.inner_text("#status") == "1 of 13 match"
        assert page.locator("#none").is_hidden()
        page.keyboard.type("0000")
        assert (names(page), page.inner_text("#none")) == ([], "No matches")
        page.keyboard.press("Escape")
        assert names(page) == IN_ORDER
        assert page.inner_text("#status").startswith("2 folders, 11 files, ")


def test_a_long_list_keeps_only_rows_near_the_window(browser: Browser, site: str) -> None:
    with opened(browser, site + "many/") as page:
        wait_until(page, "document.querySelectorAll('tbody:not(#up) tr').length < 1000")
        assert names(page)[:3] == ["file 0.txt", "file 1.txt", "file 2.txt"]
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        page.wait_for_selector(f"text=file {MANY - 1}.txt")
        assert sort_by(page, "Name")[1] == "descending"
        page.evaluate("scrollTo(0, 0)")
        wait_until(page, f"document.querySelector('tbody:not(#up) bdi')?.textContent == 'file {MANY - 1}.txt'")
        page.fill("#search", "321.txt")
        assert names(page) == [f"file {number}.txt" for number in (4321, 3321, 2321, 1321, 321)]


def test_pictures_are_shown_and_looked_through(browser: Browser, site: str) -> None:
    with opened(browser, site + "a%20folder/") as page:
        wait_until(page, "[...document.querySelectorAll('td img')].every(one => one.naturalWidth == 64)")
        assert protocols(page) == {"h2"}
        page.check("#gallery")
        assert page.locator("td img").first.bounding_box()["height"] > 100  # type: ignore[index]
        page.locator("td img").first.click()
        preview = page.locator("dialog img")
        assert (page.inner_text("dialog a"), page.inner_text("#counter")) == ("a.png", "1 of 4")
        page.keyboard.press("ArrowRight")
        assert preview.get_attribute("src") == site + "a%20folder/b.png"
        assert page.inner_text("#counter") == "2 of 4"
        page.get_by_role("button", name="Previous").click()
        assert page.inner_text("dialog a") == "a.png"
        wait_until(page, "document.querySelector('dialog img').naturalWidth == 64")
        page.keyboard.press("Escape")
        assert preview.is_hidden()
        assert page.url == site + "a%20folder/"


def test_video_and_audio_are_played(browser: Browser, tmp_path: Path) -> None:
    ffmpeg = ("ffmpeg", "-v", "error", "-f", "lavfi")
    source = ("-i", "testsrc=size=64x64:rate=5", "-t", "1", "-pix_fmt", "yuv420p")
    subprocess.run([*ffmpeg, *source, "-c:v", "libvpx", "-y", str(tmp_path / "b.webm")], check=True)
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 1, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    (tmp_path / "c.png").write_bytes(png(64, 64))
    (tmp_path / "d.mkv3").write_bytes(b"")
    with serving(tmp_path, "--listing", state=tmp_path / ".state") as server, opened(browser, server.url()) as page:
        page.locator("td a[data-type] > svg").first.click()
        wait_until(page, "document.querySelector('dialog audio').currentTime > 0")
        assert page.inner_text("#counter") == "1 of 3"
        page.keyboard.press(" ")
        wait_until(page, "document.querySelector('dialog audio').paused")
        page.keyboard.press("ArrowRight")
        wait_until(page, "document.querySelector('dialog video').videoWidth == 64")
        wait_until(page, "document.querySelector('dialog audio') === null")
        page.keyboard.press("End")
        wait_until(page, "document.querySelector('dialog img').naturalWidth == 64")
        page.keyboard.press("Home")
        wait_until(page, "document.querySelector('dialog a').innerText == 'a.wav'")
        page.keyboard.press("Escape")
        wait_until(page, "document.querySelector('dialog audio') === null")


def test_local_time_beside_utc(browser: Browser, site: str) -> None:
    with opened(browser, site + "a%20folder/", timezone_id="Asia/Kolkata") as page:
        row = page.get_by_role("row", name="track 9.mp3").get_by_role("cell")
        assert row.all_inner_texts()[2].split() == ["2023-11-14", "22:46", "2023-11-15", "04:16", "local"]
    with opened(browser, site + "many/", timezone_id="Asia/Kolkata") as page:
        wait_until(page, "document.querySelectorAll('tbody:not(#up) small').length > 0")


def test_a_long_name_has_two_lines(browser: Browser, site: str) -> None:
    with opened(browser, site + "a%20folder/", **PHONE) as page:
        heights = "all => all.map(one => one.getBoundingClientRect().height)"
        assert max(page.eval_on_selector_all("tbody bdi", heights)) < 50


@pytest.mark.parametrize("gallery", [False, True])
@pytest.mark.parametrize("options", [PHONE, PHONE | {"viewport": {"width": 320, "height": 500}}])
def test_nothing_sticks_out_on_a_phone(browser: Browser, site: str, options: dict[str, Any], gallery: bool) -> None:
    with opened(browser, site + "a%20folder/", **options) as page:
        page.set_checked("#gallery", gallery)
        assert page.evaluate("document.documentElement.scrollWidth") == options["viewport"]["width"]
        tops = "all => all.map(one => one.getBoundingClientRect().top)"
        assert len(set(page.eval_on_selector_all(".button", tops))) == 1
        page.locator("td img").first.click()
        bottoms = "all => new Set(all.map(one => one.getBoundingClientRect().bottom)).size"
        assert page.eval_on_selector_all("dialog button", bottoms) == 1
        page.keyboard.press("Escape")
        small = """all => all.map(one => one.getBoundingClientRect())
            .filter(box => box.width && (box.width < 24 || box.height < 24)).length"""
        assert page.eval_on_selector_all("main a, nav a, label, input[type=search]", small) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE])
@pytest.mark.parametrize("path", ["", "a%20folder/", "a%20folder/Empty/", "a%20folder/?preview", "a%20folder/?gallery"])
def test_accessibility(browser: Browser, site: str, path: str, options: dict[str, Any], scheme: Any) -> None:
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    with opened(browser, site + path, color_scheme=scheme, **options) as page:
        if path.endswith("?preview"):
            page.locator("td img").first.click()
        if path.endswith("?gallery"):
            page.check("#gallery")
        page.evaluate(axe)
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        result = page.evaluate("rules => axe.run({runOnly: rules})", rules)
        assert [(broken["id"], broken["nodes"][0]["html"]) for broken in result["violations"]] == []
        assert len(result["passes"]) > 10


README = """# Title

A [link](a.txt), `code`, ![picture](a.png).

| left | right |
| --- | --: |
| 1 | 2 |

```
long code long code long code long code long code long code long code long code long code
```
"""


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, PHONE | {"color_scheme": "dark"}])
def test_a_readme(browser: Browser, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "a.png").write_bytes(png(64, 64))
    config = tmp_path / ".ktlsd.toml"
    config.write_text(f'root = "{tmp_path}"\nlisting = true\nreadme = true\n')
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    with (
        serving(None, "--config", str(config), state=tmp_path / ".state") as server,
        opened(browser, server.url(), **options) as page,
    ):
        assert page.inner_text("#readme h2") == "Title"
        page.check("#gallery")
        box = page.locator("#readme td.right").bounding_box()
        assert box is not None
        assert box["height"] < 50
        width = page.evaluate("innerWidth")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate(axe)
        result = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice']})")
        assert [(broken["id"], broken["nodes"][0]["html"]) for broken in result["violations"]] == []


def test_it_stays_a_table_for_those_who_cannot_see_it(browser: Browser, site: str) -> None:
    with opened(browser, site + "a%20folder/", **PHONE) as page:
        assert page.get_by_role("table", name="Files and folders").count() == 1
        assert page.get_by_role("columnheader", name="Size").count() == 1
        assert page.get_by_role("row").count() == len(IN_ORDER) + 2
        row = page.get_by_role("row", name="track 9.mp3").get_by_role("cell")
        assert row.all_inner_texts() == ["track 9.mp3", "2.0 KiB", "2023-11-14 22:46"]


def test_a_program_gets_json(browser: Browser, site: str) -> None:
    with opened(browser, site) as page:
        answer = page.request.get(site + "a%20folder/?sort=size&order=desc", headers={"Accept": "application/json"})
        assert answer.headers["content-type"] == "application/json"
        rows = json.loads(answer.body())
        assert [row["name"] for row in rows][:2] == ["Empty", "sub"]
        assert {row["name"]: row.get("size") for row in rows}["track 9.mp3"] == 2000
