"""Faults on a kernel with kTLS: what test_faults.py has that kTLS could change, and what only a machine of one's own
can be put through: disks that fail, clocks that jump, the tls module that goes. Clients: test_ktls_hostile_clients.py;
networks: test_ktls_networks.py.

Each fault is in one machine, but where kernel or OpenSSL have a say in what becomes of it.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.downloads import Outcome, download, judge, make_files, read_all
from tests.ktls.test_ktls import without_tls_module
from tests.serving import Running, connect, eventually, get, serving
from tests.vm.plugin import drop_page_cache
from tests.wire import test_faults
from tests.wire.test_faults import (  # noqa: F401
    MIB,
    begin,
    contents,
    faulty,
    root,
    test_a_killed_worker_breaks_its_own_downloads_alone,
)

pytestmark = [
    pytest.mark.ktls(machine="debian12"),
    pytest.mark.skipif(not os.environ.get("KTLSD_VM"), reason="this would disturb the machine"),
]

# One error of those that ktlsd and OpenSSL treat alike; test_faults.py has the others.
FAILING = [
    *(("sendfile", error) for error in ("EIO", "EINTR", "EAGAIN", "EPIPE")),
    *(("sendto", error) for error in ("EINTR", "EAGAIN", "ENOMEM")),
    ("setsockopt", "ENOENT"),
    ("sendmsg", "EAGAIN"),
]


# OpenSSL before 3.4 reports what failed otherwise than later ones.
SENDFILE = [(call, error) for call, error in FAILING if call == "sendfile" and error in ("EIO", "EAGAIN", "EPIPE")]


@pytest.mark.ktls(machine="debian13")
@pytest.mark.parametrize(("call", "error"), SENDFILE)
def test_a_sendfile_that_fails(
    faulty: Running,  # noqa: F811
    contents: dict[str, bytes],  # noqa: F811
    tmp_path: Path,
    call: str,
    error: str,
) -> None:
    test_a_call_that_fails(faulty, contents, tmp_path, call, error)


@pytest.mark.parametrize(("call", "error"), FAILING)
def test_a_call_that_fails(
    faulty: Running,  # noqa: F811
    contents: dict[str, bytes],  # noqa: F811
    tmp_path: Path,
    call: str,
    error: str,
) -> None:
    test_faults.test_a_call_that_fails_breaks_at_most_the_response_that_made_it(
        faulty, contents, tmp_path, call, error, "1+3"
    )


# --- disks -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A file system on a disk, and the file that stands for the disk: where that ends, reads of the disk give EIO.

    Only with direct I/O: otherwise the loop device gives zeros there (drivers/block/loop.c), as a disk that lies.
    """
    image, mounted = Path("/mnt/disk", f"image-{os.getpid()}"), folder / "mounted"
    mounted.mkdir()
    with open(image, "wb") as file:
        file.truncate(96 * MIB)
    subprocess.run(["modprobe", "loop"], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", str(image)], check=True)
    losetup = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount", device, str(mounted)], check=True)
        try:
            yield mounted, image
        finally:
            subprocess.run(["umount", "--lazy", str(mounted)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()


@pytest.mark.ktls(machine="debian13")
@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_disk_that_fails_breaks_what_it_holds_alone(tmp_path: Path, mode: str) -> None:
    made = make_files(tmp_path / "made", {"small.bin": 10_000, "large.bin": 32 * MIB})
    with disk(tmp_path) as (mounted, image):
        make_files(mounted, {"small.bin": 10_000, "large.bin": 32 * MIB})
        (tmp_path / "config.toml").write_text(
            f'root = "{tmp_path}/made"\n[[site]]\nnames = ["failing.example"]\nroot = "{mounted}"\n'
        )
        options = ("--config", str(tmp_path / "config.toml"), "--ktls", mode)
        with serving(None, *options, state=tmp_path / "state") as server:
            # With kTLS the first connection opens what the kernel is asked by.
            assert get(server.port, "/small.bin").body == made["small.bin"]
            drop_page_cache()
            files = server.open_files()
            connection, begun = begin_on(server.port, "failing.example")
            os.truncate(image, 0)
            drop_page_cache()
            with connection:
                data, in_order = read_all(connection)
            assert judge(begun + data, in_order, made["large.bin"]) is Outcome.BROKEN
            server.wait_for_line("cut off: .*(Input/output error|sendfile)")
            # Where the file can still be opened, the body is seen to be broken.
            with contextlib.suppress(ssl.SSLEOFError):
                assert get(server.port, "/large.bin", host="failing.example").status in (404, 500)
            for name, content in made.items():
                assert download(server.port, name, content) is Outcome.WHOLE
            assert eventually(lambda: server.open_files() <= files)


def begin_on(port: int, host: str) -> tuple[ssl.SSLSocket, bytes]:
    connection = connect(port)
    connection.sendall(f"GET /large.bin HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return connection, connection.recv(16384)


# --- clocks ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_clock() -> Iterator[None]:
    """Set the machine's clock at will; it is right again afterwards."""
    wall, steady = time.time(), time.monotonic()
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, wall + time.monotonic() - steady)


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_clocks_that_jump_change_dates_alone(
    root: Path,  # noqa: F811
    contents: dict[str, bytes],  # noqa: F811
    tmp_path: Path,
    mode: str,
) -> None:
    with serving(root, "--ktls", mode, state=tmp_path / "state") as server, own_clock():
        for jump in (-3600.0, 86400.0 * 3650, -86400.0 * 7000, 7.5):
            connection, begun = begin(server.port)
            time.clock_settime(time.CLOCK_REALTIME, time.time() + jump)
            with connection:
                data, in_order = read_all(connection)
            assert judge(begun + data, in_order, contents["large.bin"]) is Outcome.WHOLE
            answer = get(server.port, "/small.bin")
            assert answer.body == contents["small.bin"]
            date = email.utils.parsedate_to_datetime(answer.fields["date"]).timestamp()
            assert abs(date - time.time()) < 60
        assert not [line for line in server.log if "defect" in line]


# --- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.ktls
def test_the_module_may_go_and_come_under_a_running_server(
    root: Path,  # noqa: F811
    contents: dict[str, bytes],  # noqa: F811
    tmp_path: Path,
) -> None:
    with serving(root, "--log-level", "debug", state=tmp_path / "state") as server:
        connection, begun = begin(server.port)
        refused = subprocess.run(["rmmod", "tls"], capture_output=True, check=False)
        assert refused.returncode != 0, "a connection holds the module"
        with connection:
            data, in_order = read_all(connection)
        assert judge(begun + data, in_order, contents["large.bin"]) is Outcome.WHOLE
        lines = len(server.log)
        with without_tls_module():
            assert download(server.port, "medium.bin", contents["medium.bin"]) is Outcome.WHOLE
            server.wait_for_line(r"ktls tx=none", since=lines)
        lines = len(server.log)
        assert download(server.port, "medium.bin", contents["medium.bin"]) is Outcome.WHOLE
        server.wait_for_line("ktls tx=software", since=lines)
