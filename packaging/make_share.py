#!/usr/bin/env python3
"""Makes what is installed below PREFIX/share: man pages and completion. `python packaging/make_share.py [FOLDER]`

Strategy: share/ in the repository has the names that PREFIX/share gets, and is written anew from the parsers and option
types; tests/system/test_packaging.py says when that is due.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
# This checkout's ktlsd, wherever another is installed.
sys.path.insert(0, str(REPOSITORY))

from completions import completions  # noqa: E402
from man_pages import command_page, configuration_page  # noqa: E402

from ktlsd import __version__  # noqa: E402
from ktlsd.cli import parsers  # noqa: E402
from ktlsd.config.schema import schema  # noqa: E402
from ktlsd.config.values import LOG_LEVELS  # noqa: E402
from ktlsd.http.accept_encoding import SUFFIXES  # noqa: E402

COMPLETION_PLACES: Final = {
    "bash": "bash-completion/completions/ktlsd",
    "zsh": "zsh/site-functions/_ktlsd",
    "fish": "fish/vendor_completions.d/ktlsd.fish",
}
WORDS: Final = {
    "LEVEL": LOG_LEVELS,
    "N|auto": ("auto",),
    "WORD|URL": ("letsencrypt", "staging"),
    "LIST": tuple(SUFFIXES),
}
"""Values to offer, by metavar."""


def files() -> dict[str, str]:
    """The text of each file by its path below share/."""
    scripts = completions(parsers(), WORDS)
    return {
        "man/man1/ktlsd.1": command_page(parsers(), __version__),
        "man/man5/ktlsd.toml.5": configuration_page(schema(), __version__),
        **{place: scripts[shell] for shell, place in COMPLETION_PLACES.items()},
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description="Make the man pages and the completion scripts.")
    arguments.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=REPOSITORY / "share")
    folder = arguments.parse_args().folder
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
