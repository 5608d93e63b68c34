"""Libraries for some configurations are not imported at the start of the others: they cost time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

OPTIONAL: Final = {
    *("acme", "josepy", "segno", "re2", "markdown_it", "PIL"),
    *("brotli", "zstandard", "ktlsd.site.listing", "ktlsd.site.readme", "ktlsd.site.password_hashes"),
    *("ktlsd.logs.access_log", "ktlsd.acme.client"),
}


def test_a_start_imports_nothing_that_only_options_need() -> None:
    program = "import json, sys, ktlsd.cli, ktlsd.process.serve; print(json.dumps(list(sys.modules)))"
    imported = set(json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout))
    assert "ktlsd.site.site" in imported
    assert not imported & OPTIONAL
