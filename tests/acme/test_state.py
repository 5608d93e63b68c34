"""The state folder of ACME: full disks, files that were removed, and a server that gives up root."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.acme.sites import ISSUED, NAME, authority, becomes_trusted, pem, record, site, www
from tests.mounting import mount
from tests.pebble import Pebble
from tests.process.test_privileges import (
    ITS_ENVIRONMENT,
    NOBODY,
    PROGRAM_FOR_EVERYBODY,
    needs_python_for_everybody,
    needs_root,
    open_folder,
)
from tests.serving import get

__all__ = ["authority", "open_folder", "www"]


@needs_root
def test_a_full_disk_costs_no_order_and_no_certificate(authority: Pebble, www: Path) -> None:
    log = authority.folder / "pebble.log"
    with mount("tmpfs", www.parent / "state", "size=128k"):
        authority.stop()
        with site(authority, www) as server:
            server.wait_for_line("cannot be reached")
            filler = www.parent / "state/filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            authority.start()
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_line("^certificates are not renewed: .*No space left on device; next try in 60 s")
            assert get(authority.https, "/a.txt").status == 200
            assert "Added order" not in log.read_text()
            filler.unlink()
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_line(ISSUED)
            assert becomes_trusted(authority)


def test_a_certificate_that_was_removed_is_ordered_again(authority: Pebble, www: Path) -> None:
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
    first = pem(www).read_bytes()
    pem(www).unlink()
    with site(authority, www) as server:
        server.wait_for_line("there is no certificate yet$")
        server.wait_for_line(ISSUED)
    assert pem(www).read_bytes() != first


@needs_root
@needs_python_for_everybody
def test_the_user_who_serves_orders(authority: Pebble, open_folder: Path) -> None:
    """Root makes the state folder and gives it away; after that nothing is done as root."""
    folder = open_folder / "www"
    folder.mkdir()
    (folder / "a.txt").write_text("content")
    options = ("--user", "nobody", "--workers", "2")
    ca = open_folder / "ca.pem"
    ca.write_bytes(authority.ca.read_bytes())
    table = f'[acme]\ndirectory = "{authority.directory}"\nca = "{ca}"\n'
    config = open_folder / "nobody.toml"
    config.write_text(table)
    with site(
        authority, folder, *options, "--config", str(config), program=PROGRAM_FOR_EVERYBODY, **ITS_ENVIRONMENT
    ) as server:
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority)
        assert record(folder)["failures"] == 0
    state = open_folder / "state/ktlsd"
    assert {os.stat(path).st_uid for path in (state, *(state / "acme").rglob("*"))} == {NOBODY.pw_uid}
    assert pem(folder, NAME).exists()
