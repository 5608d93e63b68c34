"""No byte from outside the root: encodings and links of every kind, and folders swapped while they are looked up.

Strategy: a corpus of targets (corpus/traversal.txt), each asked for over TLS by both protocols and as a backend, with
listings and dotfiles allowed; what lies outside has a text that no answer may contain. The pure parts:
test_request_target.py; the look-up alone: test_lookup.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.protocols import HTTP_2, BrokenError, conversation
from tests.serving import Running, connect, exchange, exchange_plain, get, parse_all, read_to_end, serving

SECRET = b"nobody outside may read this"
NAME = "secret.txt"
CORPUS = [
    line
    for line in (Path(__file__).parents[1] / "corpus/traversal.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
INSIDE = b"inside"
LAST = b"GET /sub/file.txt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
RACE_SECONDS = 2.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root` and what is around it."""
    folder = tmp_path_factory.mktemp("place")
    root = folder / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub/file.txt").write_bytes(INSIDE)
    for outside in (folder, folder.parent):
        (outside / NAME).write_bytes(SECRET)
    links = {
        "link-out": "..",
        "link-absolute": str(folder),
        "link-file": f"../{NAME}",
        "link-to-link": "link-out",
        "link-climbing": "sub/../..",
        "sub/link-up": "../..",
        "link-in": "sub",
        "link-proc": "/proc",
        "link-root": "/proc/self/root",
        "link-cwd": "/proc/self/cwd",
        "link-dev": "/dev",
        "link-fd": "/proc/self/fd",
        "link-environ": "/proc/self/environ",
        "link-maps": "../../../../../../../../proc/self/maps",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return folder


@pytest.fixture(scope="module")
def server(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("state")
    options = ("--listing", "--dotfiles", "--log-level", "warning")
    with serving(
        place / "root", *options, state=state, backend_listen=("127.0.0.1:0",), TELLTALE=SECRET.decode()
    ) as it:
        yield it


@pytest.mark.parametrize("line", CORPUS)
def test_no_target_leads_out(server: Running, place: Path, line: str) -> None:
    target = line.replace("{path}", str(place / NAME)).replace("{}", NAME)
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1")
    backend = int(server.backends[0].rpartition(":")[2])
    for data in (exchange(server.port, request + LAST), exchange_plain(backend, request + LAST)):
        assert SECRET not in data
        answers = parse_all(data)
        # A query is no path: that target is "/", which is listed.
        allowed = (200,) if target.startswith("/?") else (400, 404)
        assert answers[0].status in allowed
        # Either the connection is kept and in step, or closed.
        closed = answers[0].fields.get("connection") == "close"
        assert [answer.body for answer in answers[1:]] == ([] if closed else [INSIDE])
    with conversation(server.port, HTTP_2) as client:
        # What is no :path is malformed.
        with contextlib.suppress(BrokenError):
            answer = client.get(target)
            assert answer.status in allowed
            assert SECRET not in answer.body
            assert not any(SECRET.decode() in value for value in answer.fields.values())
        assert client.get("/sub/file.txt").body == INSIDE


def test_the_corpus_would_find_the_secret(server: Running, place: Path) -> None:
    """The traps are real: each link leads where it says, and the text is found where it is served."""
    for link in ("link-out", "link-absolute", "link-to-link", "link-climbing", "sub/link-up"):
        assert (place / "root" / link / NAME).read_bytes() == SECRET
    assert (place / "root/link-file").read_bytes() == SECRET
    with serving(place, "--log-level", "warning", state=server.state) as outer:
        assert get(outer.port, f"/{NAME}").body == SECRET


def test_a_hard_link_is_a_file_of_the_root(server: Running, place: Path) -> None:
    """It has no outside: a user who can make one in the root has put the file there (docs/reliability.md)."""
    os.link(place / NAME, place / "root/hard.txt")
    try:
        assert get(server.port, "/hard.txt").body == SECRET
    finally:
        (place / "root/hard.txt").unlink()


@needs_root
def test_a_mount_point_below_the_root_is_served_and_has_no_way_out(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "root", tmp_path / "root", symlinks=True)
    (tmp_path / "root/mounted").mkdir()
    mounting = 'mount --bind "$0" "$1/mounted" && shift && exec "$@"'
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file.txt").write_bytes(INSIDE)
    (tmp_path / "source/out").symlink_to("../..")
    (tmp_path / NAME).write_bytes(SECRET)
    wrapper = ("unshare", "--mount", "sh", "-ec", mounting, str(tmp_path / "source"), str(tmp_path / "root"))
    with serving(tmp_path / "root", state=tmp_path / "state", wrapper=wrapper) as server:
        assert get(server.port, "/mounted/file.txt").body == INSIDE
        for target in (f"/mounted/out/{NAME}", f"/mounted/../../{NAME}", f"/mounted/%2e%2e/%2e%2e/{NAME}"):
            answer = get(server.port, target)
            assert answer.status in (400, 404)
            assert SECRET not in answer.body


# --- races -----------------------------------------------------------------------------------------------------------


def swap_link(root: Path, turn: int) -> None:
    """A link that leads to a folder inside, and outside."""
    os.symlink(("inside", "../outside")[turn % 2], root / "next")
    os.rename(root / "next", root / "moving")


def swap_folder(root: Path, turn: int) -> None:
    """A folder that is in the root, and outside of it, while ".." of it is looked up."""
    here, there = root / "moving", root.parent / "elsewhere"
    with contextlib.suppress(FileNotFoundError):
        os.rename(*((here, there), (there, here))[turn % 2])


def swap_file(root: Path, turn: int) -> None:
    """A file, and a link to one outside, under one name."""
    path = root / "moving/file.txt"
    next_path = root / "next"
    if turn % 2:
        os.symlink("../../outside/file.txt", next_path)
    else:
        next_path.write_bytes(INSIDE)
    os.rename(next_path, path)


def swap_for_a_link(root: Path, turn: int) -> None:
    """A folder, and a link to one outside, under one name."""
    moving, spare = root / "moving", root / "spare"
    if turn % 2:
        os.rename(moving, spare)
        os.symlink("../outside", moving)
    else:
        os.unlink(moving)
        os.rename(spare, moving)


@pytest.mark.parametrize("swap", [swap_link, swap_folder, swap_file, swap_for_a_link])
def test_what_is_swapped_during_requests_never_leads_out(tmp_path: Path, swap: Callable[[Path, int], None]) -> None:
    root = tmp_path / "root"
    for folder in (root / "inside", root / "moving", tmp_path / "outside"):
        folder.mkdir(parents=True)
        (folder / "file.txt").write_bytes(SECRET if folder.name == "outside" else INSIDE)
    (root / "moving/up").symlink_to("../inside")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/file.txt").write_bytes(SECRET)
    if swap is swap_link:
        shutil.rmtree(root / "moving")
        (root / "moving").symlink_to("inside")
    stop = threading.Event()
    turns = 0

    def swap_on() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            swap(root, turns)

    requests = b"".join(
        b"GET /moving/%b HTTP/1.1\r\nHost: a\r\n\r\n" % name
        for name in (b"file.txt", b"up/file.txt", b"", b"../moving/file.txt")
    )
    targets = ("/moving/file.txt", "/moving/up/file.txt", "/moving/", "/moving/../moving/file.txt")
    statuses: dict[int, int] = {}
    with serving(root, "--listing", "--log-level", "error", state=tmp_path / "state") as server:
        swapper = threading.Thread(target=swap_on)
        swapper.start()
        try:
            end = time.monotonic() + RACE_SECONDS
            while time.monotonic() < end or len(statuses) < 2:
                with connect(server.port) as connection:
                    connection.sendall(
                        requests * 25 + b"GET /inside/file.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                    )
                    data = read_to_end(connection)
                assert SECRET not in data
                with conversation(server.port, HTTP_2) as client:
                    downloads = [client.begin(target) for target in targets * 25]
                    answers = [*parse_all(data), *(download.answer() for download in downloads)]
                for answer in answers:
                    assert SECRET not in answer.body
                    statuses[answer.status] = statuses.get(answer.status, 0) + 1
        finally:
            stop.set()
            swapper.join()
    print(f"{turns} swaps during {sum(statuses.values())} requests: {statuses}")
    # Both sides of the swap were met.
    assert statuses[200]
    assert statuses.get(404, 0) + statuses.get(503, 0)
