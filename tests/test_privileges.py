"""From root to somebody who may do less."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ktlsd
from ktlsd.privileges import Identity, PrivilegeError, resolve
from tests.serving import children, get, run_to_end, serving


def _is_for_everybody(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)


needs_python_for_everybody = pytest.mark.skipif(
    not all(map(_is_for_everybody, (Path(os.__file__), Path(ktlsd.__file__), Path(sys.executable)))),
    reason="only this user may read this Python (the machine of test_systemd.py has one for everybody)",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

NOBODY = pwd.getpwnam("nobody")
DAEMON = grp.getgrnam("daemon")


@needs_root
@pytest.mark.parametrize(
    ("user", "group", "identity"),
    [
        (None, None, None),
        ("nobody", None, Identity(NOBODY.pw_uid, NOBODY.pw_gid)),
        ("nobody", "daemon", Identity(NOBODY.pw_uid, DAEMON.gr_gid)),
        (str(NOBODY.pw_uid), None, Identity(NOBODY.pw_uid, NOBODY.pw_gid)),
        ("123456", "654321", Identity(123456, 654321)),
    ],
)
def test_whom_names_and_numbers_mean(user: str | None, group: str | None, identity: Identity | None) -> None:
    assert resolve(user, group) == identity


@pytest.mark.parametrize(
    ("user", "group", "complaint"),
    [
        (None, "daemon", "--group without --user"),
        ("no such user", None, "there is no such user"),
        ("nobody", "no such group", "there is no such group"),
        ("123456", None, "give --group too"),
        ("1234567890", None, "there is no such user"),
        ("root", None, "is root"),
        ("0", "daemon", "is root"),
    ],
)
def test_what_nobody_can_become(user: str | None, group: str | None, complaint: str) -> None:
    with pytest.raises(PrivilegeError, match=complaint):
        resolve(user, group)


@needs_root
@needs_python_for_everybody
def test_only_root_can_become_somebody_else() -> None:
    code = "from ktlsd.privileges import resolve; print(resolve('nobody', None)); resolve('daemon', None)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, user=NOBODY.pw_uid, group=NOBODY.pw_gid, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Identity"), done.stderr
    assert "only root can become somebody else" in done.stderr


@pytest.mark.parametrize("group", ["654321", "daemon"])
def test_only_root_can_take_another_group(monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: NOBODY.pw_gid)
    assert resolve("nobody", str(NOBODY.pw_gid)) == resolve("nobody", None)
    with pytest.raises(PrivilegeError, match=f"--group {group}: only root can take another group: start as root"):
        resolve("nobody", group)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp(prefix="ktlsd-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_root
@needs_python_for_everybody
@pytest.mark.parametrize("workers", ["1", "2"])
def test_root_binds_and_reads_and_is_gone(open_folder: Path, tmp_path: Path, workers: str) -> None:
    (open_folder / "small.txt").write_text("small")
    (open_folder / "secret.txt").write_text("of root")
    (open_folder / "secret.txt").chmod(0o600)
    options = ("--user", "nobody", "--group", "daemon", "--workers", workers)
    # The certificate's key is in tmp_path, where root alone can read it, and the port is one of root's.
    with serving(open_folder, *options, state=tmp_path, listen=("127.0.0.1:843",)) as server:
        assert server.port == 843
        assert get(server.port, "/small.txt").body == b"small"
        assert get(server.port, "/secret.txt").status == 403
        for pid in {server.process.pid, *children(server.process.pid)}:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert status["Uid"].split() == [str(NOBODY.pw_uid)] * 4
            assert status["Gid"].split() == [str(DAEMON.gr_gid)] * 4
            assert status["Groups"].split() == []
            assert status["NoNewPrivs"] == "1"
            assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
        assert not [line for line in server.log if "running as root" in line]
        assert server.stop() == 0


@needs_root
def test_staying_root_is_worth_a_line(open_folder: Path, tmp_path: Path) -> None:
    with serving(open_folder, state=tmp_path) as server:
        assert "running as root, as nothing has to: give --user NAME" in server.log


@needs_root
def test_a_root_folder_that_is_roots_alone_is_refused(open_folder: Path, tmp_path: Path) -> None:
    open_folder.chmod(0o700)
    done = run_to_end("--root", str(open_folder), "--listen", "127.0.0.1:0", "--user", "nobody", state=tmp_path)
    assert done.returncode == 2
    # Where Python is root's alone too, that comes first.
    assert re.fullmatch(
        rf"ktlsd: (root {open_folder}|Python \S+|ktlsd \S+): user {NOBODY.pw_uid}, group \d+ may not read it: .*",
        done.stderr.splitlines()[-1],
    )
