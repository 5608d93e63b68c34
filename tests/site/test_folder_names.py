"""Absent names without a thread: in real folders, and never after a file has appeared."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.decide import Miss
from ktlsd.http.request_target import parse_target
from ktlsd.site import folder_names
from ktlsd.site.folder_names import FolderNames, Unread, Verdict, holds, pack
from ktlsd.site.lookup import Folder, OpenFile, Root
from ktlsd.system_calls import file_system_type, openat2

T = TypeVar("T")

OVERLAYFS = 0x794C7630
SETTLED = 0.1
"""Seconds, in place of two: the clock of file systems has ticks of 10 ms at most."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_names, "_SETTLED_NS", int(SETTLED * 1e9))
    # A busy machine may take a while for a folder, and is not to wait for many times as long.
    monkeypatch.setattr(folder_names, "_PAUSES", 0)


class NeedsThread(Exception):
    """The event loop itself could not answer."""


def at_once(asked: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, not even once."""
    try:
        asked.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    asked.close()
    raise NeedsThread


def settle(seconds: float = SETTLED + 0.05) -> None:
    time.sleep(seconds)


def looked_up(root: Root, path: str) -> Any:
    return root.find(parse_target(b"/" + os.fsencode(path)))


async def learn(root: Root, *paths: str) -> None:
    """Ask for names that are not there until their folders are known."""
    for path in paths:
        for number in range(50):
            # The kernel itself knows a name from the second time on.
            assert await looked_up(root, f"{path}{number}") is Miss.ABSENT
            with contextlib.suppress(NeedsThread):
                assert at_once(looked_up(root, f"{path}{number}x")) is Miss.ABSENT
                break
            await trio.sleep(SETTLED)
        else:
            raise NeedsThread


def is_found(root: Root, path: str) -> bool:
    """Whether the event loop finds a file without a thread."""
    found = at_once(looked_up(root, path))
    if isinstance(found, OpenFile | Folder):
        found.close()
    return isinstance(found, OpenFile)


# --- pure


@given(st.sets(st.text(min_size=1)), st.sets(st.text(min_size=1)))
def test_all_that_is_packed_is_held(listed: set[str], others: set[str]) -> None:
    names = pack([hash(name) for name in listed])
    assert all(holds(names, name) for name in listed)
    assert not any(holds(names, name) for name in others - listed)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 50_000])
def test_large_folders_are_packed_in_short_runs(count: int) -> None:
    names = pack([hash(f"name {number}") for number in range(count)])
    assert sum(map(len, names)) == count
    assert all(holds(names, f"name {number}") for number in range(count))
    assert not any(holds(names, f"no name {number}") for number in range(count))
    assert max(map(len, names)) < 2048


# --- real folders


def run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def mount_tmpfs(place: Path, _: Path) -> None:
    run("mount", "-t", "tmpfs", "none", place)


def mount_overlay(place: Path, scratch: Path) -> None:
    run("mount", "-t", "tmpfs", "none", scratch)
    for name in ("lower/both", "upper/both", "work"):
        (scratch / name).mkdir(parents=True)
    (scratch / "lower/both/below.txt").write_text("below")
    (scratch / "lower/Below.txt").write_text("below")
    run(
        "mount",
        "-t",
        "overlay",
        "none",
        "-o",
        "lowerdir=lower,upperdir=upper,workdir=work".replace("=", f"={scratch}/"),
        place,
    )


def mount_ext4(place: Path, scratch: Path) -> None:
    image = scratch / "image"
    with image.open("wb") as file:
        file.truncate(16 * 1024 * 1024)
    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop", image, place)


def mount_nothing(_: Path, __: Path) -> None:
    """The file system of the tests themselves."""


@pytest.fixture(
    params=[
        mount_nothing,
        *(pytest.param(each, marks=as_root) for each in (mount_tmpfs, mount_overlay, mount_ext4)),
    ],
    ids=lambda mount: mount.__name__.removeprefix("mount_"),
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty folder, on several file systems."""
    folder, scratch = tmp_path / "place", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    request.param(folder, scratch)
    yield folder
    for mounted in (folder, scratch):
        if mounted.is_mount():
            run("umount", "-l", mounted)


@pytest.fixture
def site(place: Path) -> Path:
    (place / "sub/deep").mkdir(parents=True)
    for name in ("index.html", "A.txt", "sub/a.txt", "sub/deep/a.txt"):
        (place / name).write_text(name)
    (place / "link").symlink_to("sub")
    settle()
    return place


@pytest.fixture
def root(site: Path) -> Iterator[Root]:
    root = Root(str(site))
    yield root
    root.close()


async def test_an_absent_name_needs_one_thread_for_its_folder(root: Root) -> None:
    await learn(root, "none", "sub/none", "sub/deep/none")
    for path in ("a", "b.php", "sub/a", "sub/b/c/d", "sub/deep/a", "n/n", "n/n/n.php", "n/", "sub/n/"):
        assert at_once(looked_up(root, path)) is Miss.ABSENT
    for path in ("A.txt", "sub/a.txt", "sub/deep/a.txt", ""):
        assert is_found(root, path)


async def learn_through_link(root: Root, path: str) -> None:
    """The kernel walks a link in a thread once, to note the time; on overlayfs, always."""
    if file_system_type(root.descriptor) == OVERLAYFS:
        with pytest.raises(NeedsThread):
            at_once(looked_up(root, path))
        assert await looked_up(root, path) is Miss.ABSENT
    else:
        await learn(root, path)


async def test_links_lead_to_names_too(root: Root, site: Path) -> None:
    (site / "sub/through").symlink_to("deep")
    settle()
    await learn_through_link(root, "link/none")
    await learn_through_link(root, "link/through/none")
    for path in ("link/a.txt", "link/deep/a.txt", "link/through/a.txt"):
        found = await looked_up(root, path)
        assert isinstance(found, OpenFile)
        found.close()
    for path in ("link/n", "link/n/n", "link/through/n"):
        assert await looked_up(root, path) is Miss.ABSENT


async def test_a_file_is_found_once_it_is_there(root: Root, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # overlayfs may remove an attribute of a folder that is read, which changes its times.
    monkeypatch.setattr(folder_names, "AHEAD_SECONDS", -1.0)
    await learn(root, "none", "sub/none")
    changes: tuple[Callable[[Path], object], ...] = (
        lambda path: path.write_text("new"),
        lambda path: path.symlink_to(site / "A.txt"),
        lambda path: path.hardlink_to(site / "A.txt"),
        lambda path: os.rename(site / "sub/a.txt", path),
        lambda path: os.rename(path.with_name("A.txt"), path),
    )
    for number, change in enumerate(changes):
        for folder in (site / "sub", site):
            path = folder / f"new{number}"
            if not path.with_name("A.txt").exists():
                path.with_name("A.txt").write_text("A")
            (site / "sub/a.txt").write_text("a")
            settle()
            name = str(path.relative_to(site))
            await learn(root, "none", "sub/none")
            assert at_once(looked_up(root, name)) is Miss.ABSENT
            change(path)
            found = await looked_up(root, name)
            assert isinstance(found, OpenFile)
            found.close()


async def test_a_missing_folder_decides_until_it_is_there(root: Root, site: Path) -> None:
    await learn(root, "wp-admin/x.php", "sub/x/y")
    (site / "wp-admin").mkdir()
    (site / "wp-admin/x.php").write_text("x")
    assert is_found(root, "wp-admin/x.php")
    settle()
    (site / "other").mkdir()
    (site / "other/y").write_text("y")
    settle()
    await learn(root, "none", "sub/none")
    os.rename(site / "other", site / "sub/x")
    assert is_found(root, "sub/x/y")


async def test_names_belong_to_a_folder_not_to_its_path(root: Root, site: Path) -> None:
    """A link that is swapped, and a folder that another one takes the place of."""
    (site / "v1").mkdir()
    (site / "v2").mkdir()
    (site / "v2/new.css").write_text("new")
    (site / "current").symlink_to("v1")
    settle()
    await learn_through_link(root, "current/none")
    assert await looked_up(root, "current/new.css") is Miss.ABSENT
    (site / "next").symlink_to("v2")
    os.rename(site / "next", site / "current")
    found = await looked_up(root, "current/new.css")
    assert isinstance(found, OpenFile)
    found.close()
    os.rename(site / "v1", site / "old")
    os.rename(site / "v2", site / "v1")
    found = await looked_up(root, "v1/new.css")
    assert isinstance(found, OpenFile)
    found.close()


async def open_sibling(root: Root, path: bytes) -> OpenFile | Miss | None:
    return await root.open_file(path) if root.possible_siblings([path]) else Miss.ABSENT


async def test_a_sibling_that_appears_is_opened_a_moment_later(root: Root, site: Path) -> None:
    await learn(root, "none")
    path = site / "A.txt.gz"
    assert at_once(open_sibling(root, b"A.txt.gz")) is Miss.ABSENT
    path.write_bytes(b"packed")
    settle(folder_names.LATELY_SECONDS)
    found = await open_sibling(root, b"A.txt.gz")
    assert isinstance(found, OpenFile)
    found.close()


@pytest.mark.parametrize("there", [[], [b"sub/a.txt.gz"]])
async def test_siblings_need_no_system_call_each(
    site: Path, monkeypatch: pytest.MonkeyPatch, there: list[bytes]
) -> None:
    for path in there:
        (site / os.fsdecode(path)).touch()
    settle()
    root = Root(str(site))
    await learn(root, "sub/none")
    monkeypatch.setattr(folder_names, "LATELY_SECONDS", 60.0)
    paths = [b"sub/a.txt.zst", b"sub/a.txt.gz", b"sub/a.txt.br"]
    assert list(root.possible_siblings(paths)) == there
    (site / "sub").rename(site / "moved")
    assert list(root.possible_siblings(paths)) == there
    assert await root.open_file(b"sub/a.txt.gz") is Miss.ABSENT
    root.close()


async def test_folders_are_read_ahead(site: Path) -> None:
    for number in range(20):
        (site / f"many/{number}/below").mkdir(parents=True)
        (site / f"many/{number}/below/a.txt").touch()
    (site / ".hidden").mkdir()
    (site / "many/link").symlink_to("0")
    settle()
    root = Root(str(site))
    # The first request that waits has all others read.
    assert await looked_up(root, "none") is Miss.ABSENT
    for number in range(50):
        with contextlib.suppress(NeedsThread):
            assert at_once(looked_up(root, f"many/19/below/none{number}")) is Miss.ABSENT
            break
        await trio.sleep(0.1)
    else:
        raise NeedsThread
    identities = {(status.st_dev, status.st_ino) for status in (os.stat(site / ".hidden"), os.stat(site / "many"))}
    assert len(identities & root._names._folders.keys()) == 1
    (site / "many/19/below/new").touch()
    found = await looked_up(root, "many/19/below/new")
    assert isinstance(found, OpenFile)
    found.close()
    root.close()


async def test_the_first_request_has_folders_read_ahead(root: Root) -> None:
    """Even if the kernel knows which siblings are absent, so that nothing waits."""
    for _ in range(50):
        if root.lacks_siblings(b"sub/deep/a.txt"):
            break
        await trio.sleep(0.1)
    else:
        raise NeedsThread


def test_reading_ahead_is_due_at_first_and_then_less_and_less_often() -> None:
    names = FolderNames()
    due = [number for number in range(1, 100) if names.ahead_is_due()]
    assert due == [1, folder_names.WAITS, 2 * folder_names.WAITS, 4 * folder_names.WAITS, 8 * folder_names.WAITS]


@pytest.mark.parametrize("most_bytes", [folder_names.MOST_BYTES, 20_000])
def test_reading_ahead_leaves_memory(tmp_path: Path, most_bytes: int) -> None:
    for number in range(100):
        (tmp_path / f"many/{number}").mkdir(parents=True)
    settle()
    names = FolderNames(most_bytes)
    descriptor = os.open(tmp_path, os.O_PATH)
    names.read_ahead(descriptor, lambda: True)
    assert len(names._folders) == 0
    names.read_ahead(descriptor, lambda: False)
    os.close(descriptor)
    assert (len(names._folders) == 102) is (most_bytes == folder_names.MOST_BYTES)
    assert 0 < names._bytes < most_bytes // 2 + 1024


@as_root
def test_reading_ahead_stays_on_the_mount(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "mounted"], check=True)
    try:
        (tmp_path / "mounted/below").mkdir()
        settle()
        names = FolderNames()
        descriptor = os.open(tmp_path, os.O_PATH)
        names.read_ahead(descriptor, lambda: False)
        os.close(descriptor)
        statuses = [os.stat(folder) for folder in (tmp_path, tmp_path / "other")]
        assert list(names._folders) == [(status.st_dev, status.st_ino) for status in statuses]
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)


async def test_hidden_names_keep_their_meaning(site: Path) -> None:
    root = Root(str(site), hidden=frozenset({b"_headers"}))
    (site / ".git").mkdir()
    settle()
    await learn(root, "none")
    assert at_once(looked_up(root, "_headers")) is Miss.HIDDEN
    assert at_once(root.open_hidden(b"_headers")) is Miss.ABSENT
    assert at_once(root.open_file(b"_headers")) is Miss.HIDDEN
    assert at_once(looked_up(root, ".git/config")) is Miss.HIDDEN
    assert at_once(looked_up(root, ".none")) is Miss.HIDDEN
    root.close()


async def test_names_that_are_no_text_are_names_too(site: Path) -> None:
    names = [bytes([byte]) * length for byte in range(1, 256) if byte not in b"/." for length in (3, 255)]
    for name in names:
        os.close(os.open(os.fsencode(site) + b"/sub/" + name, os.O_CREAT))
    settle()
    root = Root(str(site))
    await learn(root, "sub/none")
    for name in names:
        found = await root.open_file(b"sub/" + name)
        assert isinstance(found, OpenFile)
        found.close()
        assert at_once(root.open_file(b"sub/" + name[:2])) is Miss.ABSENT
    assert at_once(root.open_file(b"sub/" + b"a" * 256)) is Miss.ABSENT
    root.close()


# --- what is not known


def judge(folder: Path, names: FolderNames, path: bytes) -> Verdict | Unread:
    descriptor = os.open(folder, os.O_PATH)
    try:
        return names.judge(descriptor, path)
    finally:
        os.close(descriptor)


def read(folder: Path, names: FolderNames, path: bytes = b".", *, large: bool = False) -> bool:
    descriptor = os.open(folder, os.O_PATH)
    try:
        return names.read(descriptor, path, large=large)
    finally:
        os.close(descriptor)


def test_a_folder_that_has_just_changed_is_not_read(place: Path) -> None:
    names = FolderNames()
    (place / "a").write_text("a")
    assert judge(place, names, b"b") is Verdict.UNKNOWN
    assert not read(place, names)
    settle()
    assert judge(place, names, b"b") == Unread(b".", large=False)
    assert read(place, names)
    assert judge(place, names, b"b") is Verdict.ABSENT
    assert judge(place, names, b"a") is Verdict.LISTED
    (place / "b").write_text("b")
    assert judge(place, names, b"b") is Verdict.UNKNOWN


def test_a_time_in_the_future_of_a_folder_does_not_matter(place: Path) -> None:
    (place / "a").write_text("a")
    os.utime(place, (4_000_000_000, 4_000_000_000))
    settle()
    names = FolderNames()
    assert read(place, names)
    assert judge(place, names, b"b") is Verdict.ABSENT
    (place / "b").write_text("b")
    os.utime(place, (4_000_000_000, 4_000_000_000))
    assert judge(place, names, b"b") is Verdict.UNKNOWN


def test_a_large_folder_is_read_without_a_request_that_waits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_names, "_BUCKET", 10)
    monkeypatch.setattr(folder_names, "MOST_AT_ONCE", 100)
    monkeypatch.setattr(folder_names, "MOST_NAMES", 1000)
    for number in range(101):
        (place / f"a{number}").write_text("a")
    settle()
    names = FolderNames()
    assert not read(place, names)
    assert judge(place, names, b"b") == Unread(b".", large=True)
    assert read(place, names, large=True)
    assert judge(place, names, b"b") is Verdict.ABSENT
    assert {judge(place, names, b"a%d" % number) for number in range(101)} == {Verdict.LISTED}
    for number in range(101, 1001):
        (place / f"a{number}").write_text("a")
    settle()
    assert not read(place, names)
    assert not read(place, names, large=True)
    # Too many, and not read again.
    assert judge(place, names, b"b") is Verdict.UNKNOWN


async def test_a_large_folder_gets_a_thread_of_its_own(root: Root, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_names, "MOST_AT_ONCE", 10)
    for number in range(2000):
        (site / f"sub/a{number}").write_text("a")
    settle()
    for attempt in range(100):
        assert await looked_up(root, f"sub/n{attempt}") is Miss.ABSENT
        with contextlib.suppress(NeedsThread):
            assert at_once(looked_up(root, "sub/none")) is Miss.ABSENT
            break
        settle()
    else:
        raise NeedsThread
    assert is_found(root, "sub/a1999")


def test_a_folder_that_changes_often_is_read_seldom(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_names, "_PAUSES", 1_000_000)
    names = FolderNames()
    settle()
    assert read(place, names)
    (place / "a").write_text("a")
    settle()
    assert judge(place, names, b"b") is Verdict.UNKNOWN


def test_memory_is_bounded_and_the_least_recently_asked_for_goes_first(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"f{number}").mkdir()
        for name in range(10):
            (tmp_path / f"f{number}" / f"a{name}").write_text("a")
    settle()
    names = FolderNames(most_bytes=3 * (512 + 80))
    for number in range(3):
        assert read(tmp_path, names, b"f%d" % number)
    assert judge(tmp_path, names, b"f0/b") is Verdict.ABSENT
    assert read(tmp_path, names, b"f3")
    known = [number for number in range(10) if judge(tmp_path, names, b"f%d/b" % number) is Verdict.ABSENT]
    assert known == [0, 2, 3]
    assert not read(tmp_path, FolderNames(most_bytes=0), b"nowhere")


def test_two_threads_do_not_read_the_same_folder(place: Path) -> None:
    for number in range(1000):
        (place / f"a{number}").write_text("a")
    settle()
    names = FolderNames()
    results = list[bool]()
    threads = [threading.Thread(target=lambda: results.append(read(place, names))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(True) == 1
    assert judge(place, names, b"b") is Verdict.ABSENT


# Of file systems whose types say that names match byte for byte, this may be any other.
@as_root
def test_an_unknown_file_system_is_not_believed() -> None:
    names = FolderNames()
    assert not read(Path("/proc/sys"), names)
    assert judge(Path("/proc/sys"), names, b"none") is not Verdict.ABSENT


@as_root
@pytest.mark.parametrize("flags", [True, False])
def test_folders_that_match_upper_with_lower_case_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: bool
) -> None:
    """By the folder's flags, and by trial."""
    image, place = tmp_path / "image", tmp_path / "place"
    with image.open("wb") as file:
        file.truncate(32 * 1024 * 1024)
    run("mkfs.ext4", "-q", "-O", "casefold", "-E", "encoding=utf8", image)
    place.mkdir()
    mounted = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this kernel cannot mount it: {mounted.stderr}")
    try:
        for name in ("folded", "plain"):
            (place / name).mkdir()
        run("chattr", "+F", place / "folded")
        (place / "folded/empty").mkdir()
        for name in ("folded", "plain"):
            (place / name / "1").write_text("1")
            (place / name / "Readme.txt").write_text("readme")
        assert (place / "folded/README.TXT").is_file()
        settle()
        if not flags:
            monkeypatch.setattr(folder_names, "_FS_CASEFOLD_FL", 0)
        names = FolderNames()
        assert read(place, names, b"plain")
        assert judge(place, names, b"plain/README.TXT") is Verdict.ABSENT
        assert not read(place, names, b"folded")
        assert judge(place, names, b"folded/README.TXT") is Verdict.UNKNOWN
        if flags:
            assert not read(place, names, b"folded/empty")
    finally:
        run("umount", "-l", place)


@as_root
def test_what_another_mount_has_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    settle()
    names = FolderNames()
    assert read(tmp_path, names)
    mount_tmpfs(tmp_path / "media", tmp_path)
    try:
        (tmp_path / "media/a").write_text("a")
        settle()
        assert not read(tmp_path, names, b"media")
        assert judge(tmp_path, names, b"media/b") is not Verdict.ABSENT
    finally:
        run("umount", "-l", tmp_path / "media")


@as_root
@pytest.mark.parametrize(
    ("mode", "expected"), [(0o311, Miss.ABSENT), (0o644, Miss.FORBIDDEN), (0, Miss.FORBIDDEN), (0o755, Miss.ABSENT)]
)
def test_a_folder_without_rights_stays_forbidden(tmp_path: Path, mode: int, expected: Miss) -> None:
    """In a process of another user: to root, no folder is closed."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("a")
    folder.chmod(mode)
    settle()
    tmp_path.chmod(0o755)
    root = Root(str(tmp_path))

    async def misses() -> list[Any]:
        return [await looked_up(root, f"folder/{name}") for name in ("b", "c", "d")]

    if (child := os.fork()) == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            os._exit(0 if set(trio.run(misses)) == {expected} else 1)
        finally:
            os._exit(2)
    root.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- against the truth


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


NAMES = [f"a{number}.html" for number in range(20)] + [f"a{number}.html.gz" for number in range(20)]
FOLDERS = ["", "f/", "g/", "f/g/", "link/", "h/i/"]


def change_something(chance: random.Random, site: Path) -> None:
    """One change somewhere below the root, or none if it is not possible."""
    path, other = (site / (chance.choice(FOLDERS) + chance.choice(NAMES)) for _ in range(2))
    folder, second = (site / chance.choice(FOLDERS[1:]) for _ in range(2))
    changes: tuple[Callable[[], object], ...] = (
        *[lambda: path.write_text("content")] * 8,
        path.unlink,
        lambda: os.rename(path, other),
        lambda: os.link(path, other),
        lambda: path.symlink_to(other),
        *[lambda: folder.mkdir(parents=True)] * 8,
        folder.rmdir,
        lambda: os.rename(folder, second),
        lambda: folder.symlink_to(os.path.relpath(second, folder.parent)),
    )
    with contextlib.suppress(OSError):
        chance.choice(changes)()


def is_unknown_to_kernel(root: Root, path: bytes) -> bool:
    try:
        os.close(openat2(root.descriptor, path, os.O_PATH, cached=True))
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


@pytest.mark.parametrize("seed", range(2))
async def test_what_is_said_is_true_at_that_moment(place: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        change_something(chance, place)
    root = Root(str(place))
    at_once_absent = at_once_found = 0
    until = time.monotonic() + 4
    while time.monotonic() < until or min(at_once_absent, at_once_found) < 20:
        for _ in range(chance.randrange(3)):
            change_something(chance, place)
        if chance.random() < 0.5:
            settle()
        for _ in range(30):
            if chance.random() < 0.03:
                change_something(chance, place)
            name = chance.choice(("", "none/", "f/none/")) + f"{chance.getrandbits(40):x}"
            path = chance.choice(
                (chance.choice(FOLDERS) + chance.choice(NAMES), chance.choice(FOLDERS) + name)
            ).encode()
            asked: Callable[[bytes], Coroutine[Any, Any, OpenFile | Miss | None]] = root.open_file
            if path.endswith(b".gz") and chance.random() < 0.4:
                # It may be late for a moment.
                settle(folder_names.LATELY_SECONDS)
                asked = partial(open_sibling, root)
            unknown = is_unknown_to_kernel(root, path)
            try:
                found = at_once(asked(path))
                at_once_absent += unknown
                at_once_found += isinstance(found, OpenFile)
            except NeedsThread:
                found = await asked(path)
            # Not before: then the kernel would know.
            there = is_file(place / os.fsdecode(path))
            assert isinstance(found, OpenFile) is there
            if isinstance(found, OpenFile):
                status = os.stat(place / os.fsdecode(path))
                assert found.identity[:2] == (status.st_dev, status.st_ino)
                found.close()
        assert time.monotonic() < until + 30
    root.close()
