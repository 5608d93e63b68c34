#!/usr/bin/env python3
"""Makes the bill of materials of an installed ktlsd, CycloneDX in JSON. `python packaging/make_sbom.py PYTHON FILE`

Strategy: cyclonedx-bom reads what is installed for PYTHON, the interpreter of the environment that is shipped:
versions, licenses and dependencies, as installed. The version of ktlsd, which pyproject.toml lacks, is put in.
"""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent


def main() -> None:
    arguments = argparse.ArgumentParser(description="Describe what is installed with ktlsd.")
    arguments.add_argument("python", metavar="PYTHON", help="of the environment, such as /opt/ktlsd/bin/python")
    arguments.add_argument("file", metavar="FILE", type=Path, help="such as ktlsd.cdx.json")
    given = arguments.parse_args()
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--spec-version", "1.6"]
    command += ["--pyproject", str(REPOSITORY / "pyproject.toml"), "--mc-type", "application", given.python]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        sys.exit(f"make_sbom: {made.stderr.strip()}")
    described = json.loads(made.stdout)
    version = runpy.run_path(str(REPOSITORY / "ktlsd/__init__.py"))["__version__"]
    described["metadata"]["component"] |= {"version": version, "purl": f"pkg:pypi/ktlsd@{version}"}
    given.file.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
