"""The system calls that Python lacks, against the running kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktlsd.system_calls import file_system_type, folder_at, folder_identity, openat2

# A new interpreter: what prctl(2) sets stays with a process.
_NO_NEW_PRIVILEGES = """
from ktlsd.system_calls import forbid_new_privileges
forbid_new_privileges()
print(next(line for line in open("/proc/self/status") if line.startswith("NoNewPrivs")).split()[1])
"""
_WRONG_PARENT = """
import time
from ktlsd.system_calls import end_with_parent
end_with_parent(1 << 22)
time.sleep(30)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "root/file").write_bytes(b"content")
    (tmp_path / "root/link").symlink_to("../outside")
    descriptor = os.open(tmp_path / "root", os.O_PATH)
    yield descriptor
    os.close(descriptor)


def from_cache(path: Path, call: Callable[[], int]) -> int:
    """What `call` returns once the kernel's name cache has the path, which it may forget at any time."""
    for _ in range(100):
        path.stat()
        with contextlib.suppress(BlockingIOError):
            return call()
    raise AssertionError(f"{path} is never in the name cache")


def test_openat2_opens_what_is_below_the_folder(tmp_path: Path, folder: int) -> None:
    for descriptor in (
        openat2(folder, b"file", os.O_RDONLY, cached=False),
        from_cache(tmp_path / "root/file", lambda: openat2(folder, b"file", os.O_RDONLY, cached=True)),
    ):
        try:
            assert os.read(descriptor, 100) == b"content"
            assert not os.get_inheritable(descriptor)
        finally:
            os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        openat2(folder, b"absent", os.O_RDONLY, cached=False)


@pytest.mark.parametrize("path", [b"link", b"../outside", b"/etc/passwd"])
def test_openat2_opens_nothing_outside_the_folder(folder: int, path: bytes) -> None:
    with pytest.raises(OSError, match="cross-device") as raised:
        openat2(folder, path, os.O_RDONLY, cached=False)
    assert raised.value.errno == errno.EXDEV
    with pytest.raises(OSError, match=r"cross-device|temporarily unavailable"):
        openat2(folder, path, os.O_RDONLY, cached=True)


def test_a_folder_is_known_by_its_identity(tmp_path: Path, folder: int) -> None:
    path = tmp_path / "root"
    again = from_cache(path, lambda: folder_at(os.fsencode(path)))
    try:
        identity = folder_identity(again)
        assert identity == folder_identity(folder)
        device, status = os.makedev(identity.device_major, identity.device_minor), path.stat()
        assert (device, identity.inode) == (status.st_dev, status.st_ino)
        mount = re.findall(r"mnt_id:\t(\d+)", Path(f"/proc/self/fdinfo/{again}").read_text())
        assert [str(identity.mount)] == mount
    finally:
        os.close(again)
    with pytest.raises(NotADirectoryError) as raised:
        from_cache(path / "file", lambda: folder_at(os.fsencode(path / "file")))
    assert raised.value.filename == str(path / "file")


def test_errors_of_a_descriptor_that_is_not_open() -> None:
    for call in (folder_identity, file_system_type):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call(-1)


def test_a_process_can_give_up_new_privileges() -> None:
    assert subprocess.check_output([sys.executable, "-c", _NO_NEW_PRIVILEGES], text=True) == "1\n"


def test_a_process_whose_parent_is_gone_ends() -> None:
    # SIGTERM, before the sleep ends.
    assert subprocess.run([sys.executable, "-c", _WRONG_PARENT], timeout=25, check=False).returncode == -15
