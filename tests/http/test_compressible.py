"""Which media types are worth compressing: a table."""

from __future__ import annotations

import pytest

from ktlsd.http.compressible import is_compressible


@pytest.mark.parametrize(
    "content_type",
    [
        "text/html; charset=utf-8",
        "text/css",
        "TEXT/JavaScript",
        "application/javascript",
        "application/json",
        "application/manifest+json",
        "application/xml",
        "application/atom+xml",
        "application/wasm",
        "application/octet-stream",
        "application/x-tar",
        "application/vnd.ms-fontobject",
        "image/svg+xml",
        "image/bmp",
        "image/vnd.microsoft.icon",
        "image/vnd.adobe.photoshop",
        "font/ttf",
        "font/otf",
        "model/gltf+json",
        "something/new",
        "",
    ],
)
def test_worth_it(content_type: str) -> None:
    assert is_compressible(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        "image/png",
        "IMAGE/JPEG; quality=9",
        "image/avif",
        "audio/mpeg",
        "video/mp4",
        "font/woff",
        "font/woff2",
        "application/zip",
        "application/gzip",
        "application/zstd",
        "application/x-xz",
        "application/x-bzip2",
        "application/x-7z-compressed",
        "application/pdf",
        "application/epub+zip",
        "application/java-archive",
        "application/vnd.apple.keynote",
        "application/vnd.google-earth.kmz",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "application/vnd.oasis.opendocument.text",
    ],
)
def test_compressed_already(content_type: str) -> None:
    assert not is_compressible(content_type)
