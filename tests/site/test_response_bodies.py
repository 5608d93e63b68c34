"""Bodies of files whose file systems may hold up their callers, in the response cache: bounded, and never torn."""

from __future__ import annotations

import os
import time
from http import HTTPStatus
from pathlib import Path

import pytest
import trio

from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Response
from ktlsd.http.request_head import RequestHead, head_of
from ktlsd.site import response_cache
from ktlsd.site.lookup import OpenFile, Root
from ktlsd.site.response_cache import LASTING_SECONDS, LONGEST_BODY, MOST_BODY_BYTES, CacheKey, ResponseCache

SIZE = LONGEST_BODY + 10


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root") / "file"
    path.write_bytes(os.urandom(SIZE))
    while time.time_ns() - path.stat().st_ctime_ns <= 2_100_000_000:
        time.sleep(0.05)
    return path


def opened_of(file: Path, part: ByteRange) -> OpenFile:
    """The file, opened and begun to read as one that waits."""

    async def read() -> OpenFile:
        root = Root(str(file.parent))
        opened = await root.open_file(file.name.encode())
        assert isinstance(opened, OpenFile)
        opened.waits, opened.reopens = True, False
        await opened.read_first(part)
        return opened

    return trio.run(read)


def asked(number: int) -> RequestHead:
    return head_of(b"GET", b"/%d" % number, b"1.1", [(b"host", b"a")])


def remembered(
    cache: ResponseCache, opened: OpenFile, part: ByteRange, number: int = 0, asked_ns: int | None = None
) -> response_cache.CacheEntry | None:
    """The entry for a request with this number, as long as it holds."""
    key = CacheKey.of(None, asked(number), (), any_query=False)
    cache.remember(key, Response(HTTPStatus.OK, (), part), b"head", opened, rules=frozenset(), asked_ns=asked_ns)
    entry = cache.get(None, asked(number))
    return None if entry is None or cache.open(entry) is None else entry


@pytest.mark.parametrize(
    ("part", "kept"),
    [(ByteRange(0, 1000), True), (ByteRange(5, LONGEST_BODY), True), (ByteRange(0, LONGEST_BODY + 1), False)],
)
def test_a_body_that_was_read_whole_is_remembered(file: Path, part: ByteRange, kept: bool) -> None:
    cache, opened = ResponseCache(), opened_of(file, part)
    entry = remembered(cache, opened, part)
    assert (entry is not None) == kept
    if entry is not None:
        assert cache.open(entry) == -1
        assert entry.part is None
        assert entry.body == file.read_bytes()[part.offset : part.offset + part.count]
        opened.root.close()
        # Another folder is in its place.
        assert cache.open(entry) is None
        assert len(cache) == 0
    opened.close()


def test_a_body_of_another_part_or_version_is_not_remembered(file: Path) -> None:
    part = ByteRange(0, 1000)
    cache, opened = ResponseCache(), opened_of(file, part)
    assert remembered(cache, opened, ByteRange(0, 1001)) is None
    assert remembered(cache, opened, ByteRange(1, 1000)) is None
    opened.close()
    opened.root.close()

    async def read_while_it_changes() -> OpenFile:
        root = Root(str(file.parent))
        changing = await root.open_file(file.name.encode())
        assert isinstance(changing, OpenFile)
        changing.waits, changing.reopens = True, False
        os.utime(file)
        await changing.read_first(part)
        return changing

    changed = trio.run(read_while_it_changes)
    assert changed.first == (0, file.read_bytes()[:1000])
    assert remembered(cache, changed, part) is None
    changed.close()
    changed.root.close()


def test_a_body_is_as_old_as_its_decision(file: Path) -> None:
    part = ByteRange(0, 1000)
    opened = opened_of(file, part)
    late = time.time_ns() - int(1.01 * LASTING_SECONDS * 1e9)
    # Long ago enough for a file that changed just now.
    opened.identity = (*opened.identity[:3], 0, 0)
    cache = ResponseCache()
    assert remembered(cache, opened, part, asked_ns=late) is None
    entry = remembered(cache, opened, part)
    assert entry is not None
    time.sleep(LASTING_SECONDS + 0.05)
    assert cache.open(entry) is None
    assert cache.get(None, asked(0)) is None
    opened.close()
    opened.root.close()


def test_bodies_are_bounded(file: Path) -> None:
    part = ByteRange(0, LONGEST_BODY)
    cache, opened = ResponseCache(), opened_of(file, part)
    opened.identity = (*opened.identity[:3], 0, 0)
    most = MOST_BODY_BYTES // LONGEST_BODY
    for number in range(most + 3):
        remembered(cache, opened, part, number)
        # One that is decided again takes the place of its former one.
        remembered(cache, opened, part, number)
    assert len(cache) <= most
    assert remembered(cache, opened, part, most + 3) is not None
    assert cache.get(None, asked(0)) is None
    time.sleep(LASTING_SECONDS + 0.05)
    # All that have expired leave.
    remembered(cache, opened, part, 0)
    assert len(cache) == 1
    opened.close()
    opened.root.close()
