"""Signals to a server with workers, and signals that come twice: downloads finish, and no process is left."""

# ruff: noqa: F811

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.serving import children, eventually, is_refused, parse, read_to_end, serving
from tests.wire.test_lifecycle import LARGE, begin_download, root  # noqa: F401


def test_workers_finish_downloads_on_sigterm(root: Path, tmp_path: Path) -> None:
    with serving(root, "--workers", "2", state=tmp_path / "state") as server:
        downloads = [begin_download(server.port) for _ in range(4)]
        server.process.send_signal(signal.SIGTERM)
        for connection, data in downloads:
            with connection:
                assert len(parse(data + read_to_end(connection))[0].body) == LARGE
        assert server.process.wait(timeout=30) == 0


def test_a_terminals_interrupt_reaches_workers_once(root: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with serving(root, "--workers", "2", state=tmp_path / "state", new_session=True) as server:
            downloads = [begin_download(server.port) for _ in range(4)]
            os.killpg(server.process.pid, signal.SIGINT)
            for connection, data in downloads:
                with connection:
                    assert len(parse(data + read_to_end(connection))[0].body) == LARGE
            assert server.process.wait(timeout=30) == 0


def test_workers_end_with_their_parent(root: Path, tmp_path: Path) -> None:
    with serving(root, "--workers", "2", state=tmp_path / "state") as server:
        workers = children(server.process.pid)
        server.stop(signal.SIGKILL)
        assert eventually(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        assert is_refused(server.port)


def test_signals_that_come_twice_still_mean_status_0(root: Path, tmp_path: Path) -> None:
    for pause in (0, 0.003, 0.01, 0.02, 0.05):
        with serving(root, state=tmp_path / "state") as server:
            server.process.send_signal(signal.SIGTERM)
            time.sleep(pause)
            assert server.stop() == 0
