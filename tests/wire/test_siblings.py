"""Precompressed siblings that the usual tools make, copy, leave behind and have not finished: only those are sent that
have the whole of their file's present content. Both protocols send the same."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from ktlsd.config.options import Settings
from ktlsd.config.values import Listen, Mode
from ktlsd.file_identity import FileIdentity
from ktlsd.process.listeners import bind_all
from ktlsd.server import Server
from ktlsd.service import Service
from ktlsd.site import siblings
from ktlsd.site.lookup import OpenFile, Root
from ktlsd.site.response_cache import LASTING_SECONDS
from ktlsd.site.siblings import Siblings, has_its_times
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.in_process import in_a_thread
from tests.protocols import ask_by_both
from tests.serving import Answer, eventually, get
from tests.wire.test_response_cache import InProcess

SECOND = 1_000_000_000
THEN = 1_700_000_000 * SECOND + 123_456_789
LATER = THEN + 1000 * SECOND
CODINGS = {".gz": "gzip", ".zst": "zstd", ".br": "br"}
WORDS = random.Random(1).randbytes(20_000).hex(" ", 4).split()
# Seconds. A test need not wait for two, and its clock has ticks of at most 10 ms.
SETTLED = 0.4


def text(seed: int, lines: int = 1000) -> bytes:
    chance = random.Random(seed)
    return "".join(" ".join(chance.choices(WORDS, k=10)) + "\n" for _ in range(lines)).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    root = tmp_path_factory.mktemp("siblings")
    library = Library()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for name in ("siblings.SETTLED_NS", "response_cache._SETTLED_NS", "response_cache._RULES_SETTLED_NS"):
            patch.setattr(f"ktlsd.site.{name}", int(SETTLED * SECOND))
        service = Service(library, Settings(root=root), support(library, Mode.OFF))
        stack.callback(service.close)
        listeners = bind_all([Listen("127.0.0.1", 0)])
        stack.enter_context(in_a_thread(Server(service), listeners))
        yield InProcess(listeners[0].socket.getsockname()[1], service.response_cache, root)


def settle() -> None:
    """Wait until nothing that was written before counts as new, and no remembered answer is believed unseen."""
    time.sleep(max(SETTLED, LASTING_SECONDS) + 0.1)


@pytest.fixture
def folder(server: InProcess) -> Iterator[Path]:
    """A folder of the root for each test."""
    path = Path(tempfile.mkdtemp(dir=server.root))
    yield path
    shutil.rmtree(path)


def ask(server: InProcess, path: Path, accepted: str = "gzip, br, zstd") -> Answer:
    answer = ask_by_both(server.port, f"/{path.parent.name}/{path.name}", f"Accept-Encoding: {accepted}")
    assert answer.status == 200
    return answer


def run(*words: str | Path, folder: Path) -> None:
    subprocess.run([str(word) for word in words], cwd=folder, check=True, stdin=subprocess.DEVNULL)


# --- by their times


def identity(mtime_ns: int, ctime_ns: int, size: int = 100) -> FileIdentity:
    return 1, 2, size, mtime_ns, ctime_ns


@pytest.mark.parametrize(
    ("original", "sibling", "expected"),
    [
        # gzip, zstd, `ktlsd compress`, cp -p and rsync -t: the time is the original's, and was set afterwards.
        (identity(THEN, LATER), identity(THEN, LATER + 1), True),
        (identity(THEN, LATER), identity(THEN, LATER), True),
        (identity(THEN, THEN), identity(THEN, THEN + 1), True),
        # By its last write, which another may follow.
        (identity(THEN, THEN), identity(THEN, THEN), False),
        # Another time, also one that lost its nanoseconds.
        (identity(THEN, LATER), identity(THEN + 1, LATER + 1), False),
        (identity(THEN, LATER), identity(THEN - 1, LATER + 1), False),
        (identity(THEN, LATER), identity(THEN - THEN % SECOND, LATER + 1), False),
        # The original was changed, or replaced, since.
        (identity(THEN, LATER + 1), identity(THEN, LATER), False),
        # Times that are none.
        (identity(SECOND, LATER), identity(SECOND, LATER + 1), False),
        (identity(0, LATER), identity(0, LATER + 1), False),
        # No coding has a stream without a byte.
        (identity(THEN, LATER), identity(THEN, LATER + 1, size=0), False),
    ],
)
def test_times_that_say_that_a_sibling_belongs(original: FileIdentity, sibling: FileIdentity, expected: bool) -> None:
    assert has_its_times(original, sibling) is expected


@pytest.mark.parametrize(
    ("tool", "suffix", "at_once"),
    [
        (("gzip", "-k"), ".gz", True),
        (("zstd", "-q"), ".zst", True),
        # They set the time in whole seconds.
        (("brotli", "-k"), ".br", False),
        (("sh", "-c", 'gzip -c "$0" > "$0.gz"'), ".gz", False),
        (("sh", "-c", 'zstd -q -c "$0" > "$0.zst"'), ".zst", False),
        (("sh", "-c", 'brotli -c "$0" > "$0.br"'), ".br", False),
        (("sh", "-c", 'gzip -k "$0"; chown 0:0 "$0.gz"; sleep 0.05; chown 0:0 "$0"'), ".gz", False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_compressors_make_is_sent(
    server: InProcess, folder: Path, tool: tuple[str, ...], suffix: str, at_once: bool
) -> None:
    if "chown" in tool[-1] and os.getuid():
        pytest.skip("only root may give files away")
    path, content = folder / "a.txt", text(1)
    path.write_bytes(content)
    os.utime(path, ns=(THEN, THEN))
    assert ask(server, path).body == content
    run(*tool, path, folder=folder)
    sibling = folder / f"a.txt{suffix}"
    # Not by both: it may become old enough between them.
    answer = get(server.port, f"/{folder.name}/{path.name}", "Accept-Encoding: gzip, br, zstd")
    # A busy machine may take so long that nothing is new any more.
    if at_once or time.time() < sibling.stat().st_ctime + SETTLED:
        assert (answer.fields.get("content-encoding") == CODINGS[suffix]) is at_once
    settle()
    answer = ask(server, path)
    assert (answer.fields["content-encoding"], answer.body) == (CODINGS[suffix], sibling.read_bytes())
    assert answer.fields["vary"] == "Accept-Encoding"
    assert len(answer.body) < len(content)


@pytest.mark.parametrize(
    "copy",
    [("cp", "-p"), ("sh", "-c", 'tar -cf - "$@" | tar -xf - -C copy', "")],
    ids=["cp -p", "tar"],
)
def test_copies_of_both_are_sent(server: InProcess, folder: Path, copy: tuple[str, ...]) -> None:
    (folder / "a.txt").write_bytes(text(1))
    os.utime(folder / "a.txt", ns=(THEN, THEN))
    run("gzip", "-k", "a.txt", folder=folder)
    (folder / "copy").mkdir()
    run(*copy, "a.txt", "a.txt.gz", *(["copy"] if copy[0] == "cp" else []), folder=folder)
    answer = ask_by_both(server.port, f"/{folder.name}/copy/a.txt", "Accept-Encoding: gzip")
    assert (answer.fields.get("content-encoding"), gzip.decompress(answer.body)) == ("gzip", text(1))


# --- of another version


@pytest.mark.parametrize("moment", [None, 1, 1_700_000_000], ids=["own times", "Nix", "SOURCE_DATE_EPOCH"])
@pytest.mark.parametrize("place", ["over it", "by rename"])
def test_an_older_version_is_not_sent_with_the_newer_siblings(
    server: InProcess, folder: Path, moment: int | None, place: str
) -> None:
    """A rollback, or a deployment that left the siblings out."""
    path, old = folder / "app.js", folder / "old"
    old.write_bytes(text(1))
    os.utime(old, (moment or 1_600_000_000,) * 2)
    path.write_bytes(text(2))
    os.utime(path, (moment or 1_650_000_000,) * 2)
    run("gzip", "-k", "app.js", folder=folder)
    if moment != 1:
        # Its times prove nothing.
        assert gzip.decompress(ask(server, path).body) == text(2)
    if place == "over it":
        run("cp", "-p", "old", "app.js", folder=folder)
    else:
        run("cp", "-p", "old", "new", folder=folder)
        run("mv", "new", "app.js", folder=folder)
    for _ in range(2):
        answer = ask(server, path)
        assert (answer.body, answer.fields.get("content-encoding")) == (text(1), None)
        assert "vary" not in answer.fields
        settle()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_the_file_itself_is_no_sibling(
    server: InProcess, folder: Path, link: Callable[[Path, Path], None]
) -> None:
    path = folder / "a.txt"
    path.write_bytes(text(1))
    link(path if link is os.link else Path("a.txt"), folder / "a.txt.gz")
    os.utime(path, ns=(THEN, THEN))
    answer = ask(server, path)
    assert (answer.body, answer.fields.get("content-encoding")) == (text(1), None)


# --- half-written


@contextlib.contextmanager
def stopped_in_the_middle(words: list[str], path: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A compressor that has begun to write and does not go on."""
    process = subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        eventually(lambda: path.exists() and path.stat().st_size > 0)
        os.killpg(process.pid, signal.SIGSTOP)
        assert process.poll() is None
        yield process
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("words", "at_once"),
    [(["gzip", "-9", "-k", "big.txt"], True), (["sh", "-c", "gzip -9 -c big.txt > big.txt.gz"], False)],
    ids=["gzip -k", "gzip -c"],
)
def test_while_gzip_runs_the_file_itself_is_sent(
    server: InProcess, folder: Path, words: list[str], at_once: bool
) -> None:
    path, sibling = folder / "big.txt", folder / "big.txt.gz"
    content = text(3, lines=20_000) * 15
    path.write_bytes(content)
    os.utime(path, ns=(THEN, THEN))
    with stopped_in_the_middle(words, sibling, folder):
        for _ in range(2):
            answer = ask(server, path)
            assert answer.body == content
            assert not {"content-encoding", "vary"} & answer.fields.keys()
            # However long it rests, it is half a file.
            settle()
        with pytest.raises(EOFError):
            gzip.decompress(sibling.read_bytes())
        assert ask(server, path).body == content
    if not at_once:
        assert "content-encoding" not in ask(server, path).fields
    settle()
    answer = ask(server, path)
    assert answer.fields["content-encoding"] == "gzip"
    assert gzip.decompress(answer.body) == content


def test_a_sibling_that_is_cut_in_place_is_not_sent(server: InProcess, folder: Path) -> None:
    path, sibling = folder / "a.txt", folder / "a.txt.gz"
    path.write_bytes(text(1))
    os.utime(path, ns=(THEN, THEN))
    run("gzip", "-k", "a.txt", folder=folder)
    settle()
    for _ in range(3):
        whole = ask(server, path)
        assert gzip.decompress(whole.body) == text(1)
    for size in (len(whole.body) - 1, 0):
        os.truncate(sibling, size)
        for _ in range(2):
            answer = ask(server, path)
            assert (answer.body, answer.fields.get("content-encoding")) == (text(1), None)
            settle()


# --- how it is found out


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], OpenFile]]:
    monkeypatch.setattr(siblings, "SETTLED_NS", int(SETTLED * SECOND))
    root, files = Root(str(tmp_path)), []

    def open_one(name: str) -> OpenFile:
        found = trio.run(root.open_file, os.fsencode(name))
        assert isinstance(found, OpenFile)
        files.append(found)
        return found

    yield open_one
    for file in files:
        file.close()
    root.close()


def pair(folder: Path, opened: Callable[[str], OpenFile], packed: bytes) -> tuple[OpenFile, OpenFile]:
    (folder / "a").write_bytes(text(1))
    (folder / "a.gz").write_bytes(packed)
    settle()
    return opened("a"), opened("a.gz")


@pytest.mark.parametrize("version", [1, 2])
def test_many_who_ask_at_once_learn_the_same(tmp_path: Path, opened: Callable[[str], OpenFile], version: int) -> None:
    verdicts, site = [], Siblings()
    original, sibling = pair(tmp_path, opened, gzip.compress(text(version)))

    async def ask_all() -> None:
        async def ask_once(*, leaving: bool) -> None:
            with trio.CancelScope() as scope:
                if leaving:
                    scope.cancel()
                verdicts.append(await site.belong(original, sibling, "gzip"))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(lambda leaving: ask_once(leaving=leaving), number % 10 == 0)

    trio.run(ask_all)
    assert len(verdicts) >= 45
    assert set(verdicts) == {version == 1}


def test_what_is_too_large_to_compare_needs_the_same_time(
    tmp_path: Path, opened: Callable[[str], OpenFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sibling = pair(tmp_path, opened, gzip.compress(text(1)))
    assert trio.run(Siblings().belong, original, sibling, "gzip")
    monkeypatch.setattr(siblings, "LARGEST_COMPARED", len(text(1)) - 1)
    assert not trio.run(Siblings().belong, original, sibling, "gzip")
    # Original and sibling in this order: by their times, the original was changed last.
    for name in ("a.gz", "a"):
        os.utime(tmp_path / name, ns=(THEN, THEN))
    settle()
    assert trio.run(Siblings().belong, opened("a"), opened("a.gz"), "gzip")


def test_what_was_just_changed_is_in_doubt(tmp_path: Path, opened: Callable[[str], OpenFile]) -> None:
    original, sibling = pair(tmp_path, opened, gzip.compress(text(1)))
    assert trio.run(Siblings().belong, original, sibling, "gzip")
    for name in ("a", "a.gz"):
        settle()
        (tmp_path / name).touch()
        now = opened("a"), opened("a.gz")
        belongs = trio.run(Siblings().belong, *now, "gzip")
        young = time.time_ns() - (tmp_path / name).stat().st_ctime_ns < siblings.SETTLED_NS
        assert not (belongs and young)


def test_a_sibling_that_cannot_be_read_does_not_belong(tmp_path: Path, opened: Callable[[str], OpenFile]) -> None:
    original, sibling = pair(tmp_path, opened, gzip.compress(text(1)))
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        # read(2) of a folder fails.
        os.dup2(folder, sibling.descriptor)
    finally:
        os.close(folder)
    assert not trio.run(Siblings().belong, original, sibling, "gzip")
