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


ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'%3E%3Cpath fill='%23e59a2f'"
    " d='M3 6.5A1.5 1.5 0 0 1 4.5 5H9l2.5 2.5h8A1.5 1.5 0 0 1 21 9v9a1.5 1.5 0 0 1-1.5 1.5h-15A1.5 1.5 0 0 1 3 18z'/%3E"
    "%3C/svg%3E"
)
"""The pages' icon, inline: a browser requests /favicon.ico otherwise."""


def head(title: str, style: str) -> str:
    """The beginning of a page, to its body; `title` is escaped."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="{ICON}">
<style>{style}</style></head>
"""


def policy(*directives: str) -> str:
    """A Content-Security-Policy that allows nothing but what these directives do."""
    return "; ".join(
        ("default-src 'none'", *directives, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")
    )


def source(text: str) -> str:
    """The source expression for an inline style or script (Content Security Policy Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
