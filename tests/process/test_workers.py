"""Processes: how many, how they are replaced, and how long they may take to end."""

from __future__ import annotations

import itertools
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ktlsd.process.backoff import FIRST_SECONDS, LIVED_SECONDS, LONGEST_SECONDS, Backoff
from ktlsd.process.cores import usable_cores
from tests.protocols import BrokenError
from tests.serving import Running, children, command, eventually, get, serving
from tests.wire.test_lifecycle import LARGE, downloading

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "large.bin").write_bytes(bytes(LARGE))
    (folder / "small.txt").write_text("small")
    return folder


def test_pauses_grow_up_to_a_cap() -> None:
    backoff = Backoff()
    pauses = [backoff.pause(0) for _ in range(20)]
    assert pauses[0] == FIRST_SECONDS
    assert pauses[-1] == LONGEST_SECONDS
    assert all(later == min(2 * earlier, LONGEST_SECONDS) for earlier, later in itertools.pairwise(pauses))


def test_a_worker_that_lived_long_is_replaced_soon() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.pause(LIVED_SECONDS / 2)
    assert backoff.pause(LIVED_SECONDS) == FIRST_SECONDS
    assert backoff.pause(0) == 2 * FIRST_SECONDS


def test_as_many_workers_as_cores(root: Path, tmp_path: Path) -> None:
    with serving(root, "--workers", "auto", state=tmp_path / "state") as server:
        cores = usable_cores()
        assert len(children(server.process.pid)) == (cores if cores > 1 else 0)
        assert get(server.port, "/small.txt").body == b"small"


def successor(server: Running, others: set[int]) -> int:
    """The worker that is none of the others, once there is one."""
    assert eventually(lambda: len(children(server.process.pid) - others) == 1)
    return (children(server.process.pid) - others).pop()


def test_a_worker_that_ends_again_and_again_waits_longer_each_time(root: Path, tmp_path: Path) -> None:
    with serving(root, "--workers", "2", state=tmp_path / "state") as server:
        steady, victim = sorted(children(server.process.pid))
        for pause in ("0.1", "0.2", "0.4"):
            os.kill(victim, signal.SIGKILL)
            server.wait_for_line(rf"^worker {victim} ended \(signal 9\) after .* takes its place in {pause} s$")
            assert get(server.port, "/small.txt").body == b"small"
            victim = successor(server, {steady, victim})
        assert server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_wait_for_downloads_has_a_bound(root: Path, tmp_path: Path, workers: int) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text(f"drain_seconds = 1\nworkers = {workers}\n")
    with (
        serving(root, "--config", str(config), state=tmp_path / "state") as server,
        downloading(server.port) as downloads,
    ):
        assert server.stop() == 0
        told = [line for line in server.log if line.startswith("connections cut off: ")]
        # A line of each worker that has some.
        assert sum(int(line.split()[3].rstrip(",")) for line in told) == len(downloads)
        assert all(line.endswith(", still open 1 s after the signal") for line in told)
        for _, download in downloads:
            with pytest.raises(BrokenError):
                download.answer()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_terminal_that_hangs_up_ends_the_server(root: Path, tmp_path: Path, workers: str) -> None:
    terminal, end = pty.openpty()
    # Runs the command in a session of its own, whose terminal this is.
    adopt = "import os, sys, fcntl, termios; fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)"
    wrapper = (sys.executable, "-c", f"{adopt}; os.execv(sys.argv[2], sys.argv[2:])", str(end))
    options = ("--workers", workers)
    with serving(
        root, *options, state=tmp_path / "state", wrapper=wrapper, new_session=True, pass_fds=(end,)
    ) as server:
        since = len(server.log)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("^configuration reloaded$", since)
        os.close(end)
        os.close(terminal)
        assert server.process.wait(timeout=60) == 0


def test_a_worker_that_hangs_does_not_hold_up_the_end(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text("drain_seconds = 0\nworkers = 2\n")
    with serving(root, "--config", str(config), state=tmp_path / "state") as server:
        worker = min(children(server.process.pid))
        os.kill(worker, signal.SIGSTOP)
        assert server.stop() == 0
        server.wait_for_line(rf"^workers \[{worker}\] killed: still running 5 s after the signal$")


def without_forks(failing: str) -> tuple[str, ...]:
    """For a ktlsd whose forks with these numbers fail as the kernel has them fail."""
    # -D: ktlsd is the process that is started, and strace its grandchild.
    return ("strace", "-D", "-q", "-o", os.devnull, "-e", f"inject=clone:error=EAGAIN:when={failing}")


@needs_strace
def test_a_worker_that_cannot_be_started_is_tried_again(root: Path, tmp_path: Path) -> None:
    with serving(root, "--workers", "2", state=tmp_path / "state", wrapper=without_forks("3..4")) as server:
        steady, victim = sorted(children(server.process.pid))
        os.kill(victim, signal.SIGKILL)
        for pause in ("0.2", "0.4"):
            server.wait_for_line(
                rf"^a worker cannot be started \(Resource temporarily unavailable\), next try in {pause} s$"
            )
        successor(server, {steady, victim})
        assert get(server.port, "/small.txt").body == b"small"
        assert server.stop() == 0


@needs_strace
def test_workers_that_cannot_be_started_at_first_are_a_refusal(root: Path, tmp_path: Path) -> None:
    arguments = command("--root", str(root), "--listen", "127.0.0.1:0", "--workers", "2")
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    ended = subprocess.run(
        [*without_forks("2"), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        "ktlsd: only 1 of 2 workers can be started (Resource temporarily unavailable):"
        " have fewer, or allow this user more processes or memory"
    )
    assert "listening" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_right_after_its_fork_ends_in_order(
    root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serving(root, "--workers", "2", state=tmp_path / "state") as server:
        known = children(server.process.pid)
        os.kill(min(known), signal.SIGKILL)
        # pgrep would come too late (proc(5), /proc/PID/task/TID/children).
        listed = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        deadline = time.monotonic() + 30
        while not (new := {int(child) for child in listed.read_text().split()} - known):
            assert time.monotonic() < deadline
        [worker] = new
        os.kill(worker, number)
        assert server.wait_for_line(rf"^worker {worker} ended \(exit status 0\)")
        assert not any(f"worker {worker} failed" in line for line in server.log)
