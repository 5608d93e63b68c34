"""Names of files as text and back, as Python has them everywhere: for modules that know nothing else of the system."""

from __future__ import annotations

from os import fsdecode, fsencode

__all__ = ["fsdecode", "fsencode"]
