"""Two things that pyproject.toml cannot do: generate ktlsd/_openssl.py, and make a README for package indexes.

cffi's own setuptools hook leaves the module out of an editable installation when it is pure Python (ABI mode), so it is
written here, before setuptools looks at the package. A package index shows the README without the repository around it:
links to its files become plain text, "name (path)", and pictures go.
"""

import re
import runpy
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
runpy.run_path(str(here / "ktlsd/c_declarations.py"))["ffibuilder"]().emit_python_code(str(here / "ktlsd/_openssl.py"))

readme = (here / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^]]*\]\((?!https:)[^)]+\)\n*", "", readme)
readme = re.sub(r"\[([^]]+)\]\(#[^)]*\)", r"\1", readme)
readme = re.sub(
    r"\[([^]]+)\]\((?!https:)([^)#]+)[^)]*\)",
    lambda link: link[1] if link[1] == link[2] else f"{link[1]} ({link[2]})",
    readme,
)
setup(long_description=readme, long_description_content_type="text/markdown")
