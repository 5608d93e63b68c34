"""The assets of the built-in pages, and the source expressions that allow them inline in a Content-Security-Policy.

Strategy: a page carries its style and script itself, so the policy names each by its digest, and nothing else may run.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Final

_ASSETS: Final = resources.files("ktlsd.site") / "assets"


def asset(name: str) -> str:
    """The text of a file in assets/. Raises OSError."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def source(text: str) -> str:
    """The source expression for an inline style or script (Content Security Policy Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
