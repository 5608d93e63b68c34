"""Paths that the operator hides (`hide`): they count as absent. Pure.

Strategy: a pattern without a slash is matched against each name of a path, any other against the path and the folders
above, so that what is below a hidden folder is hidden too. A precompressed sibling is hidden with its file. In doubt a
path is hidden: letters match in either case, since there are file systems without the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ktlsd.config.file_names import fsdecode
from ktlsd.http.accept_encoding import SUFFIXES
from ktlsd.http.path_glob import compile_glob
from ktlsd.http.protected_paths import ends_with


class HiddenPaths:
    """The hidden paths of one site."""

    def __init__(self, patterns: Sequence[str], *, clean_urls: bool = False) -> None:
        """`patterns` are globs (path_glob.compile_glob). With `clean_urls` a name stands for the one with `.html`."""
        whole = [pattern for pattern in patterns if "/" in pattern]
        below = [pattern.rstrip("/") + "/**" for pattern in whole]
        files = [pattern for pattern in whole if not pattern.endswith("/")]
        self._of_paths = [compile_glob(pattern, either_case=True) for pattern in (*files, *below)]
        self._of_names = [compile_glob(pattern, either_case=True) for pattern in patterns if "/" not in pattern]
        endings = (suffix.decode("ascii") for suffix in SUFFIXES.values())
        self._endings = (*endings, ".html") if clean_urls else tuple(endings)

    def cover(self, path: bytes, *, folder: bool = False) -> bool:
        """Whether a path below the root ("." for the root itself) is hidden."""
        text = "/" if path == b"." else "/" + fsdecode(path)
        forms = (text.rstrip("/") + "/",) if folder else self._forms(text)
        return any(
            any(matches(form) for matches in self._of_paths)
            or any(matches(name) for matches in self._of_names for name in form.split("/") if name)
            for form in forms
        )

    def _forms(self, path: str) -> Iterator[str]:
        """The path of a file, and those of the files that it is a form of."""
        yield path
        while any(ends_with(path, ending) and not ends_with(path, "/" + ending) for ending in self._endings):
            path = path[: path.rfind(".")]
            yield path
