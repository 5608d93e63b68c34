"""Files that never change, and those that may. What is sent without a copy: tests/ktls/test_nic.py."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ktlsd.connection.zero_copy import ZeroCopy, never_changes


def test_what_anybody_can_write_may_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    # Not writable, which root can take back at any time.
    path.chmod(0o400)
    with path.open("rb") as file, socket.socket() as sock:
        assert not never_changes(file.fileno())
        # Without kTLS the option is not there, and it is not asked for.
        ZeroCopy(sock).prepare(file.fileno())


def test_a_descriptor_of_no_file_is_no_error() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb"), socket.socket() as sock:
        ZeroCopy(sock).prepare(reading)
