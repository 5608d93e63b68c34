"""What a target opens in a real folder; no race gets a byte from outside the root."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ktlsd.http.decide import Miss, Moved
from ktlsd.http.hidden_paths import HiddenPaths
from ktlsd.http.request_target import parse_target
from ktlsd.site.lookup import Folder, OpenFile, Root
from tests.files import nothing_stays_open


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("sub", "empty", "two", "odd/index.html", ".git", ".well-known/.secret", "ä"):
        (root / name).mkdir(parents=True)
    for name in (
        "index.html",
        "a.txt",
        "_headers",
        "sub/index.html",
        "sub/_headers",
        "two/index.htm",
        "two/default.html",
        "odd/index.htm",
        ".hidden",
        ".git/config",
        ".well-known/security.txt",
        "ä/b c",
    ):
        (root / name).write_text(name)
    (tmp_path / "outside.txt").write_text("outside")
    (root / "inside.txt").symlink_to("a.txt")
    (root / "to-sub").symlink_to("sub")
    (root / "outside.txt").symlink_to("../outside.txt")
    (root / "absolute.txt").symlink_to(root / "a.txt")
    (root / "absolute-outside.txt").symlink_to(tmp_path / "outside.txt")
    (root / "absolute-out-and-in.txt").symlink_to(tmp_path / "way/in.txt")
    (tmp_path / "way").mkdir()
    (tmp_path / "way/in.txt").symlink_to(root / "a.txt")
    (root / "to-absolute").symlink_to(root / "sub")
    (root / "outside").symlink_to("..")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        # The path of a socket may have 107 bytes, too few for what pytest makes.
        os.chdir(root)
        unix.bind("socket")
    return root


@pytest.fixture(autouse=True)
def _same_place_and_descriptors() -> Iterator[None]:
    """Nothing stays open, whatever was looked up."""
    place = Path.cwd()
    with nothing_stays_open():
        yield
        os.chdir(place)


Outcome = tuple[str, Any]
FILE, FOLDER, MOVED = "file", "folder", "moved"


async def is_direct(root: Root, path: bytes) -> bool:
    found = await root.open_file(path)
    assert isinstance(found, OpenFile)
    found.close()
    return found.direct


async def test_files_that_no_link_led_to(folder: Path) -> None:
    plain, root = Root(str(folder)), Root(str(folder), notes_links=True)
    links = (b"inside.txt", b"to-sub/index.html", b"absolute.txt", b"to-absolute/index.html")
    # In a thread and, once the kernel knows the name, on the event loop.
    for _ in range(2):
        assert [await is_direct(root, path) for path in (b"a.txt", b"sub/index.html")] == [True, True]
        assert [await is_direct(root, path) for path in links] == [False] * len(links)
        assert not await is_direct(plain, b"a.txt")
    (folder / "sub").rename(folder / "former")
    (folder / "sub").symlink_to("former")
    assert not await is_direct(root, b"sub/index.html")
    for one in (plain, root):
        assert await look_up(one, "/dangling") is Miss.DANGLING
        assert await look_up(one, "/loop") is Miss.DANGLING
        assert await look_up(one, "/outside.txt") is Miss.OUTSIDE
        assert await look_up(one, "/outside/") is Miss.OUTSIDE
        assert await look_up(one, "/absent") is Miss.ABSENT
        one.close()


async def look_up(root: Root, target: str, *index: bytes) -> Outcome | Miss:
    """What is found, and its path, content and all closed."""
    wanted = parse_target(target.encode("latin-1"))
    found = await (root.find(wanted, index) if index else root.find(wanted))
    match found:
        case OpenFile():
            status = os.fstat(found.descriptor)
            assert os.pread(found.descriptor, 100, 0)
            assert (found.size, found.mtime_ns) == (status.st_size, status.st_mtime_ns)
            assert found.identity[:2] == (status.st_dev, status.st_ino)
            found.close()
            return FILE, found.path
        case Folder():
            assert os.listdir(found.descriptor) is not None
            found.close()
            return FOLDER, found.path
        case Moved():
            assert found.status == 301
            return MOVED, found.location
    return found


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        ("/", (FILE, b"index.html")),
        ("/a.txt", (FILE, b"a.txt")),
        ("/a.txt?b", (FILE, b"a.txt")),
        ("/sub/", (FILE, b"sub/index.html")),
        ("/sub/index.html", (FILE, b"sub/index.html")),
        ("/%c3%a4/b%20c", (FILE, "ä/b c".encode())),
        ("/inside.txt", (FILE, b"inside.txt")),
        ("/to-sub/", (FILE, b"to-sub/index.html")),
        ("/.well-known/security.txt", (FILE, b".well-known/security.txt")),
        # a folder without an index file
        ("/empty/", (FOLDER, b"empty")),
        ("/two/", (FOLDER, b"two")),
        ("/odd/", (FOLDER, b"odd")),
        ("/.well-known/", (FOLDER, b".well-known")),
        # without its slash
        ("/sub", (MOVED, "/sub/")),
        ("/empty?q", (MOVED, "/empty/?q")),
        ("/to-sub", (MOVED, "/to-sub/")),
        ("/%c3%a4", (MOVED, "/%C3%A4/")),
        ("/odd/index.html", (MOVED, "/odd/index.html/")),
        # nothing
        ("/absent", Miss.ABSENT),
        ("/absent/", Miss.ABSENT),
        ("/sub/absent/a", Miss.ABSENT),
        ("/a.txt/", Miss.ABSENT),
        ("/a.txt/a", Miss.ABSENT),
        ("/dangling", Miss.DANGLING),
        ("/dangling/", Miss.ABSENT),
        ("/loop", Miss.DANGLING),
        ("/loop/", Miss.ABSENT),
        ("/" + "a" * 256, Miss.ABSENT),
        ("/" + "a/" * 3000, Miss.ABSENT),
        # not to be seen
        ("/.hidden", Miss.HIDDEN),
        ("/.git/", Miss.HIDDEN),
        ("/.git/config", Miss.HIDDEN),
        ("/.absent", Miss.HIDDEN),
        ("/.well-known/.secret/", Miss.HIDDEN),
        ("/outside.txt", Miss.OUTSIDE),
        ("/outside/", Miss.OUTSIDE),
        ("/outside/outside.txt", Miss.OUTSIDE),
        ("/absolute-outside.txt", Miss.OUTSIDE),
        ("/absolute-out-and-in.txt", (FILE, b"absolute-out-and-in.txt")),
        ("/to-absolute/index.html", (FILE, b"to-absolute/index.html")),
        ("/to-absolute/", (FILE, b"to-absolute/index.html")),
        ("/to-absolute", (MOVED, "/to-absolute/")),
        ("/absolute.txt", (FILE, b"absolute.txt")),
        # not to be read
        ("/fifo", Miss.SPECIAL),
        ("/socket", Miss.SPECIAL),
    ],
)
async def test_what_a_target_opens(folder: Path, target: str, outcome: Outcome | Miss) -> None:
    root = Root(str(folder))
    assert await look_up(root, target) == outcome
    root.close()


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        ("/.hidden", (FILE, b".hidden")),
        ("/.git/config", (FILE, b".git/config")),
        ("/.git/", (FOLDER, b".git")),
        ("/.git", (MOVED, "/.git/")),
        ("/.absent", Miss.ABSENT),
        ("/a.txt", (FILE, b"a.txt")),
    ],
)
async def test_dotfiles_can_be_served(folder: Path, target: str, outcome: Outcome | Miss) -> None:
    root = Root(str(folder), dotfiles=True)
    assert await look_up(root, target) == outcome
    root.close()


@pytest.mark.parametrize(
    ("target", "index", "outcome"),
    [
        ("/two/", [b"index.htm", b"default.html"], (FILE, b"two/index.htm")),
        ("/two/", [b"default.html", b"index.htm"], (FILE, b"two/default.html")),
        ("/two/", [b"absent", b"index.htm"], (FILE, b"two/index.htm")),
        ("/two/", [b"absent", b"missing"], (FOLDER, b"two")),
        # A folder of that name is none.
        ("/odd/", [b"index.html", b"index.htm"], (FILE, b"odd/index.htm")),
        # What is there and cannot be sent is not passed over.
        ("/", [b"fifo", b"index.html"], Miss.SPECIAL),
        ("/", [b"outside.txt", b"index.html"], Miss.OUTSIDE),
        ("/", [b"dangling", b"index.html"], (FILE, b"index.html")),
        ("/absent/", [b"index.html"], Miss.ABSENT),
        ("/a.txt", [b"index.html"], (FILE, b"a.txt")),
    ],
)
async def test_the_first_index_file_that_there_is(
    folder: Path, target: str, index: list[bytes], outcome: Outcome | Miss
) -> None:
    root = Root(str(folder))
    assert await look_up(root, target, *index) == outcome
    root.close()


async def test_without_names_of_index_files_a_folder_is_a_folder(folder: Path) -> None:
    root = Root(str(folder))
    found = await root.find(parse_target(b"/sub/"), ())
    assert isinstance(found, Folder)
    assert set(os.listdir(found.descriptor)) == {"index.html", "_headers"}
    found.close()
    root.close()


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        ("/_headers", Miss.HIDDEN),
        ("/./_headers", Miss.HIDDEN),
        ("/sub/../_headers", Miss.HIDDEN),
        ("/%5fheaders", Miss.HIDDEN),
        ("//_headers?a", Miss.HIDDEN),
        ("/_headers/", Miss.ABSENT),
        # Only of that path, whether it exists or not.
        ("/sub/_headers", (FILE, b"sub/_headers")),
        ("/_redirects", Miss.HIDDEN),
        ("/_Headers", Miss.HIDDEN),
        ("/a.txt", (FILE, b"a.txt")),
    ],
)
@pytest.mark.parametrize("dotfiles", [False, True])
async def test_hidden_paths_are_not_served(folder: Path, target: str, outcome: Outcome | Miss, dotfiles: bool) -> None:
    root = Root(str(folder), dotfiles=dotfiles, hidden=frozenset({b"_headers", b"_redirects"}))
    assert await look_up(root, target) == outcome
    root.close()


async def test_a_hidden_path_is_no_index_file(folder: Path) -> None:
    root = Root(str(folder), hidden=frozenset({b"_headers"}))
    assert await look_up(root, "/", b"_headers") == (FOLDER, b".")
    assert await look_up(root, "/", b"_headers", b"index.html") == (FILE, b"index.html")
    assert await look_up(root, "/sub/", b"_headers") == (FILE, b"sub/_headers")
    root.close()


async def test_what_a_pattern_hides_is_hidden_by_every_way_to_it(folder: Path) -> None:
    root = Root(str(folder), hide=HiddenPaths(("/sub", "a.txt", "/two/index.htm")))
    with contextlib.closing(root):
        for target in ("/sub", "/sub/", "/sub/index.html", "/to-sub/", "/to-absolute/index.html", "/inside.txt"):
            assert await root.find(parse_target(target.encode())) is Miss.CONCEALED, target
        assert await root.open_file(b"absolute.txt") is Miss.CONCEALED
        found = await root.find(parse_target(b"/two/"), (b"index.htm", b"default.html"))
        assert isinstance(found, OpenFile)
        assert found.path == b"two/default.html"
        found.close()
        # For the server itself.
        opened = await root.open_hidden(b"a.txt")
        assert isinstance(opened, OpenFile)
        opened.close()


async def test_a_hidden_path_can_be_opened_by_who_asks_for_it(folder: Path) -> None:
    root = Root(str(folder), hidden=frozenset({b"_headers", b"_redirects"}))
    found = await root.open_hidden(b"_headers")
    assert isinstance(found, OpenFile)
    assert os.pread(found.descriptor, 100, 0) == b"_headers"
    found.close()
    assert await root.open_hidden(b"_redirects") is Miss.ABSENT
    assert await root.open_file(b"_headers") is Miss.HIDDEN
    assert await root.open_file(b"sub") is None
    assert await root.open_hidden(b"sub") is None
    assert await root.open_hidden(b"fifo") is Miss.SPECIAL
    assert await root.open_hidden(b"../outside.txt") is Miss.OUTSIDE
    root.close()


async def test_a_root_outlives_its_name(folder: Path) -> None:
    """It is a descriptor: a folder that is put in its place is another one."""
    root = Root(str(folder))
    os.rename(folder, f"{folder}.old")
    os.mkdir(folder)
    assert await look_up(root, "/a.txt") == (FILE, b"a.txt")
    root.close()


@pytest.mark.parametrize("name", ["absent", "a.txt", "a.txt/b"])
def test_a_root_must_be_a_folder(folder: Path, name: str) -> None:
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        Root(str(folder / name))


async def test_links_swapped_during_the_look_up_never_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "inside/file.txt").write_text("inside")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file.txt").write_text("outside")
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            # A link that leads outside takes the place of the folder, and the folder that of the link.
            os.symlink(("../outside", "inside")[number % 2], root / "next")
            os.rename(root / "next", root / "link")

    swapper = threading.Thread(target=swap)
    os.symlink("inside", root / "link")
    swapper.start()
    files = Root(str(root))
    outcomes = set()
    try:
        for _ in range(3000):
            found = await files.find(parse_target(b"/link/file.txt"))
            if isinstance(found, OpenFile):
                assert os.pread(found.descriptor, 100, 0) == b"inside"
                found.close()
                outcomes.add("served")
            else:
                assert isinstance(found, Miss)
                outcomes.add(found.name)
            await trio.lowlevel.checkpoint()
    finally:
        stop.set()
        swapper.join()
        files.close()
    assert {"served", "OUTSIDE"} <= outcomes <= {"served", "OUTSIDE", "BUSY"}


def mount(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def mounted(folder: Path) -> Iterator[Path]:
    """A tmpfs below the root."""
    place = folder / "media"
    place.mkdir()
    mount(place)
    (place / "film.txt").write_text("film")
    (place / "up.txt").symlink_to("../a.txt")
    yield place
    unmount(place)


class NeedsThread(Exception):
    """The event loop itself could not open it."""


async def learned(root: Root, *paths: bytes) -> None:
    """Have a root learn that the mount at media is local, so that it opens these files at once. Whatever other tests
    mount on this machine meanwhile makes it ask again."""
    for _ in range(50):
        # The kernel may have forgotten their names, too.
        for path in (b"media/film.txt", *paths):
            assert await look_up(root, f"/{path.decode()}") == (FILE, path)
        with contextlib.suppress(BlockingIOError):
            for path in paths:
                os.close(root.open_now(path))
            return
    raise NeedsThread


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
async def test_a_local_mount_below_the_root_needs_threads_at_first_only(
    folder: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(str(folder))

    def no_thread(*_: object) -> None:
        raise NeedsThread

    async def check() -> None:
        await learned(root, b"media/film.txt", b"media/up.txt", b"a.txt")
        with monkeypatch.context() as patch:
            patch.setattr(root.threads, "run", no_thread)
            for target in ("/media/film.txt", "/media/up.txt", "/a.txt"):
                found = await root.find(parse_target(target.encode()))
                assert isinstance(found, OpenFile)
                found.close()
                assert (found.reopens, found.waits) == (True, False)

    for attempt in range(20):
        try:
            await check()
            break
        except NeedsThread:
            assert attempt < 19
    root.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
async def test_after_a_mount_nothing_is_opened_at_once_that_may_be_on_it(folder: Path, mounted: Path) -> None:
    """The kernel gives a new mount the number, and a new file system the device, of one that is gone."""
    root = Root(str(folder))
    await learned(root, b"media/film.txt")
    unmount(mounted)
    mount(mounted)
    (mounted / "film.txt").write_text("another film")
    with pytest.raises(BlockingIOError):
        root.open_now(b"media/film.txt")
    await learned(root, b"media/film.txt")
    root.close()
