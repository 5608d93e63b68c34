"""Completion of the command line for bash, zsh and fish: pure.

Strategy: shtab makes the scripts from the parsers of the command line. It sees copies, joined as one parser with
commands, in which a metavar says what an option's value is: a file, a folder, or one of a few words.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Final

import shtab

SHELLS: Final = ("bash", "zsh", "fish")
_ACCOUNTS: Final = {
    "--user": {"bash": "_ktlsd_users", "zsh": "_users", "fish": "(__fish_complete_users)"},
    "--group": {"bash": "_ktlsd_groups", "zsh": "_groups", "fish": "(__fish_complete_groups)"},
}
"""The functions that name the accounts of the machine, by option and shell."""
_PREAMBLE: Final = {
    "bash": '_ktlsd_users() { compgen -u -- "$1"; }\n_ktlsd_groups() { compgen -g -- "$1"; }\n',
}
_VALUES: Final[Mapping[str, Any]] = {"FILE": shtab.FILE, "PATH": shtab.FILE, "DIR": shtab.DIRECTORY}


def completions(
    parsers: Mapping[str, argparse.ArgumentParser], words: Mapping[str, Sequence[str]]
) -> Mapping[str, str]:
    """The script for each shell, from the parsers of all commands by their names, the main one by the empty name.

    `words` are what values there are, by metavar; one such as `a|b` names its own. The parsers are changed.
    """
    for parser in parsers.values():
        for action in parser._actions:
            if isinstance(action.metavar, str):
                _describe(action, action.metavar, words)
    main = parsers[""]
    commands = main.add_subparsers()
    for name, parser in parsers.items():
        if name:
            help_line = (parser.description or "").partition(". ")[0].rstrip(".")
            commands.add_parser(name, parents=[parser], add_help=False, help=help_line)
    return {shell: shtab.complete(main, shell, preamble=_PREAMBLE.get(shell, "")) for shell in SHELLS}


def _describe(action: argparse.Action, metavar: str, words: Mapping[str, Sequence[str]]) -> None:
    accounts = next((_ACCOUNTS[name] for name in action.option_strings if name in _ACCOUNTS), None)
    if accounts is not None:
        action.complete = accounts  # type: ignore[attr-defined]
    elif metavar in _VALUES:
        action.complete = _VALUES[metavar]  # type: ignore[attr-defined]
    elif choices := words.get(metavar) or ("|" in metavar and metavar.split("|")):
        action.choices = choices
    # zsh takes what follows a colon for code.
    action.metavar = metavar.replace(":", " ")
