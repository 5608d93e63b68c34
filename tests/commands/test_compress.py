"""`ktlsd compress` on real folders: siblings that are made, replaced, removed and left as they are."""

from __future__ import annotations

import gzip
import itertools
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import brotli
import pytest
import zstandard

from ktlsd.commands import compress
from ktlsd.commands.compress import Outcome
from ktlsd.config.refusal import Refusal

WORDS = ["".join(random.Random(n).choices("abcdefghijklmnop<>/=", k=2 + n % 7)) for n in range(2000)]
NOBODY = 65534

MAIN = """
import os, sys
from ktlsd.commands import compress
os.chdir(sys.argv[1])
if sys.argv[2] == "nobody" and os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    status = compress.run(sys.argv[3:])
except KeyboardInterrupt:
    status = 130
if sys.argv[2] == "memory":
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


def child(folder: Path, *arguments: str, who: str = "self") -> list[str]:
    return [sys.executable, "-c", MAIN, str(folder), who, *arguments]


def text(seed: int, words: int = 2000) -> bytes:
    return " ".join(random.Random(seed).choices(WORDS, k=words)).encode()


def unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data)


DECODERS: dict[str, Callable[[bytes], bytes]] = {".zst": unzstd, ".br": brotli.decompress, ".gz": gzip.decompress}


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def summary(capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    prefix, found, counts = capsys.readouterr().out.partition("siblings: ")
    assert (prefix, found) == ("ktlsd compress: ", "siblings: ")
    return {what: int(count) for count, _, what in (part.strip().partition(" ") for part in counts.split(","))}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "index.html").write_bytes(text(1))
    (folder / "sub" / "deep" / "app.js").write_bytes(text(2))
    return folder


@pytest.fixture
def marking(tmp_path: Path) -> None:
    """Siblings without an original are known by an extended attribute."""
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.probe", b"")
    except OSError:
        pytest.skip("this file system has no extended attributes")


# --- what is made


def test_siblings_are_made_in_every_coding(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals = [site / "index.html", site / "sub" / "deep" / "app.js"]
    assert compress.run([str(site)]) == 0
    assert summary(capsys) == {"made": 6, "up to date": 0, "not worth it": 0, "removed": 0}
    for original in originals:
        for suffix, decode in DECODERS.items():
            sibling = Path(f"{original}{suffix}")
            assert decode(sibling.read_bytes()) == original.read_bytes()
            assert sibling.stat().st_mtime_ns == original.stat().st_mtime_ns
            assert sibling.stat().st_size < original.stat().st_size
    assert len(names(site)) == 8


@pytest.mark.parametrize(("tool", "suffix"), [("gzip", ".gz"), ("zstd", ".zst"), ("brotli", ".br")])
def test_the_usual_tools_read_them(site: Path, tool: str, suffix: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    assert compress.run([str(site), "--quiet"]) == 0
    unpacked = subprocess.run([tool, "-d", "-c", f"{site}/index.html{suffix}"], capture_output=True, check=True)
    assert unpacked.stdout == (site / "index.html").read_bytes()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_bytes(text(1))
    os.utime(tmp_path / "one" / "one.txt", (1, 1))
    assert compress.run([str(tmp_path), "--quiet"]) == 0
    for suffix in DECODERS:
        one, other = ((tmp_path / name / f"{name}.txt{suffix}").read_bytes() for name in ("one", "other"))
        assert one == other
    packed = (tmp_path / "one" / "one.txt.gz").read_bytes()
    # No flags, so no name, and no time (RFC 1952 section 2.3).
    assert packed[:8] == b"\x1f\x8b\x08\0\0\0\0\0"


def test_only_the_codings_asked_for(site: Path) -> None:
    assert compress.run([str(site), "--codings", "gzip,br", "--quiet"]) == 0
    assert {Path(name).suffix for name in names(site)} == {".html", ".js", ".br", ".gz"}


@pytest.mark.parametrize("jobs", ["1", "7"])
def test_any_number_of_threads_makes_them_all(tmp_path: Path, jobs: str) -> None:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_bytes(text(number, 200))
    assert compress.run([str(tmp_path), "--jobs", jobs, "--quiet"]) == 0
    for number, (suffix, decode) in itertools.product(range(40), DECODERS.items()):
        assert decode((tmp_path / f"{number}.txt{suffix}").read_bytes()) == text(number, 200)


def test_a_sibling_takes_after_its_original(site: Path) -> None:
    original = site / "index.html"
    original.chmod(0o640)
    if os.getuid() == 0:
        os.chown(original, NOBODY, NOBODY)
    assert compress.run([str(site), "--quiet"]) == 0
    before, after = original.stat(), (site / "index.html.br").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_what_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    (site / ".git").mkdir(parents=True)
    for name in (".hidden.txt", ".git/config.txt", "photo.png", "font.woff2", "x.txt.gz", "y.js.br", "z.css.zst"):
        (site / name).write_bytes(text(1))
    (site / "small.txt").write_bytes(b"a" * 255)
    (site / "empty.txt").touch()
    os.mkfifo(site / "fifo.txt")
    before = names(site)
    assert compress.run([str(site)]) == 0
    assert summary(capsys) == {"made": 0, "up to date": 0, "not worth it": 0, "removed": 0}
    assert names(site) == before


def test_the_smallest_size_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 100)
    (tmp_path / "b.txt").write_bytes(b"a" * 99)
    assert compress.run([str(tmp_path), "--min-size", "100", "--quiet"]) == 0
    assert names(tmp_path) == {"a.txt", "a.txt.br", "a.txt.gz", "a.txt.zst", "b.txt"}


def test_a_sibling_that_saves_nothing_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise.bin").write_bytes(random.Random(1).randbytes(10_000))
    assert compress.run([str(tmp_path)]) == 0
    assert summary(capsys)["not worth it"] == 3
    assert names(tmp_path) == {"noise.bin"}


def test_a_large_file_takes_bounded_memory_and_windows(tmp_path: Path) -> None:
    size = 256 << 20
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(size)
    run = subprocess.run(
        child(tmp_path, ".", "--codings", "zstd,gzip", "--jobs", "2", "--quiet", who="memory"),
        capture_output=True,
        check=True,
    )
    assert int(run.stdout) < size / 1024
    frame = zstandard.get_frame_parameters((tmp_path / "large.bin.zst").read_bytes()[:64])
    assert frame.content_size == size
    # RFC 9659 section 3.
    assert frame.window_size <= 8 << 20
    with gzip.open(tmp_path / "large.bin.gz") as unpacked:
        assert sum(map(len, iter(lambda: unpacked.read(1 << 20), b""))) == size


# --- what is made anew or removed


def test_what_is_up_to_date_is_left_as_it_is(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compress.run([str(site), "--quiet"])
    inodes = {name: (site / name).stat().st_ino for name in names(site)}
    assert compress.run([str(site)]) == 0
    assert summary(capsys) == {"made": 0, "up to date": 6, "not worth it": 0, "removed": 0}
    assert {name: (site / name).stat().st_ino for name in names(site)} == inodes


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_stale_sibling_is_made_anew(site: Path, hours: int, capsys: pytest.CaptureFixture[str]) -> None:
    compress.run([str(site), "--quiet"])
    original = site / "index.html"
    original.write_bytes(text(3))
    moment = time.time_ns() + hours * 3_600_000_000_000
    os.utime(original, ns=(moment, moment))
    assert compress.run([str(site)]) == 0
    assert summary(capsys) == {"made": 3, "up to date": 3, "not worth it": 0, "removed": 0}
    for suffix, decode in DECODERS.items():
        sibling = site / f"index.html{suffix}"
        assert decode(sibling.read_bytes()) == text(3)
        assert sibling.stat().st_mtime_ns == original.stat().st_mtime_ns


@pytest.mark.parametrize("moment", [1, 1_700_000_000])
def test_a_sibling_of_another_version_with_the_same_mtime_is_made_anew(
    site: Path, moment: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reproducible builds give every version the same time."""
    original, other = site / "index.html", site / "sub" / "deep" / "app.js"
    for path in (original, other):
        os.utime(path, (moment, moment))
    compress.run([str(site), "--quiet"])
    new = bytes(reversed(original.read_bytes()))
    original.write_bytes(new)
    # Their siblings are older by their ctimes, but one has the content of its sibling still.
    for path in (original, other):
        os.utime(path, (moment, moment))
    capsys.readouterr()
    assert compress.run([str(site)]) == 0
    assert summary(capsys) == {"made": 3, "up to date": 3, "not worth it": 0, "removed": 0}
    for suffix, decode in DECODERS.items():
        assert decode((site / f"index.html{suffix}").read_bytes()) == new
    assert compress.run([str(site)]) == 0
    assert summary(capsys) == {"made": 0, "up to date": 6, "not worth it": 0, "removed": 0}


def test_a_sibling_that_no_longer_saves_bytes_is_removed(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compress.run([str(site), "--quiet"])
    (site / "index.html").write_bytes(random.Random(1).randbytes(5000))
    assert compress.run([str(site)]) == 0
    assert summary(capsys) == {"made": 0, "up to date": 3, "not worth it": 0, "removed": 3}
    assert {name for name in names(site) if "index" in name} == {"index.html"}


@pytest.mark.usefixtures("marking")
@pytest.mark.parametrize("how", ["vanished", "hidden", "small"])
def test_siblings_without_an_original_are_removed(site: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    compress.run([str(site), "--quiet"])
    original = site / "sub" / "deep" / "app.js"
    if how == "vanished":
        original.unlink()
    elif how == "hidden":
        original.rename(original.with_name(".app.js"))
    else:
        original.write_bytes(b"short")
    assert compress.run([str(site)]) == 0
    assert summary(capsys) == {"made": 0, "up to date": 3, "not worth it": 0, "removed": 3}
    assert not [name for name in names(site) if "app.js." in name]


@pytest.mark.usefixtures("marking")
def test_files_that_it_did_not_make_are_never_removed(site: Path) -> None:
    compress.run([str(site), "--quiet"])
    (site / "archive.tar.gz").write_bytes(gzip.compress(text(5)))
    # Copies with all attributes, and one under another name.
    (site / "kept").mkdir()
    shutil.copy2(site / "index.html.gz", site / "kept" / "index.html.gz")
    shutil.copy2(site / "index.html.br", site / "other.html.br")
    (site / "index.html.zst").rename(site / "renamed.html.zst")
    before = names(site)
    assert compress.run([str(site), "--quiet"]) == 0
    assert names(site) == before | {"index.html.zst"}


# --- links


def test_links_are_not_followed(site: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_bytes(text(7))
    (site / "link.txt").symlink_to(outside / "secret.txt")
    (site / "folder").symlink_to(outside)
    (site / "near.html").symlink_to("index.html")
    # A link in a sibling's place is neither written through nor replaced.
    (site / "index.html.gz").symlink_to(outside / "secret.txt")
    before = names(site)
    assert compress.run([str(site), "--quiet"]) == 0
    assert names(outside) == {"secret.txt"}
    assert (outside / "secret.txt").read_bytes() == text(7)
    assert (site / "index.html.gz").is_symlink()
    assert names(site) - before == {
        "index.html.br",
        "index.html.zst",
        *(f"sub/deep/app.js{suffix}" for suffix in DECODERS),
    }


def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    """Planned as a folder, a link when its turn comes: the walk below the root is made again, name by name."""
    site, outside = tmp_path / "site", tmp_path / "outside"
    (site / "sub").mkdir(parents=True)
    outside.mkdir()
    # Large enough to be at work on while the other's folder is swapped.
    (site / "large.txt").write_bytes(text(1, 60_000))
    for folder in (site / "sub", outside):
        (folder / "page.txt").write_bytes(text(2))
    process = subprocess.Popen(child(site, ".", "--jobs", "1"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_for_temporary(site, process)
    (site / "sub").rename(tmp_path / "moved")
    (site / "sub").symlink_to(outside)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count(b"sub/page.txt: ") == 1
    assert names(outside) == {"page.txt"}


def test_the_folder_itself_may_be_a_link(site: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(site)
    assert compress.run([str(tmp_path / "link"), "--quiet"]) == 0
    assert "index.html.gz" in names(site)


# --- files that change meanwhile


@contextmanager
def repeating(action: Callable[[], None]) -> Iterator[None]:
    """Do it again and again in a thread."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.is_set():
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_sibling_is_whole_at_every_moment(site: Path) -> None:
    original, sibling = site / "index.html", site / "index.html.gz"
    compress.run([str(site), "--quiet"])
    versions = {text(seed) for seed in range(30)}
    seen = []

    def look() -> None:
        seen.append(gzip.decompress(sibling.read_bytes()))

    with repeating(look):
        for version in versions:
            original.write_bytes(version)
            assert compress.run([str(site), "--codings", "gzip", "--quiet"]) == 0
    assert len(seen) > 30
    assert set(seen) <= versions


@pytest.mark.parametrize("in_place", [True, False])
def test_a_sibling_with_its_originals_mtime_has_its_content(site: Path, in_place: bool) -> None:
    """However writing and compressing fall together, and though all versions have one size."""
    original, sibling = site / "index.html", site / "index.html.gz"
    numbers, chance = itertools.count(), random.Random(1)

    def rewrite() -> None:
        target = original if in_place else site / ".new"
        target.write_bytes(b"%040d" % next(numbers) * 10)
        if not in_place:
            target.rename(original)

    def rewrite_for(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rewrite()

    for _ in range(60):
        writer = threading.Thread(target=rewrite_for, args=(chance.uniform(0, 0.02),))
        writer.start()
        compress.run([str(site), "--codings", "gzip", "--quiet"])
        writer.join()
        if sibling.exists() and sibling.stat().st_mtime_ns == original.stat().st_mtime_ns:
            assert gzip.decompress(sibling.read_bytes()) == original.read_bytes()
    assert compress.run([str(site), "--codings", "gzip", "--quiet"]) == 0
    assert gzip.decompress(sibling.read_bytes()) == original.read_bytes()


def test_a_file_that_never_rests_gets_no_sibling(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    original = site / "index.html"
    original.write_bytes(text(1, 200_000))
    with repeating(lambda: os.utime(original)):
        assert compress.run([str(site), "--codings", "gzip"]) == 1
    assert capfd.readouterr().err == "ktlsd compress: index.html: it changes while it is read\n"
    assert {name for name in names(site) if "index" in name} == {"index.html"}


# --- what goes wrong


def test_what_cannot_be_read_is_told_and_the_rest_is_done(site: Path) -> None:
    (site / "secret.txt").write_bytes(text(4))
    (site / "secret.txt").chmod(0)
    (site / "closed").mkdir(mode=0)
    (site / "line\nbreak.txt").write_bytes(text(4))
    (site / "line\nbreak.txt").chmod(0)
    if os.getuid() == 0:
        for folder in (site, site / "sub", site / "sub" / "deep"):
            os.chown(folder, NOBODY, NOBODY)
    run = subprocess.run(child(site, ".", who="nobody"), capture_output=True, text=True, check=False)
    (site / "closed").chmod(0o700)
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        "ktlsd compress: closed: Permission denied",
        "ktlsd compress: line\\nbreak.txt: Permission denied",
        "ktlsd compress: secret.txt: Permission denied",
    ]
    assert run.stdout == "ktlsd compress: siblings: 6 made, 0 up to date, 0 not worth it, 0 removed\n"
    assert "sub/deep/app.js.br" in names(site)


def test_a_name_too_long_for_a_suffix_is_told(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "n" * 251 + ".js"
    (site / name).write_bytes(text(4))
    assert compress.run([str(site), "--codings", "gzip"]) == 1
    assert capfd.readouterr().err == f"ktlsd compress: {name}: File name too long\n"
    assert not [name for name in names(site) if name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "DIR"),
        (["{site}", "more"], "more"),
        (["{site}/none"], "cannot be read: No such file or directory"),
        (["{site}/index.html"], "cannot be read: Not a directory"),
        (["nul\0"], "cannot be read"),
        (["{site}", "--codings", "deflate"], "deflate"),
        (["{site}", "--codings", ""], "--codings"),
        (["{site}", "--codings", "gzip,gzip"], "gzip,gzip"),
        (["{site}", "--jobs", "0"], "--jobs"),
        (["{site}", "--jobs", "-1"], "--jobs"),
        (["{site}", "--min-size", "1k"], "1k"),
        (["{site}", "--min-size", "9" * 5000], "--min-size"),
        (["{site}", "--min"], "--min"),
    ],
)
def test_wrong_arguments_are_told_and_nothing_is_done(site: Path, arguments: list[str], complaint: str) -> None:
    before = names(site)
    with pytest.raises(Refusal) as raised:
        compress.run([argument.format(site=site) for argument in arguments])
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)
    assert names(site) == before


# --- the terminal and signals


def test_a_bar_is_shown_on_a_terminal_alone(site: Path) -> None:
    outputs = {}
    for arguments in ((), ("--quiet",)):
        terminal, other_end = pty.openpty()
        termios.tcsetwinsize(other_end, (24, 80))
        run = subprocess.run(child(site, ".", *arguments), stdout=subprocess.PIPE, stderr=other_end, check=True)
        os.set_blocking(terminal, False)
        try:
            outputs[arguments] = (run.stdout, os.read(terminal, 10_000))
        except BlockingIOError:
            outputs[arguments] = (run.stdout, b"")
        os.close(terminal)
        os.close(other_end)
        for name in names(site):
            if name.endswith(tuple(DECODERS)):
                (site / name).unlink()
    assert b"%|" in outputs[()][1]
    assert outputs[()][0].startswith(b"ktlsd compress: siblings: 6 made")
    assert outputs["--quiet",] == (b"", b"")
    run = subprocess.run(child(site, "."), capture_output=True, check=True)
    assert run.stderr == b""


def wait_for_temporary(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until it is at work on a file."""
    while not any(path.name.startswith(".ktlsd-") for path in folder.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_no_temporary_file(tmp_path: Path, number: signal.Signals) -> None:
    originals, content = {f"{position}.txt" for position in range(12)}, text(1, 1_000_000)
    for name in originals:
        (tmp_path / name).write_bytes(content)
    process = subprocess.Popen(
        child(tmp_path, ".", "--codings", "br", "--jobs", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for_temporary(tmp_path, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, b"", b"")
    # On a busy machine it may have made some before it was interrupted.
    made = names(tmp_path) - originals
    assert len(made) < len(originals)
    for name in made:
        assert DECODERS[".br"]((tmp_path / name).read_bytes()) == content


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(text(1, 100_000))
    process = subprocess.Popen(["nohup", *child(tmp_path, ".", "--codings", "br", "--quiet")], stderr=subprocess.PIPE)
    wait_for_temporary(tmp_path, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert names(tmp_path) == {"one.txt", "one.txt.br"}


def test_the_signals_have_their_former_actions_afterwards(site: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    compress.run([str(site), "--quiet"])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_the_report_counts_every_sibling(site: Path) -> None:
    root = os.open(site, os.O_RDONLY | os.O_DIRECTORY)
    try:
        report = compress.compress(root, ("br",), 1, 1, progress=False)
    finally:
        os.close(root)
    assert report.outcomes == {Outcome.MADE: 2}
    assert report.failures == []
