#!/usr/bin/env python3
"""Prints dependency groups of pyproject.toml for pip. `packaging/groups.py NAME... | pip install -r /dev/stdin`

Strategy: the standard library only, so that any Python can do it before anything is installed. pip 25.1 and later can
do the same with `pip install --group NAME`.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent


def groups() -> dict[str, list[str]]:
    """The requirements of each group (PEP 735), which include no other group."""
    table = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return {name: list(requirements) for name, requirements in table.items()}


def main() -> None:
    known = groups()
    arguments = argparse.ArgumentParser(description="Print the requirements of dependency groups for pip.")
    arguments.add_argument("name", nargs="+", choices=known, help="name of a group in pyproject.toml")
    for name in arguments.parse_args().name:
        print("\n".join(known[name]))


if __name__ == "__main__":
    main()
