"""Which mounts may hold up their callers, by the kernel's table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktlsd.site.mounts import Mount, mounts, parse, waiting, waits
from ktlsd.system_calls import folder_identity


@pytest.mark.parametrize(
    ("line", "mount", "held_up"),
    [
        (b"27 1 254:0 / / rw,relatime - ext4 /dev/root rw", Mount(27, b"/", "ext4"), False),
        (b"30 27 0:31 / /run rw shared:7 master:1 - tmpfs tmpfs rw", Mount(30, b"/run", "tmpfs"), False),
        (b"42 27 0:39 / /srv/a\\040b\\134c rw - fuse.sshfs host:/ rw", Mount(42, b"/srv/a b\\c", "fuse.sshfs"), True),
        (b"43 27 0:40 / /mnt rw - nfs4 host:/x rw", Mount(43, b"/mnt", "nfs4"), True),
    ],
)
def test_a_line_of_the_table(line: bytes, mount: Mount, held_up: bool) -> None:
    assert parse(line) == mount
    assert mount.waits is held_up


def test_the_mount_of_an_open_folder_is_in_the_table(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    number = folder_identity(descriptor).mount
    os.close(descriptor)
    [mount] = [mount for mount in mounts() if mount.number == number]
    assert os.fsencode(tmp_path).startswith(mount.point)
    assert waits(number) is mount.waits
    assert waits(-1)


def test_those_that_matter_to_a_folder_are_its_own_and_those_below() -> None:
    table = [
        Mount(1, b"/", "ext4"),
        Mount(2, b"/srv", "nfs4"),
        Mount(3, b"/srv/www/media", "fuse.sshfs"),
        Mount(4, b"/srv/www/local", "xfs"),
        Mount(5, b"/srv/www2", "cifs"),
    ]
    assert waiting(2, b"/srv/www", table) == [table[1], table[2]]
    assert waiting(1, b"/srv/www", table) == [table[2]]
    assert waiting(1, b"/", table) == [table[1], table[2], table[4]]
