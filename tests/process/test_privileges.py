"""Dropping root privileges."""

from __future__ import annotations

import contextlib
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
from typing import Any

import msgspec
import pytest

import ktlsd
from ktlsd.process.privileges import Identity, IdentityError, first_inaccessible, resolve
from tests.serving import PROGRAM, Running, children, exchange_plain, get, run_to_end, serving

SYSTEM_PYTHON = Path("/usr/bin/python3")


def _is_for_everybody(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)


def python_for_everybody() -> tuple[tuple[str, ...], dict[str, str]] | None:
    """A ktlsd that any user may run: command and environment. None: there is none on this machine."""
    packages = Path(msgspec.__file__).parent.parent
    places = (Path(ktlsd.__file__), packages / "msgspec")
    if not all(map(_is_for_everybody, places)):
        return None
    if all(map(_is_for_everybody, (Path(os.__file__), Path(sys.executable)))):
        return PROGRAM, {}
    if not SYSTEM_PYTHON.exists():
        return None
    ask = "import sys; print(*sys.version_info[:2])"
    version = subprocess.run([SYSTEM_PYTHON, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    if version != [str(number) for number in sys.version_info[:2]]:
        return None
    paths = f"{Path(ktlsd.__file__).parent.parent}:{packages}"
    return (str(SYSTEM_PYTHON), "-m", "ktlsd"), {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}


FOR_EVERYBODY = python_for_everybody()
PROGRAM_FOR_EVERYBODY, ITS_ENVIRONMENT = FOR_EVERYBODY or (PROGRAM, {})
needs_python_for_everybody = pytest.mark.skipif(
    FOR_EVERYBODY is None,
    reason="only this user may read this Python (the machine of test_systemd.py has one for everybody)",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to another user")

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
        (None, "daemon", "group without user"),
        ("no such user", None, "there is no such user"),
        ("nobody", "no such group", "there is no such group"),
        ("123456", None, "give the group, too"),
        ("1234567890", None, "there is no such user"),
        ("root", None, "is root"),
        ("0", "daemon", "is root"),
    ],
)
def test_what_nobody_can_become(user: str | None, group: str | None, complaint: str) -> None:
    with pytest.raises(IdentityError, match=complaint):
        resolve(user, group)


@needs_root
@needs_python_for_everybody
def test_only_root_can_become_somebody_else() -> None:
    code = "from ktlsd.process.privileges import resolve; print(resolve('nobody', None)); resolve('daemon', None)"
    command = [PROGRAM_FOR_EVERYBODY[0], "-c", code]
    done = subprocess.run(
        command,
        user=NOBODY.pw_uid,
        group=NOBODY.pw_gid,
        env=os.environ | ITS_ENVIRONMENT,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("Identity"), done.stderr
    assert "only root can switch to another user" in done.stderr


@pytest.mark.parametrize("group", ["654321", "daemon"])
def test_only_root_can_take_another_group(monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: NOBODY.pw_gid)
    assert resolve("nobody", str(NOBODY.pw_gid)) == resolve("nobody", None)
    with pytest.raises(IdentityError, match=f"group {group}: only root can take another group: start as root"):
        resolve("nobody", group)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp(prefix="ktlsd-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def serving_as(root: Path, *options: str, **more: Any) -> contextlib.AbstractContextManager[Running]:
    everything: dict[str, Any] = more | ITS_ENVIRONMENT
    return serving(root, *options, program=PROGRAM_FOR_EVERYBODY, **everything)


@needs_root
@needs_python_for_everybody
@pytest.mark.parametrize("workers", ["1", "2"])
def test_root_binds_and_reads_and_is_gone(open_folder: Path, tmp_path: Path, workers: str) -> None:
    (open_folder / "small.txt").write_text("small")
    (open_folder / "secret.txt").write_text("of root")
    (open_folder / "secret.txt").chmod(0o600)
    options = ("--user", "nobody", "--group", "daemon", "--workers", workers)
    # The certificate's key is in tmp_path, where only root can read it, and the port is one of root's.
    with serving_as(open_folder, *options, state=tmp_path, listen=("127.0.0.1:843",)) as server:
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
        assert "running as root; use --user to drop privileges" in server.log


@needs_root
@needs_python_for_everybody
def test_a_root_that_may_be_entered_but_not_listed_serves(open_folder: Path, tmp_path: Path) -> None:
    """Files are opened by their names: mode 711 is enough, as for a server that this user starts."""
    site, challenges = open_folder / "site", open_folder / "challenges"
    for folder in (site, challenges, site / "below"):
        folder.mkdir()
        (folder / "index.html").write_text(f"index of {folder.name}")
        folder.chmod(0o711)
    (site / "a.txt").write_text("text")
    open_folder.chmod(0o711)
    options = ("--user", "nobody", "--acme-challenges", str(challenges))
    with serving_as(site, *options, state=tmp_path, http_listen=("127.0.0.1:0",)) as server:
        assert get(server.port, "/a.txt").body == b"text"
        assert get(server.port, "/").body == b"index of site"
        assert get(server.port, "/below/").body == b"index of below"
        (challenges / "token").write_text("answer")
        request = b"GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        assert exchange_plain(server.http_ports[0], request).endswith(b"answer")
        assert not [line for line in server.log if "may not" in line]


@needs_root
@needs_python_for_everybody
def test_a_listing_that_cannot_be_made_is_worth_a_line(open_folder: Path, tmp_path: Path) -> None:
    (open_folder / "a.txt").write_text("text")
    open_folder.chmod(0o711)
    with serving_as(open_folder, "--user", "nobody", "--listing", state=tmp_path) as server:
        nobody = rf"user {NOBODY.pw_uid}, group \d+"
        server.wait_for_line(rf"^root {open_folder}: {nobody} has no permission to list it: run chmod o\+r")
        assert get(server.port, "/").status == 403
        assert get(server.port, "/a.txt").body == b"text"


@needs_root
@needs_python_for_everybody
@pytest.mark.parametrize("what", ["root", "acme_challenges"])
@pytest.mark.parametrize("closed", ["the folder", "a folder above"])
def test_a_folder_that_the_user_may_not_enter_is_refused(
    open_folder: Path, tmp_path: Path, what: str, closed: str
) -> None:
    above = open_folder / "above"
    folder = above / "folder"
    folder.mkdir(parents=True)
    barring = folder if closed == "the folder" else above
    barring.chmod(0o744)
    places = {"root": ("--root", str(folder)), "acme_challenges": ("--acme-challenges", str(folder))}
    places = {"root": ("--root", str(open_folder))} | {what: places[what]}
    options = [part for place in places.values() for part in place]
    done = run_to_end(
        *(*options, "--listen", "127.0.0.1:0", "--user", "nobody"),
        state=tmp_path,
        program=PROGRAM_FOR_EVERYBODY,
        **ITS_ENVIRONMENT,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        f"ktlsd: {what} {folder}: user {NOBODY.pw_uid}, group {NOBODY.pw_gid} may not enter {barring}:"
        " chmod o+x it, or have the folder elsewhere",
    )


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o744])
def test_code_that_the_user_may_not_read_is_refused(open_folder: Path, tmp_path: Path, mode: int) -> None:
    """Python imports modules when they are needed first: a copy of ktlsd in a folder of root's would fail later."""
    copy = open_folder / "private"
    shutil.copytree(Path(ktlsd.__file__).parent, copy / "ktlsd")
    copy.chmod(mode)
    program, environment = FOR_EVERYBODY or (PROGRAM, {})
    paths = f"{copy}:{environment.get('PYTHONPATH', '')}"
    done = run_to_end(
        *("--root", str(open_folder), "--listen", "127.0.0.1:0", "--user", "nobody"),
        state=tmp_path,
        program=program,
        **environment | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 2
    place = rf"ktlsd {copy}/ktlsd: user {NOBODY.pw_uid}, group \d+ may not read {copy}"
    # Where Python is root's alone too, that comes first.
    python = rf"Python \S+: user {NOBODY.pw_uid}, group \d+ may not read \S+"
    assert re.fullmatch(rf"ktlsd: ({place}|{python}): change its mode or owner, .*", done.stderr.splitlines()[-1])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter and list all folders")
def test_what_bars_a_user(tmp_path: Path) -> None:
    _check_barred(tmp_path)


@needs_root
def test_what_bars_another_user(open_folder: Path) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            os.chown(open_folder, NOBODY.pw_uid, NOBODY.pw_gid)
            os.setgroups([])
            os.setresgid(*[NOBODY.pw_gid] * 3)
            os.setresuid(*[NOBODY.pw_uid] * 3)
            _check_barred(open_folder)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _check_barred(place: Path) -> None:
    folder = place / "above/folder"
    folder.mkdir(parents=True)
    assert first_inaccessible(folder) is first_inaccessible(folder, listed=True) is None
    folder.chmod(0o311)
    assert (first_inaccessible(folder), first_inaccessible(folder, listed=True)) == (None, folder)
    folder.chmod(0o644)
    assert first_inaccessible(folder) == folder
    folder.chmod(0o755)
    folder.parent.chmod(0o644)
    assert first_inaccessible(folder) == first_inaccessible(folder, listed=True) == folder.parent
    folder.parent.chmod(0o311)
    assert first_inaccessible(folder, listed=True) is None
    assert first_inaccessible(place / "absent") == place / "absent"
