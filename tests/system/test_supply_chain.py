"""What a release is made of: locks that fit pyproject.toml and work, a bill of materials, known vulnerabilities."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ktlsd import __version__
from tests.serving import get, serving

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = sorted((REPOSITORY / "requirements").glob("*.txt"))
RELEASE = REPOSITORY / "requirements/release.txt"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
OPTIONAL = PROJECT["project"]["optional-dependencies"]
EXTRAS = ("acme", "pages", "regex")
"""Those of a service; the .deb and the container have the same."""
WANTED = {
    "release.txt": PROJECT["project"]["dependencies"] + [one for extra in EXTRAS for one in OPTIONAL[extra]],
    "build.txt": PROJECT["build-system"]["requires"],
    "tools.txt": PROJECT["dependency-groups"]["release"],
}
_ENTRY = re.compile(r"^(\S+==\S+[^\n]*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def locked(lock: Path) -> dict[str, str]:
    """The version of each package in a lock."""
    entries = [Requirement(entry) for entry, _ in _ENTRY.findall(lock.read_text(encoding="utf-8"))]
    return {canonicalize_name(entry.name): str(next(iter(entry.specifier)).version) for entry in entries}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def install(python: Path, lock: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "-q"]
    return run(*pip, "--require-hashes", "--only-binary=:all:", *options, "-r", lock)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that has what is locked for a release, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    installed = install(python, RELEASE)
    assert installed.returncode == 0, installed.stderr
    return python


# --- locks


def test_each_lock_is_looked_at() -> None:
    assert {lock.name for lock in LOCKS} == WANTED.keys()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_has_what_is_asked_for(lock: Path) -> None:
    versions = locked(lock)
    for wanted in map(Requirement, WANTED[lock.name]):
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), wanted


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_has_nothing_but_versions_and_hashes(lock: Path) -> None:
    """No index is named: the installing user's configuration has it."""
    rest = _ENTRY.sub("", lock.read_text(encoding="utf-8"))
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert "://" not in rest


def test_the_tools_fit_what_the_tests_are_locked_to() -> None:
    """Both are installed into one environment."""
    tools = locked(REPOSITORY / "requirements/tools.txt")
    groups = PROJECT["dependency-groups"]
    wanted = [Requirement(text) for name in ("test", "packaging") for text in groups[name]]
    common = [entry for entry in wanted if canonicalize_name(entry.name) in tools]
    assert common
    assert [str(entry) for entry in common if not entry.specifier.contains(tools[canonicalize_name(entry.name)])] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_is_what_packaging_makes(lock: Path, remade: Path) -> None:
    assert (remade / lock.name).read_text() == lock.read_text(), "run: python packaging/lock.py"


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locks")
    for lock in LOCKS:
        shutil.copy(lock, folder)
    made = run(sys.executable, REPOSITORY / "packaging/lock.py", folder)
    assert made.returncode == 0, made.stderr
    return folder


def test_what_is_locked_is_all_that_ktlsd_needs(python: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.txt").write_text("content")
    # The names of the modules are found in the repository, all others only in the environment.
    program = (str(python), "-m", "ktlsd")
    options = ("--metrics-listen", ":0", "--listing")
    state = tmp_path / "state"
    with serving(tmp_path / "root", *options, program=program, state=state, PYTHONPATH=str(REPOSITORY)) as server:
        assert get(server.port, "/a.txt").body == b"content"
        assert server.stop() == 0
    checked = run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "check")
    assert checked.returncode == 0, checked.stdout


def test_another_file_than_the_locked_one_is_refused(python: Path, tmp_path: Path) -> None:
    ((entry, hashes),) = [found for found in _ENTRY.findall(RELEASE.read_text()) if found[0].startswith("h11==")]
    for name, digests in (("good.txt", hashes), ("bad.txt", f"    --hash=sha256:{'0' * 64}\n")):
        (tmp_path / name).write_text(f"{entry} \\\n{digests}")
    options = ("--no-deps", "--force-reinstall", "--dry-run")
    assert install(python, tmp_path / "good.txt", *options).returncode == 0
    refused = install(python, tmp_path / "bad.txt", *options)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr


# --- bill of materials


@pytest.fixture(scope="module")
def bill(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("sbom") / "ktlsd.cdx.json"
    made = run(sys.executable, REPOSITORY / "packaging/make_sbom.py", python, path)
    assert made.returncode == 0, made.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_bill_names_every_package_with_version_and_purl(bill: dict[str, Any]) -> None:
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    named = {canonicalize_name(part["name"]): part["version"] for part in bill["components"]}
    elsewhere = frozenset(not_here())
    assert named == {name: version for name, version in locked(RELEASE).items() if name not in elsewhere}
    purls = {part["purl"] for part in bill["components"]}
    assert purls == {f"pkg:pypi/{name}@{version}" for name, version in named.items()}
    assert all(part["licenses"] for part in bill["components"])


def not_here() -> Iterator[str]:
    """What is locked for another Python than this."""
    environment = {key: str(value) for key, value in default_environment().items()}
    for entry, _ in _ENTRY.findall(RELEASE.read_text()):
        wanted = Requirement(entry)
        if wanted.marker is not None and not wanted.marker.evaluate(environment):
            yield canonicalize_name(wanted.name)


def test_the_bill_says_who_needs_whom(bill: dict[str, Any]) -> None:
    main = bill["metadata"]["component"]
    assert (main["name"], main["version"], main["purl"]) == ("ktlsd", __version__, f"pkg:pypi/ktlsd@{__version__}")
    names = {part["bom-ref"]: str(canonicalize_name(part["name"])) for part in (main, *bill["components"])}
    needs = {names[part["ref"]]: {names[each] for each in part.get("dependsOn", ())} for part in bill["dependencies"]}
    assert needs["ktlsd"] == {canonicalize_name(Requirement(wanted).name) for wanted in WANTED["release.txt"]}
    assert needs["trio"] >= {"attrs", "idna", "outcome", "sniffio", "sortedcontainers"}
    reached, left = set[str](), ["ktlsd"]
    while left:
        reached.add(name := left.pop())
        left += needs[name] - reached
    assert reached == set(names.values()), "each is there for somebody"


# --- known vulnerabilities


def test_nothing_that_is_locked_has_a_known_vulnerability() -> None:
    """Skips, with the reason, where the data cannot be had."""
    audited = run(sys.executable, REPOSITORY / "packaging/audit.py")
    said = audited.stdout.strip()
    if audited.returncode == 2:
        pytest.skip(said)
    assert audited.returncode == 0, said + audited.stderr
