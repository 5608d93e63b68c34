"""One process orders at a time: the lease of a dead one is taken over, and that of a living one is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ktlsd.acme import lease

HOLDER = """
import sys, time
from pathlib import Path
from ktlsd.acme import lease
with lease.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_only_one_holds_it(path: Path) -> None:
    with lease.held(path):
        with pytest.raises(lease.Busy), lease.held(path):
            pass
        assert path.stat().st_mode & 0o777 == 0o600
    with lease.held(path):
        pass
    assert sorted(os.listdir(path.parent)) == ["lock"]


def test_a_killed_holder_is_followed_at_once(path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(lease.Busy), lease.held(path):
            pass
        holder.send_signal(signal.SIGKILL)
        # Not waited for: this is a zombie.
        assert holder.stdout.read() == b""
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with lease.held(path):
            pass


@pytest.mark.parametrize(("age", "taken"), [(lease.LEASE_SECONDS / 2, False), (lease.LEASE_SECONDS + 1, True)])
def test_that_of_another_machine_ends_with_its_time(path: Path, age: float, taken: bool) -> None:
    with lease.held(path):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"boot": "of another machine"}))
    touched = path.stat().st_mtime - age
    os.utime(path, (touched, touched))
    if taken:
        with lease.held(path):
            assert json.loads(path.read_text()) == holder
    else:
        with pytest.raises(lease.Busy), lease.held(path):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b'{"boot": 1}', b"\xff" * 5000])
def test_what_is_no_holder_holds_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with lease.held(path):
        pass
