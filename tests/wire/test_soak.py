"""A short soak; `python -m tests.soak --minutes 60` is the long one."""

from pathlib import Path

from tests.soak import soak


def test_mixed_load_leaves_nothing_behind(tmp_path: Path) -> None:
    report = soak(tmp_path, 20)
    print(*report.lines(), sep="\n")
    assert not report.wrong
    assert report.good
    assert len(report.done) == 11
