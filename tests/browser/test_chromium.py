"""A real browser gets a page with all that belongs to it, a single-page application, and a film that it seeks in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import brotli
import pytest
from playwright.sync_api import Browser, Response

from tests.browser.browsing import chromium, opened, protocols, wait_until
from tests.serving import Running, eventually, serving

PAGE: Final = """<!doctype html><meta charset=utf-8><title>ktlsd</title><link rel=stylesheet href=style.css>
<img id=picture src=picture.png><script type=module src=script.mjs></script><p id=result>waiting</p>"""
SCRIPT: Final = """
const whole = await (await fetch("data.bin")).arrayBuffer();
const part = await fetch("data.bin", {headers: {Range: "bytes=1000-1999"}});
const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", whole));
const hex = Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
const picture = document.getElementById("picture");
await picture.decode();
const colour = getComputedStyle(document.body).color;
document.getElementById("result").textContent =
  [hex, part.status, (await part.arrayBuffer()).byteLength, picture.naturalWidth, colour].join(" ");
"""

# What a bundler makes: names with a hash of the content, a module, WebAssembly, and routes that are no files.
APPLICATION: Final = """<!doctype html><html lang=en><meta charset=utf-8><title>application</title>
<link rel=icon href="data:,"><link rel=stylesheet href=/assets/app.5d41402a.css>
<script type=module src=/assets/app.3f9c2b1a.js></script><p id=result>waiting</p>"""
MODULE: Final = """
import { double } from "./part.9b1d2c3e.mjs";
const { instance } = await WebAssembly.instantiateStreaming(fetch("/assets/seven.0a1b2c3d.wasm"));
document.getElementById("result").textContent =
  [location.pathname, double(instance.exports.seven()), getComputedStyle(document.body).color].join(" ");
"""
# (module (func (export "seven") (result i32) i32.const 7))
SEVEN: Final = (
    bytes.fromhex("0061736d01000000 0105016000017f 03020100 070901 05")
    + b"seven"
    + bytes.fromhex("0000 0a06010400 41070b")
)
ASSETS: Final = {
    "app.5d41402a.css": b"body { color: rgb(4, 5, 6) }" + b" " * 1000,
    "app.3f9c2b1a.js": MODULE.encode() + b"/" * 1000 + b"\n",
    "part.9b1d2c3e.mjs": b"export const double = (number) => 2 * number;\n" + b"\n" * 1000,
    "seven.0a1b2c3d.wasm": SEVEN,
}
FILM_SECONDS: Final = 20


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"".join(bytes((x, y, 128)) for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def test_a_page_with_all_that_belongs_to_it(browser: Browser, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    data = os.urandom(1_000_000)
    (root / "data.bin").write_bytes(data)
    (root / "index.html").write_text(PAGE)
    (root / "style.css").write_text("body { color: rgb(1, 2, 3) }")
    (root / "script.mjs").write_text(SCRIPT)
    (root / "picture.png").write_bytes(png(64, 32))
    (root / "favicon.ico").write_bytes(png(16, 16))
    with serving(root, state=tmp_path / "state") as server, opened(browser, server.url()) as page:
        wait_until(page, "document.getElementById('result').textContent != 'waiting'")
        digest = hashlib.sha256(data).hexdigest()
        assert page.inner_text("#result") == f"{digest} 206 1000 64 rgb(1, 2, 3)"
        assert any(re.search(r"TLSv1\.3 TLS_AES_128_GCM_SHA256 ", line) for line in server.log)
        assert protocols(page) == {"h2"}


def test_a_hundred_pictures_over_one_connection(browser: Browser, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    pictures = "".join(f"<img src={number}.png>" for number in range(100))
    (root / "index.html").write_text(f'<!doctype html><link rel=icon href="data:,">{pictures}')
    for number in range(100):
        (root / f"{number}.png").write_bytes(png(20 + number, 30))
    options = ("--access-log", "stderr", "--access-log-format", "json")
    with serving(root, *options, state=tmp_path / "state") as server, opened(browser, server.url()) as page:
        wait_until(page, "document.readyState === 'complete'")
        widths = page.evaluate("Array.from(document.images, image => image.naturalWidth)")
        assert widths == [20 + number for number in range(100)]
        assert protocols(page) == {"h2"}
        assert eventually(lambda: sum(".png" in line for line in server.log) == 100)
        lines = [json.loads(line) for line in server.log if line.startswith("{")]
    asked = [line for line in lines if line["target"].endswith(".png")]
    assert {(line["protocol"], line["status"], line["complete"]) for line in asked} == {("HTTP/2.0", 200, True)}
    assert len({line["target"] for line in asked}) == 100
    assert len({line["port"] for line in asked}) == 1


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("application")
    assets = base / "root/assets"
    assets.mkdir(parents=True)
    (base / "root/index.html").write_text(APPLICATION)
    for name, content in ASSETS.items():
        (assets / name).write_bytes(content)
        (assets / f"{name}.br").write_bytes(brotli.compress(content))
        # As `cp -p` does: a sibling with its file's time counts at once.
        shutil.copystat(assets / name, assets / f"{name}.br")
    config = base / "ktlsd.toml"
    config.write_text('fallback = "/index.html"\nhashed_names = true\n')
    with serving(base / "root", "--config", str(config), state=base / "state") as running:
        yield running


def test_a_single_page_application(browser: Browser, application: Running) -> None:
    seen: list[Response] = []
    with opened(browser, "about:blank") as page:
        page.on("response", lambda response: seen.append(response))  # noqa: PLW0108  Playwright marks what it calls
        for route in ("/users/42/settings", "/"):
            page.goto(application.url(route))
            wait_until(page, "document.getElementById('result').textContent != 'waiting'")
            assert page.inner_text("#result") == f"{route} 14 rgb(4, 5, 6)"
            transferred = page.evaluate(
                "performance.getEntriesByType('resource').map(one => [one.name.split('/').pop(), one.transferSize])"
            )
            assert {name for name, _ in transferred} == set(ASSETS)
        # The second page had these from memory; what scripts fetch is not kept by a browser that forgives certificates.
        assert {name for name, size in transferred if size == 0} >= {name for name in ASSETS if "wasm" not in name}
    for name, content in ASSETS.items():
        fields = next(response.headers for response in seen if response.url.endswith(name))
        assert fields["content-encoding"] == "br"
        assert fields["content-length"] == str(len(brotli.compress(content)))
        assert fields["vary"] == "Accept-Encoding"
        assert fields["cache-control"] == "public, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A site with a film of some 20 MB, red in its first half and blue in its second."""
    base = tmp_path_factory.mktemp("theatre")
    root = base / "root"
    root.mkdir()
    half = FILM_SECONDS // 2
    (root / "index.html").write_text('<!doctype html><link rel=icon href="data:,"><video src=film.webm></video>')
    picture = "noise=alls=40:allf=t,format=yuv420p"
    film = f"color=red:size=320x240:d={half}[a];color=blue:size=320x240:d={half}[b];[a][b]concat,{picture}"
    encoder = ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-g", "25"]
    encoder += ["-b:v", "8M", "-minrate", "8M", "-maxrate", "8M"]
    command = ["ffmpeg", "-v", "error", "-filter_complex", film, *encoder, str(root / "film.webm")]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    assert (root / "film.webm").stat().st_size > 10_000_000
    with serving(root, state=base / "state") as running:
        yield running


COLOUR = """(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.drawImage(document.querySelector("video"), 0, 0, 1, 1);
    const [red, , blue] = canvas.getImageData(0, 0, 1, 1).data;
    return (red > 128 ? "red" : "") + (blue > 128 ? "blue" : "");
})()"""
"""What the film shows."""


def test_seeking_in_a_film(browser: Browser, theatre: Running) -> None:
    seen: list[Response] = []
    with opened(browser, "about:blank") as page:
        page.on("response", lambda response: seen.append(response))  # noqa: PLW0108  Playwright marks what it calls
        page.goto(theatre.url())
        wait_until(page, "document.querySelector('video').readyState >= 1")
        assert page.evaluate("document.querySelector('video').duration") == pytest.approx(FILM_SECONDS, abs=0.5)
        for second, colour in ((FILM_SECONDS * 3 // 4, "blue"), (FILM_SECONDS // 4, "red"), (FILM_SECONDS - 1, "blue")):
            page.evaluate(
                """async second => {
                    const video = document.querySelector("video");
                    await new Promise((resolve, reject) => {
                        video.onseeked = resolve;
                        video.onerror = () => reject(video.error);
                        video.currentTime = second;
                    });
                    if (video.readyState < 2 || video.currentTime != second) throw new Error("not there");
                }""",
                second,
            )
            # Chromium may draw the frame some time after the event.
            wait_until(page, f"{COLOUR} === '{colour}'")
        assert protocols(page) == {"h2"}
    size = (theatre.state.parent / "root/film.webm").stat().st_size
    films = [response for response in seen if response.url.endswith(".webm")]
    assert {response.status for response in films} == {206}
    parts = {response.headers["content-range"] for response in films}
    assert all(re.fullmatch(rf"bytes \d+-{size - 1}/{size}", part) for part in parts)
    # The index of a film in WebM stands at its end: without ranges, all would have to be loaded first.
    assert len(parts) > 1
