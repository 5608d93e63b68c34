"""Which file is the body of an error, by the requested path and the status: pure.

Strategy: the rules of [[error_page]] come first, in their order; [error_pages] holds for all other paths.
"""

from __future__ import annotations

from ktlsd.config.options import SiteOptions
from ktlsd.http.path_glob import compile_glob


class ErrorPages:
    """The error pages of one site."""

    def __init__(self, site: SiteOptions) -> None:
        self._by_path = [(rule.status, compile_glob(rule.path), rule.file) for rule in site.error_page]
        self._by_status = site.error_pages

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._by_path or self._by_status)

    def find(self, path: str, status: int) -> str | None:
        """The file (a decoded path below the root) for an error in the response to a request for `path` (decoded)."""
        for of_status, matches, file in self._by_path:
            if of_status == status and matches(path):
                return file
        return self._by_status.get(str(int(status)))
