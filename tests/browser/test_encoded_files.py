"""Files that are stored in a content coding and requested by their own names: .svgz, and builds of Unity for the web.

Real clients read them: Chromium compiles, runs and shows what is in them, curl decodes it, and a download stays packed.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import brotli
import pytest

from ktlsd.site.content_types import ContentTypes, Encoded
from tests.browser.browsing import chromium, opened, wait_until
from tests.serving import Running, get, serving

# (module (func (export "seven") (result i32) i32.const 7))
SEVEN: Final = bytes.fromhex("0061736d01000000 0105016000017f 03020100 07090105 736576656e 0000 0a06010400 41070b")
SVG: Final = b'<svg xmlns="http://www.w3.org/2000/svg" width="17" height="19"/>'
DATA: Final = b"scenes and textures " * 100
SCRIPT: Final = b"globalThis.framework = 'loaded';" + b"\n" * 500
SYMBOLS: Final = b'{"1": "main"}'
PAGE: Final = """<!doctype html><meta charset=utf-8><title>game</title><link rel=icon href="data:,">
<img id=picture src=picture.svgz><script src=Build/game.framework.js.gz></script>
<script type=module>
const game = await WebAssembly.instantiateStreaming(fetch("Build/game.wasm.br"));
const data = await (await fetch("Build/game.data.br")).arrayBuffer();
const symbols = await (await fetch("Build/game.symbols.json.br")).json();
await picture.decode();
globalThis.result = [game.instance.exports.seven(), data.byteLength, symbols[1], picture.naturalWidth, framework];
</script>"""
CONFIGURATION: Final = """
root = "www"

[[site]]
names = ["as-they-are"]
encoded = {}

[[site]]
names = ["own"]
encoded = { ".json.gz" = "gzip" }
types = { ".json.gz" = "application/geo+json" }
"""
FILES: Final = {
    "index.html": PAGE.encode(),
    "picture.svgz": gzip.compress(SVG),
    "Build/game.framework.js.gz": gzip.compress(SCRIPT),
    "Build/game.wasm.br": brotli.compress(SEVEN),
    "Build/game.data.br": brotli.compress(DATA),
    "Build/game.symbols.json.br": brotli.compress(SYMBOLS),
    "map.json.gz": gzip.compress(b"{}"),
    "backup.tar.gz": gzip.compress(DATA),
    "notes.txt.gz": gzip.compress(DATA),
    "module.wasm": SEVEN,
    "module.wasm.br": brotli.compress(SEVEN),
}
WASM: Final = "/Build/game.wasm.br"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("encoded")
    for name, content in FILES.items():
        path = folder / "www" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    # As `cp -p` does: a sibling with its file's time counts at once.
    shutil.copystat(folder / "www/module.wasm", folder / "www/module.wasm.br")
    config = folder / "ktlsd.toml"
    config.write_text(CONFIGURATION)
    with serving(None, "--config", str(config), state=folder / "state") as running:
        yield running


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (b"a.svgz", ("image/svg+xml", "gzip")),
        (b"A.SVGZ", ("image/svg+xml", "gzip")),
        (b"Build/a.wasm.br", ("application/wasm", "br")),
        (b"a.wasm.gz", ("application/wasm", "gzip")),
        (b"a.data.br", ("application/octet-stream", "br")),
        (b"a.data.gz", ("application/octet-stream", "gzip")),
        (b"a.framework.js.br", ("text/javascript; charset=utf-8", "br")),
        (b"a.loader.js.gz", ("text/javascript; charset=utf-8", "gzip")),
        (b"a.symbols.json.br", ("application/json", "br")),
        (b"a.symbols.json.gz", ("application/json", "gzip")),
        # Downloads, and names that are nothing but a suffix.
        (b"a.tar.gz", None),
        (b"a.json.gz", None),
        (b"a.html.br", None),
        (b"a.svg", None),
        (b"a.wasm", None),
        (b"a.wasm.br.txt", None),
        (b"wasm.br", None),
        (b".wasm.br", None),
        (b".svgz", None),
        (b"a.svgz/b", None),
        (b"", None),
    ],
)
def test_what_a_name_says_is_in_the_file(name: bytes, found: tuple[str, str] | None) -> None:
    assert ContentTypes().encoded(name) == (found and Encoded(*found))  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [WASM, "/picture.svgz"])
@pytest.mark.parametrize(
    ("accepted", "decoded"),
    [
        ((), True),
        (("Accept-Encoding: gzip, deflate, br, zstd",), True),
        (("Accept-Encoding: *",), True),
        (("Accept-Encoding: identity",), False),
        (("Accept-Encoding:",), False),
        (("Accept-Encoding: deflate",), False),
        (("Accept-Encoding: br;q=0, gzip;q=0, *",), False),
    ],
)
def test_the_coding_is_told_to_who_takes_it(
    server: Running, target: str, accepted: tuple[str, ...], decoded: bool
) -> None:
    kind, coding, packed = {
        WASM: ("application/wasm", "br", "application/octet-stream"),
        "/picture.svgz": ("image/svg+xml", "gzip", "application/gzip"),
    }[target]
    for method in ("GET", "HEAD", "GET"):
        answer = get(server.port, target, *accepted, method=method)
        assert answer.status == 200
        assert answer.body == (FILES[target[1:]] if method == "GET" else b"")
        assert answer.fields["content-type"] == (kind if decoded else packed)
        assert answer.fields.get("content-encoding") == (coding if decoded else None)
        assert answer.fields["vary"] == "Accept-Encoding"
        assert answer.fields["content-length"] == str(len(FILES[target[1:]]))


def test_the_two_representations_have_tags_of_their_own(server: Running) -> None:
    decoded = get(server.port, WASM, "Accept-Encoding: br").fields["etag"]
    packed = get(server.port, WASM, "Accept-Encoding: identity").fields["etag"]
    assert decoded != packed
    for coding, own, other in (("br", decoded, packed), ("identity", packed, decoded)):
        accepted = f"Accept-Encoding: {coding}"
        answer = get(server.port, WASM, accepted, f"If-None-Match: {own}")
        assert (answer.status, answer.fields["etag"], answer.fields["vary"]) == (304, own, "Accept-Encoding")
        assert get(server.port, WASM, accepted, f"If-None-Match: {other}").status == 200
        part = get(server.port, WASM, accepted, "Range: bytes=2-5", f"If-Range: {own}")
        assert (part.status, part.body) == (206, FILES[WASM[1:]][2:6])
        assert part.fields.get("content-encoding") == ("br" if coding == "br" else None)
        assert get(server.port, WASM, accepted, "Range: bytes=2-5", f"If-Range: {other}").status == 200


@pytest.mark.parametrize("target", ["/backup.tar.gz", "/notes.txt.gz", "/map.json.gz"])
def test_a_download_stays_packed(server: Running, target: str) -> None:
    answer = get(server.port, target, "Accept-Encoding: gzip, br")
    assert (answer.fields["content-type"], answer.body) == ("application/gzip", FILES[target[1:]])
    assert "content-encoding" not in answer.fields


def test_a_sibling_is_coded_once(server: Running) -> None:
    answer = get(server.port, "/module.wasm", "Accept-Encoding: br")
    assert (answer.fields["content-type"], answer.fields["content-encoding"]) == ("application/wasm", "br")
    assert answer.body == FILES["module.wasm.br"]
    plain = get(server.port, "/module.wasm", "Accept-Encoding: identity")
    assert (plain.body, plain.fields["content-type"]) == (SEVEN, "application/wasm")
    assert "content-encoding" not in plain.fields


def test_a_site_has_a_table_of_its_own(server: Running) -> None:
    accepted = "Accept-Encoding: gzip, br"
    for site, target in (("as-they-are", "/picture.svgz"), ("as-they-are", WASM), ("own", "/picture.svgz")):
        answer = get(server.port, target, accepted, host=site)
        assert answer.body == FILES[target[1:]]
        assert not {"content-encoding", "vary"} & answer.fields.keys()
    answer = get(server.port, "/map.json.gz", accepted, host="own")
    assert (answer.fields["content-type"], answer.fields["content-encoding"]) == ("application/geo+json", "gzip")


@pytest.mark.parametrize(("target", "content"), [(WASM, SEVEN), ("/picture.svgz", SVG), ("/backup.tar.gz", None)])
def test_curl_decodes_when_asked_to(server: Running, tmp_path: Path, target: str, content: bytes | None) -> None:
    packed = FILES[target[1:]]
    for words, wanted in (((), packed), (("--compressed",), content or packed)):
        command = ["curl", "-sS", "-q", "--cacert", str(server.certificate), "-o", "out", *words, server.url(target)]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
        assert (tmp_path / "out").read_bytes() == wanted


def test_a_browser_runs_a_build_of_unity(server: Running) -> None:
    with chromium() as browser, opened(browser, server.url("/")) as page:
        wait_until(page, "globalThis.result !== undefined")
        assert page.evaluate("globalThis.result") == [7, len(DATA), "main", 17, "loaded"]
