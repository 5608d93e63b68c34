#!/usr/bin/env python3
"""Asks whether what is locked has known vulnerabilities. `python packaging/audit.py`

Strategy: pip-audit, whose own answer is "none" also for what it could not look up. Exit status 0: all was looked up,
and nothing is known; 1: something is; 2: not all could be looked up, so that nothing is said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

LOCK: Final = Path(__file__).resolve().parent.parent / "requirements" / "release.txt"
SECONDS: Final = 15
KNOWN, NOT_AUDITED = 1, 2


def main() -> int:
    arguments = argparse.ArgumentParser(description="Look for known vulnerabilities in what is locked.")
    arguments.add_argument(
        "--service", choices=["pypi", "osv"], default="pypi", help="vulnerability service to query (default: pypi)"
    )
    arguments.add_argument("lock", metavar="LOCK", nargs="?", type=Path, default=LOCK)
    given = arguments.parse_args()
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json"]
    command += ["--timeout", str(SECONDS), "--vulnerability-service", given.service, "--requirement", str(given.lock)]
    audited = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(audited.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = audited.stderr.strip().splitlines() or ["pip-audit said nothing"]
        print(f"not audited: {lines[-1]}")
        return NOT_AUDITED
    known = [(each, each["vulns"]) for each in found if each.get("vulns")]
    for each, vulnerabilities in known:
        names = ", ".join(vulnerability["id"] for vulnerability in vulnerabilities)
        print(f"{each['name']} {each['version']}: {names}")
    if known:
        return KNOWN
    if skipped := [each["name"] for each in found if "skip_reason" in each]:
        print(f"not audited: {', '.join(skipped)}: the index has no data on them")
        return NOT_AUDITED
    print(f"audited: {len(found)} packages, no known vulnerability")
    return 0


if __name__ == "__main__":
    sys.exit(main())
