"""A folder as zip or tar over both protocols: what is in it and what never is, ranges, files that change meanwhile."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import pytest

from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS, BrokenError, ask, conversation
from tests.serving import Running, serving

LARGE = 6_000_000
LINES = """
root = "root"
listing = true
headers_file = true
zip_bytes = 8_000_000
tar_bytes = 8_000_000
downloads = ["**"]
hide = ["*.bak"]
[[access]]
path = "/some/closed/**"
deny = ["127.0.0.1"]
[[access]]
path = "/some/entered/index.html"
deny = ["127.0.0.1"]
[[site]]
names = ["without"]
zip_bytes = 0
tar_bytes = 0
"""
OUTSIDE = b"never"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The members of /some/?tar, and of /some/?zip but for backslashes."""
    return {
        "some/": b"",
        "some/a.txt": b"a" * 1000,
        "some/ümlaut.txt": b"u",
        "some/empty": b"",
        "some/up\\..\\..\\a": b"back",
        "some/up_.._.._a": b"under",
        "some/x\\y/": b"",
        "some/x\\y/z.txt": b"z",
        f"some/{'long' * 60}": b"long",
        "some/large.bin": os.urandom(LARGE),
        "some/link.txt": b"b" * 10,
        "some/sub/": b"",
        "some/sub/b.txt": b"b" * 10,
        "some/page/": b"",
        "some/page/index.html": b"page",
        "some/nothing/": b"",
        "some/entered/": b"",
    }


@pytest.fixture(scope="module")
def server(contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("zip")
    (base / "root").mkdir()
    (base / "outside.txt").write_bytes(OUTSIDE)
    root = base / "root"
    for name, content in contents.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        elif name != "some/link.txt":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (root / "some/link.txt").symlink_to("sub/b.txt")
    for place in ("some/closed", "secret"):
        (root / place).mkdir()
        (root / place / "x.txt").write_bytes(OUTSIDE)
    hidden = (
        *("some/.dot", "some/old.bak", "some/sub/.dot", "some/page/unlinked.txt"),
        *("some/entered/index.html", "some/entered/unlinked.txt"),
    )
    for name in hidden:
        (root / name).write_bytes(OUTSIDE)
    (root / "_headers").write_text("/secret/*\n  Basic-Auth: a:b\n")
    (root / "some/outside.txt").symlink_to("../../outside.txt")
    (root / "some/protected.txt").symlink_to("../secret/x.txt")
    (root / "some/circle").symlink_to(".")
    os.mkfifo(root / "some/fifo")
    (root / "huge").mkdir()
    os.truncate(os.open(root / "huge/a", os.O_CREAT | os.O_WRONLY), 8_000_001)
    config = base / "ktlsd.toml"
    config.write_text(LINES)
    with serving(None, "--config", str(config), state=base) as running:
        yield running


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_in_it(server: Running, contents: dict[str, bytes], tmp_path: Path, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        listing = client.get("/some/")
        assert b'href="?zip"' in listing.body
        answer = client.get("/some/?zip")
        head = client.get("/some/?zip", method="HEAD")
    # Also with downloads = ["**"].
    assert "content-disposition" not in listing.fields
    assert (answer.status, answer.fields["content-type"]) == (200, "application/zip")
    assert answer.fields["content-disposition"] == 'attachment; filename="some.zip"'
    assert int(answer.fields["content-length"]) == len(answer.body) == int(head.fields["content-length"])
    assert (head.body, head.fields["etag"]) == (b"", answer.fields["etag"])
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.testzip() is None
        found = {info.filename: archive.read(info) for info in archive.infolist()}
    # Extractors on Windows take backslashes for separators.
    renamed = {"some/up\\..\\..\\a": "some/up_.._.._a_", "some/x\\y/": "some/x_y/", "some/x\\y/z.txt": "some/x_y/z.txt"}
    assert found | {"some/": b""} == {renamed.get(name, name): content for name, content in contents.items()}
    assert OUTSIDE not in answer.body
    for name in (b".dot", b"bak", b"unlinked", b"protected", b"outside", b"closed", b"circle"):
        assert name not in answer.body.replace(contents["some/large.bin"], b"")
    (tmp_path / "some.zip").write_bytes(answer.body)
    subprocess.run(["unzip", "-tq", str(tmp_path / "some.zip")], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_in_a_tar(server: Running, contents: dict[str, bytes], tmp_path: Path, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        assert b'href="?tar"' in client.get("/some/").body
        answer = client.get("/some/?tar")
        head = client.get("/some/?tar", method="HEAD")
        assert client.get("/some/?zip").fields["etag"] != answer.fields["etag"]
    assert (answer.status, answer.fields["content-type"]) == (200, "application/x-tar")
    assert answer.fields["content-disposition"] == 'attachment; filename="some.tar"'
    assert int(answer.fields["content-length"]) == len(answer.body) == int(head.fields["content-length"])
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        files = {
            info.name + "/" * info.isdir(): b"" if info.isdir() else cast(IO[bytes], archive.extractfile(info)).read()
            for info in archive
        }
    assert files | {"some/": b""} == contents
    assert OUTSIDE not in answer.body
    (tmp_path / "some.tar").write_bytes(answer.body)
    subprocess.run(["tar", "-xf", "some.tar"], cwd=tmp_path, check=True)
    for name, content in contents.items():
        assert (tmp_path / name).is_dir() if name.endswith("/") else (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ranges(server: Running, protocol: str, form: str) -> None:
    with conversation(server.port, protocol) as client:
        whole = client.get(f"/some/?{form}")
        size, tag = len(whole.body), whole.fields["etag"]
        for first, end in (
            (0, 1),
            (30, 90),
            (1000, 5_000_000),
            (size - 700, size),
            (LARGE, size),
            (size - 5, size - 2),
        ):
            answer = client.get(f"/some/?{form}", f"Range: bytes={first}-{end - 1}", f"If-Range: {tag}")
            assert (answer.status, answer.fields["content-range"]) == (206, f"bytes {first}-{end - 1}/{size}")
            assert answer.body == whole.body[first:end]
        assert client.get(f"/some/?{form}", "Range: bytes=0-1,5-6", method="HEAD").status == 200
        assert client.get(f"/some/?{form}", f"Range: bytes={size}-").status == 416
        assert client.get(f"/some/?{form}", f"If-None-Match: {tag}").status == 304
        assert client.get(f"/some/?{form}", "Range: bytes=0-1", 'If-Range: "other"', method="HEAD").status == 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_refused(server: Running, protocol: str) -> None:
    assert ask(server.port, "/huge/?zip", protocol=protocol).body == b"403 Forbidden\n"
    server.wait_for_line(r"403 GET /huge/\?zip: a zip of more than zip_bytes = 8000000")
    assert ask(server.port, "/huge/?tar", protocol=protocol).status == 403
    server.wait_for_line(r"403 GET /huge/\?tar: a tar of more than tar_bytes = 8000000")
    assert ask(server.port, "/secret/?zip", protocol=protocol).status == 401
    assert ask(server.port, "/some/closed/?zip", protocol=protocol).status == 403
    without = ask(server.port, "/some/?zip", protocol=protocol, host="without")
    assert without.fields["content-type"] == "text/html; charset=utf-8"
    assert b"?zip" not in without.body
    assert b"?tar" not in without.body


@pytest.mark.parametrize(("protocol", "form"), [(HTTP_1, "zip"), (HTTP_2, "zip"), (HTTP_1, "tar")])
def test_a_file_that_changes_cuts_the_download_off(tmp_path: Path, protocol: str, form: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a").write_bytes(os.urandom(20_000_000))
    (tmp_path / "root/b").write_bytes(b"former")
    config = tmp_path / "ktlsd.toml"
    config.write_text('root = "root"\nlisting = true\nzip_bytes = 1_000_000_000\ntar_bytes = 1_000_000_000\n')
    with (
        serving(None, "--config", str(config), state=tmp_path) as server,
        conversation(server.port, protocol) as client,
    ):
        download = client.begin(f"/?{form}")
        download.read(1000)
        (tmp_path / "root/new").write_bytes(b"latter")
        os.replace(tmp_path / "root/new", tmp_path / "root/b")
        with pytest.raises(BrokenError):
            download.answer()
        server.wait_for_line("b: changed while its folder was sent as an archive")
