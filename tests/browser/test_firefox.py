"""Firefox gets a page with many pictures, a recording in which it seeks, and a listing over HTTP/2.

Strategy: Debian's Firefox, without a window, driven by Marionette, its own protocol over TCP: each message is JSON
behind its length. So it needs no driver, and no build of the browser's for tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.ports import free_ports
from tests.browser.test_chromium import png
from tests.serving import START_SECONDS, WAIT_SECONDS, eventually, serving

NUMBER = 100
PROTOCOLS = """return [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .map(entry => entry.nextHopProtocol)"""
SEEK = """const [second, done] = [arguments[0], arguments[arguments.length - 1]];
const player = document.querySelector("audio");
const seek = () => {
    player.onseeked = () => done(player.currentTime);
    player.onerror = () => done(String(player.error.message));
    player.currentTime = second;
};
if (player.readyState >= 1) seek(); else player.onloadedmetadata = seek;"""


class Firefox:
    """A browser with one window."""

    def __init__(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "Firefox does not listen"
                time.sleep(0.1)
        self._stream = self._connection.makefile("rb")
        self._number = 0
        assert self._receive()["marionetteProtocol"] == 3

    def close(self) -> None:
        self._stream.close()
        self._connection.close()

    def _receive(self) -> Any:
        length = b""
        while (digit := self._stream.read(1)) != b":":
            assert digit.isdigit()
            length += digit
        return json.loads(self._stream.read(int(length)))

    def ask(self, command: str, **parameters: Any) -> Any:
        """A command of WebDriver's; its result."""
        self._number += 1
        message = json.dumps([0, self._number, f"WebDriver:{command}", parameters])
        self._connection.sendall(f"{len(message)}:{message}".encode())
        kind, number, error, result = self._receive()
        assert (kind, number, error) == (1, self._number, None), error
        return result

    def script(self, text: str, *arguments: Any) -> Any:
        return self.ask("ExecuteScript", script=text, args=list(arguments))["value"]


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    executable = shutil.which("firefox-esr")
    if executable is None:
        assert not os.environ.get("CI"), "Firefox must be there in CI"
        pytest.skip("no Firefox on this machine: apt-get install firefox-esr")
    profile = tmp_path_factory.mktemp("firefox")
    (port,) = free_ports(1)
    settings = {"marionette.port": port, "media.autoplay.default": 0, "app.update.enabled": False}
    lines = (f'user_pref("{name}", {json.dumps(value)});\n' for name, value in settings.items())
    (profile / "user.js").write_text("".join(lines))
    command = [executable, "--headless", "--no-remote", "--marionette", "--profile", str(profile)]
    environment = os.environ | {"HOME": str(profile), "MOZ_DISABLE_CONTENT_SANDBOX": "1"}
    with (
        (profile / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment) as process,
    ):
        try:
            with contextlib.closing(Firefox(port)) as browser:
                browser.ask("NewSession", acceptInsecureCerts=True)
                yield browser
        finally:
            process.kill()


def test_a_page_a_recording_and_a_listing(firefox: Firefox, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "listed").mkdir(parents=True)
    pictures = "".join(f"<img src={number}.png>" for number in range(NUMBER))
    (root / "index.html").write_text(f'<!doctype html><link rel=icon href="data:,">{pictures}')
    for number in range(NUMBER):
        (root / f"{number}.png").write_bytes(png(20 + number, 30))
        (root / f"listed/{number}.txt").touch()
    (root / "player.html").write_text('<!doctype html><link rel=icon href="data:,"><audio src=noise.wav></audio>')
    with wave.open(str(root / "noise.wav"), "wb") as recording:
        recording.setparams((2, 2, 44_100, 0, "NONE", ""))
        recording.writeframes(os.urandom(120 * 4 * 44_100))
    options = ("--listing", "--access-log", "stderr", "--access-log-format", "json")
    with serving(root, *options, state=tmp_path / "state") as server:
        firefox.ask("Navigate", url=server.url())
        widths = firefox.script("return Array.from(document.images, image => image.naturalWidth)")
        assert widths == [20 + number for number in range(NUMBER)]
        assert set(firefox.script(PROTOCOLS)) == {"h2"}
        assert eventually(lambda: sum(".png" in line for line in server.log) == NUMBER)
        lines = [json.loads(line) for line in server.log if ".png" in line]
        assert {(line["protocol"], line["status"], line["complete"]) for line in lines} == {("HTTP/2.0", 200, True)}
        assert len({line["port"] for line in lines}) == 1

        firefox.ask("Navigate", url=server.url("/player.html"))
        for second in (100, 50):
            found = firefox.ask("ExecuteAsyncScript", script=SEEK, args=[second])["value"]
            assert found == second
        assert eventually(lambda: any('"status":206' in line and "noise.wav" in line for line in server.log))

        firefox.ask("Navigate", url=server.url("/listed/"))
        assert firefox.script("return document.querySelectorAll('td a').length") >= NUMBER
        assert set(firefox.script(PROTOCOLS)) == {"h2"}
