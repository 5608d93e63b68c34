"""README.md and thumbnails in listings: made of files that a visitor may see, and bounded."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.protocols import HTTP_1, PROTOCOLS, conversation
from tests.serving import Running, run_to_end, serving

LINES = """
root = "root"
listing = true
readme = true
thumbnails = true
headers_file = true
"""
README = "# Title\n\n<script>alert(1)</script> [link](a.txt)\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extras") / "root"
    (root / "secret").mkdir(parents=True)
    (root / "README.md").write_text(README)
    (root / "secret/page.md").write_text("behind a password")
    (root / "linked").mkdir()
    (root / "linked/readme.md").symlink_to("../secret/page.md")
    (root / "_headers").write_text("/secret/*\n  Basic-Auth: a:b\n")
    noise = Image.effect_noise((1500, 1000), 60).convert("RGB")
    # It is to be shown turned to the right (TIFF tag 0x112, Orientation).
    exif = Image.Exif()
    exif[0x112] = 6
    noise.save(root / "photo.jpg", quality=90, exif=exif)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(200_000))
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Running]:
    config = root.parent / "ktlsd.toml"
    config.write_text(LINES)
    with serving(None, "--config", str(config), state=root.parent) as running:
        yield running


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_readme_below_the_list(server: Running, root: Path, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        page = client.get("/").body
        assert b'<section id="readme" aria-label="README"><h2>Title</h2>' in page
        assert b"&lt;script&gt;alert(1)" in page
        assert b"readme" not in client.get("/", "Accept: application/json").body
        # A link to a file that only those with the password may see.
        linked = client.get("/linked/").body
        assert b"./readme.md" in linked
        assert b"behind a password" not in linked


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_thumbnails(server: Running, root: Path, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        assert b'<img src="./photo.jpg?thumbnail"' in client.get("/").body
        photo = (root / "photo.jpg").read_bytes()
        # The picture itself may be a remembered response.
        for _ in range(3):
            assert client.get("/photo.jpg").body == photo
            assert client.get("/photo.jpg?other").body == photo
            made = client.get("/photo.jpg?thumbnail")
            assert (made.status, made.fields["content-type"]) == (200, "image/webp")
            assert len(made.body) < 60_000
        with Image.open(io.BytesIO(made.body)) as picture:
            assert picture.size == (213, 320)
        tag = made.fields["etag"]
        assert tag != client.get("/photo.jpg", method="HEAD").fields["etag"]
        assert client.get("/photo.jpg?thumbnail", f"If-None-Match: {tag}").status == 304
        head = client.get("/photo.jpg?thumbnail", method="HEAD")
        assert (head.status, head.fields["content-length"]) == (200, str(len(made.body)))
        assert client.get("/broken.png?thumbnail").status == 404


def test_a_changed_picture_has_another_thumbnail(server: Running, root: Path) -> None:
    with conversation(server.port, HTTP_1) as client:
        former = client.get("/photo.jpg?thumbnail")
        Image.effect_noise((800, 800), 90).save(root / "new.jpg", quality=95)
        os.replace(root / "new.jpg", root / "other.jpg")
        other = client.get("/other.jpg?thumbnail")
        Image.effect_noise((800, 400), 90).save(root / "new.jpg", quality=95)
        os.replace(root / "new.jpg", root / "other.jpg")
        changed = client.get("/other.jpg?thumbnail")
    assert len({former.fields["etag"], other.fields["etag"], changed.fields["etag"]}) == 3
    with Image.open(io.BytesIO(changed.body)) as picture:
        assert picture.size == (320, 160)


@pytest.mark.parametrize(("key", "package"), [("readme", "markdown-it-py"), ("thumbnails", "pillow")])
def test_a_missing_package_is_told(tmp_path: Path, key: str, package: str) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    # A finder that knows neither package.
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name in ('PIL', 'markdown_it') else find(name, *rest)\n"
    )
    config = tmp_path / "ktlsd.toml"
    config.write_text(f'root = "{tmp_path}"\n{key} = true\n')
    ended = run_to_end("check", "--config", str(config), state=tmp_path, PYTHONPATH=str(hidden))
    assert ended.returncode == 2
    assert f"ktlsd.toml:2: {key}: the package {package} is missing: pip install {package}, or" in ended.stderr
