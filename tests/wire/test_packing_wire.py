"""Compression of listings, and of small files without siblings, over both protocols."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.config.values import Coding
from ktlsd.site.decoders import unpack
from ktlsd.site.packing import CODINGS, LARGEST
from tests.protocols import HTTP_1, PROTOCOLS, conversation
from tests.serving import Running, serving

TEXT = b"".join(b"line %d\n" % number for number in range(2000))
BROWSER = "Accept-Encoding: gzip, deflate, br, zstd"


def unpacked(coding: str, body: bytes) -> bytes:
    known: dict[str, Coding] = {name: name for name in CODINGS}
    return b"".join(unpack(known[coding], [body]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("packing")
    root = base / "root"
    (root / "sub").mkdir(parents=True)
    contents = {
        "a.txt": TEXT,
        "small.txt": b"a" * 100,
        "large.txt": b"a" * (LARGEST + 1),
        "a.png": TEXT,
        "noise.txt": os.urandom(5000),
        "changing.txt": TEXT,
        "sub/a.txt": TEXT,
        "sub/a.txt.gz": b"no gzip at all",
    }
    long_ago = time.time() - 1000
    for name, content in contents.items():
        (root / name).write_bytes(content)
        # The mtime of its file would prove that a sibling is one.
        moment = long_ago + name.endswith(".gz")
        os.utime(root / name, (moment, moment))
    time.sleep(max(0.0, os.stat(root / "sub/a.txt.gz").st_ctime + 2.1 - time.time()))
    config = base / "ktlsd.toml"
    config.write_text('root = "root"\nlisting = true\ncompress = true\n[[site]]\nnames = ["off"]\ncompress = false\n')
    with serving(None, "--config", str(config), state=base) as running:
        yield running


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_listings(server: Running, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        plain = client.get("/", host="off")
        assert (plain.fields["vary"], "content-encoding" in plain.fields) == ("Accept, Accept-Encoding", False)
        for coding in CODINGS:
            page = client.get("/", f"Accept-Encoding: {coding}", host="off")
            assert page.fields["content-encoding"] == coding
            assert unpacked(coding, page.body) == plain.body
            assert len(page.body) < len(plain.body) / 2
            rows = client.get("/", f"Accept-Encoding: {coding}", "Accept: application/json")
            assert json.loads(unpacked(coding, rows.body))[0]["name"] == "sub"
        head = client.get("/", BROWSER, method="HEAD")
        assert (head.body, head.fields["content-encoding"]) == (b"", "zstd")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_small_texts(server: Running, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        plain = client.get("/a.txt")
        assert (plain.body, plain.fields["vary"]) == (TEXT, "Accept-Encoding")
        tags = {plain.fields["etag"]}
        for coding in CODINGS:
            ask = f"Accept-Encoding: {coding}"
            for _ in range(2):
                made = client.get("/a.txt", ask)
                assert (made.fields["content-encoding"], made.fields["vary"]) == (coding, "Accept-Encoding")
                assert made.fields["content-type"] == plain.fields["content-type"]
                assert made.fields["last-modified"] == plain.fields["last-modified"]
                assert unpacked(coding, made.body) == TEXT
            tags.add(tag := made.fields["etag"])
            assert client.get("/a.txt", ask, "Range: bytes=10-19", f"If-Range: {tag}").body == made.body[10:20]
            assert client.get("/a.txt", ask, f"If-None-Match: {tag}").status == 304
            head = client.get("/a.txt", ask, method="HEAD")
            assert (head.fields["content-length"], head.fields["etag"]) == (str(len(made.body)), tag)
        assert len(tags) == 4
        assert client.get("/a.txt").body == TEXT
        for path in ("/small.txt", "/large.txt", "/a.png", "/noise.txt"):
            assert "content-encoding" not in client.get(path, BROWSER).fields
        assert "content-encoding" not in client.get("/a.txt", BROWSER, host="off").fields
        # A sibling that is none is not sent, and what it should be is made.
        assert unpacked("gzip", client.get("/sub/a.txt", "Accept-Encoding: gzip").body) == TEXT


def test_a_changed_file_is_packed_again(server: Running) -> None:
    path = Path(server.state) / "root/changing.txt"
    with conversation(server.port, HTTP_1) as client:
        former = client.get("/changing.txt", BROWSER)
        assert unpacked("zstd", former.body) == TEXT
        path.write_bytes(TEXT.upper())
        # As it is, until a change in the same tick of the clock is impossible; and not remembered.
        latter = client.get("/changing.txt", BROWSER)
        assert ("content-encoding" in latter.fields, latter.body) == (False, TEXT.upper())
        moment = os.stat(path).st_ctime + 2.1
        time.sleep(max(0.0, moment - time.time()))
        last = client.get("/changing.txt", BROWSER)
    assert unpacked("zstd", last.body) == TEXT.upper()
    assert len({former.fields["etag"], latter.fields["etag"], last.fields["etag"]}) == 3
