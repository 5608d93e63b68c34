#!/usr/bin/env python3
"""Locks what a release is built, installed and checked with, by version and hash. `packaging/lock.py [--upgrade]`

Strategy: uv resolves for all Pythons and machines at once, within [tool.uv] of pyproject.toml; what is locked already
stays unless an upgrade is asked for. The same lock comes out wherever this runs: no index is named in it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = REPOSITORY / "requirements"
EXTRAS: Final = ("acme", "pages", "regex")
"""All that a service may use, so that a key of its configuration never lacks a package. `qr` is for a terminal."""
OLDEST_PYTHON: Final = "3.11"


def sources() -> dict[str, list[str]]:
    """What is asked for, by the name of the lock."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    return {
        "release.txt": project["project"]["dependencies"] + [one for name in EXTRAS for one in extras[name]],
        "build.txt": project["build-system"]["requires"],
        "tools.txt": project["dependency-groups"]["release"],
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description="Lock the dependencies of a release.")
    arguments.add_argument("--upgrade", action="store_true", help="take the newest of everything")
    arguments.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=FOLDER)
    given = arguments.parse_args()
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--universal", "--generate-hashes"]
    command += ["--python-version", OLDEST_PYTHON, "--no-emit-index-url", "--no-annotate"]
    command += ["--custom-compile-command", "python packaging/lock.py", *(["--upgrade"] if given.upgrade else [])]
    for name, wanted in sources().items():
        subprocess.run(
            [*command, "--output-file", given.folder / name],
            input="\n".join(wanted),
            text=True,
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            check=True,
        )


if __name__ == "__main__":
    main()
