"""ktlsd starts with any of descriptors 0 to 2 closed: no file or socket of its own takes their numbers."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from bench.ports import free_port
from tests.serving import START_SECONDS, WAIT_SECONDS, children, command, eventually, get, is_refused

NULL = "/dev/null"
STDIN, STDOUT, STDERR = range(3)
ALL = (STDIN, STDOUT, STDERR)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "index.html").write_text("hello")
    return folder


def without(closed: Collection[int], arguments: list[str]) -> list[str]:
    """A command that runs another with these descriptors closed."""
    return ["sh", "-c", f'exec "$@" {" ".join(f"{descriptor}>&-" for descriptor in closed)}', "sh", *arguments]


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}


@contextlib.contextmanager
def serving_without(
    closed: Collection[int], root: Path, tmp_path: Path, *options: str, stderr: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server that was started so, and its port, which stderr cannot show."""
    port = free_port()
    arguments = command("--root", str(root), "--listen", f"127.0.0.1:{port}", *options)
    process = subprocess.Popen(without(closed, arguments), env=environment(tmp_path), stderr=stderr)
    try:
        assert eventually(lambda: process.poll() is not None or not is_refused(port))
        assert process.poll() is None
        yield process, port
        process.terminate()
        assert process.wait(WAIT_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def descriptors(pid: int) -> dict[int, str]:
    folder = f"/proc/{pid}/fd"
    return {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}


@pytest.mark.parametrize(
    ("closed", "workers"), [((STDIN,), 1), ((STDOUT,), 1), ((STDERR,), 1), (ALL, 1), (ALL, 2)], ids=str
)
def test_closed_descriptors_are_dev_null_and_messages_go_to_the_log_only(
    root: Path, tmp_path: Path, closed: tuple[int, ...], workers: int
) -> None:
    log = tmp_path / "error.log"
    options = ("--error-log", str(log), "--log-level", "debug", "--workers", str(workers))
    with serving_without(closed, root, tmp_path, *options) as (process, port):
        for _ in range(2 * workers):
            assert get(port, "/").body == b"hello"
        everyone = {process.pid, *children(process.pid)}
        assert len(everyone) == (1 if workers == 1 else 1 + workers)
        for pid in everyone:
            found = descriptors(pid)
            assert {found[descriptor] for descriptor in closed} == {NULL}
            kept = [place for number, place in found.items() if number not in ALL]
            assert str(log) in kept
            assert str(tmp_path / "state/ktlsd/ticket-keys.json") in kept
        assert eventually(lambda: log.read_text().count(" TLSv1.3 ") == 2 * workers)
    keys = json.loads((tmp_path / "state/ktlsd/ticket-keys.json").read_bytes())
    assert [set(key) for key in keys] == [{"start", "key"}]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["check", "--config", "ktlsd.toml"], 0),
        (["check", "--schema"], 0),
        (["doctor", "--json"], None),
        (["--root", "absent"], 2),
        (["check"], 2),
        (["compress", "absent"], 2),
    ],
    ids=lambda found: " ".join(found) if isinstance(found, list) else "",
)
def test_commands_end_as_they_would_with_open_descriptors(
    root: Path, tmp_path: Path, arguments: list[str], status: int | None
) -> None:
    (tmp_path / "ktlsd.toml").write_text("root = 'root'\n")
    usual = command(*arguments)
    ended = [
        subprocess.run(
            run,
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=START_SECONDS,
            check=False,
        ).returncode
        for run in (usual, without(ALL, usual))
    ]
    assert ended[0] == ended[1]
    assert status in (None, ended[0])


def test_compress_writes_siblings_and_nothing_into_them(root: Path, tmp_path: Path) -> None:
    text = b"text " * 2000
    (root / "a.txt").write_bytes(text)
    run = without(ALL, command("compress", str(root)))
    assert subprocess.run(run, timeout=START_SECONDS, check=False).returncode == 0
    assert gzip.decompress((root / "a.txt.gz").read_bytes()) == text
    assert (root / "a.txt").read_bytes() == text


def test_programs_that_are_started_inherit_dev_null(tmp_path: Path) -> None:
    look = "import os, sys; open(sys.argv[1], 'w').write(' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)))"
    code = (
        "import subprocess, sys; from ktlsd.process import standard_streams; standard_streams.fill();"
        "subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)"
    )
    seen = tmp_path / "seen"
    run = without(ALL, [sys.executable, "-c", code, look, str(seen)])
    subprocess.run(run, check=True, timeout=START_SECONDS)
    assert seen.read_text().split() == [NULL, NULL, NULL]


@pytest.mark.parametrize("closed", [(), (STDERR,), ALL], ids=str)
def test_open_descriptors_stay_what_they_are(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """Also where there is no /dev/null to open: only a closed descriptor needs it."""
    code = (
        "import os; from ktlsd.process import standard_streams; standard_streams._NULL = '/no/null'\n"
        "try: standard_streams.fill()\n"
        "except standard_streams.Refusal as error: text = str(error)\n"
        "else: text = 'filled'\n"
        "open('seen', 'w').write(text)"
    )
    subprocess.run(without(closed, [sys.executable, "-c", code]), cwd=tmp_path, check=True, timeout=START_SECONDS)
    if not closed:
        assert (tmp_path / "seen").read_text() == "filled"
    else:
        assert (tmp_path / "seen").read_text() == (
            f"descriptor {closed[0]} is closed, and /no/null cannot be opened in its place"
            " (No such file or directory): start ktlsd with stdin, stdout and stderr"
        )


# --- an output that takes nothing

PRINTING = [
    ["--version"],
    ["--help"],
    ["check", "--config", "ktlsd.toml"],
    ["check", "--schema"],
    ["compress", "--help"],
    ["doctor", "--json"],
    ["compress", "root"],
]


def printing(arguments: list[str], stdout: int, tmp_path: Path, unbuffered: str) -> tuple[int, str]:
    """Exit status and stderr of a command with this stdout."""
    (tmp_path / "ktlsd.toml").write_text("root = 'root'\n")
    ended = subprocess.run(
        command(*arguments),
        cwd=tmp_path,
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": unbuffered},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(("arguments", "unbuffered"), [*((words, "") for words in PRINTING), (["--help"], "1")])
def test_a_full_disk_under_stdout_is_one_line(
    root: Path, tmp_path: Path, arguments: list[str], unbuffered: str
) -> None:
    with open("/dev/full", "wb") as full:
        assert printing(arguments, full.fileno(), tmp_path, unbuffered) == (
            2,
            "ktlsd: stdout: the output cannot be written: No space left on device\n",
        )


@pytest.mark.parametrize(("arguments", "unbuffered"), [*((words, "") for words in PRINTING), (["--help"], "1")])
def test_a_reader_that_has_left_ends_a_command_as_sigpipe_would(
    root: Path, tmp_path: Path, arguments: list[str], unbuffered: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert printing(arguments, writer, tmp_path, unbuffered) == (128 + signal.SIGPIPE, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null", "pipe"])
def test_a_stderr_that_takes_nothing_changes_no_exit_status(root: Path, tmp_path: Path, place: str) -> None:
    """/dev/null is open for reading only, and no process reads from the pipe."""
    if place == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(place, os.O_WRONLY if place == "/dev/full" else os.O_RDONLY)
    (root / "a.txt").write_bytes(b"text " * 2000)
    try:
        for arguments, status in ((["compress", "root"], 0), (["compress", "absent"], 2), (["--bogus"], 2)):
            run = subprocess.run(
                command(*arguments),
                cwd=tmp_path,
                env=environment(tmp_path),
                stdout=subprocess.DEVNULL,
                stderr=writer,
                timeout=START_SECONDS,
                check=False,
            )
            assert run.returncode == status
    finally:
        os.close(writer)


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
@pytest.mark.parametrize("logged", ["to stderr", "to a file"])
def test_a_start_does_not_wait_for_a_full_pipe(root: Path, tmp_path: Path, blocking: bool, logged: str) -> None:
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, blocking)
        options = () if logged == "to stderr" else ("--error-log", str(tmp_path / "error.log"))
        with serving_without((), root, tmp_path, *options, stderr=writer) as (_, port):
            assert get(port, "/").body == b"hello"
            # Not changed for all that share the pipe.
            assert os.get_blocking(writer) is blocking
        os.set_blocking(reader, False)
        assert set(os.read(reader, 1 << 20)) == {0}
    finally:
        os.close(reader)
        os.close(writer)
