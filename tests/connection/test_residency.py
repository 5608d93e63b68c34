"""What is in memory is known on file systems without RWF_NOWAIT, and no disk is waited for on the event loop."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.connection.page_cache import FROM_DISK, PIECE, STRIDE, PageCache, Window
from ktlsd.connection.residency import GRANULE, LOOK_BYTES, MOST_GRANULES, Kind, Residency
from ktlsd.file_identity import FileIdentity, identify
from ktlsd.metrics.metrics import COLD_READS, SLOTS
from ktlsd.system_calls import resident_until
from tests.mounting import as_user, evict, known_to_the_kernel, mount, overlay

SIZE = 10 << 20
CONTENT = os.urandom(SIZE)
NOBODY = 65534
OTHER = 12345
HUGE_PAGE = 2 << 20

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def below(tmp_path: Path) -> Path:
    """A file on a disk."""
    (tmp_path / "shown").mkdir()
    path = tmp_path / "shown/big.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def shown(tmp_path: Path, below: Path) -> Iterator[int]:
    """The same file, open, through an overlay."""
    with overlay(tmp_path, below.parent) as point, (point / below.name).open("rb") as file:
        with pytest.raises(OSError, match="not supported"):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        yield file.fileno()


def read(descriptor: int, offset: int, count: int) -> None:
    assert os.pread(descriptor, count, offset) == CONTENT[offset : offset + count]


def loaded(
    page_cache: PageCache, head: bytes, descriptor: int, offset: int, count: int, known: FileIdentity | None = None
) -> bytes | None:
    piece = page_cache.load(head, descriptor, offset, count, known)
    return None if piece is None else bytes(piece)


def gathered(
    page_cache: PageCache, head: bytes, descriptor: int, offset: int, count: int, known: FileIdentity | None = None
) -> bytes | None:
    data = page_cache.read_after(head, descriptor, offset, count, known)
    return None if data is None else bytes(data)


def fresh() -> PageCache:
    """Without knowledge of earlier reads."""
    return PageCache([0] * SLOTS)


def test_the_kernel_tells_what_is_in_the_page_cache(below: Path, shown: int) -> None:
    read(shown, 0, SIZE)
    assert fresh().look(shown, 0, SIZE) == (LOOK_BYTES, STRIDE)
    assert fresh().look(shown, SIZE - 5, SIZE) == (SIZE, STRIDE)
    evict(below)
    assert fresh().look(shown, 0, SIZE) == (0, STRIDE)
    assert fresh().load(b"head", shown, 0, 1000) is None
    assert fresh().read_after(b"head", shown, 0, 1000) is None
    # Far from the evicted bytes before it, so no readahead reaches those.
    os.posix_fadvise(shown, 0, 0, os.POSIX_FADV_RANDOM)
    read(shown, 5 << 20, 100_000)
    assert resident_until(shown, (5 << 20) + 10, SIZE) >= (5 << 20) + 100_000
    assert resident_until(shown, (4 << 20) + 10, SIZE) == (4 << 20) + 10
    expected = b"head" + CONTENT[(5 << 20) + 10 :]
    assert loaded(fresh(), b"head", shown, (5 << 20) + 10, 50_000) == expected[: 50_000 + 4]
    assert gathered(fresh(), b"head", shown, (5 << 20) + 10, 1000) == expected[: 1000 + 4]


async def test_a_cold_part_is_read_in_a_thread_and_then_known(below: Path, shown: int) -> None:
    row = [0] * SLOTS
    page_cache = PageCache(row)
    evict(below)
    window = Window(page_cache, shown, SIZE)
    assert window.size(0) == 0
    await window.read_in(0)
    assert window.size(0) == FROM_DISK
    assert row[COLD_READS] == 1
    assert loaded(page_cache, b"", shown, 0, PIECE) == CONTENT[:PIECE]
    evict(below)
    got = await page_cache.read(b"head", shown, 5 << 20, 1000)
    assert got == b"head" + CONTENT[5 << 20 :][:1000]
    assert row[COLD_READS] == 2
    assert gathered(page_cache, b"", shown, 5 << 20, 1000) == CONTENT[5 << 20 :][:1000]


@pytest.mark.parametrize("user", [OTHER, NOBODY])
async def test_a_user_to_whom_the_kernel_lies_knows_what_was_read(below: Path, shown: int, user: int) -> None:
    row = [0] * SLOTS
    page_cache = PageCache(row)
    evict(below)
    with as_user(user):
        assert resident_until(shown, 0, SIZE) == SIZE, "Linux says that all is there"
        assert page_cache.look(shown, 0, SIZE) == (0, STRIDE)
        assert page_cache.read_after(b"", shown, 0, 1000) is None
        await page_cache.read(b"", shown, 0, 1000)
        for _ in range(5):
            assert gathered(page_cache, b"head", shown, 0, 1000) == b"head" + CONTENT[:1000]
        # All of a granule is taken to be there, and nothing after it.
        assert page_cache.look(shown, 10, SIZE) == (GRANULE, STRIDE)
        assert loaded(page_cache, b"", shown, 10, SIZE) == CONTENT[10:GRANULE]
    assert row[COLD_READS] == 1


def test_the_owner_hears_the_truth_without_capabilities(below: Path, shown: int) -> None:
    os.chown(below, OTHER, OTHER)
    evict(below)
    with as_user(OTHER):
        assert fresh().look(shown, 0, SIZE) == (0, STRIDE)
    read(shown, 0, SIZE)
    with as_user(OTHER):
        assert fresh().look(shown, 0, SIZE) == (LOOK_BYTES, STRIDE)


def test_an_owner_unknown_to_the_namespace_is_not_asked_about(below: Path, shown: int) -> None:
    os.chown(below, NOBODY, NOBODY)
    read(shown, 0, SIZE)
    assert fresh().look(shown, 0, SIZE) == (0, STRIDE)


def test_another_version_is_not_known(tmp_path: Path) -> None:
    knowledge = Residency()
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    with path.open("rb") as file:
        before = identify(file.fileno())
        knowledge.note(before, 0, 1000)
        os.truncate(path, 500)
        after = identify(file.fileno())
        with as_user(OTHER):
            assert knowledge.until(file.fileno(), 0, 1000, before) == 1000
            assert knowledge.until(file.fileno(), 0, 500, after) == 0


def test_knowledge_ends_after_a_while_and_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    with path.open("rb") as file, as_user(OTHER):
        identity = identify(file.fileno())
        for seconds, known in ((60.0, 1000), (0.0, 0)):
            knowledge = Residency(seconds)
            knowledge.note(identity, 0, 1000)
            assert knowledge.until(file.fileno(), 0, 1000, identity) == known
        knowledge = Residency(60.0)
        knowledge.note(identity, 0, 1000)
        knowledge.note((0, 0, 1 << 40, 0, 0), 0, MOST_GRANULES * GRANULE)
        assert len(knowledge) == MOST_GRANULES
        assert knowledge.until(file.fileno(), 0, 1000, identity) == 0


@pytest.mark.parametrize(
    ("slow_seconds", "cold", "kept"), [(math.inf, True, 2), (0.0, True, 0), (0.0, False, 2), (math.inf, False, 2)]
)
def test_a_read_that_came_from_a_disk_ends_all_knowledge(
    below: Path, shown: int, slow_seconds: float, cold: bool, kept: int
) -> None:
    if cold:
        evict(below)
    else:
        read(shown, 0, SIZE)
    identity = identify(shown)
    knowledge = Residency(60.0, slow_seconds)
    for noted in (identity, (0, 0, 1000, 0, 0)):
        knowledge.note(noted, 0, 1000)
    buffer = bytearray(1000)
    kind = Kind(in_memory=False, until=math.inf)
    assert knowledge.read(kind, shown, memoryview(buffer), 0, identity) == 1000
    assert buffer == CONTENT[:1000]
    assert len(knowledge) == kept


def test_a_file_that_cannot_be_mapped_is_not_asked_about() -> None:
    knowledge = Residency()
    with open("/sys/kernel/uevent_seqnum", "rb") as file:
        with pytest.raises(OSError, match="No such device"):
            resident_until(file.fileno(), 0, 1)
        identity = identify(file.fileno())
        assert identity[2] > 0
        assert knowledge.until(file.fileno(), 0, 1, identity) == 0
        knowledge.note(identity, 0, 1)
        assert knowledge.until(file.fileno(), 0, 1, identity) == 1


@pytest.mark.parametrize("kind", [kind for kind in ("tmpfs", "ramfs", "hugetlbfs") if known_to_the_kernel(kind)])
def test_what_lives_in_memory_needs_no_question(tmp_path: Path, kind: str) -> None:
    row = [0] * SLOTS
    page_cache = PageCache(row)
    with mount(kind, tmp_path / "mount") as point:
        path = point / "file"
        path.touch()
        os.truncate(path, SIZE - SIZE % HUGE_PAGE)
        with path.open("rb") as file:
            with pytest.raises(OSError, match="not supported"):
                os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
            identity = identify(file.fileno())
            for known in (None, identity):
                assert gathered(page_cache, b"head", file.fileno(), 5, 1000, known) == b"head" + bytes(1000)
                assert loaded(page_cache, b"head", file.fileno(), 5, 1000, known) == b"head" + bytes(1000)
                assert page_cache.look(file.fileno(), 0, 1 << 40, identity=known) == (1 << 40, 0)
            assert page_cache.read_after(b"", file.fileno(), identity[2] - 5, 6, identity) is None
    assert row[COLD_READS] == 0
