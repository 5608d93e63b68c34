"""ktlsd under a real systemd, in a virtual machine: the cases of tests/vm/systemd_guest.py, one item each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.machine import CHECKOUT, SYSTEMD, Boot, MachineError, missing, prepare
from tests.vm.systemd_guest import CASES

SECONDS = 900.0
"""Of the machine's life: four minutes on a busy host."""
NOT_PACKED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "bench")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    if lacking := missing():
        end = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        end(f"for a virtual machine this host lacks {', '.join(lacking)}")
    results = tmp_path_factory.mktemp("results")
    make_wheel(results, tmp_path_factory.mktemp("source") / "ktlsd")
    said: list[str] = []
    try:
        Boot(prepare(SYSTEMD.name), ["python", "-m", "tests.vm.systemd_guest"], results, SECONDS).wait(said.append)
    except MachineError as error:
        said.append(str(error))
    print("\n".join(said))
    lines = (results / "cases.jsonl").read_text().splitlines() if (results / "cases.jsonl").exists() else []
    lost = {"failure": "the machine did not come to this case:\n" + "\n".join(said)}
    return dict.fromkeys(CASES, lost) | {outcome["case"]: outcome for outcome in map(json.loads, lines)}


def make_wheel(target: Path, source: Path) -> None:
    """The checkout as a wheel; made from a copy, since setuptools leaves its own files beside what it packs."""
    shutil.copytree(CHECKOUT, source, ignore=NOT_PACKED)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(target), str(source)], check=True
    )


@pytest.mark.skipif("KTLSD_VM" in os.environ, reason="boots a machine of its own")
@pytest.mark.parametrize("case", CASES)
def test_case(outcomes: dict[str, dict[str, str]], case: str) -> None:
    outcome = outcomes[case]
    assert not outcome["failure"], outcome["failure"]
