"""Digests of files' contents, with real files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from ktlsd.file_identity import identify
from ktlsd.site import content_hash
from ktlsd.site.content_hash import DIGEST_BYTES, ContentHashes
from ktlsd.site.lookup import OpenFile, Root

CONTENT = os.urandom(600_000)


def opened(path: Path) -> OpenFile:
    descriptor = os.open(path, os.O_RDONLY)
    return OpenFile(descriptor, Root(None), b"", identify(descriptor))


async def digest_of(hashes: ContentHashes, path: Path) -> bytes:
    found = opened(path)
    try:
        return await hashes.digest(found)
    finally:
        found.close()


def rewrite(path: Path, content: bytes, mtime_ns: int) -> None:
    """Change the content in place, and date it back."""
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file.bin"
    rewrite(file, CONTENT, 10**18)
    return file


@pytest.mark.parametrize("size", [0, 1, 262143, 262144, 262145, 600_000])
async def test_a_digest_is_of_the_whole_content(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(CONTENT[:size])
    expected = hashlib.blake2b(CONTENT[:size], digest_size=DIGEST_BYTES).digest()
    assert await digest_of(ContentHashes(), file) == expected


async def test_the_same_bytes_have_one_digest_wherever_they_are(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(CONTENT)
    assert await digest_of(ContentHashes(), path) == await digest_of(ContentHashes(), copy)


async def test_the_position_of_a_descriptor_neither_matters_nor_moves(path: Path) -> None:
    found = opened(path)
    os.lseek(found.descriptor, 1234, os.SEEK_SET)
    assert await ContentHashes().digest(found) == await digest_of(ContentHashes(), path)
    assert os.lseek(found.descriptor, 0, os.SEEK_CUR) == 1234
    found.close()


async def known_of(hashes: ContentHashes, path: Path) -> bytes | None:
    """The digest, where it is had without a read of the file."""
    found = opened(path)
    found.close()
    write_only = os.open(path, os.O_WRONLY)
    try:
        return await hashes.digest(replace(found, descriptor=write_only))
    except OSError:
        return None
    finally:
        os.close(write_only)


async def test_a_file_is_read_once(path: Path) -> None:
    hashes = ContentHashes()
    assert await known_of(hashes, path) is None
    first = await digest_of(hashes, path)
    assert await known_of(hashes, path) == first


@pytest.mark.parametrize("change", ["mtime", "size", "content alone", "another file"])
async def test_a_changed_file_is_read_again(path: Path, tmp_path: Path, change: str) -> None:
    hashes = ContentHashes()
    first = await digest_of(hashes, path)
    match change:
        case "mtime":
            rewrite(path, CONTENT[::-1], 10**18 + 1)
        case "size":
            rewrite(path, CONTENT[1:], 10**18)
        case "content alone":
            rewrite(path, CONTENT[::-1], 10**18)
        case "another file":
            rewrite(tmp_path / "other", CONTENT[::-1], 10**18)
            (tmp_path / "other").rename(path)
    changed = await digest_of(hashes, path)
    assert changed != first
    assert changed == await digest_of(ContentHashes(), path)


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT + b"more"], ids=["rewritten", "grown"])
async def test_a_digest_of_what_changed_meanwhile_is_not_kept(path: Path, content: bytes) -> None:
    hashes = ContentHashes()
    found = opened(path)
    rewrite(path, content, 2 * 10**18 if len(content) == len(CONTENT) else 10**18)
    during = await hashes.digest(found)
    assert during == hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
    found.close()
    rewrite(path, CONTENT, 10**18)
    assert await digest_of(hashes, path) == hashlib.blake2b(CONTENT, digest_size=DIGEST_BYTES).digest()


async def test_the_least_lately_used_is_forgotten_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hash, "_REMEMBERED", 2)
    hashes = ContentHashes()
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for number, file in enumerate(paths):
        rewrite(file, b"old%d" % number, 10**18)
    a, b, c = paths
    for file in (a, b, a, c):
        await digest_of(hashes, file)
    assert [await known_of(hashes, file) is not None for file in paths] == [True, False, True]


async def test_many_at_once_get_the_same(path: Path) -> None:
    hashes = ContentHashes()
    digests = []

    async def one() -> None:
        digests.append(await digest_of(hashes, path))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert digests == [hashlib.blake2b(CONTENT, digest_size=DIGEST_BYTES).digest()] * 20


async def test_what_cannot_be_read_is_told_and_not_kept(path: Path, tmp_path: Path) -> None:
    hashes = ContentHashes()
    folder = opened(tmp_path)
    with pytest.raises(IsADirectoryError):
        await hashes.digest(folder)
    folder.close()
    found = opened(path)
    write_only = os.open(path, os.O_WRONLY)
    unreadable = replace(found, descriptor=write_only)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await hashes.digest(unreadable)
    os.close(write_only)
    assert await hashes.digest(found) == hashlib.blake2b(CONTENT, digest_size=DIGEST_BYTES).digest()
    found.close()
