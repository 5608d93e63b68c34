"""What pyproject.toml cannot say: ktlsd/_openssl.py is generated from the declarations in ktlsd/c_declarations.py.

cffi's own setuptools hook leaves the module out of an editable installation when it is pure Python (ABI mode), so it is
written here, before setuptools looks at the package.
"""

import runpy
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
runpy.run_path(str(here / "ktlsd/c_declarations.py"))["ffibuilder"]().emit_python_code(str(here / "ktlsd/_openssl.py"))
setup()
